"""Multi-task data: images stored once, tasks as rows that point at them, and the order in which these are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from routing_gym.forms import check_form
from routing_gym.tasks.augmentation import Shift, recolor
from routing_gym.tasks.checking import image_tensor, integer_tensor, to_tensor, whole_number


@dataclasses.dataclass(frozen=True)
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
        shades: `(drawings, 1, H, W)` uint8, the drawings before they were coloured, for an augmentation that colours
            them anew; else None.

    Raises:
        ValueError: A tensor of the wrong shape or type, an index out of range, or a task without rows.
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

    def __post_init__(self) -> None:
        where = f"{self.name}, split {self.split!r}"
        self._set(images=image_tensor(f"{where}: images", self.images))
        for field in ("num_tasks", "num_classes"):
            whole_number(f"{where}: {field}", getattr(self, field))
        for field in ("mean", "std"):
            self._set(**{field: to_tensor(f"{where}: {field}", getattr(self, field)).float()})
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
                raise ValueError(f"{where}: {field} must lie in [0, {limit}), got values from {low} to {high}")
        if empty := (torch.bincount(self.task, minlength=self.num_tasks) == 0).nonzero().flatten().tolist():
            raise ValueError(
                f"{where}: every one of the {self.num_tasks} tasks needs at least one row, got none for {empty}"
            )
        channels, mean, std, augmentation = self.images.shape[1], self.mean, self.std, self.augmentation
        finite = bool(mean.isfinite().all() & std.isfinite().all())
        if not mean.shape == std.shape == (channels,) or not finite or not bool((std > 0).all()):
            raise ValueError(
                f"{where}: mean and std must hold {channels} finite numbers, std positive, got {mean} and {std}"
            )
        if not isinstance(augmentation, Shift | None):
            raise ValueError(f"{where}: augmentation must be a Shift or None, got {augmentation!r}")
        if self.shades is not None:
            self._set(shades=to_tensor(f"{where}: shades", self.shades))
        if whole_number(f"{where}: drawings", self.drawings, least=0) > len(self.images):
            raise ValueError(f"{where}: drawings must lie in [0, {len(self.images)}], got {self.drawings}")
        shades, wanted = self.shades, (self.drawings, 1, *self.images.shape[2:])
        if shades is not None and (shades.dtype != torch.uint8 or shades.shape != wanted):
            raise ValueError(
                f"{where}: shades must be uint8 of shape {wanted}, got {shades.dtype} of shape {tuple(shades.shape)}"
            )
        if augmentation is None:
            return
        if augmentation.recolor and (shades is None or channels != 3):
            raise ValueError(f"{where}: an augmentation that recolours needs shades, and images of 3 channels")
        if (augmentation.recolor or augmentation.fill != "black") and self.images.is_floating_point():
            raise ValueError(f"{where}: floating-point images are filled with black (0) and not recoloured")

    def _set(self, **values: Tensor) -> None:
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        split: str,
        images: ArrayLike,
        task: ArrayLike | None,
        label: ArrayLike,
        *,
        image: ArrayLike | None = None,
        like: MultiTaskDataset | None = None,
        augmentation: Shift | None = None,
    ) -> MultiTaskDataset:
        """Make a split from arrays.

        Args:
            name: As of the class.
            split: As of the class.
            images: `(N, C, H, W)`, bytes or floating-point features.
            task: `(R,)`, the task of each row, from 0; None: there is one task.
            label: `(R,)`, the label of each row, from 0.
            image: `(R,)`, the image of each row; by default row i has image i.
            like: The training split, whose tasks, classes, mean and deviation another split shares; by default they
                are those of the arrays.
            augmentation: As of the class.

        Raises:
            ValueError: As `MultiTaskDataset`, or more or fewer rows than images where `image` does not say which.
        """
        where = f"{name}, split {split!r}"
        pixels, labels = image_tensor(f"{where}: images", images), integer_tensor(f"{where}: label", label)
        tasks = torch.zeros_like(labels) if task is None else integer_tensor(f"{where}: task", task)
        if image is None and len(labels) != len(pixels):
            raise ValueError(
                f"{where}: {len(labels)} labels for {len(pixels)} images: say with image=... which image each row has"
            )
        if like is not None and not isinstance(like, MultiTaskDataset):
            raise ValueError(f"{where}: like must be another split, a MultiTaskDataset, got {type(like).__name__}")
        if not len(labels) or not len(tasks):
            raise ValueError(f"{where}: label and task must have at least one row, got none")
        rows = torch.arange(len(pixels)) if image is None else integer_tensor(f"{where}: image", image)
        mean, std = pixel_statistics(pixels) if like is None else (like.mean, like.std)
        num_tasks = int(tasks.max()) + 1 if like is None else like.num_tasks
        num_classes = max(1, int(labels.max()) + 1) if like is None else like.num_classes
        return cls(name, split, pixels, rows, tasks, labels, num_tasks, num_classes, mean, std, augmentation)

    def __len__(self) -> int:
        """Number of rows, that is of instances."""
        return len(self.image)

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
        if torch.device(device) == self.device:
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
        image, task, label = self.image[kept], number[self.task[kept]], self.label[kept]
        return dataclasses.replace(
            self, num_tasks=len(tasks), num_classes=int(label.max()) + 1, image=image, task=task, label=label
        )

    def with_tasks(self, other: MultiTaskDataset) -> MultiTaskDataset:
        """This split with the tasks of another one after its own; normalised and augmented as this one is.

        Raises:
            ValueError: Images of another shape, or drawings, which can only stand first.
        """
        if not isinstance(other, MultiTaskDataset):
            raise ValueError(f"{self.name} takes the tasks of another split, a MultiTaskDataset, got {other!r}")
        if other.input_shape != self.input_shape:
            raise ValueError(f"{self.name} has images of shape {self.input_shape}, {other.name} {other.input_shape}")
        other = other.to(self.device)
        shared = other.images.data_ptr() == self.images.data_ptr() and len(other.images) == len(self.images)
        if other.drawings and not shared:
            raise ValueError(f"the drawings of {other.name} can only stand first: ask it for the tasks of {self.name}")
        return dataclasses.replace(
            self,
            images=self.images if shared else torch.cat([self.images, other.images]),
            image=torch.cat([self.image, other.image if shared else other.image + len(self.images)]),
            task=torch.cat([self.task, other.task + self.num_tasks]),
            label=torch.cat([self.label, other.label]),
            num_tasks=self.num_tasks + other.num_tasks,
            num_classes=max(self.num_classes, other.num_classes),
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
            images = self._augmented(image, images, augmentation.to(self.device))
        return self.normalized(images)

    def normalized(self, images: Tensor) -> Tensor:
        """Images `(B, C, H, W)` uint8 as networks see them, float32."""
        return images.float().sub_(self.mean.view(-1, 1, 1)).div_(self.std.view(-1, 1, 1))

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


class ShuffledStream:
    """An endless stream of numbers: every one once per pass, each pass in a new random order.

    The order comes from a CPU generator, because seeded CUDA generators give other streams on other GPU models.

    Args:
        numbers: `(size,)` int64, or how many: then they are 0 … size − 1.
        seed: Seed of the generator.
    """

    def __init__(self, numbers: int | Tensor, seed: int = 0) -> None:
        self._numbers = numbers if isinstance(numbers, Tensor) else None
        size = len(numbers) if isinstance(numbers, Tensor) else numbers
        self.size = whole_number("the size of a stream", size)
        self.generator = torch.Generator()
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start over from a seed."""
        self.generator.manual_seed(whole_number("seed", seed, least=None))
        self._pass = torch.empty(0, dtype=torch.int64)

    def draw(self, count: int) -> Tensor:
        """The next numbers of the stream, `(count,)` int64 on the CPU."""
        pieces, missing = [], count
        while missing > 0:
            if not len(self._pass):
                self._pass = torch.randperm(self.size, generator=self.generator)
            pieces.append(self._pass[:missing])
            self._pass = self._pass[missing:]
            missing -= len(pieces[-1])
        places = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)
        return places if self._numbers is None else self._numbers[places]

    def state_dict(self) -> dict[str, Any]:
        """State from which `load_state_dict` goes on."""
        return {"size": self.size, "generator": self.generator.get_state(), "pass": self._pass.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place in the stream.

        Raises:
            ValueError: It was a stream of another size, or no stream. Nothing has changed then.
        """
        check_form(state, {"size": int, "generator": self.generator.get_state(), "pass": Tensor}, "stream")
        if state["size"] != self.size:
            raise ValueError(f"this is the state of a stream of {state['size']} numbers, here there are {self.size}")
        left = state["pass"]
        check_form(left, torch.empty(left.numel(), dtype=torch.int64), "stream.pass")
        if len(left.unique()) < len(left) or bool(((left < 0) | (left >= self.size)).any()):
            raise ValueError(f"stream.pass: expected numbers in [0, {self.size}), each at most once")
        try:
            self.generator.set_state(state["generator"])
        except RuntimeError as error:
            raise ValueError(f"stream.generator: {error}") from error
        self._pass = left.clone()
