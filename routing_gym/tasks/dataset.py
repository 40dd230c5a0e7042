"""Multi-task data: images stored once, tasks as rows that point at them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from routing_gym.tasks.augmentation import Shift, recolor
from routing_gym.tasks.checking import image_tensor, integer_tensor, rows_of_tasks, to_tensor, whole_number
from routing_gym.tasks.sampling import sent

MOST = 2**24
"""Tasks or classes there may be: a number that is larger is none."""
OF_ROWS = ("image", "task", "label", "planted", "during")
"""Fields of a split that have an entry for every row, where they are known."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MultiTaskDataset:
    """One split of a multi-task classification problem.

    One image may belong to many tasks, with another label in each: images are stored once and a *row*
    `(image, task, label)` is one instance. Images stay `uint8`; they are normalised (and augmented) per batch, on
    the device they live on. Features that are no bytes are floating point. Wherever a tensor is wanted NumPy arrays and
    lists are taken too; `from_arrays` works out what can be worked out.

    Attributes:
        name: Name of the data set, for messages and reports.
        split: `"train"`, `"validation"` or `"test"`.
        images: `(N, C, H, W)` uint8 or float32.
        image: `(R,)` int64, the image of each row.
        task: `(R,)` int64 in `[0, num_tasks)`.
        label: `(R,)` int64 in `[0, num_classes)`.
        num_tasks: Number of tasks; every one has at least one row.
        num_classes: Classes of the largest task.
        mean: `(C,)` float32, mean of each channel over the training images, in pixel units (0 to 255 for uint8).
        std: `(C,)` float32, standard deviation likewise, positive.
        augmentation: Random transformation of training images, or None.
        drawings: The first so many of `images` are drawings or writing, which no augmentation mirrors.
        task_names: Names of the tasks, in the order of their numbers, where they have some: splits of one problem have
            the same.
        shades: `(drawings, 1, H, W)` uint8, the drawings before they were coloured, for an augmentation that colours
            them anew; else None.
        planted: `(R, L)` int64, the computation planted for each row at each of L depths (its group, an operator, the
            right block), where the best routing is known; else None.
        during: `(R, 2)` float64, the passes of training `[begin, end)` in which each row may be drawn; None: in all.
        late_task: The task that has no rows at first, where there is one.

    Raises:
        ValueError: A tensor of the wrong shape or type, an index out of range, a task without rows, or a time without.
    """

    name: str
    split: str
    images: Tensor
    image: Tensor
    task: Tensor
    label: Tensor
    num_tasks: int
    num_classes: int
    mean: Tensor
    std: Tensor
    augmentation: Shift | None = None
    drawings: int = 0
    shades: Tensor | None = None
    task_names: tuple[str, ...] = ()
    planted: Tensor | None = None
    during: Tensor | None = None
    late_task: int | None = None

    def __post_init__(self) -> None:
        where = f"{self.name}, split {self.split!r}"
        self._set(images=image_tensor(f"{where}: images", self.images))
        for field in ("num_tasks", "num_classes"):
            whole_number(f"{where}: {field}", getattr(self, field), 1, MOST)
        for field in ("mean", "std"):
            self._set(**{field: to_tensor(f"{where}: {field}", getattr(self, field)).detach().float()})
        limits = {"image": len(self.images), "task": self.num_tasks, "label": self.num_classes}
        for field, limit in limits.items():
            column = integer_tensor(f"{where}: {field}", getattr(self, field))
            self._set(**{field: column})
            if len(column) != (rows := len(self.image)):
                raise ValueError(
                    f"{where}: {field} must be int64 of shape ({rows},) as image is, got shape ({len(column)},)"
                )
            low, high = map(int, column.aminmax()) if len(column) else (0, 0)
            if not 0 <= low <= high < limit:
                besides = ", or be -1 where labels are by task," if field == "label" else ","
                raise ValueError(f"{where}: {field} must lie in [0, {limit}){besides} got values from {low} to {high}")
        if empty := (torch.bincount(self.task, minlength=self.num_tasks) == 0).nonzero().flatten().tolist():
            raise ValueError(
                f"{where}: every one of the {self.num_tasks} tasks needs at least one row, got none for {empty}"
            )
        if self.planted is not None:
            planted = to_tensor(f"{where}: planted", self.planted)
            whole = not (planted.is_floating_point() or planted.is_complex() or planted.dtype == torch.bool)
            form = planted.ndim == 2 and len(planted) == len(self.image) and planted.shape[1] > 0
            if not (whole and form) or int(planted.min()) < 0:
                raise ValueError(
                    f"{where}: planted must be integers of at least 0, of shape ({len(self.image)}, L), got "
                    f"{planted.dtype} of shape {tuple(planted.shape)}"
                    + (f", the least of them {int(planted.min())}" if whole and form else "")
                )
            self._set(planted=planted.long())
        if self.during is not None:
            during = to_tensor(f"{where}: during", self.during).double()
            form = during.shape == (len(self.image), 2)
            if not form or not bool(((during[:, 0] >= 0) & (during[:, 0] < during[:, 1])).all()):
                raise ValueError(
                    f"{where}: during must be passes [begin, end) of each row, 0 <= begin < end, of shape "
                    f"({len(self.image)}, 2), got shape {tuple(during.shape)}"
                    + (f" and values from {float(during.min())} to {float(during.max())}" if form else "")
                )
            self._set(during=during)
            if gaps := [begin for begin, rows in self.phases if not len(rows)]:
                raise ValueError(f"{where}: during leaves no row that may be drawn from pass {gaps[0]:g} on")
        if self.late_task is not None and self.late_task not in range(self.num_tasks):
            raise ValueError(f"{where}: late_task must be a task, 0 to {self.num_tasks - 1}, got {self.late_task!r}")
        if self.task_names and len(set(self.task_names)) != self.num_tasks:
            raise ValueError(f"{where}: task_names must be {self.num_tasks} different names, got {self.task_names}")
        channels, mean, std, augmentation = self.images.shape[1], self.mean, self.std, self.augmentation
        finite = bool(mean.isfinite().all() & std.isfinite().all())
        if not mean.shape == std.shape == (channels,) or not finite or not bool((std > 0).all()):
            raise ValueError(
                f"{where}: mean and std must hold {channels} finite numbers, std positive, got {mean} and {std}"
            )
        if not isinstance(augmentation, Shift | None):
            raise ValueError(f"{where}: augmentation must be a Shift or None, got {augmentation!r}")
        whole_number(f"{where}: drawings", self.drawings, 0, len(self.images))
        if self.shades is not None:
            shades, wanted = to_tensor(f"{where}: shades", self.shades), (self.drawings, 1, *self.images.shape[2:])
            if shades.dtype != torch.uint8 or shades.shape != wanted:
                got = f"{shades.dtype} of shape {tuple(shades.shape)}"
                raise ValueError(f"{where}: shades must be uint8 of shape {wanted}, got {got}")
            self._set(shades=shades)
        if augmentation is None:
            return
        if augmentation.recolor and (self.shades is None or channels != 3):
            raise ValueError(f"{where}: an augmentation that recolours needs shades, and images of 3 channels")
        if (augmentation.recolor or augmentation.fill != "black") and self.images.is_floating_point():
            raise ValueError(f"{where}: floating-point images are filled with black (0) and not recoloured")

    def _set(self, **values: Tensor) -> None:
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @classmethod
    def from_arrays(
        cls,
        images: ArrayLike,
        labels: ArrayLike | Mapping[Any, ArrayLike],
        task: ArrayLike | None = None,
        *,
        image: ArrayLike | None = None,
        name: str = "own data",
        split: str = "train",
        like: MultiTaskDataset | None = None,
        augmentation: Shift | None = None,
        normalize: bool = True,
    ) -> MultiTaskDataset:
        """Make a split from arrays: `from_arrays(images, {"even": even, "prime": prime})` has two tasks.

        Args:
            images: `(N, C, H, W)`, bytes or floating-point features.
            labels: `(N,)` of each task by name, from 0, -1 for images that are not of this task; tasks are numbered in
                this order. Or `(R,)`, the label of each row.
            task: `(R,)`, the task of each row, from 0, where `labels` is an array; by default there is one task.
            image: `(R,)`, the image of each row, where `labels` is an array; by default row i has image i.
            name: As of the class.
            split: As of the class.
            like: The training split, whose tasks, classes, mean and deviation another split shares; by default they
                are those of the arrays.
            augmentation: As of the class.
            normalize: Whether networks see images less their mean, by their deviation; numbers of tokens must stay.

        Raises:
            ValueError: As `MultiTaskDataset`, or more or fewer rows than images where `image` does not say which.
        """
        where = f"{name}, split {split!r}"
        wanted: tuple[str, ...] = ()
        pixels = image_tensor(f"{where}: images", images)
        if pixels.shape[-1] in (1, 3, 4) and min(pixels.shape[1:3]) > 4:
            warnings.warn(
                f"{where}: shape {tuple(pixels.shape)} is read as (N, C, H, W), that is {pixels.shape[1]} channels; "
                "give (N, H, W, C) as images.transpose(0, 3, 1, 2), a tensor's as images.permute(0, 3, 1, 2)",
                stacklevel=2,
            )
        if isinstance(labels, Mapping):
            if task is not None or image is not None:
                raise ValueError(f"{where}: labels by task say which task and image a row has: leave these out")
            names = tuple(map(str, labels))
            wanted = getattr(like, "task_names", ()) or names
            if sorted(wanted) != sorted(names):
                raise ValueError(f"{where}: labels must be of the tasks {wanted}, as those of like, got {names}")
            by_name = dict(zip(names, labels.values(), strict=True))
            if len(by_name) < len(names):
                raise ValueError(f"{where}: tasks must have different names, got {names}")
            rows, tasks, found = rows_of_tasks(where, {known: by_name[known] for known in wanted}, len(pixels))
        else:
            found = integer_tensor(f"{where}: labels", labels)
            tasks = torch.zeros_like(found) if task is None else integer_tensor(f"{where}: task", task)
            if image is None and len(found) != len(pixels):
                raise ValueError(
                    f"{where}: {len(found)} labels for {len(pixels)} images: say with image=... which image each row "
                    "has"
                )
            rows = integer_tensor(f"{where}: image", np.arange(len(pixels)) if image is None else image)
        if like is not None and not isinstance(like, MultiTaskDataset):
            raise ValueError(f"{where}: like must be another split, a MultiTaskDataset, got {type(like).__name__}")
        if not len(found) or not len(tasks):
            raise ValueError(f"{where}: labels and task must have at least one row, got none")
        mean, std = (torch.zeros(pixels.shape[1]), torch.ones(pixels.shape[1]))
        if normalize:
            mean, std = pixel_statistics(pixels)
        if like is not None:
            mean, std = like.mean, like.std
        num_tasks = (len(wanted) or int(tasks.max()) + 1) if like is None else like.num_tasks
        num_classes = max(1, int(found.max()) + 1) if like is None else like.num_classes
        if like is None and int(found.min()) > 0:
            warnings.warn(f"{where}: the least label is {int(found.min())}; labels count from 0", stacklevel=2)
        columns = (name, split, pixels, rows, tasks, found, num_tasks, num_classes, mean, std, augmentation)
        return cls(*columns, task_names=wanted)

    def __repr__(self) -> str:
        images = f"{len(self.images)} images of {'x'.join(map(str, self.images.shape[1:]))}"
        return f"<{self.name}, {self.split}: {len(self)} rows, {images}, {self.num_tasks} tasks>"

    def __len__(self) -> int:
        """Number of rows, that is of instances."""
        return len(self.image)

    @cached_property
    def phases(self) -> list[tuple[float, Tensor]]:
        """Passes of training, from 0 on, at which it changes which rows may be drawn, and those rows, on the CPU."""
        if self.during is None:
            return [(0.0, torch.arange(len(self), device="cpu"))]
        begin, end = self.during.cpu().T
        times = sorted({0.0, *begin.tolist(), *end.tolist()} - {math.inf})
        return [(time, ((begin <= time) & (time < end)).nonzero().flatten()) for time in times]

    def rows_at(self, passes: float) -> Tensor:
        """Rows that may be drawn after so many passes of training, on the CPU."""
        return next(rows for begin, rows in reversed(self.phases) if begin <= passes)

    @property
    def rows_per_pass(self) -> int:
        """Number of rows that make a pass: as many as may be drawn at one time, at most."""
        return max(len(rows) for _, rows in self.phases)

    @property
    def device(self) -> torch.device:
        """Where images and rows live."""
        return self.images.device

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> MultiTaskDataset:
        """This split on another device (itself when it is there already)."""
        wanted = torch.device(device)
        if wanted.type == self.device.type and wanted.index in (None, self.device.index):
            return self
        moved: Any = {field: value.to(device) for field, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **moved)

    def select_tasks(self, tasks: Sequence[int]) -> MultiTaskDataset:
        """This split with some of its tasks only, renumbered in the order given; images are shared, not copied.

        Raises:
            ValueError: No task, a task twice, or one that is not there.
        """
        asked, known = tasks, range(self.num_tasks)
        listed = list(tasks) if isinstance(tasks, Sequence | np.ndarray | Tensor) else []
        tasks = [int(task) for task in listed if task in known]
        if not tasks or len(tasks) < len(listed) or len(set(tasks)) < len(tasks):
            raise ValueError(f"{self.name} has the tasks 0 to {self.num_tasks - 1}, asked for are {asked!r}")
        number = torch.full((self.num_tasks,), -1, device=self.device)
        number[torch.tensor(tasks, device=self.device)] = torch.arange(len(tasks), device=self.device)
        kept = number[self.task] >= 0
        rows: Any = {field: value[kept] for field in OF_ROWS if (value := getattr(self, field)) is not None}
        rows["task"] = number[rows["task"]]
        return dataclasses.replace(
            self,
            **rows,
            task_names=tuple(self.task_names[task] for task in tasks) if self.task_names else (),
            num_tasks=len(tasks),
            num_classes=int(rows["label"].max()) + 1,
            late_task=tasks.index(self.late_task) if self.late_task in tasks else None,
        )

    def with_tasks(self, other: MultiTaskDataset) -> MultiTaskDataset:
        """This split with the tasks of another one after its own; normalised and augmented as this one is.

        What is planted stays known where both say it, at as many depths.

        Raises:
            ValueError: Images of another shape, or drawings, which can only stand first.
        """
        if not isinstance(other, MultiTaskDataset):
            raise ValueError(f"{self.name} takes the tasks of another split, a MultiTaskDataset, got {other!r}")
        if other.input_shape != self.input_shape:
            raise ValueError(f"{self.name} has images of shape {self.input_shape}, {other.name} {other.input_shape}")
        other = other.to(self.device)
        names = (*self.task_names, *other.task_names)
        shared = other.images.data_ptr() == self.images.data_ptr() and len(other.images) == len(self.images)
        if other.drawings and not shared:
            raise ValueError(f"the drawings of {other.name} can only stand first: ask it for the tasks of {self.name}")
        always = torch.tensor([0.0, math.inf], dtype=torch.float64, device=self.device)
        times = [always.expand(len(split), 2) if split.during is None else split.during for split in (self, other)]
        here, there = self.planted, other.planted
        known = here is not None and there is not None and here.shape[1] == there.shape[1]
        return dataclasses.replace(
            self,
            images=self.images if shared else torch.cat([self.images, other.images]),
            image=torch.cat([self.image, other.image if shared else other.image + len(self.images)]),
            task=torch.cat([self.task, other.task + self.num_tasks]),
            label=torch.cat([self.label, other.label]),
            num_tasks=self.num_tasks + other.num_tasks,
            task_names=names if self.task_names and other.task_names and len(set(names)) == len(names) else (),
            num_classes=max(self.num_classes, other.num_classes),
            planted=torch.cat([here, there]) if known and here is not None and there is not None else None,
            during=None if self.during is None and other.during is None else torch.cat(times),
        )

    def draw_augmentation(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Augmentation `(count, P)` of as many instances, on the CPU, as `pixels` takes it; None where there is none.

        It is stored with a route so that it can be replayed.
        """
        return None if self.augmentation is None else self.augmentation.draw(count, generator)

    def pixels(self, rows: Tensor, augmentation: Tensor | None = None) -> Tensor:
        """Images `(B, C, H, W)` float32 on `device`, each channel with mean 0 and deviation 1 over the training images.

        Args:
            rows: `(B,)` int64 row numbers on `device`.
            augmentation: `(B, P)` from `draw_augmentation`, or None for the images as they are.
        """
        image = self.image.index_select(0, rows)
        images = self.images.index_select(0, image)
        if augmentation is not None:
            images = self._augmented(image, images, sent(augmentation, self.device))
        return self.normalized(images)

    def normalized(self, images: Tensor) -> Tensor:
        """Images `(B, C, H, W)` uint8 as networks see them, float32."""
        return (
            images.to(torch.get_default_dtype(), copy=True).sub_(self.mean.view(-1, 1, 1)).div_(self.std.view(-1, 1, 1))
        )

    def _augmented(self, image: Tensor, images: Tensor, parameters: Tensor) -> Tensor:
        """Images `(B, C, H, W)` uint8, those numbered `image (B,)`, changed by `(B, P)` parameters."""
        if self.augmentation is None:
            raise ValueError(f"{self.name}, split {self.split!r} has no augmentation, but parameters were given")
        wanted = (len(image), self.augmentation.num_parameters)
        if parameters.shape != wanted:
            raise ValueError(f"{self.name}: augmentation of shape {wanted} expected, got {tuple(parameters.shape)}")
        drawn = image < self.drawings
        if self.augmentation.recolor and self.shades is not None and self.drawings:
            shades = self.shades.index_select(0, image.clamp(max=self.drawings - 1))
            colored = recolor(shades, parameters[:, 3:].view(-1, 2, 3))
            images = torch.where(drawn[:, None, None, None], colored, images)
        return self.augmentation.apply(images, parameters, drawn)


def pixel_statistics(images: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and deviation `(C,)` of each channel over images, in pixel units; a flat channel gives deviation 1.

    Args:
        images: `(N, C, H, W)` uint8 or floating point.
        rows: `(R,)` int64, the images that count; None: all do.
    """
    if images.is_floating_point():
        taken = (images if rows is None else images.index_select(0, rows)).double()
        std = taken.std((0, 2, 3), correction=0)
        return taken.mean((0, 2, 3)).float(), torch.where(std > 0, std, torch.ones_like(std)).float()
    # How often each of the 256 values occurs says it all; a float of every pixel would not fit into memory everywhere.
    channels = (channel if rows is None else channel.index_select(0, rows) for channel in images.unbind(1))
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels]).double()
    values = torch.arange(256, device=images.device).double()
    mean = counts @ values / counts.sum(1)
    std = (counts * (values - mean[:, None]) ** 2).sum(1).div(counts.sum(1)).sqrt()
    return mean.float(), torch.where(std > 0, std, torch.ones_like(std)).float()
