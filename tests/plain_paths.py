"""One of several paths as plain modules with the same weights, and networks of paths worked out row by row."""

import torch
from torch import nn
from torch.nn import functional

from routing_gym.blocks import (
    PathConv2d,
    PathLinear,
    PathNorm2d,
    PathResidual,
    PathSequential,
    PathSqueezeExcite,
    subsample_first,
)


class Residual(nn.Module):
    def __init__(self, residual, shortcut):
        super().__init__()
        self.residual, self.shortcut = residual, shortcut

    def forward(self, x):
        return (self.residual(x) + self.shortcut(x)).clamp(min=0)


class Excite(nn.Module):
    def __init__(self, squeeze):
        super().__init__()
        self.squeeze = squeeze

    def forward(self, x):
        return x * self.squeeze(x.mean((2, 3)))[:, :, None, None]


def plain(layer, path):
    """A path of a layer as a plain module, with copies of its weights."""
    if isinstance(layer, PathSequential):
        return nn.Sequential(*(plain(part, path) for part in layer))
    if isinstance(layer, PathResidual):
        return Residual(plain(layer.residual, path), plain(layer.shortcut, path))
    if isinstance(layer, PathSqueezeExcite):
        return Excite(plain(layer.squeeze, path))
    if isinstance(layer, PathConv2d):
        outputs, inputs, size, _ = layer.weight.shape[1:]
        conv = nn.Conv2d(inputs, outputs, size, layer.stride, size // 2, bias=layer.bias is not None)
        conv.load_state_dict({name: value[path] for name, value in layer.state_dict().items()})
        return subsample_first(conv)
    if isinstance(layer, PathNorm2d):
        norm = nn.BatchNorm2d(layer.weight.shape[1])
        state = {name: value[path] for name, value in layer.state_dict().items()}
        norm.load_state_dict({**state, "num_batches_tracked": torch.tensor(0)})
        return norm
    if isinstance(layer, PathLinear):
        linear = nn.Linear(layer.blocks.in_features, layer.blocks.out_features)
        linear.load_state_dict({"weight": layer.blocks.weight[path].t(), "bias": layer.blocks.bias[path]})
        return linear
    return layer


def randomised(module):
    """Give batch norms statistics and weights that are not 0 and 1, and convolutions a bias."""
    for part in module.modules():
        if isinstance(part, PathNorm2d | nn.BatchNorm2d):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
        elif isinstance(part, PathConv2d) and part.bias is not None:
            nn.init.normal_(part.bias, std=0.2)
    return module


class Slow:
    """What a network of paths computes, tensor by tensor.

    Args:
        network: In eval mode.
    """

    def __init__(self, network):
        self.network, self.first = network, network._first
        paths = network.paths
        self.banks = [[plain(bank.layers, path).eval() for path in range(paths)] for bank in network.banks]
        self.predicting = [
            None
            if isinstance(blocks, nn.Identity)
            else [plain(blocks.layers, pair).eval() for pair in range(blocks.num_blocks)]
            for blocks in network.predictions
        ]

    def run(self, image, gates):
        """Route one image.

        Args:
            image: `(C, H, W)`.
            gates: For every decision `g[i][j]`, a number for each tensor and path.

        Returns:
            Logits, multiply-accumulates, for each decision what each tensor is, None where there is none.
        """
        network, paths = self.network, self.network.paths
        x = image.unsqueeze(0)
        tensors = [x if network.trunk is None else network.trunk(x)]
        macs, seen = network.stem_macs, []
        if self.first:
            tensors, _ = self._segment(0, tensors, [[1.0] * paths])
        for number, gate in enumerate(gates):
            seen.append(tensors)
            tensors, spent = self._segment(number + self.first, tensors, gate)
            macs += spent
        outputs = [x for x in tensors if x is not None]
        logits = sum(outputs) / len(outputs) if outputs else torch.zeros(1, network.num_classes)
        return logits[0], macs, seen

    def _segment(self, number, tensors, gate):
        paths, behind, macs = [], self.banks[number], 0.0
        for j in range(len(behind)):
            total = None
            for i, x in enumerate(tensors):
                if x is None or gate[i][j] == 0:
                    continue
                if self.predicting[number] is not None:
                    x = self.predicting[number][i * len(behind) + j](x)
                    macs += self.network.predictions[number].macs[0]
                total = gate[i][j] * x + (0 if total is None else total)
            if total is not None and self.predicting[number] is not None:
                total = functional.relu(total)
            paths.append(None if total is None else behind[j](total))
            macs += 0.0 if total is None else self.network.banks[number].macs[j]
        return paths, macs
