"""A pretend GPU: tensors that say `cuda:0` and hold values on the CPU, for tests of what nobody here has a GPU for.

What CUDA refuses is refused: operands on two devices, generators of another device, numpy's view of memory that is not
the host's. What makes the host wait, or launches a kernel, is counted by the line of the library that asked for it.
Numbers are those of the CPU; how long a GPU would take, nobody learns here.
"""

import collections
import contextlib
import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

import routing_gym

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
PLACES = [str(Path(routing_gym.__file__).parent), str(Path(__file__).parents[1] / "agents")]

NO_KERNEL = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "detach",
    "alias", "as_strided", "split", "split_with_sizes", "unbind", "_reshape_alias", "diagonal", "unfold", "set_",
    "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "is_pinned",
}  # fmt: skip
"""Operations that only look at memory, or take some."""
WAITS = {
    "_local_scalar_dense", "item", "nonzero", "masked_select", "unique2", "_unique2", "unique_dim", "equal", "bincount",
    "unique_consecutive", "is_nonzero", "_unique",
}  # fmt: skip
"""Operations whose result, or its size, the host has to know."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
MOVES = {"copy_", "_to_copy", "lift_fresh", "item", "_local_scalar_dense", "set_", "is_same_size"}
"""Operations that may have operands on two devices."""
NO_SCALARS = {"cat", "stack", "index_select", "gather", "scatter", "index_add", "index_copy", "mm", "addmm", "bmm",
              "baddbmm", "convolution", "embedding", "searchsorted", "_grouped_mm", "dot"}  # fmt: skip
"""Operations that take no number from the host either."""
MADE = {"arange", "zeros", "ones", "empty", "full", "empty_strided", "scalar_tensor", "eye", "linspace", "rand",
        "randn", "normal", "empty_memory_format", "_efficientzerotensor"}  # fmt: skip
RANDOM_ORDER = {"index_add", "index_add_", "scatter_add", "scatter_add_", "embedding_dense_backward", "_embedding_bag",
                "_embedding_bag_dense_backward"}  # fmt: skip
"""Sums of floating-point numbers that CUDA adds up in any order, unless deterministic algorithms are asked for."""
REFUSED_IF_DETERMINISTIC = {
    "cumsum", "cumsum_", "histc", "bincount", "kthvalue", "median", "put_", "adaptive_max_pool2d_backward",
    "max_pool3d_with_indices_backward", "_adaptive_avg_pool2d_backward", "avg_pool3d_backward", "nll_loss2d_forward",
    "reflection_pad2d_backward", "replication_pad2d_backward", "upsample_bilinear2d_backward",
}  # fmt: skip
"""What `torch.use_deterministic_algorithms(True)` refuses on CUDA, of floating-point numbers (its documentation)."""


class MixedDevicesError(RuntimeError):
    """What CUDA would have refused."""


class Counts:
    """What has happened since counting began, by operation and line.

    Attributes:
        waits: Of the host for the device, copies from pageable memory among them.
        launches: Of kernels; a product of groups in float32 is one per group.
        unordered: Sums that come out differently every time; `refused`, what deterministic algorithms refuse.
    """

    def __init__(self):
        self.counting, self.capturing = False, None
        self.inside, self.moving, self.waiting = False, False, True
        self.clear()

    def clear(self):
        self.waits, self.launches, self.unordered, self.refused = (collections.Counter() for _ in range(4))

    def note(self, kind, what, times=1):
        if kind == "waits" and self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what} ({_line()})")
        if self.counting:
            getattr(self, kind)[what, _line()] += times


COUNTS = Counts()


def _line():
    """Line of the library that is being run; of a backward pass, nobody's."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if any(name.startswith(place) for place in PLACES):
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class OnDevice(torch.Tensor):
    """A tensor on the pretend GPU, around one on the CPU."""

    @staticmethod
    def __new__(cls, held):
        form = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), layout=held.layout, device="cpu", **form)
        made.held = held
        return made

    def __init__(self, held):
        pass

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return 0

    def __repr__(self):
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})

    def _refuse(self, *args, **kwargs):
        raise TypeError(f"can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first ({_line()})")

    numpy = __array__ = _refuse

    def tolist(self):
        COUNTS.note("waits", "tolist")
        return self.held.tolist()

    def data_ptr(self):
        return self.held.data_ptr()

    def record_stream(self, stream):
        pass

    def __reduce_ex__(self, protocol):
        return self.held.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            with torch.no_grad():
                copied = OnDevice(self.held.clone())
            parameter = isinstance(self, torch.nn.Parameter) or getattr(self, "_is_param", False)
            copied = torch.nn.Parameter(copied, self.requires_grad) if parameter else copied
            memo[id(self)] = copied if parameter else copied.requires_grad_(self.requires_grad)
        return memo[id(self)]


