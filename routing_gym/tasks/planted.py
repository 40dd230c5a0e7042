"""Problems with a known best routing: each asks for one ability of whoever routes, and has a knob from easy to hard.

What is planted in a row (its group, its operators, its cluster) stands in `MultiTaskDataset.planted`. Numbers of tasks
carry no information; training, validation and test never share an image, the last two show theirs in every task.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import torch
from torch import Tensor

from routing_gym.tasks.checking import whole_number
from routing_gym.tasks.cifar import read_cifar100
from routing_gym.tasks.dataset import MultiTaskDataset, pixel_statistics
from routing_gym.tasks.digits import read_mnist

SourceOf = Literal["digits", "mnist", "cifar-100"]
KINDS = 10
"""Kinds of images: digits, or ten of CIFAR-100's superclasses."""
CLASSES = 5
"""Labels; two kinds each."""
LOCK_CLASSES = 32
DRAWS = 64
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


def hidden_groups(
    *,
    images_per_task: int = 12,
    num_tasks: int = 24,
    num_groups: int = 3,
    source: SourceOf = "digits",
    label_noise: float = 0.0,
    imbalance: float = 1.0,
    data_seed: int = 0,
    data_dir: str | None = None,
) -> dict[str, MultiTaskDataset]:
    """Build hidden groups of tasks: tasks of a group label alike, groups disagree; a task alone has few images.

    A group gives five labels to ten kinds of images, two each, and agrees with another in no more of them than chance
    would have it (`label_maps`). A task's training images are its own as long as there are enough of them; then all are
    used equally often. Planted is the group.

    Args:
        images_per_task: Training images of a task, on average, at least as many as labels: the knob.
        num_tasks: Number of tasks, at least one for each group.
        num_groups: Number of groups, as equal in size as can be.
        source: `"digits"`, bundled with scikit-learn; `"mnist"`; or `"cifar-100"`, ten superclasses.
        label_noise: Share of the training labels that are wrong, in [0, 1); other labels are right.
        imbalance: Images of the largest task divided by those of the smallest; the others are in between, evenly on
            a logarithmic scale.
        data_seed: Seed of everything that is drawn.
        data_dir: The data folder of MNIST or CIFAR-100; see `routing_gym.tasks.files.data_folder`.

    Raises:
        ValueError: A value out of range, more groups than tasks, or more images of a task than there are.
    """
    name = "hidden groups"
    counts = dict(images_per_task=images_per_task, num_tasks=num_tasks, num_groups=num_groups)
    generator = _seeded(name, data_seed, **counts)
    _in_range(f"{name}: label_noise", label_noise, 0, 1, below=True)
    _in_range(f"{name}: imbalance", imbalance, 1, math.inf, below=True)
    if num_groups > num_tasks:
        raise ValueError(f"{name}: each of {num_groups} groups needs a task, num_tasks={num_tasks} are too few")
    _enough_images(name, "images_per_task", images_per_task)
    material = material_of(name, source, data_dir, generator)
    maps = label_maps(num_groups, KINDS, generator)
    group = _spread(num_groups, num_tasks, generator)
    sizes = _sizes(num_tasks, images_per_task, imbalance)[torch.randperm(num_tasks, generator=generator)]
    rows = _rows(name, "images_per_task", material, sizes, generator)
    label = {split: maps[group[task], material.kind[image]] for split, (image, task) in rows.items()}
    label["train"] = _flipped(label["train"], label_noise, generator)
    planted = {split: group[task].unsqueeze(1) for split, (_, task) in rows.items()}
    return _splits(name, material.images, rows, label, planted, num_tasks)


