"""Layers of P parallel paths, all run as one grouped operation, or any of them alone.

Every layer holds its parameters stacked, first axis the path, and is called as `layer(x)` with the inputs of all paths,
channels joined, or as `layer(x, path)` with those of one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks.base import OwnedParameter
from routing_gym.blocks.converted import conv2d
from routing_gym.blocks.fast.rows import BlockByBlock, put_rows
from routing_gym.blocks.linear import LinearBlocks, repeated
from routing_gym.blocks.macs import cost_of
from routing_gym.tasks.checking import shape_of_row, whole_number


class PathLayer(nn.Module):
    """Base of the layers of P paths: checks their sizes, by name."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            whole_number(f"{name} of parallel layers", size)


class PathConv2d(PathLayer):
    """A convolution of `inputs` to `outputs` channels for each path, padded by half of the kernel.

    All of them are one grouped convolution. Fed with the tensors of all paths, joined along their channels, each path
    has its own; fed with fewer, each goes into as many paths as there are for it, the first into the first ones: one
    image into all.
    """

    def __init__(
        self, paths: int, inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__(paths=paths, inputs=inputs, outputs=outputs, kernel=kernel, stride=stride)
        self.inputs, self.stride = inputs, stride
        self.weight = nn.Parameter(torch.empty(paths, outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(paths, outputs)) if bias else None
        for weight in self.weight.detach():
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, x: Tensor, path: int | None = None) -> Tensor:
        """Outputs of one path for `(B, inputs, H, W)`, of all for `(B, g * inputs, H, W)`, g a divisor of P."""
        stacks = (self.weight, self.bias)
        weight, bias = (None if s is None else s.flatten(0, 1) if path is None else s[path] for s in stacks)
        assert weight is not None
        padding = self.weight.shape[-1] // 2
        return conv2d(x, weight, bias, self.stride, padding, groups=x.shape[1] // self.inputs)


class PathNorm2d(PathLayer):
    """Batch norm for each of P paths of C channels, with statistics of the rows that run it.

    Of fewer than two values per channel no variance can be taken: these are normalised with running statistics.
    """

    def __init__(self, paths: int, channels: int) -> None:
        super().__init__(paths=paths, channels=channels)
        self.weight, self.bias = nn.Parameter(torch.ones(paths, channels)), nn.Parameter(torch.zeros(paths, channels))
        self.running_mean = nn.Buffer(torch.zeros(paths, channels))
        self.running_var = nn.Buffer(torch.ones(paths, channels))

    def forward(self, x: Tensor, path: int | None = None) -> Tensor:
        """Normalised `(B, C, H, W)` of one path, or `(B, P * C, H, W)`."""
        stacks = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (stack.view(-1) if path is None else stack[path] for stack in stacks)
        trains = self.training and x.numel() >= 2 * x.shape[1]
        return functional.batch_norm(x, mean, var, weight, bias, training=trains)


class PathLinear(PathLayer):
    """A linear layer for each path, all as one batched product; there may be fewer tensors, as in `PathConv2d`."""

    def __init__(self, paths: int, inputs: int, outputs: int) -> None:
        super().__init__(paths=paths, inputs=inputs, outputs=outputs)
        self.blocks = LinearBlocks(paths, inputs, outputs)

    def forward(self, x: Tensor, path: int | None = None) -> Tensor:
        """Outputs of one path for `(B, inputs)`, of all for `(B, g * inputs)`."""
        if path is not None:
            return functional.linear(x, self.blocks.weight[path].t(), self.blocks.bias[path])
        return self.blocks.run_each(x.unflatten(1, (-1, self.blocks.in_features))).flatten(1)


class PathSequential(nn.Sequential, PathLayer):
    """Layers one after the other. Those that treat each number or channel alone may be plain modules."""

    def forward(self, x: Tensor, path: int | None = None) -> Tensor:
        """Outputs of one path, or of all."""
        for layer in self:
            x = layer(x, path) if isinstance(layer, PathLayer) else layer(x)
        return x


class PathResidual(PathLayer):
    """A residual block for each path: ReLU(residual + shortcut); an empty shortcut leaves its input as it is."""

    def __init__(self, residual: PathSequential, shortcut: PathSequential) -> None:
        super().__init__()
        self.residual, self.shortcut = residual, shortcut

    def forward(self, x: Tensor, path: int | None = None) -> Tensor:
        """Outputs of one path, or of all."""
        return functional.relu(self.residual(x, path) + self.shortcut(x, path))


class PathSqueezeExcite(PathLayer):
    """Squeeze-and-excitation (Hu et al. 2018) for each path: scales channels by a network of their averages."""

    def __init__(self, paths: int, channels: int, hidden: int) -> None:
        super().__init__()
        first, last = PathLinear(paths, channels, hidden), PathLinear(paths, hidden, channels)
        self.squeeze = PathSequential(first, nn.ReLU(), last, nn.Sigmoid())

    def forward(self, x: Tensor, path: int | None = None) -> Tensor:
        """Scaled `(B, C, H, W)` of one path, or `(B, P * C, H, W)`."""
        return x * self.squeeze(x.mean((2, 3)), path)[:, :, None, None]


class PathBlocks(BlockByBlock):
    """Bank of the P paths of some layers, block c is path c; `input_shape` is `(C, H, W)` or `(F,)` of one tensor."""

    def __init__(self, layers: PathSequential, paths: int, input_shape: tuple[int, ...]) -> None:
        super().__init__(paths)
        if not isinstance(layers, PathSequential):
            raise ValueError(f"the layers of paths are a PathSequential, got {type(layers).__name__}")
        self.layers = layers
        row = torch.zeros(1, *shape_of_row("input_shape", input_shape))
        macs, self.output_shape = cost_of(layers, row, 0)
        self.macs = (macs,) * paths

    def run_block(self, x: Tensor, number: int) -> Tensor:
        """Outputs `(r, ...)` of one path."""
        return self.layers(x, number)

    def run_each(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        """See `FunctionBlocks.run_each`; all paths at once where every output is wanted, otherwise path by path."""
        if self.runs_all and where is not None:
            y = self._all_at_once(x)
            return y.masked_fill(~where.view(*where.shape, *[1] * (y.ndim - 2)), 0)
        counts = [] if where is None else where.sum(0).tolist()
        if where is None or min(counts) == len(x):
            return self._all_at_once(x)
        # Of images zeros, and rows that are taken out, have their channels last in memory.
        outputs = [x.new_zeros(len(x), *self.output_shape[1:], self.output_shape[0]).movedim(-1, 1)] * self.num_blocks
        for path, rows in enumerate(where.t().nonzero()[:, 1].split(counts)):
            if len(rows):
                own = x[:, path * x.shape[1] // self.num_blocks].movedim(1, -1).index_select(0, rows).movedim(-1, 1)
                outputs[path] = put_rows(outputs[path], rows, self.layers(own, path))
        y = torch.stack(outputs, 1)
        return y if any(counts) else y + sum(parameter[:0].sum() for parameter in self.parameters())  # 0, with a graph

    def _all_at_once(self, x: Tensor) -> Tensor:
        """Outputs of all paths; images are best laid out with the channels of all paths side by side and last."""
        if not isinstance(self.layers[0], PathConv2d | PathLinear):
            x = repeated(x, self.num_blocks // x.shape[1])
        x = x.flatten(1, 2)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        return self.layers(x).unflatten(1, (self.num_blocks, -1))

    def parameters_of(self, choice: int) -> list[OwnedParameter]:
        """The path's slices of all stacks."""
        return [OwnedParameter(parameter, choice) for parameter in self.layers.parameters()]
