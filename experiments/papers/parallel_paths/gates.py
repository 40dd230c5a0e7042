"""What gates between paths do with images: how strong they are, which images open them most, and what would."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.agents import Agent
from routing_gym.agents.crossing import CrossConnection
from routing_gym.blocks import PathConv2d, PathLinear
from routing_gym.envs import Asked, Context, Manner, Seen, take_turn
from routing_gym.experiments.engine.instances import routed
from routing_gym.networks.parallel_paths import ParallelPaths

LOOKED_AT = 1000
STEPS, STEP = 256, 0.15
"""Of gradient ascent; the size is that of the root mean square, in standard deviations of pixels."""
DECAY = 0.01
"""What a pixel loses of its distance from the mean at every step."""
BLUR_EVERY = 2
"""Steps from one blurring to the next."""


@dataclasses.dataclass(frozen=True)
class Crossing:
    """What happens to R images where m tensors are shared out among n paths.

    Attributes:
        name: Of the decision.
        gates: `(R, m, n)`.
        arriving: `(R, m)`, the mean activation of each tensor, as a share of all that arrive.
        leaving: `(R, n)`, likewise of what goes into each path.
    """

    name: str
    gates: Tensor
    arriving: Tensor
    leaving: Tensor


@dataclasses.dataclass(frozen=True)
class Gate:
    """One gate: how much of a tensor goes to a path, all counted from 0."""

    decision: int
    tensor: int
    path: int

    def name(self, network: ParallelPaths) -> str:
        """Return what it is called, as in the paper: tensor and path counted from 1."""
        return f"{network.decisions[self.decision].name}, $g_{{{self.tensor + 1}{self.path + 1}}}$"


@dataclasses.dataclass(frozen=True)
class Gates:
    """What an agent does with R images: crossings, decision by decision, labels `(R,)`, and the classes it says."""

    crossings: tuple[Crossing, ...]
    label: Tensor
    predicted: Tensor

    def strength(self, gate: Gate) -> Tensor:
        """Return how far a gate is open, `(R,)`."""
        return self.crossings[gate.decision].gates[:, gate.tensor, gate.path]


def network_of(agent: Agent) -> ParallelPaths:
    """Return the network of an agent; ValueError if its tensors are not cross-connected by data-dependent gates."""
    network = agent.env.network
    if isinstance(network, ParallelPaths) and network.cross == "connections" and isinstance(agent, CrossConnection):
        return network
    raise ValueError(f"only data-dependent gates of cross-connections can be shown, not those of {agent.name!r}")


def gates_of(agent: Agent) -> Gates:
    """Route the test images and note all gates.

    A decision sees every tensor averaged over the image; what goes into a path is the sum of what is sent there, so
    that its mean activation follows (section 7.1). Raises what `network_of` does.
    """
    network = network_of(agent)
    columns: list[list[tuple[Tensor, Tensor]]] = [[] for _ in network.decisions]
    others = []
    for batch, kept in routed(agent, "test"):
        for column, decision, step in zip(columns, network.decisions, batch.steps, strict=True):
            assert isinstance(step.action, Tensor)
            gates = step.action[kept].view(-1, network.num_tensors, network.num_choices)
            seen = step.observation["activation"][kept, : decision.width].unflatten(1, (decision.m, -1))
            column.append((gates[:, : decision.m, : decision.n].cpu(), seen.mean(2).cpu()))
        others.append((batch.label[kept].cpu(), batch.exits[0].logits[kept].argmax(1).cpu()))
    crossings = []
    for decision, column in zip(network.decisions, columns, strict=True):
        gates, arriving = (torch.cat(parts) for parts in zip(*column, strict=True))
        leaving = torch.einsum("rmn,rm->rn", gates, arriving)
        crossings.append(Crossing(decision.name, gates, _shares(arriving), _shares(leaving)))
    label, predicted = (torch.cat(parts) for parts in zip(*others, strict=True))
    return Gates(tuple(crossings), label, predicted)


def _shares(strength: Tensor) -> Tensor:
    """Return `(R, k)` as shares of their sums; a lone one is all there is."""
    total = strength.sum(1, keepdim=True)
    return torch.where((total == 0) | (strength.shape[1] == 1), 1 / strength.shape[1], strength / total)


def chosen_gates(network: ParallelPaths) -> list[Gate]:
    """Return four gates as in Fig. 9: of the second tensor at the first crossing, and three at the last two."""
    crossings = [number for number, decision in enumerate(network.decisions) if decision.m > 1]
    deep, last = crossings[-2:]
    return [Gate(crossings[0], 1, 0), Gate(deep, 0, 0), Gate(deep, 1, 0), Gate(last, 0, 0)]


def extremes(strength: Tensor, count: int = 10) -> tuple[Tensor, Tensor]:
    """Return the `count` images with the highest and with the lowest of some values `(R,)`, the extreme one first."""
    order = strength.argsort(stable=True)
    return order.flip(0)[:count], order[:count]


def tell_apart(gates: Gates) -> tuple[int, int, int]:
    """Look among `LOOKED_AT` images for three as in Fig. 1: a, b of its class, and c of another.

    In the network, b is gated as c early, and late as a.
    """
    shared = [crossing.gates[:LOOKED_AT].flatten(1) for crossing in gates.crossings if crossing.gates.shape[1] > 1]
    first, last = (torch.cdist(one, one) for one in (shared[0], shared[-1]))
    label = gates.label[:LOOKED_AT]
    same = label.unsqueeze(1) == label
    itself = torch.eye(len(label), dtype=torch.bool)
    of_class = (first - last).masked_fill(~same | itself, -torch.inf)
    of_another = (last - first).masked_fill(same, -torch.inf)
    b = int((of_class.amax(1) + of_another.amax(1)).argmax())
    return int(of_class[b].argmax()), b, int(of_another[b].argmax())


def score(agent: Agent, images: Tensor, gate: Gate) -> Tensor:
    """Return the score of a gate before softmax, `(B,)`, for normalised images, with its graph; modes stay."""
    network = network_of(agent)
    assert isinstance(agent, CrossConnection)
    state = network.start(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))
    manner = Manner(graph=True, differentiable=True, validate=None)
    for _ in range(gate.decision):
        state = take_turn(network, state, Asked(agent, network, deterministic=True), manner).after
    seen = Seen(network, state, manner)
    scores = agent.scores(seen, Context(seen))
    return scores.view(len(images), network.num_tensors, network.num_choices)[:, gate.tensor, gate.path]


def synthesised(agent: Agent, gate: Gate, seed: int = 0) -> tuple[Tensor, list[float]]:
    """Make an image that a gate is maximal for: gradient ascent on its score before softmax, from random pixels.

    The network is frozen and, like the agent, put in eval mode. At every step pixels are drawn a little towards the
    mean colour, and now and then they are blurred.

    Returns:
        `(C, H, W)` uint8, and the score before the first step and after every one.
    """
    dataset = agent.env.dataset
    agent.eval()
    agent.env.network.eval()
    mean, std = dataset.mean.view(1, -1, 1, 1), dataset.std.view(1, -1, 1, 1)
    noise = torch.randn(1, *dataset.input_shape, generator=torch.Generator().manual_seed(seed))
    image = noise.to(dataset.device)
    scores = []
    for step in range(1, STEPS + 1):
        image.requires_grad_()
        height = score(agent, image, gate).sum()
        (slope,) = torch.autograd.grad(height, image)
        scores.append(float(height.detach()))
        image = image.detach() + STEP * slope / slope.square().mean().sqrt().clamp(min=1e-12)
        image = (1 - DECAY) * image
        if step % BLUR_EVERY == 0 and step < STEPS:
            image = _blurred(image)
        image = torch.maximum(torch.minimum(image, (255 - mean) / std), -mean / std)
    with torch.no_grad():
        scores.append(float(score(agent, image, gate).sum()))
    return (image * std + mean).round().clamp(0, 255).to(torch.uint8)[0].cpu(), scores


def _blurred(image: Tensor) -> Tensor:
    """Return `(1, C, H, W)` with every pixel mixed with those around it."""
    channels = image.shape[1]
    line = image.new_tensor([0.15, 0.7, 0.15])
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    return functional.conv2d(functional.pad(image, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)


def path_weights(network: ParallelPaths) -> dict[str, Tensor]:
    """Return the weights of all layers of paths side by side, `(P, ...)`, by their names: conv 1, conv 2, dense 1."""
    layers = list(network.banks.modules())
    convolutions = [layer.weight for layer in layers if isinstance(layer, PathConv2d)]
    dense = [layer.blocks.weight for layer in layers if isinstance(layer, PathLinear)]
    named = {f"conv {number}": weight.detach() for number, weight in enumerate(convolutions, 1)}
    return named | {f"dense {number}": weight.detach() for number, weight in enumerate(dense, 1)}