def compositions(
    *,
    recurrence: float = 0.5,
    length: int = 2,
    num_tasks: int = 18,
    num_operators: int = 3,
    images_per_task: int = 24,
    data_seed: int = 0,
) -> dict[str, MultiTaskDataset]:
    """Build tasks that are words: digits are changed by one operator after the other, of an alphabet for each depth.

    The first operator scrambles the pixels, every further one permutes the labels. The words of the tasks are all
    different at `recurrence=0`, or as different as the alphabet allows, so that only parts can be shared; at 1 there are
    as many words as operators, none of which have a part in common: hidden groups. Planted are the letters.

    Args:
        recurrence: How far words recur instead of parts, 0 to 1: the knob, hard at 0.
        length: Operators of a word, at least 2.
        num_tasks: Number of tasks, at least one for each operator.
        num_operators: Operators at each depth, at least 2.
        images_per_task: Training images of a task, at least as many as labels.
        data_seed: Seed of everything that is drawn.

    Raises:
        ValueError: A value out of range, more operators than tasks, or more images of a task than there are.
    """
    name = "compositions"
    counts = dict(length=length, num_tasks=num_tasks, num_operators=num_operators, images_per_task=images_per_task)
    generator = _seeded(name, data_seed, **counts)
    _in_range(f"{name}: recurrence", recurrence, 0, 1)
    if length < 2 or not 2 <= num_operators <= num_tasks:
        raise ValueError(
            f"{name}: words have at least 2 letters, of 2 operators at least and no more than there are tasks, got "
            f"length={length}, num_operators={num_operators}, num_tasks={num_tasks}"
        )
    _enough_images(name, "images_per_task", images_per_task)
    material = material_of(name, "digits", None, generator)
    pixels = material.images.flatten(1)
    scrambles = torch.stack([torch.randperm(pixels.shape[1], generator=generator) for _ in range(num_operators)])
    # Image i under scramble s has the number s * N + i.
    images = torch.cat([pixels[:, scramble] for scramble in scrambles]).view(-1, *material.images.shape[1:])
    maps = [label_maps(num_operators, CLASSES if depth else KINDS, generator) for depth in range(length - 1)]
    different = num_operators + round((1 - recurrence) * (min(num_tasks, num_operators**length) - num_operators))
    words = _words(different, num_operators, length, generator)[_spread(different, num_tasks, generator)]
    sizes = torch.full((num_tasks,), images_per_task)
    rows, label = _rows(name, "images_per_task", material, sizes, generator), {}
    for split, (image, task) in rows.items():
        label[split] = material.kind[image]
        for permutations, letter in zip(maps, words[task, 1:].unbind(1), strict=True):
            label[split] = permutations[letter, label[split]]
        rows[split] = words[task, 0] * len(pixels) + image, task
    planted = {split: words[task] for split, (_, task) in rows.items()}
    return _splits(name, images, rows, label, planted, num_tasks)


def clusters(
    *,
    separation: float = 6.0,
    num_clusters: int = 6,
    images_per_cluster: int = 150,
    told: bool = False,
    data_seed: int = 0,
) -> dict[str, MultiTaskDataset]:
    """Build clusters of instances whose labels conflict, all of one task: only the instance itself says which it is of.

    Digits with a ninth row of pixels: normal noise of deviation 1 around the centre of their cluster, in the units of
    the other pixels' deviation. Clusters label the digits as hidden groups do. Planted is the cluster.

    Args:
        separation: Distance between any two centres, in deviations of the noise: the knob, hard at 0.
        num_clusters: Number of clusters, at most 8.
        images_per_cluster: Training images of a cluster, at least as many as labels.
        told: The cluster is the task.
        data_seed: Seed of everything that is drawn.

    Raises:
        ValueError: A value out of range, or more images of a cluster than there are.
    """
    name = "clusters"
    generator = _seeded(name, data_seed, num_clusters=num_clusters, images_per_cluster=images_per_cluster)
    _in_range(f"{name}: separation", separation, 0, math.inf, below=True)
    _is_bool(f"{name}: told", told)
    _enough_images(name, "images_per_cluster", images_per_cluster)
    material = material_of(name, "digits", None, generator)
    side = material.images.shape[-1]
    if num_clusters > side:
        raise ValueError(f"{name}: num_clusters must be at most {side}, got {num_clusters}")
    maps = label_maps(num_clusters, KINDS, generator)
    sizes = torch.full((num_clusters,), images_per_cluster)
    rows, label = _rows(name, "images_per_cluster", material, sizes, generator), {}
    mean, std = pixel_statistics(material.images, material.members["train"])
    digits = (material.images - mean) / std
    # Orthogonal directions: all centres are equally far from each other.
    turned = torch.linalg.qr(torch.randn(side, side, generator=generator)).Q
    centres = turned[:num_clusters] * separation / math.sqrt(2)
    images, count, planted = [], 0, {}
    for split, (image, cluster) in rows.items():
        cue = centres[cluster] + torch.randn(len(cluster), side, generator=generator)
        images.append(torch.cat([digits[image], cue.view(-1, 1, 1, side)], 2))
        label[split], planted[split] = maps[cluster, material.kind[image]], cluster.unsqueeze(1)
        rows[split] = count + torch.arange(len(image)), cluster if told else torch.zeros_like(cluster)
        count += len(image)
    return _splits(name, torch.cat(images), rows, label, planted, num_clusters if told else 1)


