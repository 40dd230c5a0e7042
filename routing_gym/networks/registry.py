"""Networks by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, get_type_hints

from routing_gym.blocks import construction
from routing_gym.networks import parallel_nets as nets
from routing_gym.networks.cells import RoutedCells
from routing_gym.networks.experts import CONVS, DIVERSE, MnistExperts, omniglot_experts
from routing_gym.networks.fully_connected import fully_connected
from routing_gym.networks.lock import Lock
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.parallel_paths import ParallelPaths
from routing_gym.networks.pyramid import RoutedPyramid, pyramid_static
from routing_gym.networks.resnets import DIVERSE_3X3, resnet50_experts, resnet_skip
from routing_gym.networks.vit import VisionTransformer
from routing_gym.options import unexpected, unknown_name
from routing_gym.tasks.checking import image_shape, whole_number

Builder = Callable[..., RoutedNetwork]


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """Builder and description of a named network.

    Attributes:
        builder: Called as `builder(input_shape, num_classes, **options)`; with `num_blocks` if it takes a third
            positional argument, and with `num_tasks=...` if it has that; if it has `trunk_per_task`, with True where
            tasks are to share nothing. Its other keyword-only parameters are options. A `ValueError` names what it
            refuses: images too small, an option out of range.
        description: One line.
        source: Paper.
        input_shape: `(C, H, W)` of the images it was made for; None for no shape in particular.
        without: Parameters of the builder, which serves several names, that this one has not.
    """

    builder: Builder
    description: str
    source: str = ""
    input_shape: tuple[int, ...] | None = None
    without: tuple[str, ...] = ()

    @property
    def function(self) -> Callable[..., Any]:
        """Function or class that holds the builder's docstring and annotations."""
        return self.builder.func if isinstance(self.builder, partial) else self.builder

    @cached_property
    def hints(self) -> dict[str, Any]:
        """Types of the builder's parameters by name."""
        return get_type_hints(self.function.__init__ if isinstance(self.function, type) else self.function)  # type: ignore[misc]

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Parameters by name."""
        parameters = inspect.signature(self.builder).parameters
        return {name: parameter for name, parameter in parameters.items() if name not in self.without}

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The network's own options by name, without what the data or the agent decides or no text can say."""
        others = ("num_tasks", "trunk", "trunk_per_task")
        return {name: p for name, p in self.parameters.items() if p.kind is p.KEYWORD_ONLY and name not in others}

    @property
    def takes_num_blocks(self) -> bool:
        """Whether the number of blocks is an option."""
        kinds = [p.kind.name for p in self.parameters.values()]
        return "VAR_POSITIONAL" in kinds or kinds.count("POSITIONAL_OR_KEYWORD") > 2


ROSENBAUM, RAMACHANDRAN = "Rosenbaum et al. 2018", "Ramachandran and Le 2019"
OURS = "the problem routing_gym/Credit-v0"
MCGILL, WANG, TISSERA = "McGill and Perona 2017", "Wang et al., CoDiNet", "Tissera et al."
VISION, MENG = "Dosovitskiy et al. 2021", "Meng et al., AdaViT, 2022"
SMALL, LARGE, OMNIGLOT = (3, 32, 32), (3, 224, 224), (1, 105, 105)


def _layers(convolutions: bool, what: str, input_shape: tuple[int, ...], *without: str) -> NetworkSpec:
    return NetworkSpec(partial(fully_connected, convolutions), what, ROSENBAUM, input_shape, without)


def _transformer(skipping: bool, what: str, source: str, *without: str) -> NetworkSpec:
    builder = partial(VisionTransformer, skipping)
    return NetworkSpec(builder, f"Vision transformer{what}", source, SMALL, without)


def _experts(builder: Builder, kinds: Sequence[str], what: str, input_shape: tuple[int, ...]) -> NetworkSpec:
    description = f"{what} with layers of experts: {', '.join(dict.fromkeys(kinds))}"
    return NetworkSpec(partial(builder, experts=kinds), description, RAMACHANDRAN, input_shape)


