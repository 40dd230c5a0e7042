"""Routing some layers of a module the user already has."""

from __future__ import annotations

import copy
import inspect
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from routing_gym.blocks import (
    FunctionBlocks,
    ModuleBlocks,
    allow_small_groups,
    construction,
    conv2d,
    counting,
    eval_mode,
    plain,
    plain_attention,
    probe,
    static_copy,
    subsample_first,
)
from routing_gym.networks.actions import Action
from routing_gym.networks.banked import Deployable, blocks_per_bank, one_after_the_other
from routing_gym.networks.layers import OfSeveral, blocks_like, channels_of
from routing_gym.networks.state import Activation
from routing_gym.tasks.checking import image_shape


@construction()
def route(
    module: nn.Module,
    layers: Sequence[str],
    num_blocks: int | Sequence[int],
    *,
    input_shape: Sequence[int] | None = None,
) -> RoutedModule:
    """Network in which chosen layers of a module are decisions, each offering `num_blocks` blocks of its kind.

    A copy of the module on the CPU is traced (`torch.fx`), cut at the named layers, and run piece by piece; tensors
    that are needed later (the shortcut of a residual block, say) wait together with the layer's input. The first block
    of each layer starts from the layer's own weights, the others are drawn anew by their `reset_parameters`; what is
    frozen (`requires_grad=False`) stays so. A submodule without routed layers is called as it is where it cannot be
    traced, because it asks `self.training`, say. 1x1 convolutions with a stride subsample first. Of layers that give
    several tensors, as recurrent ones do, all are the chosen block's. A router sees a layer's input averaged over all
    axes but the channels': the last of sequences and of images turned for a linear layer.

    Args:
        module: Takes `(B, C, H, W)` images, gives `(B, num_classes)` logits; its way through the layers must not
            depend on the values of the input.
        layers: Names of submodules as `named_modules()` gives them, in any order; each is called once.
        num_blocks: Blocks per layer, k; or a number for each of `layers`.
        input_shape: `(C, H, W)` of an image. May be left out where the module's first layer is linear: any image of
            as many pixels is taken then.

    Raises:
        ValueError: An unknown layer name, a layer that is not called exactly once, with one tensor, or does not give
            tensors with a row per image, a module that cannot be traced, one of another type than the default, or an
            input shape it does not take.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"route() takes a torch.nn.Module, got {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        how = "torch.jit" if isinstance(module, torch.jit.ScriptModule) else "torch.compile"
        raise ValueError(f"the module is compiled by {how}: route it before that")
    if not isinstance(layers, Sequence | set) or isinstance(layers, str) or not all(isinstance(n, str) for n in layers):
        raise ValueError(f"layers must be a list of names of submodules, got {layers!r}")
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers must name every layer once, got {list(layers)}")
    known = dict(module.named_modules())
    unknown = [name for name in layers if name not in known or not name]
    if unknown or not layers:
        raise ValueError(f"layers must name submodules of {sorted(filter(None, known))}, got {list(layers)}")
    for name in layers:
        own = set(map(id, known[name].parameters()))
        for other, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) in own and not other.startswith(f"{name}."):
                raise ValueError(f"layer {name!r} shares parameters with {other!r}: untie them, blocks would part them")
    if input_shape is None:
        first = next((part for part in module.modules() if list(part.parameters(recurse=False))), None)
        if not isinstance(first, nn.Linear):
            raise ValueError("input_shape=(C, H, W) is needed where the module's first layer is not linear")
        return RoutedModule(module, tuple(layers), num_blocks, (1, 1, first.in_features), any_shape=True)
    return RoutedModule(module, tuple(layers), num_blocks, image_shape(input_shape))


PROBE_ROWS = 2
"""Two, because a batch of one cannot tell a row per image from a value that all images share; and once one more."""


class _Tracer(fx.Tracer):
    """Traces through all but `layers`, PyTorch's modules and, unless `deep`, all modules, where they hold none."""

    def __init__(self, layers: Sequence[str] = (), deep: bool = True) -> None:  # unpickling calls it without
        super().__init__()
        self.layers, self.deep, self._thread = layers, deep, threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.layers:
            return True
        if any(name.startswith(f"{module_qualified_name}.") for name in self.layers):
            return False
        return not self.deep or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:  # while one traces all modules of the process are called this way
            return forward(*args, **kwargs)
        # PyTorch's own code asks how long a sequence is, which a trace cannot tell.
        forward = partial(_encoded, m) if type(m) is nn.TransformerEncoder else forward
        return super().call_module(m, forward, args, kwargs)


