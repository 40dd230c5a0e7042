"""SYNTHETIC-MTL: a multi-task problem of any size, made on the spot, for tests and benchmarks."""

from __future__ import annotations

import math

import torch

from routing_gym.tasks.augmentation import shift_or_none
from routing_gym.tasks.checking import check_number, seeded
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.splits import build_splits


def synthetic_mtl(
    *,
    num_tasks: int = 4,
    num_classes: int = 3,
    image_size: int = 4,
    images_per_class: int = 60,
    noise: float = 20.0,
    data_seed: int = 0,
    shift: int = 0,
) -> dict[str, MultiTaskDataset]:
    """Build SYNTHETIC-MTL: noisy copies of a few prototype images, whose labels conflict between tasks.

    There is one random prototype image per class and every image is one prototype plus noise. Task t calls
    prototype c by the label `(c + t) mod num_classes`: all tasks see the same images under other names, so one
    shared path without the task as input cannot solve more than a fraction of them, and a path per task can solve
    all.

    Args:
        num_tasks: Number of tasks.
        num_classes: Classes per task.
        image_size: Height and width of the grey images, in pixels.
        images_per_class: Images per prototype in the training split; validation and test have a third each.
        noise: Standard deviation of the pixel noise, in steps of 255.
        data_seed: Seed of prototypes and noise.
        shift: Training images are moved by up to this many pixels; 0 leaves them as they are.
    """
    sizes = dict(num_tasks=num_tasks, num_classes=num_classes, image_size=image_size, images_per_class=images_per_class)
    generator = seeded("SYNTHETIC-MTL", data_seed, **sizes)
    check_number("SYNTHETIC-MTL: noise", noise, 0, math.inf, below=True)
    prototypes = torch.rand(num_classes, 1, image_size, image_size, generator=generator) * 255
    held_out = max(1, images_per_class // 3)
    images, labels = {}, {}
    for split, per_class in (("train", images_per_class), ("validation", held_out), ("test", held_out)):
        kind = torch.arange(num_classes).repeat(per_class)
        pixels = prototypes[kind] + noise * torch.randn(len(kind), 1, image_size, image_size, generator=generator)
        images[split] = pixels.clamp(0, 255).to(torch.uint8)
        labels[split] = (kind + torch.arange(num_tasks)[:, None]) % num_classes
    return build_splits("SYNTHETIC-MTL", images, labels, augmentation=shift_or_none(shift))
