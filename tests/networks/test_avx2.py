"""What processors without AVX-512 must not be asked to do: see `routing_gym.blocks.converted`."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import small_network, to_the_end

from routing_gym.blocks import conv2d
from routing_gym.networks import NETWORKS, route

CONVOLUTIONAL = sorted(name for name in NETWORKS if name not in ("mlp", "lock"))


class Own(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class Projecting(nn.Module):
    """A module of a user's own with every form of a 1x1 convolution with a stride."""

    def __init__(self):
        super().__init__()
        self.stem = Own(3, 6, 1, (2, 1))
        self.block = nn.Sequential(nn.Conv2d(6, 4, 1, 2, bias=False), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(5, 4, 1, 1))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.block(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return self.head(nn.functional.conv2d(x, self.weight, stride=2).mean((2, 3)))


def strided(network):
    """The 1x1 convolutions of a network that have a stride."""
    convs = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    return [name for name, conv in convs if conv.kernel_size == (1, 1) and max(conv.stride) > 1]


def train_all(rounds=2):
    """Let every network take a few backward passes, with small allocations in between."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kept = []
    for network in map(small_network, CONVOLUTIONAL):
        assert not strided(network)
        network.train()
        for _ in range(rounds):
            to_the_end(network, torch.randn(3, 3, 32, 32)).square().mean().backward()
            kept.append([bytearray(size) for size in range(16, 600, 24)])


def test_what_route_rewrites_gives_the_same_numbers_under_the_same_names():
    module = Projecting().eval()
    assert not strided(route(module, ["block.0", "head"], 2, input_shape=(3, 32, 32)))
    network = route(module, ["head"], 2, input_shape=(3, 32, 32)).eval()
    assert not strided(network) and sum(node.target is conv2d for node in network.module.graph.nodes) == 2
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(network.static_route([0], 0)[0](images), module(images))
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    torch.testing.assert_close(again.static_route([0], 0)[0](images), module(images))
    left = {key.removeprefix("module.") for key in network.state_dict()}
    assert {key for key in module.state_dict() if not key.startswith("head")} <= left
    assert module.stem.stride == (2, 1), "the module itself is not changed"


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="needs AVX2")
def test_every_convolutional_network_learns_without_avx_512():
    """Heap corruption shows sooner or later: the C library checks every block that is freed."""
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MALLOC_CHECK_": "3",
        "LD_PRELOAD": "libc_malloc_debug.so.0" if sys.platform == "linux" else "",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests / "networks"), os.environ.get("PYTHONPATH", "")]),
    }
    run = subprocess.run(
        [sys.executable, "-c", "import test_avx2; test_avx2.train_all()"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"ended with {run.returncode}: {run.stderr[-2000:]}"