def _is_device(where):
    return where is not None and torch.device(where).type == "cuda"


def _held(value):
    return value.held if isinstance(value, OnDevice) else value


def _leaves(value, into=None):
    """What arguments or results consist of: `torch.utils._pytree` knows more kinds, at half the time of the tests."""
    into = [] if into is None else into
    if isinstance(value, list | tuple):
        for of in value:
            _leaves(of, into)
    elif isinstance(value, dict):
        for of in value.values():
            _leaves(of, into)
    else:
        into.append(value)
    return into


def _mapped(change, value):
    """Arguments or results with everything in them changed."""
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)([_mapped(change, of) for of in value])
    return {key: _mapped(change, of) for key, of in value.items()} if isinstance(value, dict) else change(value)


def _dispatch(func, args, kwargs):
    """One operation: refused, counted, and done on the CPU."""
    name, flat = func._schema.name.split("::")[1], _leaves((args, kwargs))
    there = [x for x in flat if isinstance(x, OnDevice)]
    here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice)]
    where = kwargs.get("device")
    comes_back = name == "_to_copy" and there and where is not None and not _is_device(where)
    if comes_back and COUNTS.inside and not COUNTS.moving:
        # Part of an operation that is written in others, which asks for the device it believes to be on.
        kwargs, where, comes_back = {key: value for key, value in kwargs.items() if key != "device"}, None, False
    if not there and not _is_device(where):
        out = func(*args, **kwargs)
        made = COUNTS.inside and not here and isinstance(out, torch.Tensor) and where is not None and name in MADE
        if made:
            COUNTS.note("launches", name)
        return OnDevice(out) if made else out
    if there and here and name not in MOVES:
        _check_mixed(name, args, here)
    _count(name, args, kwargs, there, where)
    kwargs = {key: CPU if key == "device" and _is_device(value) else value for key, value in kwargs.items()}
    kwargs.pop("pin_memory", None)
    # While a graph is captured nothing is done to memory that was there before.
    taken = COUNTS.capturing.taken if COUNTS.capturing is not None and func._schema.is_mutable else _held
    out = func(*_mapped(taken, args), **_mapped(taken, kwargs))
    if name == "copy_" and not isinstance(args[0], OnDevice):
        return args[0]
    if comes_back or name in ("_local_scalar_dense", "item", "equal", "is_same_size"):
        return out
    wrapped = _mapped(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) else x, out)
    if COUNTS.capturing is not None:
        COUNTS.capturing.note(func, args, kwargs, wrapped)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


class Graph:
    """What `torch.cuda.CUDAGraph` is: operations in their order, done again on the same memory when it is replayed."""

    def __init__(self):
        self.entries, self.generators, self.memory = [], [], set()

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def pool(self):
        return self.memory

    def note(self, func, args, kwargs, kept):
        """Note an operation, and the memory that it has taken."""
        self.entries.append((func, args, kwargs, kept))
        there = {_memory(x) for x in _leaves((args, kwargs)) if isinstance(x, OnDevice)}
        self.memory |= {_memory(x) for x in _leaves(kept) if isinstance(x, OnDevice)} - there

    def taken(self, value):
        """What an operation that writes is given: memory of the graph's own, or a copy."""
        own = isinstance(value, OnDevice) and _memory(value) in self.memory
        return value.held if own else value.held.clone() if isinstance(value, OnDevice) else value

    @contextlib.contextmanager
    def capture(self, pool):
        self.memory |= set(pool)
        states = [generator.get_state() for generator in self.generators]
        COUNTS.capturing = self
        try:
            yield
        finally:
            COUNTS.capturing = None
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)

    def replay(self):
        for func, args, kwargs, kept in self.entries:
            found = func(*_mapped(_held, args), **_mapped(_held, kwargs))
            for old, new in zip(_leaves(kept), _leaves(found), strict=True):
                # What looks at the same memory, or was written to, is there already.
                if isinstance(old, OnDevice) and not func._schema.is_mutable and old.held.data_ptr() != new.data_ptr():
                    old.held.copy_(new)