def _pyramid(builder: Builder, what: str, *without: str) -> NetworkSpec:
    return NetworkSpec(builder, f"Multiscale pyramid{what}", MCGILL, SMALL, without)


def _skipping(depth: int, stages: tuple[int, ...], *, bottlenecks: bool = False) -> NetworkSpec:
    builder = partial(resnet_skip, bottlenecks, stages=stages, width=64 if bottlenecks else 16)
    description = f"ResNet-{depth}, each of its {sum(stages)} residual blocks a decision: skip (0) or run (1)"
    return NetworkSpec(builder, description, WANG, LARGE if bottlenecks else SMALL)


def _parallel(
    layout: nets.Layout, paths: int = 1, cross: nets.Cross = "connections", input_shape: tuple[int, ...] = SMALL
) -> NetworkSpec:
    builder = partial(ParallelPaths, layout, paths=paths, width=layout.width, hidden=layout.hidden, cross=cross)
    how = "" if paths == 1 else f", cross-{cross}" if layout.crossed else ", kept apart"
    description = f"{layout.name} as {paths} path{'s' if paths > 1 else ''}{how}"
    return NetworkSpec(builder, description, TISSERA, input_shape)


NETWORKS: dict[str, NetworkSpec] = {
    "mlp": _layers(False, "Routed fully connected layers on the pixels", (1, 8, 8), "routed_stages", "trunk_per_task"),
    "simple-convnet": _layers(
        True, "Four shared convolutional stages, then routed fully connected layers", SMALL, "trunk"
    ),
    "lock": NetworkSpec(Lock, "A combination lock of permutations: all to be learned is the route", OURS, (1, 1, 32)),
    "pyramid-chain": _pyramid(RoutedPyramid, ": columns in a chain, each of which may classify", "junctions"),
    "pyramid-tree": _pyramid(
        partial(RoutedPyramid, junctions=3), " whose early columns are followed by a left and a right one"
    ),
    "omniglot-diverse": _experts(omniglot_experts, DIVERSE, "A shared convolution", OMNIGLOT),
    "omniglot-convs": _experts(omniglot_experts, CONVS, "A shared convolution", OMNIGLOT),
    "omniglot-conv3": _experts(omniglot_experts, ("conv3",) * 7, "A shared convolution", OMNIGLOT),
    "omniglot-conv5": _experts(omniglot_experts, ("conv5",) * 7, "A shared convolution", OMNIGLOT),
    "mnist-experts": NetworkSpec(
        MnistExperts, "Three shared layers and one of experts, fully connected", RAMACHANDRAN, (1, 28, 28)
    ),
    "resnet50-diverse": _experts(resnet50_experts, DIVERSE_3X3, "ResNet-50", LARGE),
    "resnet50-conv3": _experts(resnet50_experts, ("conv3",) * 5, "ResNet-50", LARGE),
    "resnet32-skip": _skipping(32, (5, 5, 5)),
    "resnet74-skip": _skipping(74, (12, 12, 12)),
    "resnet110-skip": _skipping(110, (18, 18, 18)),
    "resnet50-skip": _skipping(50, (3, 4, 6, 3), bottlenecks=True),
    "vit": _transformer(False, " with routed feed-forward layers", VISION, "experts"),
    "vit-skip": _transformer(
        True, ", each attention and feed-forward block a decision: skip (0) or run (1)", MENG, "num_blocks"
    ),
    "basecnn": _parallel(nets.BASE),
    "widecnn": _parallel(dataclasses.replace(nets.BASE, name="WideCNN", width=64)),
    "deepcnn": _parallel(nets.DEEP),
    "sebasecnn": _parallel(dataclasses.replace(nets.BASE, name="SEBaseCNN", squeezed=32)),
    "sedeepcnn": _parallel(dataclasses.replace(nets.DEEP, name="SEDeepCNN", squeezed=4)),
    "basecnn-3": _parallel(dataclasses.replace(nets.BASE, crossed=False), 3),
    "crstitch2": _parallel(nets.BASE, 2),
    **{
        f"{layout.name.lower().replace('-', '')}-{paths}-{short}": _parallel(layout, paths, cross)
        for layout in (nets.BASE, nets.RESNET20, nets.RESNET32)
        for short, cross in nets.CROSSES.items()
        for paths in (2, 3, 4)
    },
    "resnet18-2-cc": _parallel(nets.RESNET18, 2, input_shape=LARGE),
    "resnet50-2-cc": _parallel(nets.RESNET50, 2, input_shape=LARGE),
    "vgg13-2-cc": _parallel(nets.VGG13, 2, input_shape=LARGE),
    **{
        f"pyramid-static-{n}": _pyramid(partial(pyramid_static, n), f" of {n} columns: nothing to choose")
        for n in range(1, 9)
    },
    **{
        f"cells-{c}x{f}": NetworkSpec(
            partial(RoutedCells, cells=c, filters=f), f"{c} routed cells, {f} channels at first", RAMACHANDRAN, SMALL
        )
        for c, f in ((6, 32), (6, 64), (12, 32))
    },
}


