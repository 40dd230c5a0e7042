"""Counting multiply-accumulates."""

from __future__ import annotations

import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from routing_gym.blocks.fast.products import PADS

aten = torch.ops.aten
ONE_AT_A_TIME = threading.RLock()
"""Held while something is changed that a process has one of: fused attention, PyTorch's global generator. One lock for
all: of two, threads could wait for each other for ever."""


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Let modules be in eval mode meanwhile; afterwards every part is in the mode it was in."""
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def plain_attention() -> Iterator[None]:
    """Do without PyTorch's fused attention for inference: one operation, in which nothing can be counted or traced.

    A process has it or has it not, so that threads that come here wait for one another.
    """
    with ONE_AT_A_TIME:
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def with_gradients() -> Iterator[None]:
    """Keep gradients meanwhile, also within `torch.no_grad` and `torch.inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def construction() -> Iterator[None]:
    """Make what is to be trained, on the CPU: whatever PyTorch's default device is, and also in inference mode.

    First weights and data are drawn by generators of the CPU; what is made is moved afterwards.
    """
    with with_gradients(), ExitStack() as stack:
        if torch.get_default_device().type != "cpu":  # else it would cost time, and be seen by what is traced
            stack.enter_context(torch.device("cpu"))
        yield


def probe(module: nn.Module, run: Callable[[], Any]) -> Any:
    """Call `run` with a module in eval mode and without a graph."""
    with eval_mode(module), torch.no_grad():
        return run()


def count_macs(module: nn.Module, *inputs: Any) -> float:
    """Multiply-accumulates of a module's products of matrices and convolutions.

    Recurrent layers count every time step and attention its products of queries, keys and values; a bilinear layer uses
    every weight once. Element-wise work, normalisation and looking up an embedding count nothing. The module is run
    once in eval mode; the count is of all rows of its inputs, as a rule a batch of one.

    Warns:
        UserWarning: A part with a matrix of parameters counts nothing, see `counting`.
    """
    with counting(module) as counted:
        probe(module, lambda: module(*inputs))
        return counted()


_KNOWN: dict[Any, tuple[float, tuple[int, ...]]] = {}


def cost_of(module: nn.Module, *inputs: Any, known: dict[Any, Any] | None = None) -> tuple[float, tuple[int, ...]]:
    """Multiply-accumulates of a module for one row, see `count_macs`, and the shape of its output, without batch axis.

    Modules that are alike, copies of each other but for the values of their tensors, are run once: in a process where
    all their parts are PyTorch's or this library's, for the same `known`, which is added to, otherwise.
    """
    known = {} if known is None else known
    if any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        probe(module, lambda: module(*inputs))
    if all(type(part).__module__.startswith(("torch.nn.modules.", "routing_gym.")) for part in module.modules()):
        known = _KNOWN
    try:
        form = _form((module, inputs))
    except (TypeError, RecursionError):  # nobody knows what it is like
        form, known = (), {}
    if form not in known:
        with counting(module) as counted:
            output = probe(module, lambda: module(*inputs))
            known[form] = counted(), tuple(output.shape[1:])
    return known[form]


def _form(value: Any) -> Any:
    """Key that is equal for modules which differ but in the values of their tensors."""
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, nn.Module):
        nothing = ("training", *(name for name, own in vars(value).items() if isinstance(own, dict) and not own))
        return type(value), _form({name: own for name, own in vars(value).items() if name not in nothing})
    if isinstance(value, dict):
        return dict, _form([*value, *value.values()])
    if isinstance(value, list | tuple | set):
        return type(value), *map(_form, value)
    if isinstance(value, int | float | str | type | FunctionType | None):
        return value
    raise TypeError(f"{type(value).__name__} says nothing of what it holds")


@contextmanager
def counting(module: nn.Module) -> Iterator[Callable[[], float]]:
    """Count the multiply-accumulates of all that runs meanwhile; yields a function that tells how many so far.

    Warns:
        UserWarning: In the end, of each part of the module that has run and counted nothing although it holds a matrix
            of parameters, and is neither a norm nor an embedding by name.
    """
    counter = FlopCounterMode(display=False, custom_mapping=OTHER_PRODUCTS)
    began: dict[nn.Module, float] = {}
    spent: dict[nn.Module, float] = defaultdict(float)

    def count() -> float:
        return counter.get_total_flops() / 2

    def before(part: nn.Module, inputs: Any) -> None:
        began[part] = count()

    def after(part: nn.Module, inputs: Any, output: Any) -> None:
        spent[part] += count() - began[part]

    watched = {part: name for name, part in module.named_modules() if _holds_a_matrix(part)}
    hooks = [hook for part in watched
             for hook in (part.register_forward_pre_hook(before), part.register_forward_hook(after))]  # fmt: skip
    padded = PADS.set(False)
    try:
        with counter, plain_attention():
            yield count
    finally:
        PADS.reset(padded)
        for hook in hooks:
            hook.remove()
    for part in (part for part, macs in spent.items() if not macs):
        warnings.warn(
            f"{watched[part] or 'the module itself'} ({type(part).__name__}) holds a matrix of parameters, but no "
            "multiply-accumulate of it can be counted, so that nobody is charged for them: what can be counted are "
            "torch's products of matrices, convolutions, attention and recurrent layers",
            stacklevel=3,
        )


def _holds_a_matrix(part: nn.Module) -> bool:
    """Whether a module has a parameter of its own with at least two axes; no norm, embedding or holder of others'."""
    matrices = (sum(size > 1 for size in parameter.shape) > 1 for parameter in part.parameters(recurse=False))
    return not re.search("Norm|Embedding|ParametrizationList", type(part).__name__) and any(matrices)


# Operations that PyTorch's own counter leaves out. It hands over shapes of tensors, and wants two for each product.
OTHER_PRODUCTS: dict[Any, Callable[..., int]] = {
    # One layer of an LSTM in one direction: the batch of all time steps by both of its matrices.
    aten.mkldnn_rnn_layer: lambda x, first, second, *_, **__: 2 * prod(x[:-1]) * (prod(first) + prod(second)),
    # All layers and directions: the batch of all time steps by every matrix.
    aten._cudnn_rnn: lambda x, weights, *_, **__: 2 * prod(x[:-1]) * sum(prod(w) for w in weights if len(w) > 1),
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._trilinear: lambda x, weight, *_, **__: 2 * x[0] * prod(weight),
    aten.mv: lambda matrix, *_, **__: 2 * prod(matrix),
    aten.addmv: lambda added, matrix, *_, **__: 2 * prod(matrix),
    aten.addbmm: lambda added, first, second, *_, **__: 2 * prod(first) * second[-1],
    aten.dot: lambda vector, *_, **__: 2 * prod(vector),
    aten.vdot: lambda vector, *_, **__: 2 * prod(vector),
    aten._grouped_mm: lambda rows, matrices, *_, **__: 2 * prod(rows) * matrices[-1],
}
