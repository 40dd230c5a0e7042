"""The options of the environment: plain values, so that they can stand in a registration and in a command line."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from routing_gym.envs.precision import PRECISIONS
from routing_gym.envs.rewards import FINAL_REWARDS
from routing_gym.envs.training import OPTIMIZERS, SCHEDULES, Optimization
from routing_gym.tasks import MultiTaskDataset, ShuffledStream

type_hints: Callable[[Any], dict[str, Any]] = functools.cache(get_type_hints)
"""Types by name that a function or class is annotated with, worked out once: that takes longer than a small network."""


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """Options of `RoutingVectorEnv`.

    Attributes:
        split: The split instances are drawn from.
        draw_tasks: The tasks instances are drawn of; all by default.
        autoreset_mode: `"same_step"` for outside agents, `"disabled"` for agents that train on whole batches; or
            Gymnasium's `AutoresetMode` of that name.
        action_type: `"discrete"`, or `"weights"` for mixtures.
        final_reward: At the exit: `"correctness"`, +1 or -1; `"negative-loss"`, minus the cross-entropy; or one of
            your own (`register_reward`).
        rho: Weight of the collaboration reward, in [0, 1]: for taking a block that has been taken often.
        collaboration: What "often" is: the running average `"probability"` of the block under the agents' policies,
            which our agents add themselves because only they know it; or its running `"frequency"` over all tasks.
        k_cpt: Cost of one multiply-accumulate: every action pays -k_cpt times its MACs. Several: every instance has one
            of them, drawn at random.
        price: Show every instance's own k_cpt, times ten million, as `observation["price"]`.
        augmentations: How many augmented versions of every image are routed together, M: rows iM to iM + M - 1 of a
            batch are one image (mode "disabled" only).
        differentiable: Keep the graph of observations too (mode "disabled" only).
        dense_backward: Run every block while training, so that unchosen weights have a gradient. A path of several that
            nothing was sent to stays out all the same: what it would say counts for nothing.
        train: Train the blocks; False leaves them in eval mode and never keeps a graph.
        replay: Train the blocks by replaying finished routes in mode "disabled" too, for outside agents that restart
            rows themselves; mode "same_step" always does.
        replay_batch: Finished routes per training step of the blocks where they are replayed.
        illegal: What a masked choice does: `"raise"`; or `"first_legal"`: the first legal choice is taken and
            `info["illegal_action"]` is 1. None: "first_legal" where routes are replayed, "raise" elsewhere.
        optimizer: Optimiser of the blocks: `"adam"`, `"adamw"` or `"sgd"`.
        learning_rate: Its step size.
        momentum: Of `"sgd"`, in [0, 1).
        weight_decay: L2 penalty on the blocks (decoupled with `"adamw"`).
        schedule: What becomes of the learning rate: `"constant"`; `"step"`, divided by 10 every `schedule_epochs`, or
            after each of several, `(150, 200)`; `"halving"`, halved every `schedule_epochs`, smoothly; or `"cosine"`,
            down to 0 over `schedule_epochs`.
        schedule_epochs: Measure of the schedule, in passes over the split; for `"step"` also the epochs at which.
        talr: Scale every choice's gradient up by how little it is used, see `TALR`.
        precision: What the network computes in: `"float32"`; or `"bfloat16"`, while parameters, loss and all that an
            agent sees stay float32. `evaluate` judges in float32 all the same: with bfloat16's 8 bits the two best
            logits are equal now and then, and a tie counts as wrong.
        validate: Check values of actions at once. None: on the CPU only; on a GPU one flag is read per batch.
        device: `"auto"` takes CUDA where present.
        seed: Seed of the order of instances, until `reset(seed=...)`.
        render_mode: `"ansi"`, the route of each instance; `"rgb_array"`, the routing map; or None.
    """

    split: str = "train"
    draw_tasks: tuple[int, ...] | None = None
    autoreset_mode: Literal["same_step", "disabled"] = "same_step"
    action_type: Literal["discrete", "weights"] = "discrete"
    final_reward: str = "correctness"
    rho: float = 0.0
    collaboration: Literal["probability", "frequency"] = "probability"
    k_cpt: float | tuple[float, ...] = 0.0
    price: bool = False
    augmentations: int = 1
    differentiable: bool = False
    dense_backward: bool = False
    train: bool = True
    replay: bool = False
    replay_batch: int = 64
    illegal: Literal["raise", "first_legal"] | None = None
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["constant", "step", "halving", "cosine"] = "constant"
    schedule_epochs: float | tuple[float, ...] = 20
    talr: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    validate: bool | None = None
    device: str = "auto"
    seed: int = 0
    render_mode: Literal["ansi", "rgb_array"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "autoreset_mode", name_of_mode(self.autoreset_mode))
        for option, known in (
            ("autoreset_mode", ("same_step", "disabled")),
            ("action_type", ("discrete", "weights")),
            ("final_reward", tuple(FINAL_REWARDS)),
            ("collaboration", ("probability", "frequency")),
            ("illegal", ("raise", "first_legal", None)),
            ("optimizer", tuple(OPTIMIZERS)),
            ("schedule", tuple(SCHEDULES)),
            ("precision", PRECISIONS),
            ("render_mode", ("ansi", "rgb_array", None)),
        ):
            if getattr(self, option) not in known:
                raise ValueError(f"{option} must be {_either(known)}, got {getattr(self, option)!r}")
        check_count("replay_batch", self.replay_batch)
        check_count("augmentations", self.augmentations)
        tasks = self.draw_tasks
        whole = isinstance(tasks, tuple | list) and all(isinstance(t, int) and not isinstance(t, bool) for t in tasks)
        if tasks is not None and not (whole and tasks):
            raise ValueError(f"draw_tasks must be a tuple of task numbers, at least one, got {tasks!r}")
        epochs = self.schedule_epochs if isinstance(self.schedule_epochs, tuple | list) else (self.schedule_epochs,)
        if not epochs or not all(0 < epoch < float("inf") for epoch in epochs):
            raise ValueError(f"schedule_epochs must be positive and finite, got {self.schedule_epochs}")
        if len(epochs) != 1 and self.schedule != "step":
            raise ValueError(
                f"several schedule_epochs are for schedule='step', got {self.schedule_epochs} for {self.schedule!r}"
            )
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho must lie in [0, 1], got {self.rho}")
        if not self.prices or not all(is_price(price) for price in self.prices):
            raise ValueError(f"k_cpt must be at least 0 and finite, or a tuple of such numbers, got {self.k_cpt!r}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for optimizer='sgd', got {self.optimizer!r}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")
        outside = "replay=True" if self.replay else "autoreset_mode='same_step'"
        if self.replays and self.differentiable:
            raise ValueError(f"differentiable=True needs autoreset_mode='disabled': {outside} acts without a graph")
        if self.replays and self.augmentations > 1:
            raise ValueError(
                f"augmentations={self.augmentations} needs autoreset_mode='disabled': with {outside} every row begins "
                "and ends by itself"
            )
        if self.replays and self.rho and self.collaboration == "probability":
            raise ValueError(
                f"the probabilities of an outside agent are not known: with rho > 0, {outside} needs "
                "collaboration='frequency'"
            )
        if self.action_type == "weights" and self.rho and self.collaboration == "frequency":
            raise ValueError("the frequency form of the collaboration reward counts integer choices, not weights")

    @classmethod
    def of(cls, options: dict[str, Any]) -> EnvConfig:
        """Make a configuration.

        Raises:
            TypeError: An unknown option.
            ValueError: A value that an option does not take.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise unexpected("the environment", unknown[0], known)
        check_types("the environment", type_hints(cls), options)
        return cls(**options)

    @property
    def prices(self) -> tuple[float, ...]:
        """What a multiply-accumulate may cost an instance."""
        return tuple(self.k_cpt) if isinstance(self.k_cpt, tuple | list) else (self.k_cpt,)

    @property
    def replays(self) -> bool:
        """Whether the blocks learn from finished routes that are run again."""
        return self.replay or self.autoreset_mode == "same_step"

    @property
    def torch_device(self) -> torch.device:
        """The device meant."""
        wanted = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(wanted)
        except RuntimeError as error:
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {self.device!r}") from error
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {self.device!r}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}: this machine has no CUDA device; 'auto' takes what there is")
        return device

    def stream(self, dataset: MultiTaskDataset, num_envs: int) -> ShuffledStream:
        """Return the order in which instances of a split are drawn.

        Raises:
            ValueError: `draw_tasks` names a task that is not there, or `augmentations` does not go with the split or
                the number of instances routed together.
        """
        self._check_augmentations(dataset, num_envs)
        if self.draw_tasks is None:
            return ShuffledStream(len(dataset), self.seed)
        wanted = torch.zeros(dataset.num_tasks, dtype=torch.bool)
        for task in self.draw_tasks:
            if not 0 <= task < dataset.num_tasks:
                raise ValueError(f"draw_tasks names task {task}, {dataset.name} has {dataset.num_tasks} tasks")
            wanted[task] = True
        return ShuffledStream(wanted[dataset.task.cpu()].nonzero().flatten(), self.seed)

    def draw(self, stream: ShuffledStream, count: int) -> Tensor:
        """Return `(count,)` on the CPU: the rows of the split that come next, each as often as it is augmented."""
        return stream.draw(count // self.augmentations).repeat_interleave(self.augmentations)

    def _check_augmentations(self, dataset: MultiTaskDataset, num_envs: int) -> None:
        """Refuse several augmentations of an image where nothing augments it, or where they do not fill a batch."""
        if self.augmentations > 1 and self.train and dataset.augmentation is None:
            raise ValueError(
                f"augmentations={self.augmentations}: {dataset.name}, split {dataset.split!r} has no augmentation; an "
                "option of the data gives it one (shift=4, say)"
            )
        if num_envs % self.augmentations:
            raise ValueError(
                f"num_envs must be a multiple of augmentations={self.augmentations}, so that a batch holds whole "
                f"images, got {num_envs}"
            )

    def draw_prices(self, count: int, generator: torch.Generator) -> Tensor:
        """Return `(count,)` on the CPU: what a multiply-accumulate costs each of some instances."""
        prices = torch.tensor(self.prices, dtype=torch.get_default_dtype())
        if len(prices) == 1:
            return prices.expand(count)
        return prices[torch.randint(len(prices), (count,), generator=generator)]

    def optimization(self, rows: int, num_envs: int) -> Optimization:
        """Return how blocks are trained on a split of so many rows; whole batches make an epoch in mode "disabled"."""
        options = {field.name for field in dataclasses.fields(Optimization)} - {"epoch"}
        rows *= self.augmentations
        epoch = rows if self.autoreset_mode == "same_step" else -(-rows // num_envs) * num_envs
        return Optimization(epoch=epoch, **{option: getattr(self, option) for option in options})

    def final(self, loss: Tensor, correct: Tensor) -> Tensor:
        """Return the final reward of rows with a given cross-entropy and correctness (0 or 1)."""
        return FINAL_REWARDS[self.final_reward](loss, correct)


def name_of_mode(value: Any) -> Any:
    """Return the name of an `AutoresetMode`, which text can say, and anything else as it is."""
    return value.name.lower() if isinstance(value, AutoresetMode) else value


class PlainSpec:
    """The attribute `spec` of an environment, in which an `AutoresetMode` is its name: `spec.to_json()` must work."""

    def __get__(self, env: Any, owner: type) -> Any:
        return None if env is None else vars(env).get("_spec")

    def __set__(self, env: Any, spec: Any) -> None:
        if spec is not None:
            spec.kwargs = {option: name_of_mode(value) for option, value in spec.kwargs.items()}
        vars(env)["_spec"] = spec


def unexpected(owner: str, option: str, known: Iterable[str]) -> TypeError:
    """Return the error for an option nobody takes, in the words of Python, by which TorchRL knows it."""
    return TypeError(f"{owner} got an unexpected keyword argument {option!r}; it takes {', '.join(sorted(known))}")


SEQUENCES = (tuple, list, Sequence)


def check_types(owner: str, hints: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse options whose values are not of the types hinted at: text where a number belongs, 2.5 where 2 does."""
    for name, value in options.items():
        hint = hints.get(name, Any)
        kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        fits = any(
            kind is Any
            or (get_origin(kind) in SEQUENCES and isinstance(value, tuple | list))
            or get_origin(kind) not in (None, *SEQUENCES)  # literals: their values are checked where they are known
            or (value is None and kind in (None, type(None)))
            or (isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))
            or (kind is float and isinstance(value, int) and not isinstance(value, bool))
            for kind in kinds
        )
        if not fits:
            wanted = " or ".join(
                "None" if k is type(None) else k.__name__ if isinstance(k, type) else str(k) for k in kinds
            )
            raise ValueError(f"{owner}: {name} must be of type {wanted}, got {value!r}")


def is_price(value: Any) -> bool:
    """Tell whether a value can be the cost of one multiply-accumulate: a number of at least 0 that is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def check_count(option: str, value: Any) -> None:
    """Refuse what is not an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{option} must be an integer of at least 1, got {value!r}")


def _either(known: tuple) -> str:
    return " or ".join(repr(value) for value in known)
