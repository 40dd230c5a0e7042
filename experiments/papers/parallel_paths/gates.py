"""What gates between paths do with images: how strong they are, which images open them most, and what would."""

from __future__ import annotations

from typing import NamedTuple

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
"""Of gradient ascent; the size is that of the root mean square of the first, in standard deviations of pixels."""
DECAY = 0.01
"""What a pixel loses of its distance from the mean at the first step."""
BLUR_EVERY = 2
"""Steps from one blurring to the next."""


class Crossing(NamedTuple):
    """What happens to R images where m tensors are shared out among n paths, at the decision of this name.

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


class Gate(NamedTuple):
    """One gate: how much of a tensor goes to a path, all counted from 0."""

    decision: int
    tensor: int
    path: int

    def name(self, network: ParallelPaths) -> str:
        """Return what it is called, as in the paper: tensor and path counted from 1."""
        return f"{network.decisions[self.decision].name}, $g_{{{self.tensor + 1}{self.path + 1}}}$"


class Gates(NamedTuple):
    """What an agent does with R images: crossings, decision by decision, labels `(R,)`, and the classes it says."""

    agent: Agent
    crossings: tuple[Crossing, ...]
    label: Tensor
    predicted: Tensor

    def strength(self, gate: Gate) -> Tensor:
        """Return how far a gate is open, `(R,)`."""
        return self.crossings[gate.decision].gates[:, gate.tensor, gate.path]


def network_of(agent: Agent) -> ParallelPaths:
    """Return the network of an agent."""
    assert isinstance(agent.env.network, ParallelPaths)
    return agent.env.network


def gates_of(agent: Agent) -> Gates:
    """Route the test images and note all gates.

    A decision sees every tensor averaged over the image; what goes into a path is the sum of what is sent there, so
    that its mean activation follows (section 7.1).
    """
    network = network_of(agent)
    batches: list[list[Tensor]] = []
    for batch, kept in routed(agent, "test"):
        seen = [batch.label, batch.exits[0].logits.argmax(1)]
        for decision, step in zip(network.decisions, batch.steps, strict=True):
            assert isinstance(step.action, Tensor)
            gates = step.action.view(-1, network.num_tensors, network.num_choices)[:, : decision.m, : decision.n]
            tensors = step.observation["activation"][:, : decision.width].unflatten(1, (decision.m, -1))
            seen += [gates, tensors.mean(2)]
        batches.append([column[kept].cpu() for column in seen])
    label, predicted, *columns = (torch.cat(column) for column in zip(*batches, strict=True))
    crossings = []
    for decision, gates, arriving in zip(network.decisions, columns[::2], columns[1::2], strict=True):
        leaving = torch.einsum("rmn,rm->rn", gates, arriving)
        crossings.append(Crossing(decision.name, gates, _shares(arriving), _shares(leaving)))
    return Gates(agent, tuple(crossings), label, predicted)


def _shares(strength: Tensor) -> Tensor:
    """Return `(R, k)` as shares of their sums, equal ones of 0."""
    total = strength.sum(1, keepdim=True)
    return torch.where(total == 0, 1 / strength.shape[1], strength / total)


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
    mean colour, and now and then they are blurred. All three get smaller in a line down to nothing, so that the image
    settles: steps of one size walk around the maximum, and where they happen to stop differs between processors.

    Returns:
        `(C, H, W)` uint8, and the score before the first step and after every one.
    """
    dataset = agent.env.dataset
    agent.eval()
    agent.env.network.eval()
    mean, std = dataset.mean.view(1, -1, 1, 1), dataset.std.view(1, -1, 1, 1)
    noise = torch.randn(1, *dataset.input_shape, generator=torch.Generator().manual_seed(seed))
    image = noise.to(dataset.device)
    line = image.new_tensor([0.15, 0.7, 0.15])
    kernel = torch.outer(line, line).expand(image.shape[1], 1, 3, 3)
    scores = []
    for step in range(STEPS):
        left = 1 - step / STEPS
        image.requires_grad_()
        height = score(agent, image, gate).sum()
        (slope,) = torch.autograd.grad(height, image)
        scores.append(float(height.detach()))
        image = image.detach() + left * STEP * slope / slope.square().mean().sqrt().clamp(min=1e-12)
        image = (1 - left * DECAY) * image
        if step % BLUR_EVERY == BLUR_EVERY - 1:
            padded = functional.pad(image, (1, 1, 1, 1), mode="replicate")
            image = torch.lerp(image, functional.conv2d(padded, kernel, groups=len(kernel)), left)
        image = image.clamp(-mean / std, (255 - mean) / std)
    with torch.no_grad():
        scores.append(float(score(agent, image, gate).sum()))
    return (image * std + mean).round().clamp(0, 255).to(torch.uint8)[0].cpu(), scores


def path_weights(network: ParallelPaths) -> dict[str, Tensor]:
    """Return the weights of all layers of paths side by side, `(P, ...)`, by their names: conv 1, conv 2, dense 1."""
    layers = list(network.banks.modules())
    convolutions = [layer.weight for layer in layers if isinstance(layer, PathConv2d)]
    dense = [layer.blocks.weight for layer in layers if isinstance(layer, PathLinear)]
    kinds = {"conv": convolutions, "dense": dense}
    return {f"{kind} {n}": weight.detach() for kind, of in kinds.items() for n, weight in enumerate(of, 1)}
