"""Problems with a known best routing: each asks for one ability of whoever routes, and has a knob from easy to hard.

What is planted in a row (its group, its operators, its cluster) stands in `MultiTaskDataset.planted`. Numbers of tasks
carry no information; training, validation and test never share an image, the last two show theirs in every task, where
there are very many tasks some of theirs (`HELD_OUT`).
"""

from __future__ import annotations

import dataclasses
import math

import torch

from routing_gym.tasks.checking import check_number, seeded, whole_number
from routing_gym.tasks.dataset import MultiTaskDataset, pixel_statistics
from routing_gym.tasks.planted.parts import (
    CLASSES,
    EASY_KINDS,
    KINDS,
    LOCK_CLASSES,
    SourceOf,
    check_bool,
    check_images,
    deal,
    draw_words,
    flipped,
    label_maps,
    lock_order,
    material_of,
    moved_groups,
    planted_splits,
    sizes_of,
    spread,
)


def hidden_groups(
    *,
    images_per_task: int = 12,
    num_tasks: int = 24,
    num_groups: int = 3,
    source: SourceOf = "digits",
    label_noise: float = 0.0,
    imbalance: float = 1.0,
    drift_at: float | None = None,
    late_images: int | None = None,
    late_at: float = 0.5,
    passes: int = 100,
    data_seed: int = 0,
    data_dir: str | None = None,
) -> dict[str, MultiTaskDataset]:
    """Build hidden groups of tasks: tasks of a group label alike, groups disagree; a task alone has few images.

    A group gives five labels to ten kinds of images, two each, and agrees with another in no more of them than chance
    would have it (`label_maps`). A task's training images are its own as long as there are enough of them; then all are
    used equally often. Planted is the group.

    With `drift_at` the groups are dealt anew at that point of training: every task moves to another one, while what
    groups ask for stays. Validation and test are as it is afterwards. With `late_images` one task, drawn among those
    that have a relative, has no training instances before `late_at`, and so many of its own images from then on
    (`MultiTaskDataset.during`, `late_task`).

    Args:
        images_per_task: Training images of a task, on average, at least as many as labels: the knob.
        num_tasks: Number of tasks, at least one for each group.
        num_groups: Number of groups, as equal in size as can be.
        source: `"digits"`, bundled with scikit-learn; `"mnist"`; or `"cifar-100"`, ten superclasses.
        label_noise: Share of the training labels that are wrong, in [0, 1); other labels are right.
        imbalance: Images of the largest task divided by those of the smallest; the others are in between, evenly on
            a logarithmic scale.
        drift_at: Share of training after which tasks change groups, in [0, 1]; None, or 1: they never do.
        late_images: Training images of the late task, at least as many as labels; None: there is no such task.
        late_at: Share of training after which it comes, in [0, 1).
        passes: Length of training, in passes over the training split, of which these are shares.
        data_seed: Seed of everything that is drawn.
        data_dir: The data folder of MNIST or CIFAR-100; see `routing_gym.tasks.files.data_folder`.

    Raises:
        ValueError: A value out of range, more groups than tasks, more images of a task than there are, one group where
            tasks are to move, no relative of a late task, or both drift and a late task.
    """
    name = "hidden groups"
    counts = dict(images_per_task=images_per_task, num_tasks=num_tasks, num_groups=num_groups, passes=passes)
    generator = seeded(name, data_seed, **counts)
    check_number(f"{name}: label_noise", label_noise, 0, 1, below=True)
    check_number(f"{name}: imbalance", imbalance, 1, math.inf, below=True)
    if num_groups > num_tasks:
        raise ValueError(f"{name}: each of {num_groups} groups needs a task, num_tasks={num_tasks} are too few")
    check_images(name, "images_per_task", images_per_task)
    if drift_at is not None:
        check_number(f"{name}: drift_at", drift_at, 0, 1)
        if num_groups == 1:
            raise ValueError(f"{name}: with drift_at={drift_at!r} tasks move to another group, num_groups=1 has none")
    check_number(f"{name}: late_at", late_at, 0, 1, below=True)
    if late_images is not None:
        check_images(name, "late_images", whole_number(f"{name}: late_images", late_images))
        if num_groups == num_tasks or drift_at is not None:
            raise ValueError(
                f"{name}: the late task needs a relative, which stays one: more tasks than groups, and no drift_at, "
                f"got num_tasks={num_tasks}, num_groups={num_groups}, drift_at={drift_at!r}"
            )
    material = material_of(name, source, data_dir, generator)
    maps = label_maps(num_groups, KINDS, generator)
    group = spread(num_groups, num_tasks, generator)
    sizes = sizes_of(num_tasks, images_per_task, imbalance)[torch.randperm(num_tasks, generator=generator)]
    late = None
    if late_images is not None:
        related = (torch.bincount(group)[group] > 1).nonzero().flatten()
        late = int(related[torch.randint(len(related), (), generator=generator)])
        sizes[late] = late_images
    rows = deal(name, "images_per_task", material, sizes, generator)
    of = {split: group[task] for split, (_, task) in rows.items()}
    begin = torch.zeros(len(of["train"]), dtype=torch.float64)
    end = torch.full_like(begin, math.inf)
    if late is not None:
        begin[rows["train"][1] == late] = late_at * passes
    elif drift_at is not None and drift_at < 1:
        moved = moved_groups(group, num_groups, generator)
        before = of["train"] if drift_at else of["train"][:0]
        of = {split: moved[task] for split, (_, task) in rows.items()}
        # Every row twice, of the old group until the drift and of the new one from then on.
        kept, change = len(before), torch.full_like(begin, drift_at * passes)
        begin, end = torch.cat([begin[:kept], change]), torch.cat([change[:kept], end])
        of["train"] = torch.cat([before, of["train"]])
        image, task = rows["train"]
        rows["train"] = torch.cat([image[:kept], image]), torch.cat([task[:kept], task])
    label = {split: maps[of[split], material.kind[image]] for split, (image, _) in rows.items()}
    label["train"] = flipped(label["train"], label_noise, generator)
    planted = {split: groups.unsqueeze(1) for split, groups in of.items()}
    splits = planted_splits(name, material.images, rows, label, planted, num_tasks)
    if begin.any():
        splits["train"] = dataclasses.replace(splits["train"], during=torch.stack([begin, end], 1))
    return {split: dataclasses.replace(data, late_task=late) for split, data in splits.items()}


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

    The first operator scrambles the pixels, every further one permutes the labels. At `recurrence=0` the words of the
    tasks are all different, or as different as the alphabet allows, so that only parts can be shared; at 1 there are
    as many words as operators, no two with a part in common: hidden groups. Planted are the letters.

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
    generator = seeded(name, data_seed, **counts)
    check_number(f"{name}: recurrence", recurrence, 0, 1)
    if length < 2 or not 2 <= num_operators <= num_tasks:
        raise ValueError(
            f"{name}: words have at least 2 letters, of 2 operators at least and no more than there are tasks, got "
            f"length={length}, num_operators={num_operators}, num_tasks={num_tasks}"
        )
    check_images(name, "images_per_task", images_per_task)
    material = material_of(name, "digits", None, generator)
    pixels = material.images.flatten(1)
    scrambles = torch.stack([torch.randperm(pixels.shape[1], generator=generator) for _ in range(num_operators)])
    # Image i under scramble s has the number s * N + i.
    images = torch.cat([pixels[:, scramble] for scramble in scrambles]).view(-1, *material.images.shape[1:])
    maps = [label_maps(num_operators, CLASSES if depth else KINDS, generator) for depth in range(length - 1)]
    different = num_operators + round((1 - recurrence) * (min(num_tasks, num_operators**length) - num_operators))
    words = draw_words(different, num_operators, length, generator)[spread(different, num_tasks, generator)]
    sizes = torch.full((num_tasks,), images_per_task)
    rows, label = deal(name, "images_per_task", material, sizes, generator), {}
    for split, (image, task) in rows.items():
        label[split] = material.kind[image]
        for permutations, letter in zip(maps, words[task, 1:].unbind(1), strict=True):
            label[split] = permutations[letter, label[split]]
        rows[split] = words[task, 0] * len(pixels) + image, task
    planted = {split: words[task] for split, (_, task) in rows.items()}
    return planted_splits(name, images, rows, label, planted, num_tasks)


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
    """
    name = "clusters"
    generator = seeded(name, data_seed, num_clusters=num_clusters, images_per_cluster=images_per_cluster)
    check_number(f"{name}: separation", separation, 0, math.inf, below=True)
    check_bool(f"{name}: told", told)
    check_images(name, "images_per_cluster", images_per_cluster)
    material = material_of(name, "digits", None, generator)
    side = material.images.shape[-1]
    if num_clusters > side:
        raise ValueError(f"{name}: num_clusters must be at most {side}, got {num_clusters}")
    maps = label_maps(num_clusters, KINDS, generator)
    sizes = torch.full((num_clusters,), images_per_cluster)
    rows, label = deal(name, "images_per_cluster", material, sizes, generator), {}
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
    return planted_splits(name, torch.cat(images), rows, label, planted, num_clusters if told else 1)


def credit(
    *,
    depth: int = 4,
    num_tasks: int = 8,
    num_operators: int = 3,
    images_per_task: int = 50,
    data_seed: int = 0,
) -> dict[str, MultiTaskDataset]:
    """Build tasks of a combination lock (network `lock`): only the right block at every depth gives the right class.

    An image is one of `LOCK_CLASSES` unit vectors with a little noise, its label where the task's permutations carry
    the one. Any other route gives chance, about 3 %, and blocks are given, so that nothing but the route is to be
    learned. Planted are the right blocks, at every depth each for as many tasks as any other, as far as that goes.

    Args:
        depth: Depths, 1 to 8: the knob; the right one of `num_operators ** depth` routes is to be found.
        num_tasks: Number of tasks, at least one for each block.
        num_operators: Blocks at each depth, at least 2.
        images_per_task: Training images of a task.
        data_seed: Seed of everything that is drawn.
    """
    name = "credit"
    counts = dict(depth=depth, num_tasks=num_tasks, num_operators=num_operators, images_per_task=images_per_task)
    generator = seeded(name, data_seed, **counts)
    check_number(f"{name}: depth", depth, 1, 8)
    if not 2 <= num_operators <= num_tasks:
        raise ValueError(
            f"{name}: num_operators must lie in [2, num_tasks], each is right for a task, got {num_operators} of "
            f"{num_tasks} tasks"
        )
    words = torch.stack([spread(num_operators, num_tasks, generator) for _ in range(depth)], 1)
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
    return planted_splits(name, images.view(-1, 1, 1, LOCK_CLASSES), rows, label, planted, num_tasks, LOCK_CLASSES)


def budget(
    *, hard_share: float = 0.5, images: int = 3000, noise: float = 10.0, told: bool = False, data_seed: int = 0
) -> dict[str, MultiTaskDataset]:
    """Build instances of two difficulties, all of one task, for networks that can be left early.

    An easy instance is the mean digit of one of three classes with a little noise (a deviation of 5 in 255), which the
    first exit tells apart. A hard one is a digit of ten under more noise, white on black, or black on white, where its
    class is five further (modulo ten): that takes layers. Only the image says which is which. Planted is 0 for easy
    instances, which should be classified at once, and 1 for hard ones, which should go on to the end: the numbers of
    these choices. Of all pairs of exits that is the best at prices (`k_cpt` of the environment) of 4e-6 to 2e-5 per
    multiply-accumulate, as trying each has shown.

    Args:
        hard_share: Share of hard instances, in [0, 1).
        images: Training images; where there are fewer digits, some of the same under new noise.
        noise: Deviation of the noise of hard instances, in 255.
        told: The difficulty is the task.
        data_seed: Seed of everything that is drawn.
    """
    name = "budget"
    generator = seeded(name, data_seed, images=images)
    check_number(f"{name}: hard_share", hard_share, 0, 1, below=True)
    check_number(f"{name}: noise", noise, 0, 255)
    check_images(name, "images", images, KINDS)
    check_bool(f"{name}: told", told)
    material = material_of(name, "digits", None, generator)
    train = material.members["train"]
    times = -(-images // len(train))
    sizes = (torch.arange(images) % times).bincount()
    rows = deal(name, "images", material, sizes, generator)
    means = torch.stack([material.images[train[material.kind[train] == kind]].float().mean(0) for kind in range(KINDS)])
    shown, count, label, planted = [], 0, {}, {}
    for split, (image, _) in rows.items():
        hard = torch.zeros(len(image), dtype=torch.int64)
        hard[torch.randperm(len(image), generator=generator)[: round(hard_share * len(image))]] = 1
        kind, planted[split] = material.kind[image], hard.unsqueeze(1)
        drawn = torch.randn(len(image), *means.shape[1:], generator=generator)
        inverted, is_hard = torch.rand(len(image), generator=generator) < 0.5, hard == 1
        digit = material.images[image].float()
        digit[inverted] = 255 - digit[inverted]
        easy_kind, hard_kind = kind % EASY_KINDS, torch.where(inverted, (kind + KINDS // 2) % KINDS, kind)
        label[split] = torch.where(is_hard, hard_kind, easy_kind)
        pixels = torch.where(is_hard.view(-1, 1, 1, 1), digit + noise * drawn, means[easy_kind] + 5 * drawn)
        shown.append(pixels.clamp(0, 255).to(torch.uint8))
        rows[split] = count + torch.arange(len(image)), hard if told else torch.zeros_like(hard)
        count += len(image)
    return planted_splits(name, torch.cat(shown), rows, label, planted, 2 if told else 1, KINDS)
