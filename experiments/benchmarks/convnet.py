"""SimpleConvNet end to end, against one route of it as a plain network."""

from __future__ import annotations

from functools import partial

import torch

from routing_gym.experiments.benchmarks.steps import Agents, Subject, measure_agents
from routing_gym.experiments.engine.records import Record
from routing_gym.networks import make_network
from routing_gym.tasks import MultiTaskDataset, pixel_statistics

TASKS, CLASSES, BATCH, EPOCH = 20, 5, 128, 50_000


def convnet(device: torch.device) -> Subject:
    """Return SimpleConvNet with a block per task in each of three routed layers, on images as CIFAR-MTL's, by Adam."""
    data = {"train": stand_in_images(TASKS, CLASSES).to(device)}
    shape = data["train"].input_shape
    build = partial(make_network, "simple-convnet", num_tasks=TASKS, num_classes=CLASSES, input_shape=shape)
    return Subject(build, data, TASKS, optimizer="adam", learning_rate=1e-3)


def measure_convnet(subject: Subject, agents: Agents, rounds: int) -> list[Record]:
    """Return a record per agent, with the seconds 50 000 instances take in training, `static_...` those of the route.

    Args:
        subject: From `convnet`.
        agents: The agents.
        rounds: Batches timed of each.
    """
    return [
        {
            **record,
            "seconds_per_50000": EPOCH / record["train_samples_per_second"],
            "static_seconds_per_50000": EPOCH / record["static_train_samples_per_second"],
        }
        for record in measure_agents(subject, BATCH, agents, rounds)
    ]


def stand_in_images(num_tasks: int, num_classes: int, per_class: int = 20) -> MultiTaskDataset:
    """Return colour noise of 32x32 pixels, `(N, 3, 32, 32)` uint8, with as many images of every class of every task.

    Args:
        num_tasks: Number of tasks.
        num_classes: Classes per task.
        per_class: Images of each.
    """
    rows = torch.arange(num_tasks * num_classes * per_class)
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(rows), 3, 32, 32), generator=numbers, dtype=torch.uint8)
    mean, std = pixel_statistics(images)
    kind = rows // per_class
    return MultiTaskDataset(
        name="stand-in images",
        split="train",
        images=images,
        image=rows,
        task=kind // num_classes,
        label=kind % num_classes,
        num_tasks=num_tasks,
        num_classes=num_classes,
        mean=mean,
        std=std,
    )