def credit(
    *,
    depth: int = 4,
    num_tasks: int = 8,
    num_operators: int = 3,
    images_per_task: int = 50,
    data_seed: int = 0,
) -> dict[str, MultiTaskDataset]:
    """Build tasks of a combination lock (the network `lock`): only the right block at every depth gives the right class.

    An image is one of `LOCK_CLASSES` unit vectors with a little noise, its label where the task's permutations carry the
    one. Any other route gives chance, 3 %, and blocks are given, so that nothing but the route is to be learned. Planted
    are the right blocks, at every depth each for as many tasks as any other, as far as that goes.

    Args:
        depth: Depths, 1 to 8: the knob; the right one of `num_operators ** depth` routes is to be found.
        num_tasks: Number of tasks, at least one for each block.
        num_operators: Blocks at each depth, at least 2.
        images_per_task: Training images of a task.
        data_seed: Seed of everything that is drawn.

    Raises:
        ValueError: A value out of range, or more blocks than tasks.
    """
    name = "credit"
    counts = dict(depth=depth, num_tasks=num_tasks, num_operators=num_operators, images_per_task=images_per_task)
    generator = _seeded(name, data_seed, **counts)
    _in_range(f"{name}: depth", depth, 1, 8)
    if not 2 <= num_operators <= num_tasks:
        raise ValueError(
            f"{name}: num_operators must lie in [2, num_tasks], each is right for a task, got {num_operators} of "
            f"{num_tasks} tasks"
        )
    words = torch.stack([_spread(num_operators, num_tasks, generator) for _ in range(depth)], 1)
    # Where the number at every place goes: block `letter` takes it from `order`, so to the inverse.
    goes = torch.stack(
        [torch.stack([lock_order(at, b, LOCK_CLASSES).argsort() for b in range(num_operators)]) for at in range(depth)]
    )
    members = torch.arange(images_per_task * num_tasks + 300).split([images_per_task * num_tasks, 100, 200])
    kind = torch.randint(LOCK_CLASSES, (images_per_task * num_tasks + 300,), generator=generator)
    images = torch.eye(LOCK_CLASSES)[kind] + 0.1 * torch.randn(len(kind), LOCK_CLASSES, generator=generator)
    rows, label, planted = {}, {}, {}
    for split, image in zip(("train", "validation", "test"), members, strict=True):
        each = images_per_task if split == "train" else len(image)
        task = torch.arange(num_tasks).repeat_interleave(each)
        rows[split] = image if split == "train" else image.repeat(num_tasks), task
        label[split], planted[split] = kind[rows[split][0]], words[task]
        for at in range(depth):
            label[split] = goes[at, words[task, at], label[split]]
    return _splits(name, images.view(-1, 1, 1, LOCK_CLASSES), rows, label, planted, num_tasks, LOCK_CLASSES)


def budget(
    *, hard_share: float = 0.5, images: int = 1000, told: bool = False, data_seed: int = 0
) -> dict[str, MultiTaskDataset]:
    """Build instances of two difficulties, all of one task, for networks that can be left early.

    An easy instance is the mean digit of its class with a little noise, which the first exit tells apart; a hard one is
    a digit under much noise (deviations of 5 and 40 in 255). Which is which only the image says. Planted is 0 for easy
    instances, which should be classified at once, and 1 for hard ones, which should go on, as choices are numbered where
    one can leave. That this is best at prices between what going on saves the one and the other was found by trying all
    exits; the environment's `k_cpt` is the knob.

    Args:
        hard_share: Share of hard instances, in (0, 1).
        images: Training images.
        told: The difficulty is the task.
        data_seed: Seed of everything that is drawn.

    Raises:
        ValueError: A value out of range, or more images than there are.
    """
    name = "budget"
    generator = _seeded(name, data_seed, images=images)
    _in_range(f"{name}: hard_share", hard_share, 0, 1)
    _is_bool(f"{name}: told", told)
    material = material_of(name, "digits", None, generator)
    rows = _rows(name, "images", material, torch.tensor([images]), generator)
    train = rows["train"][0]
    means = torch.stack([material.images[train[material.kind[train] == kind]].float().mean(0) for kind in range(KINDS)])
    shown, count, label, planted = [], 0, {}, {}
    for split, (image, _) in rows.items():
        hard = torch.zeros(len(image), dtype=torch.int64)
        hard[torch.randperm(len(image), generator=generator)[: round(hard_share * len(image))]] = 1
        label[split], planted[split] = material.kind[image], hard.unsqueeze(1)
        noise = torch.randn(len(image), *means.shape[1:], generator=generator)
        is_hard = hard.view(-1, 1, 1, 1) == 1
        pixels = torch.where(is_hard, material.images[image] + 40 * noise, means[label[split]] + 5 * noise)
        shown.append(pixels.clamp(0, 255).to(torch.uint8))
        rows[split] = count + torch.arange(len(image)), hard if told else torch.zeros_like(hard)
        count += len(image)
    return _splits(name, torch.cat(shown), rows, label, planted, 2 if told else 1, KINDS)


