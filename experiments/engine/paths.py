"""Which paths the images of a split take, and whether they keep them when they are augmented (CoDiNet)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.agents import Agent
from routing_gym.envs import Trajectory
from routing_gym.experiments.engine.instances import columns_of
from routing_gym.experiments.engine.metrics import Judged
from routing_gym.experiments.engine.records import write_arrays
from routing_gym.networks import actions
from routing_gym.tasks import MultiTaskDataset, Shift

DEGREES = 15.0
"""How far images are rotated at most; Wang et al. give no angle."""


@dataclasses.dataclass(frozen=True)
class Paths:
    """The paths of R instances through a network in which all pass all of N decisions.

    Attributes:
        choices: `(R, N)` int64, what was chosen.
        chances: `(R, N, A)`, how likely every choice was where the agent says so; else 1 for what was chosen.
        logits: `(R, C)`.
        label: `(R,)` int64.
    """

    choices: Tensor
    chances: Tensor
    logits: Tensor
    label: Tensor


def paths_of(agent: Agent, dataset: MultiTaskDataset) -> Paths:
    """Paths of a split by an agent's best choices, through a network in which all pass all decisions, in order."""
    network = agent.env.network
    if not network.in_order:
        raise ValueError("paths are compared in networks of which all instances pass all decisions, in order")

    def columns(batch: Trajectory) -> tuple[Tensor, ...]:
        taken = [actions.dense(step.action, network.num_choices).view(len(batch), -1) for step in batch.steps]
        said = [step.record.get("probabilities", weights) for step, weights in zip(batch.steps, taken, strict=True)]
        chances = torch.stack([chance.view(len(batch), -1) for chance in said], 1)
        return torch.stack(taken, 1).argmax(-1), chances, batch.exits[0].logits, batch.label

    return Paths(*columns_of(agent, dataset, columns))


def augmented(dataset: MultiTaskDataset, augmentation: Shift, seed: int) -> MultiTaskDataset:
    """A split whose images have been augmented once."""
    parameters = augmentation.draw(len(dataset.images), torch.Generator().manual_seed(seed))
    return dataclasses.replace(dataset, images=augmentation.apply(dataset.images, parameters.to(dataset.device)))


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Images `(B, C, H, W)` rotated by `degrees` `(B,)`, counterclockwise about their centres, corners black."""
    height, width = images.shape[-2:]
    angle = degrees.to(images.device).deg2rad()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Where a pixel comes from; coordinates are from -1 to 1 along both axes.
    x, y = torch.stack([cos, -sin * height / width, zero], 1), torch.stack([sin * width / height, cos, zero], 1)
    grid = functional.affine_grid(torch.stack([x, y], 1), list(images.shape), align_corners=False)
    turned = functional.grid_sample(images.float(), grid, align_corners=False)
    return turned if images.is_floating_point() else turned.round().to(images.dtype)


def cropped_flipped_rotated(dataset: MultiTaskDataset, augmentation: Shift, seed: int) -> MultiTaskDataset:
    """Return a split whose images have been augmented once as in section 4.4.1 of Wang et al.

    They are cropped as in training, mirrored in either direction with a probability of 0.5, and rotated by up to
    `DEGREES` to either side.
    """
    moved = augmented(dataset, dataclasses.replace(augmentation, flip=True), seed)
    upside_down, turn = torch.rand(2, len(moved.images), generator=torch.Generator().manual_seed(seed + 1))
    flipped = (upside_down < 0.5).view(-1, 1, 1, 1).to(dataset.device)
    images = torch.where(flipped, moved.images.flip(2), moved.images)
    return dataclasses.replace(moved, images=rotated(images, DEGREES * (2 * turn - 1)))


def judged_paths(judged: Judged, seed: int, file: Path) -> dict[str, float]:
    """Find out which paths the images of the split take that a run was judged on, and whether they keep them.

    The file receives `chances` of running each block, `(R, N)` float16, `choices` `(R, N)` uint8 and `label`; `seed`
    is that of the augmentation.

    Returns:
        `paths`, how many there are; `length`, the mean number of blocks run; and of images that are augmented, if those
        of training are: `kept`, the share whose path stays the same where they are augmented as in training, and `kl`,
        the mean Kullback-Leibler divergence of the predicted classes, as they are from as they become (Fig. 10), in
        nats; and `kept_rotated`, the share that keeps its path under `cropped_flipped_rotated`.
    """
    agent, env = judged.agent, judged.agent.env
    split, augmentation = env.datasets[judged.evaluation.split], env.datasets["train"].augmentation
    plain = paths_of(agent, split)
    # To skip a block is 0, to run it is 1.
    found = {"paths": len(plain.choices.unique(dim=0)), "length": float(plain.choices.sum(1).double().mean())}

    def kept(others: Paths) -> float:
        return float((plain.choices == others.choices).all(1).double().mean())

    if augmentation is not None:
        moved = paths_of(agent, augmented(split, augmentation, seed))
        turned = paths_of(agent, cropped_flipped_rotated(split, augmentation, seed))
        found |= {"kept": kept(moved), "kept_rotated": kept(turned)}
        before, after = plain.logits.double().log_softmax(1), moved.logits.double().log_softmax(1)
        found["kl"] = float(functional.kl_div(after, before, reduction="batchmean", log_target=True))
    chances, choices = plain.chances[..., 1].to(torch.float16), plain.choices.to(torch.uint8)
    write_arrays(file, chances=chances.numpy(), choices=choices.numpy(), label=plain.label.numpy())
    return found