def claim(known: dict[str, Any], kind: str, name: str, thing: Any) -> None:
    """Enter a thing under a name; one that was defined again, as in a notebook, replaces itself, others are refused."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a {kind} is text that is not empty, got {name!r}")
    if not callable(thing):
        raise ValueError(f"a {kind} is something that can be called, got {thing!r}")
    other = known.get(name)
    if other is not None and _origin(other) != _origin(thing):
        raise ValueError(f"the name {name!r} belongs to {'.'.join(_origin(other))} already")
    known[name] = thing


def _origin(thing: Any) -> tuple[str, str]:
    return thing.__module__, getattr(thing, "__qualname__", type(thing).__qualname__)


def register_network(name: str, builder: Builder) -> None:
    """Enter a network under a name, for `make_network`, environments (`network=name`) and every command.

    Args:
        name: Not that of another network.
        builder: Called as `builder(input_shape, num_classes, num_blocks, num_tasks=..., **options)`, see `NetworkSpec`;
            its keyword-only parameters are options of the environments that use it, and its docstring's first line is
            the description.
    """
    claim({known: spec.function for known, spec in NETWORKS.items()}, "network", name, builder)
    NETWORKS[name] = NetworkSpec(builder, (inspect.getdoc(builder) or "").partition("\n")[0])


@construction()
def make_network(
    name: str,
    *,
    num_tasks: int,
    num_classes: int,
    input_shape: Sequence[int] | None = None,
    num_blocks: int | Sequence[int] | None = None,
    **options: Any,
) -> RoutedNetwork:
    """Build a network by name.

    Args:
        name: One of `NETWORKS`.
        num_tasks: Number of tasks.
        num_classes: Width of the logits.
        input_shape: `(C, H, W)` of an image; the shape the network was made for by default.
        num_blocks: Blocks per decision, or a number for each layer; one per task by default.
        options: The network's own options.

    Raises:
        ValueError: An unknown name or option, or a value the network refuses.
    """
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(unknown_name("network", name, sorted(NETWORKS)))
    spec = NETWORKS[name]
    shape = spec.input_shape if input_shape is None else image_shape(input_shape)
    if shape is None:
        raise ValueError(f"network {name!r} is made for images of no shape in particular: give input_shape=(C, H, W)")
    num_tasks, num_classes = whole_number("num_tasks", num_tasks), whole_number("num_classes", num_classes)
    if not spec.takes_num_blocks and num_blocks not in (None, num_tasks):  # the default says nothing
        raise ValueError(
            f"network {name!r} has no num_blocks to choose: its own options ({', '.join(spec.options)}) say how large "
            f"it is, got num_blocks={num_blocks!r}"
        )
    blocks = [num_tasks if num_blocks is None else num_blocks] if spec.takes_num_blocks else []
    takes_any = any(p.kind is p.VAR_KEYWORD for p in spec.parameters.values())
    if not takes_any and (unknown := sorted(options.keys() - spec.parameters)):
        raise ValueError(str(unexpected(f"network {name!r}", unknown[0], spec.options)))
    tasks = {"num_tasks": num_tasks} if takes_any or "num_tasks" in spec.parameters else {}
    try:
        return spec.builder(shape, num_classes, *blocks, **tasks, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"network {name!r}: {error}") from error