def lock_order(depth: int, block: int, classes: int) -> Tensor:
    """Order `(classes,)` in which a block of the network `lock` puts its input: the same for ever."""
    return torch.randperm(classes, generator=torch.Generator().manual_seed(1000 * depth + block))


def material_of(name: str, source: SourceOf, data_dir: str | None, generator: torch.Generator) -> Material:
    """Images of a source; which are held out, and which superclasses are taken, is drawn.

    Of the digits 200 are held out for validation and 400 for the test, of the others 500 and 1 000, of the latter from
    the official test images.
    """
    if source not in get_args(SourceOf):
        raise ValueError(f"{name}: source must be one of {', '.join(get_args(SourceOf))}, got {source!r}")
    if source == "digits":
        from sklearn.datasets import load_digits  # takes half as long to import as PyTorch

        pixels, digit = load_digits(return_X_y=True)
        images, kind = torch.from_numpy(pixels * 15).to(torch.uint8).view(-1, 1, 8, 8), torch.from_numpy(digit).long()
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
    validation, train = members["train"].split([500, len(members["train"]) - 500])
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


def _seeded(name: str, data_seed: int, **counts: int) -> torch.Generator:
    for option, value in counts.items():
        whole_number(f"{name}: {option}", value)
    return torch.Generator().manual_seed(whole_number(f"{name}: data_seed", data_seed, least=None))


def _in_range(option: str, value: float, low: float, high: float, below: bool = False) -> None:
    """Refuse all but numbers from `low` to `high`, which itself is refused where values lie `below` it."""
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not low <= value <= high
        or below * value == high
    ):
        raise ValueError(f"{option} must lie in [{low}, {high}{')' if below else ']'}, got {value!r}")


def _enough_images(name: str, option: str, images: int) -> None:
    if images < CLASSES:
        raise ValueError(f"{name}: there are {CLASSES} classes, {option} must be at least as many, got {images}")


def _is_bool(option: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{option} must be True or False, got {value!r}")


def _spread(values: int, tasks: int, generator: torch.Generator) -> Tensor:
    """Values `(tasks,)`, each equally often as far as that goes, in random order."""
    return (torch.arange(tasks) % values)[torch.randperm(tasks, generator=generator)]


def _sizes(tasks: int, mean: int, ratio: float) -> Tensor:
    """Images `(tasks,)` of each task, `mean * tasks` in all, evenly spread on a logarithmic scale; at least one."""
    share = torch.logspace(0, math.log10(ratio), tasks, dtype=torch.float64)
    ends = (share.cumsum(0) / share.sum() * mean * tasks).round().long()
    return ends.diff(prepend=ends.new_zeros(1)).clamp(min=1)


def _rows(
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
    for split in ("validation", "test"):
        image = material.members[split]
        rows[split] = image.repeat(tasks), torch.arange(tasks).repeat_interleave(len(image))
    return rows


def _flipped(label: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Labels of which a share, drawn, are replaced by others."""
    wrong = torch.randperm(len(label), generator=generator)[: round(share * len(label))]
    label = label.clone()
    label[wrong] = (label[wrong] + torch.randint(1, CLASSES, (len(wrong),), generator=generator)) % CLASSES
    return label


def _words(count: int, letters: int, length: int, generator: torch.Generator) -> Tensor:
    """Different words `(count, length)`, in random order; the first letters of none of some `letters` are the same."""
    words = {
        tuple(word)
        for word in torch.stack([torch.randperm(letters, generator=generator) for _ in range(length)], 1).tolist()
    }
    while len(words) < count:
        words.add(tuple(torch.randint(letters, (length,), generator=generator).tolist()))
    return torch.tensor(sorted(words))


def _splits(
    name: str,
    images: Tensor,
    rows: dict[str, tuple[Tensor, Tensor]],
    label: dict[str, Tensor],
    planted: dict[str, Tensor],
    num_tasks: int,
    num_classes: int = CLASSES,
) -> dict[str, MultiTaskDataset]:
    """Splits, of images and tasks, labels and what is planted of the rows of each; images that no row has are dropped."""
    used, place = torch.cat([image for image, _ in rows.values()]).unique(return_inverse=True)
    images, splits = images[used], {}
    places = place.split([len(image) for image, _ in rows.values()])
    mean, std = pixel_statistics(images, places[0].unique())
    for (split, (_, task)), image in zip(rows.items(), places, strict=True):
        columns = (image, task, label[split], num_tasks, num_classes, mean, std)
        splits[split] = MultiTaskDataset(name, split, images, *columns, planted=planted[split])
    return splits