def _memory(x):
    return x.held.untyped_storage().data_ptr()


def _check_mixed(name, args, here):
    """Refuse operands on two devices, as CUDA does: numbers without axes may come from the host, and indices may."""
    if name in INDEXING and isinstance(args[0], OnDevice):
        if any(isinstance(index, torch.Tensor) and not isinstance(index, OnDevice) for index in args[1]):
            COUNTS.note("waits", f"{name} by an index on the host")
        refused = len(args) > 2 and not isinstance(args[2], OnDevice) and args[2].ndim > 0
    else:
        refused = name in INDEXING or name in NO_SCALARS or any(x.ndim > 0 for x in here)
    if refused:
        raise MixedDevicesError(f"{name}: expected all tensors to be on one device, found cuda:0 and cpu ({_line()})")


def _count(name, args, kwargs, there, where):
    """Note what an operation costs."""
    to_host = (name == "_to_copy" and there and where is not None and not _is_device(where)) or (
        name == "copy_" and not isinstance(args[0], OnDevice)
    )
    from_host = (name == "_to_copy" and not there) or (
        name == "copy_" and isinstance(args[0], OnDevice) and not isinstance(args[1], OnDevice)
    )
    if to_host or (from_host and COUNTS.waiting):
        COUNTS.note("waits", "copy to the host" if to_host else "copy from the host")
    elif name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        COUNTS.note("waits", name)
    elif name in INDEXING and any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in args[1]):
        filled = len(args) > 2 and args[2].numel() == 1 and sum(x is not None for x in args[1]) == 1
        if not filled:
            COUNTS.note("waits", f"{name} by a mask")
    groups = 1
    if name == "_grouped_mm" and there[0].dtype != torch.bfloat16:
        COUNTS.note("waits", "grouped product, which reads its groups")
        groups = (args[2] if len(args) > 2 else kwargs["offs"]).numel()
    if name not in NO_KERNEL:
        COUNTS.note("launches", name, groups)
    floating = bool(there) and there[0].is_floating_point()
    if floating and name in RANDOM_ORDER:
        COUNTS.note("unordered", name)
    if floating and name in REFUSED_IF_DETERMINISTIC:
        COUNTS.note("refused", name)
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError(f"{name} does not have a deterministic implementation ({_line()})")


class OnDeviceGenerator(torch.Generator):
    """A generator that says where it is."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        self.where = CUDA if _is_device(device) else CPU

    @property
    def device(self):
        return self.where

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self


class _ToDevice(torch.autograd.Function):
    """A move whose gradient moves back."""

    @staticmethod
    def forward(ctx, x, where):
        ctx.back = x.device
        return torch.ops.aten._to_copy.default(x, device=where)

    @staticmethod
    def backward(ctx, grad):
        COUNTS.moving = True
        try:
            return torch.ops.aten._to_copy.default(grad, device=ctx.back), None
        finally:
            COUNTS.moving = False


def _to(x, where):
    if x.device.type == where.type:
        return x
    where = CUDA if where.type == "cuda" else where
    if x.requires_grad and torch.is_grad_enabled():
        return _ToDevice.apply(x, where)
    with torch.no_grad():
        return torch.ops.aten._to_copy.default(x, device=where)


class _Dispatched(TorchDispatchMode):
    """Operations without a tensor on the device, which may make one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})


