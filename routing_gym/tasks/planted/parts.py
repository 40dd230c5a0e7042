"""What planted problems are made of: images of ten kinds, label maps, words, and checks of options."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import torch
from torch import Tensor

from routing_gym.tasks.checking import check_choice
from routing_gym.tasks.cifar import read_cifar100
from routing_gym.tasks.dataset import MultiTaskDataset, pixel_statistics
from routing_gym.tasks.digits import read_digits, read_mnist

SourceOf = Literal["digits", "mnist", "cifar-100"]
KINDS = 10
"""Kinds of images: digits, or ten of CIFAR-100's superclasses."""
CLASSES = 5
"""Labels; two kinds each."""
EASY_KINDS = 3
"""Classes of the easy instances of `budget`: few, so that a first exit tells them apart by few features."""
LOCK_CLASSES = 32
HELD_OUT = {"validation": 1200, "test": 24_000}
"""About how many instances of all tasks are judged on: after every epoch, and in the end."""
DRAWS = 500
"""Label maps that are drawn for a group, see `label_maps`."""


@dataclasses.dataclass(frozen=True)
class Material:
    """Images of ten kinds to make problems of.

    Attributes:
        images: `(N, C, H, W)` uint8.
        kind: `(N,)` int64 in `[0, KINDS)`.
        members: Image numbers of each split, disjoint.
    """

    images: Tensor
    kind: Tensor
    members: dict[str, Tensor]