def _encoded(
    encoder: nn.TransformerEncoder, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None
) -> Any:
    """Output of an encoder's layers one after the other, without looking at values."""
    masks = {"src_mask": mask, "src_key_padding_mask": src_key_padding_mask, "is_causal": is_causal or None}
    given = {name: value for name, value in masks.items() if value is not None}
    for layer in encoder.layers:
        src = layer(src, **given)
    return src if encoder.norm is None else encoder.norm(src)


def _besides(module: nn.Module) -> str:
    """What to add to a message about a module whose forward takes more than images: a trace has all of it as input."""
    others = [*inspect.signature(module.forward).parameters][1:]
    return f"; it must take images alone: put it into a module that leaves out {', '.join(others)}" if others else ""


def _trace(module: nn.Module, layers: Sequence[str]) -> fx.Graph:
    """Graph of a module; one that cannot be traced or computes something else while it is trained is refused."""
    failure: Exception | None = None
    with eval_mode(module), torch.enable_grad(), plain_attention():  # as it will be trained: code may ask for it
        for deep in (True, False):
            try:
                trains, judges = (_Tracer(layers, deep).trace(module.train(mode)) for mode in (True, False))
            except Exception as error:
                failure = error
                continue
            if str(trains) == str(judges):
                return trains
            failure = None
    if failure is not None:
        raise ValueError(
            f"the module cannot be traced by torch.fx, so it cannot be routed: {failure}: move what it cannot follow "
            "into a submodule without routed layers or route the one that holds the layer: both are called as they are"
            + _besides(module)
        ) from failure
    raise ValueError(
        "code of a module that holds routed layers asks whether it is being trained, or draws random numbers, which a "
        "trace would freeze: move "
        "it into a submodule without routed layers, whose forward may ask, or use one of PyTorch's: torch.nn.Dropout "
        "instead of torch.nn.functional.dropout(..., self.training), say"
    )