class _Called(TorchFunctionMode):
    """Functions as they are called: moves, and generators, which operations see only as the CPU's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        there = any(isinstance(x, OnDevice) for x in _leaves((args, kwargs)))
        generator = kwargs.get("generator")
        if isinstance(generator, OnDeviceGenerator):
            wanted = there or _is_device(kwargs.get("device"))
            if wanted != (generator.device.type == "cuda"):
                place = f"a generator on {generator.device} for another device ({_line()})"
                raise MixedDevicesError(f"{func.__name__}: {place}")
        if func is torch.Tensor.cpu:
            return _to(args[0], CPU)
        if func is torch.Tensor.cuda:
            return _to(args[0], CUDA)
        if func is torch.Tensor.to:
            return self._moved(func, *args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor):
            return self._made(func, *args, **kwargs)
        if func is torch.Tensor.is_pinned:
            return False
        if func is torch.Tensor.pin_memory:
            return args[0]
        before, COUNTS.inside = COUNTS.inside, there
        try:
            return func(*args, **kwargs)
        finally:
            COUNTS.inside = before

    @staticmethod
    def _moved(func, x, *given, device=None, dtype=None, memory_format=None, **kwargs):
        for value in given:
            if isinstance(value, str | torch.device):
                device = value
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
        COUNTS.waiting = not kwargs.get("non_blocking")  # from memory that is pinned, it is to be hoped
        try:
            x = x if device is None else _to(x, torch.device(device))
        finally:
            COUNTS.waiting = True
        form = {} if memory_format is None else {"memory_format": memory_format}
        copied = {"copy": True} if kwargs.get("copy") else {}
        return func(x, dtype=dtype or x.dtype, **form, **copied) if dtype is not None or form or copied else x

    @staticmethod
    def _made(func, data, *args, device=None, **kwargs):
        if isinstance(data, OnDevice) and (device is None or _is_device(device)):
            return func(data, *args, **kwargs) if kwargs or func is torch.tensor else data
        if isinstance(data, OnDevice):
            return _to(data, torch.device(device))
        if isinstance(data, list | tuple) and any(isinstance(x, OnDevice) for x in data):
            COUNTS.note("waits", "a tensor of numbers on the device")
        return _to(func(data, *args, **kwargs), torch.device(device or "cpu"))


@contextlib.contextmanager
def pretend_cuda():
    """Let there be a GPU meanwhile."""
    autocast, enabled, dtype_of = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
    on_cpu = {"cuda": "cpu"}
    patches = {
        (torch, "autocast"): lambda device, **options: autocast(on_cpu.get(device, device), **options),
        (torch, "is_autocast_enabled"): lambda *device: enabled(*(on_cpu.get(of, of) for of in device)),
        (torch, "get_autocast_dtype"): lambda device: dtype_of(on_cpu.get(device, device)),
        (torch, "Generator"): OnDeviceGenerator,
        (torch.cuda, "is_available"): lambda: True,
        (torch.version, "cuda"): "13.0",
        (torch.cuda, "_lazy_init"): lambda: None,
        (torch.cuda, "CUDAGraph"): Graph,
        (torch.cuda, "graph"): lambda graph, pool=(): graph.capture(pool),
        (torch.cuda, "synchronize"): lambda *device: None,
        (torch.cuda, "get_rng_state"): lambda *device: torch.get_rng_state(),
        (torch.cuda, "set_rng_state"): lambda state, *device: torch.set_rng_state(state),
        (torch.cuda, "get_device_name"): lambda *device: "a pretend GPU",
        (torch.cuda, "get_device_capability"): lambda *device: (8, 0),
    }
    before = {(module, name): getattr(module, name) for module, name in patches}
    supported = sys.modules["torch.optim.optimizer"]._foreach_supported_types
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    try:
        for (module, name), value in patches.items():
            setattr(module, name, value)
        supported.append(OnDevice)
        torch.__future__.set_swap_module_params_on_conversion(True)
        with _Called(), _Dispatched():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
        supported.remove(OnDevice)
        for (module, name), value in before.items():
            setattr(module, name, value)


@contextlib.contextmanager
def counting():
    """Count what happens meanwhile; yields `COUNTS`."""
    COUNTS.clear()
    COUNTS.counting = True
    try:
        yield COUNTS
    finally:
        COUNTS.counting = False