def material_of(name: str, source: SourceOf, data_dir: str | None, generator: torch.Generator) -> Material:
    """Images of a source; which are held out, and which superclasses are taken, is drawn.

    Of the digits 200 are held out for validation and 400 for the test, of the others 500 and 1 000, of the latter from
    the official test images.
    """
    check_choice(f"{name}: source", source, *get_args(SourceOf))
    if source == "digits":
        images, kind = read_digits()
        order = torch.randperm(len(kind), generator=generator)
        test, validation, train = order.split([400, 200, len(order) - 600])
        return Material(images, kind, {"train": train, "validation": validation, "test": test})
    if source == "mnist":
        by_part, kinds = read_mnist(data_dir)
    else:
        by_part, coarse, _ = read_cifar100(data_dir)
        number = torch.full((int(coarse["train"].max()) + 1,), -1)
        number[torch.randperm(len(number), generator=generator)[:KINDS]] = torch.arange(KINDS)
        kinds = {part: number[kind] for part, kind in coarse.items()}
    begin, members = len(kinds["train"]), {}
    for part, of in kinds.items():
        known = (of >= 0).nonzero().flatten()
        members[part] = known[torch.randperm(len(known), generator=generator)]
    held_out = min(500, len(members["train"]) // 10)
    validation, train = members["train"].split([held_out, len(members["train"]) - held_out])
    members = {"train": train, "validation": validation, "test": begin + members["test"][:1000]}
    images, kind = (torch.cat([of["train"], of["test"]]) for of in (by_part, kinds))
    return Material(images, kind, members)


def label_maps(groups: int, kinds: int, generator: torch.Generator) -> Tensor:
    """Labels `(groups, kinds)` that groups give to kinds, each label to equally many.

    Each group has the first of `DRAWS` permutations of the kinds (modulo `CLASSES`) that agrees with no group before
    it in more than chance would have it, one in `CLASSES`; where there is none, the one that agrees least.
    """
    maps = torch.empty(0, kinds, dtype=torch.int64)
    for _ in range(groups):
        drawn = torch.rand(DRAWS, kinds, generator=generator).argsort(1) % CLASSES
        agreed = (drawn.unsqueeze(1) == maps).sum(2)  # (DRAWS, groups so far)
        worst = agreed.amax(1) if len(maps) else agreed.sum(1)
        maps = torch.cat([maps, drawn[worst.clamp(min=kinds // CLASSES).argmin()].unsqueeze(0)])
    return maps


def lock_order(depth: int, block: int, classes: int) -> Tensor:
    """Order `(classes,)` in which a block of the network `lock` puts its input: the same for ever."""
    return torch.randperm(classes, generator=torch.Generator().manual_seed(1000 * depth + block))


def check_images(name: str, option: str, images: int, classes: int = CLASSES) -> None:
    """Refuse fewer images than there are classes."""
    if images < classes:
        raise ValueError(f"{name}: there are {classes} classes, {option} must be at least as many, got {images}")


def check_bool(option: str, value: bool) -> None:
    """Refuse all but True and False."""
    if not isinstance(value, bool):
        raise ValueError(f"{option} must be True or False, got {value!r}")


def spread(values: int, tasks: int, generator: torch.Generator) -> Tensor:
    """Values `(tasks,)`, each equally often as far as that goes, in random order."""
    return (torch.arange(tasks) % values)[torch.randperm(tasks, generator=generator)]


def moved_groups(group: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    """Groups `(tasks,)` after every task has moved to another: those of a group part, as equally as can be."""
    order = (group + torch.rand(len(group), generator=generator)).argsort()
    sizes, place = torch.bincount(group), torch.empty_like(group)
    place[order] = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[order]]
    # The first of every group takes the next group, so that none is left empty.
    return (group + 1 + place % (groups - 1)) % groups


def sizes_of(tasks: int, mean: int, ratio: float) -> Tensor:
    """Images `(tasks,)` of each task, `mean * tasks` in all, evenly spread on a logarithmic scale; at least one."""
    share = torch.logspace(0, math.log10(ratio), tasks, dtype=torch.float64)
    ends = (share.cumsum(0) / share.sum() * mean * tasks).round().long()
    return ends.diff(prepend=ends.new_zeros(1)).clamp(min=1)


def deal(
    name: str, option: str, material: Material, sizes: Tensor, generator: torch.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Images and tasks, `(R,)` each, of the rows of each split; for training so many images of each task as `sizes`."""
    tasks, train = len(sizes), material.members["train"]
    if (most := int(sizes.max())) > len(train):
        raise ValueError(f"{name}: a task is to have {most} training images, there are {len(train)}: lower {option}")
    used, dealt = torch.zeros(len(train)), []
    for size in sizes.tolist():
        # The images that have been used least, drawn among them.
        taken = (used + torch.rand(len(used), generator=generator)).argsort()[:size]
        used[taken] += 1
        dealt.append(train[taken])
    rows = {"train": (torch.cat(dealt), torch.arange(tasks).repeat_interleave(sizes))}
    for split, most in HELD_OUT.items():
        image = material.members[split]
        each = min(len(image), -(-most // tasks))
        shown = image[torch.arange(each * tasks) % len(image)]  # by one task after the other, in a circle
        rows[split] = shown, torch.arange(tasks).repeat_interleave(each)
    return rows


def flipped(label: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Labels of which a share, drawn, are replaced by others."""
    wrong = torch.randperm(len(label), generator=generator)[: round(share * len(label))]
    label = label.clone()
    label[wrong] = (label[wrong] + torch.randint(1, CLASSES, (len(wrong),), generator=generator)) % CLASSES
    return label


def draw_words(count: int, letters: int, length: int, generator: torch.Generator) -> Tensor:
    """Different words `(count, length)`, in random order; the first letters of none of some `letters` are the same."""
    words = {
        tuple(word)
        for word in torch.stack([torch.randperm(letters, generator=generator) for _ in range(length)], 1).tolist()
    }
    while len(words) < count:
        words.add(tuple(torch.randint(letters, (length,), generator=generator).tolist()))
    return torch.tensor(sorted(words))


def planted_splits(
    name: str,
    images: Tensor,
    rows: dict[str, tuple[Tensor, Tensor]],
    label: dict[str, Tensor],
    planted: dict[str, Tensor],
    num_tasks: int,
    num_classes: int = CLASSES,
) -> dict[str, MultiTaskDataset]:
    """Splits, of images and tasks, labels and what is planted of the rows of each; images without a row are dropped."""
    used, place = torch.cat([image for image, _ in rows.values()]).unique(return_inverse=True)
    images, splits = images[used], {}
    places = place.split([len(image) for image, _ in rows.values()])
    mean, std = pixel_statistics(images, places[0].unique())
    for (split, (_, task)), image in zip(rows.items(), places, strict=True):
        columns = (image, task, label[split], num_tasks, num_classes, mean, std)
        splits[split] = MultiTaskDataset(name, split, images, *columns, planted=planted[split])
    return splits