class RoutedModule(Deployable):
    """A traced module, cut at its routed layers; made by `route`. What runs between these counts as `stem_macs`.

    Attributes:
        module: The traced copy without the routed layers.
        banks: Blocks that stand where the layer of each decision was.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[str],
        num_blocks: int | Sequence[int],
        input_shape: tuple[int, ...],
        any_shape: bool = False,
    ) -> None:
        for name in layers:
            if not any(True for _ in module.get_submodule(name).parameters()):
                raise ValueError(f"layer {name!r} has no parameters: all its blocks would be the same; route another")
        if scripted := [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]:
            raise ValueError(f"{scripted[0]} is compiled by torch.jit: route it before that")
        count_of = dict(zip(layers, blocks_per_bank(num_blocks, [1] * len(layers)), strict=True))
        wanted = torch.get_default_dtype()
        for name, parameter in module.named_parameters():
            if is_lazy(parameter):
                raise ValueError(f"{name} has no shape yet: call the module once on images, then route it")
            if parameter.is_meta or parameter.dtype != wanted:
                raise ValueError(
                    f"expected a module of {wanted} parameters that hold values, got {name} of {parameter.dtype} on "
                    f"{parameter.device}: call .to({wanted}) first, and load its weights"
                )
        try:
            module = subsample_first(copy.deepcopy(module).cpu())
        except (RuntimeError, TypeError) as error:  # of the old weight_norm, or of a lock that it holds, say
            reason = str(error).splitlines()[0]
            raise ValueError(f"the module cannot be copied, as blocks are: {reason}") from error
        graph = _trace(module, layers)
        for node in graph.nodes:
            if node.target in (torch.conv2d, functional.conv2d):
                node.target = conv2d
        for node in graph.nodes:
            if node.op == "get_attr" and (of := [name for name in layers if str(node.target).startswith(f"{name}.")]):
                raise ValueError(
                    f"{node.target} is read without a call of layer {of[0]!r}, whose blocks would part it: route the "
                    "module that does so"
                )
        traced = fx.GraphModule(module, graph)
        nodes = list(graph.nodes)
        cuts = [i for i, node in enumerate(nodes) if node.op == "call_module" and node.target in layers]
        names = [str(nodes[i].target) for i in cuts]
        if sorted(names) != sorted(layers):
            raise ValueError(
                f"every routed layer must be called exactly once; {sorted(layers)} were called as {names}: where one "
                f"is used without a call, or called again, route the module that holds it{_besides(module)}"
            )

        record = _Recorder(traced)
        images = torch.randn(PROBE_ROWS, *input_shape, generator=torch.Generator().manual_seed(0))
        try:
            with counting(traced) as record.counted:
                among_more = probe(traced, lambda: record.run(torch.cat([images, images[:1]])))
                logits = probe(traced, lambda: record.run(images))
            wanted_logits = probe(module, lambda: module(images))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"the module takes no images of shape (B, {', '.join(map(str, input_shape))}): {reason}; "
                "input_shape=(C, H, W) must be that of the images it was made for, and it must take any numbers, such "
                f"as the normal ones it is tried with (tokens: images.long().clamp(0, size - 1)){_besides(module)}"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != PROBE_ROWS:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"the module must return logits of shape (B, num_classes), got {got} for B = {PROBE_ROWS}")
        if logits.isnan().any():
            raise ValueError("the module gives nan for normal numbers: are its weights numbers?")
        if not torch.allclose(logits, among_more[:PROBE_ROWS], rtol=1e-4, atol=1e-5):
            raise ValueError(
                "an image gets other logits when another is added to its batch, or every time: a routed module must "
                "look at each image alone when it is judged, and draw no random numbers"
            )
        if not torch.allclose(logits, wanted_logits, rtol=1e-4, atol=1e-5):
            raise ValueError(
                "traced by torch.fx the module gives another output: hooks on it, and a forward that was put on it "
                "when it was there already, are not seen: write them into the forward of a module that holds it"
            )
        routed: list[FunctionBlocks] = []
        carried: list[list[fx.Node]] = []
        for cut, name in zip(cuts, names, strict=True):
            node, layer = nodes[cut], traced.get_submodule(name)
            inner = node.args[0] if node.args else None
            if not isinstance(inner, fx.Node) or len(node.args) > 1 or node.kwargs:
                raise ValueError(
                    f"the routed layer {name!r} must be called with its input and nothing else: put it into a module "
                    "that takes one tensor, and route that"
                )
            # What was computed and is read behind the layer waits together with the layer's input.
            later, computed = set(nodes[cut + 1 :]), [node for node in nodes[:cut] if node.op != "get_attr"]
            read = [node for node in computed if node is not inner and not later.isdisjoint(node.users)]
            carried.append([inner, *read])
            if unfit := [node.name for node in carried[-1] if not record.has_rows(node)]:
                raise ValueError(
                    f"at layer {name!r} values wait that are not tensors with a row per image: {unfit}; if they are "
                    "sequences with their steps first, use batch_first=True"
                )
            if not record.has_rows(node):
                try:
                    layer = OfSeveral(layer, torch.zeros(record.shapes[inner]))
                except ValueError:
                    raise ValueError(
                        f"the routed layer {name!r} ({type(layer).__name__}) must give tensors with a row per image, "
                        f"got {record.got[node]}: put it into a module that does, and route that"
                    ) from None
            routed.append(blocks_like(layer, count_of[name], record.shapes[inner][1:]))
        cut_out = {nodes[cut] for cut in cuts}
        stem_macs = sum(macs for node, macs in record.macs.items() if node not in cut_out) / PROBE_ROWS
        axes = [channels_of(traced.get_submodule(name)) for name in names]
        widths = [record.shapes[inner][axis] for (inner, *_), axis in zip(carried, axes, strict=True)]
        decisions = one_after_the_other(names, [blocks.macs for blocks in routed], widths)
        shape = None if any_shape else input_shape
        super().__init__(decisions, num_classes=logits.shape[1], input_shape=shape, stem_macs=stem_macs)
        for name in names:
            traced.set_submodule(name, nn.Identity())
        self.module = traced
        allow_small_groups(self.module)
        self.banks = nn.ModuleList(routed)
        self.block_counts = tuple(blocks.num_blocks for blocks in routed)
        self.numbers_per_image = math.prod(input_shape) if any_shape else None
        # Positions, not nodes: they stay right when the module is copied together with its graph.
        self._axes, self._cuts, self._carried = axes, cuts, [[*map(nodes.index, kept)] for kept in carried]
        # The first blocks are the module's own layers.
        plan = torch.zeros(PROBE_ROWS, len(self.decisions), dtype=torch.int64)
        (own,) = probe(self, lambda: self.traverse(self.stem(images, plan[:, 0]), plan, plan[:, 0]))
        if not torch.allclose(plain(own), logits, rtol=1e-4, atol=1e-5):
            raise ValueError("routed through its own layers the module gives another output: it cannot be cut there")

    def _run_piece(self, number: int, values: dict[int, Tensor], image: Tensor | None = None) -> Activation:
        """Activation at the next routed layer, or at the end, after the nodes before it have run."""
        assert isinstance(self.module, fx.GraphModule)
        nodes = list(self.module.graph.nodes)
        interpreter = fx.Interpreter(self.module, garbage_collect_values=False)
        interpreter.env = {nodes[position]: value for position, value in values.items()}
        interpreter.args_iter = iter(() if image is None else (image,))
        for node in nodes:
            if node.op == "get_attr":  # parameters and buffers the module's own code reads, wherever it does
                interpreter.env[node] = interpreter.run_node(node)
        start, end = [-1, *self._cuts][number] + 1, [*self._cuts, len(nodes)][number]
        for node in nodes[start:end]:
            if node.op == "output":
                return (interpreter.env[node.args[0]],)
            interpreter.env[node] = interpreter.run_node(node)
        return tuple(interpreter.env[nodes[position]] for position in self._carried[number])

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Activation at the first routed layer."""
        return self._run_piece(0, {}, images)

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Activation at the next routed layer, or at the end, after the chosen blocks of this one have run."""
        kept = [plain(part) for part in activation]
        values = dict(zip(self._carried[decision], kept, strict=True))
        bank = self.bank(decision)
        first, y = bank.blocks[0] if isinstance(bank, ModuleBlocks) else None, bank(kept[0], action)
        values[self._cuts[decision]] = first.apart(y) if isinstance(first, OfSeveral) else y
        return self._run_piece(decision + 1, values)

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Observation `(r, width)`: the layer's input, averaged over all axes but the rows' and the channels'."""
        x = plain(activation[0])
        over = {*range(1, x.ndim)} - {self._axes[decision] % x.ndim}
        return x.mean(tuple(over)) if over else x

    def static_route(self, route: Sequence[int], task: int) -> list[nn.Module]:
        """Traced module with the chosen blocks in their places."""
        module = static_copy(self.module)
        for decision, choice in enumerate(route):
            layer = [part.layer if isinstance(part, OfSeveral) else part for part in
                     self.bank(decision).as_modules(choice)]  # fmt: skip
            module.set_submodule(self.decisions[decision].name, layer[0] if len(layer) == 1 else nn.Sequential(*layer))
        return [module]


class _Recorder(fx.Interpreter):
    """Runs a traced module and notes the shape and the cost of every node, and in each run the length of its tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.lengths: dict[fx.Node, list[int]] = defaultdict(list)
        self.got: dict[fx.Node, str] = {}
        self.macs: dict[fx.Node, float] = {}
        self.counted: Callable[[], float] = float

    def has_rows(self, node: fx.Node) -> bool:
        """Whether a node gives one tensor with a row per image."""
        return self.lengths[node] == [PROBE_ROWS + 1, PROBE_ROWS]

    def run_node(self, n: fx.Node) -> Any:
        before = self.counted()
        result = super().run_node(n)
        self.macs[n] = self.counted() - before
        self.got[n] = f"a {type(result).__name__}"
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
            self.lengths[n] += self.shapes[n][:1]
            self.got[n] = f"shape {self.shapes[n]} for {PROBE_ROWS} images"
        return result
