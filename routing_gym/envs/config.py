"""The options of the environment: plain values, so that they can stand in a registration and in a command line."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Collection
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from routing_gym.envs.rewards import REWARDS
from routing_gym.envs.training import OF_OPTIMIZATION, OPTIMIZERS, Optimization
from routing_gym.envs.turns import Manner
from routing_gym.forms import check_form
from routing_gym.options import Options, count, fraction, named, not_negative, plain_value, positive, share
from routing_gym.tasks import BalancedStream, MultiTaskDataset, ShuffledStream
from routing_gym.tasks.sampling import PhasedStream, Stream

if TYPE_CHECKING:
    from routing_gym.envs.vector import RoutingVectorEnv


OF_ONE_PROCESS = ("talr", "class_weights", "task_weights", "render_mode", "block_gradient", "task_balance")
"""Options that take sums over a batch which processes do not exchange."""


@dataclasses.dataclass(frozen=True)
class EnvConfig(Options):
    """Options of `RoutingVectorEnv`.

    Attributes:
        split: The split instances are drawn from.
        draw_tasks: The tasks instances are drawn of; all by default.
        autoreset_mode: `"same_step"` or `"next_step"` for outside agents, `"disabled"` for agents that train on whole
            batches; or Gymnasium's `AutoresetMode` of that name.
        action_type: `"discrete"`, or `"weights"` for mixtures.
        final_reward: At the exit: `"correctness"`, +1 or -1; `"negative-loss"`, minus the cross-entropy; or one of
            your own (`register_reward`).
        rewards: Further terms of the reward, by the names they were registered by: one, or several.
        rho: Weight of the collaboration reward, in [0, 1]: for taking a block that has been taken often.
        collaboration: Measure of "often": the running average `"probability"` of the block under the agents' policies,
            which they record; or its running `"frequency"` over all tasks, or in the task's own choices,
            `"task-frequency"`.
        k_cpt: Cost of one multiply-accumulate: every action pays -k_cpt times its MACs. Several: every instance has one
            of them, drawn at random.
        price: Show every instance's own k_cpt, times ten million, as `observation["price"]`.
        augmentations: How many augmented versions of every image are routed together, M: rows iM to iM + M - 1 of a
            batch are one image (mode "disabled" only).
        differentiable: Keep the graph of observations too (mode "disabled" only).
        dense_backward: Run every block while training, so that unchosen weights have a gradient; not a parallel path
            that nothing was sent to.
        merge_blocks: Let weights mix the blocks' parameters, of which one merged block then runs, instead of their
            outputs (`action_type="weights"` only). The parameters that are mixed are counted as multiply-accumulates.
        train: Train the blocks; False leaves them in eval mode and never keeps a graph.
        replay: Train the blocks by replaying finished routes in mode "disabled" too, for outside agents that restart
            rows themselves; mode "same_step" always does.
        replay_batch: Finished routes per training step of the blocks where they are replayed.
        illegal: A masked choice is an error, `"raise"`; or `"first_legal"`: the first legal choice is taken and
            `info["illegal_action"]` is 1. None: "first_legal" where routes are replayed, "raise" elsewhere.
        optimizer: Optimiser of the blocks: `"adam"`, `"adamw"` or `"sgd"`.
        learning_rate: Its step size.
        momentum: Of `"sgd"`, in [0, 1).
        weight_decay: L2 penalty on the blocks (decoupled with `"adamw"`).
        decayed: What `weight_decay` is on: `"all"` parameters; or `"weights"`, not biases nor normalisations, as the
            penalty of agents of multipath early exit is.
        schedule: Of the learning rate: `"constant"`; `"step"`, divided by 10 every `schedule_epochs`, or after each of
            several, `(150, 200)`; `"halving"`, halved every `schedule_epochs`, smoothly; or `"cosine"`, down to 0 over
            `schedule_epochs`.
        schedule_epochs: In passes over the split.
        max_grad_norm: Scale the blocks' gradients down to this norm, of all together, where it is larger.
        label_smoothing: Share of the label that is spread over all classes in the blocks' loss, in [0, 1).
        class_weights: Weight of every class in the blocks' loss; the mean over a batch is over weights. A batch
            in which all instances weigh 0 is no step.
        task_weights: Weight of every task, likewise.
        task_balance: How the losses of a batch's tasks are joined: None, as they are; `"pcgrad"`, conflicting gradients
            of what tasks share are projected, see `PCGrad`; or `"uncertainty"`, by learned weights, see `Uncertainty`.
            Not with `talr` and `block_gradient="rows"`, which scale tasks' gradients, too.
        balance_tasks: Draw all tasks equally often, however many instances they have; a pass stays as long.
        talr: Scale every choice's gradient up by how little it is used, see `TALR`.
        block_gradient: What a block's gradient is the mean over: the `"batch"`, or the `"rows"` that ran it, as if it
            were trained on them alone, see `OwnRows`; before `max_grad_norm`, and not with `talr`. Optimisers that
            divide by the size of the gradient, as Adam does, undo most of it.
        precision: Of the network's computations: `"float32"`; or `"bfloat16"`, while parameters, loss and all that an
            agent sees stay float32. `evaluate` judges in float32 all the same: with bfloat16's 8 bits the two best
            logits are equal now and then, and a tie counts as wrong.
        validate: Check values of actions at once. None: on the CPU only; on a GPU one flag is read per batch.
        device: `"auto"` takes CUDA where present.
        distributed: Share every batch with the other processes of the default group of `torch.distributed`: `num_envs`
            is this one's share of it.
        capture: On a GPU, train by replaying CUDA graphs of one batch; for agents that can (`Agent.capturable`), on
            networks that are `in_order`.
        seed: Seed of the order of instances, until `reset(seed=...)`.
        render_mode: `"ansi"`, the route of each instance; `"rgb_array"`, the routing map; or None.
    """

    split: str = "train"
    draw_tasks: tuple[int, ...] | None = None
    autoreset_mode: Literal["same_step", "next_step", "disabled"] = "same_step"
    action_type: Literal["discrete", "weights"] = "discrete"
    final_reward: str = named("correctness", lambda: [name for name, term in REWARDS.items() if term.at == "exit"])
    rewards: str | tuple[str, ...] = ()
    rho: float = share(0.0)
    collaboration: Literal["probability", "frequency", "task-frequency"] = "probability"
    k_cpt: float | tuple[float, ...] = 0.0
    price: bool = False
    augmentations: int = count(1)
    differentiable: bool = False
    dense_backward: bool = False
    merge_blocks: bool = False
    train: bool = True
    replay: bool = False
    replay_batch: int = count(64)
    illegal: Literal["raise", "first_legal"] | None = None
    optimizer: str = named("adam", lambda: OPTIMIZERS)
    learning_rate: float = positive(1e-3)
    momentum: float = fraction(0.0)
    weight_decay: float = not_negative(0.0)
    decayed: Literal["all", "weights"] = "all"
    schedule: Literal["constant", "step", "halving", "cosine"] = "constant"
    schedule_epochs: float | tuple[float, ...] = 20
    max_grad_norm: float | None = positive(None)
    label_smoothing: float = fraction(0.0)
    class_weights: tuple[float, ...] | None = None
    task_weights: tuple[float, ...] | None = None
    task_balance: Literal["pcgrad", "uncertainty"] | None = None
    balance_tasks: bool = False
    talr: bool = False
    block_gradient: Literal["batch", "rows"] = "batch"
    precision: Literal["float32", "bfloat16"] = "float32"
    validate: bool | None = None
    device: str = "auto"
    distributed: bool = False
    capture: bool = False
    seed: int = 0
    render_mode: Literal["ansi", "rgb_array"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "autoreset_mode", name_of_mode(self.autoreset_mode))
        if isinstance(self.rewards, str):
            object.__setattr__(self, "rewards", tuple(name.strip() for name in self.rewards.split(",")))
        super().__post_init__()
        if unknown := [name for name in self.rewards if not isinstance(name, str) or name not in REWARDS]:
            raise ValueError(
                f"rewards must be some of {sorted(REWARDS)}, got {unknown[0]!r}: register_reward adds to them"
            )
        if len({self.final_reward, *self.rewards}) <= len(self.rewards):
            raise ValueError(f"a term of the reward counts once, got {(self.final_reward, *self.rewards)}")
        tasks = self.draw_tasks
        whole = isinstance(tasks, tuple | list) and all(isinstance(t, int) and not isinstance(t, bool) for t in tasks)
        if tasks is not None and not (whole and tasks):
            raise ValueError(f"draw_tasks must be a tuple of task numbers, at least one, got {tasks!r}")
        epochs = self.schedule_epochs if isinstance(self.schedule_epochs, tuple | list) else (self.schedule_epochs,)
        numbers = all(isinstance(epoch, Real) and 0 < epoch < float("inf") for epoch in epochs)
        if not epochs or not numbers or sorted(set(epochs)) != list(epochs):
            rule = "rise" if epochs and numbers else "be positive and finite"
            raise ValueError(f"schedule_epochs must {rule}, got {self.schedule_epochs}")
        for option in ("class_weights", "task_weights"):
            weights = getattr(self, option)
            if weights is not None and not (all(is_price(weight) for weight in weights) and any(weights)):
                raise ValueError(f"{option} must be numbers of at least 0, not all 0, finite, got {weights!r}")
        if len(epochs) != 1 and self.schedule != "step":
            raise ValueError(
                f"several schedule_epochs are for schedule='step', got {self.schedule_epochs} for {self.schedule!r}"
            )
        if not self.prices or not all(is_price(price) for price in self.prices):
            raise ValueError(f"k_cpt must be at least 0 and finite, or a tuple of such numbers, got {self.k_cpt!r}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for optimizer='sgd', got {self.optimizer!r}")
        if self.merge_blocks and self.action_type != "weights":
            raise ValueError("merge_blocks=True needs action_type='weights': a choice is one block as it is")
        if self.talr and self.block_gradient == "rows":
            raise ValueError(
                "talr=True and block_gradient='rows' both make up for how little a block is used, together twice: take "
                "one of them"
            )
        if self.task_balance is not None and (self.talr or self.block_gradient == "rows"):
            other = "talr=True" if self.talr else "block_gradient='rows'"
            raise ValueError(
                f"task_balance={self.task_balance!r} does not go with {other}, which scales tasks' gradients by who "
                "runs a block: take one of them"
            )
        for option in OF_ONE_PROCESS if self.distributed else ():
            if (value := getattr(self, option)) != getattr(EnvConfig, option):  # its default
                raise ValueError(f"distributed=True does not go with {option}={value!r} so far")
        if self.distributed and self.replays:
            raise ValueError("distributed=True needs autoreset_mode='disabled' (needs(NAME)), without replay")
        outside = "replay=True" if self.replay else f"autoreset_mode={self.autoreset_mode!r}"
        if self.replays and self.differentiable:
            raise ValueError(f"differentiable=True needs autoreset_mode='disabled': {outside} acts without a graph")
        if self.replays and self.augmentations > 1:
            raise ValueError(
                f"augmentations={self.augmentations} needs autoreset_mode='disabled': with {outside} every row begins "
                "and ends by itself"
            )
        if self.replays and self.rho and self.collaboration == "probability":
            other = "needs collaboration='frequency'" if self.action_type == "discrete" else "is refused: take rho=0"
            raise ValueError(f"the probabilities of an outside agent are not known: with rho > 0, {outside} {other}")
        if self.action_type == "weights" and self.rho and self.collaboration != "probability":
            raise ValueError("the frequency form of the collaboration reward counts integer choices, not weights")

    @property
    def prices(self) -> tuple[float, ...]:
        """Costs of a multiply-accumulate, one of which every instance has."""
        return tuple(self.k_cpt) if isinstance(self.k_cpt, tuple | list) else (self.k_cpt,)

    def manner(self, graph: bool, outside: bool, validate: bool) -> Manner:
        """How a batch is driven by an agent from outside or one of ours."""
        return Manner(
            graph=graph,
            differentiable=graph and self.differentiable,
            precision=self.precision,
            price=self.price,
            action_type=self.action_type,
            first_legal=(self.illegal or ("first_legal" if outside else "raise")) == "first_legal",
            validate=validate,
            training=graph,
            dense_backward=self.dense_backward,
            merge_blocks=self.merge_blocks,
        )

    @property
    def replays(self) -> bool:
        """Whether the blocks learn from finished routes that are run again."""
        return self.replay or self.autoreset_mode != "disabled"

    @property
    def torch_device(self) -> torch.device:
        """The device meant."""
        wanted = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(wanted)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {self.device!r}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r}: this machine has no CUDA device; 'auto' takes what there is")
        return device

    def stream(self, dataset: MultiTaskDataset, num_envs: int) -> Stream:
        """The order in which instances of a split are drawn; `draw_tasks` and `augmentations` must go with it."""
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
        for task in self.draw_tasks or ():
            if not 0 <= task < dataset.num_tasks:
                raise ValueError(f"draw_tasks names task {task}, {dataset.name} has {dataset.num_tasks} tasks")
        task_of = dataset.task.cpu()
        phases = [(begin, self._stream_of(task_of, rows, dataset.device)) for begin, rows in dataset.phases]
        return PhasedStream(phases, self.seed) if len(phases) > 1 else phases[0][1]

    def _stream_of(self, task: Tensor, rows: Tensor, device: torch.device) -> ShuffledStream | BalancedStream:
        """The order in which rows are drawn, those of `draw_tasks` among some, by the task `(R,)` of every row."""
        rows = self.drawn_of(task, rows)
        if not len(rows):
            raise ValueError(f"draw_tasks={self.draw_tasks!r}: during a part of training they have no instances")
        if self.balance_tasks:
            return BalancedStream([rows[task[rows] == own] for own in task[rows].unique()], self.seed)
        return ShuffledStream(rows, self.seed, device)

    def drawn_of(self, task: Tensor, rows: Tensor) -> Tensor:
        """Those of some rows that are of `draw_tasks`, by the task `(R,)` of every row."""
        if self.draw_tasks is None:
            return rows
        return rows[torch.isin(task[rows], torch.tensor(self.draw_tasks, device="cpu"))]

    def optimization(self, dataset: MultiTaskDataset, num_envs: int) -> Optimization:
        """How blocks are trained on a split; whole batches make an epoch in mode "disabled".

        Raises:
            ValueError: More or fewer weights than there are classes or tasks.
        """
        for option, wanted in (("class_weights", dataset.num_classes), ("task_weights", dataset.num_tasks)):
            weights = getattr(self, option)
            if weights is not None and len(weights) != wanted:
                raise ValueError(f"{option} must hold {wanted} numbers for {dataset.name}, got {len(weights)}")
        rows = dataset.rows_per_pass * self.augmentations
        epoch = rows if self.autoreset_mode != "disabled" else -(-rows // num_envs) * num_envs
        options = {option: getattr(self, option) for option in OF_OPTIMIZATION}
        return Optimization(epoch=epoch, num_tasks=dataset.num_tasks, seed=self.seed, **options)


def name_of_mode(value: Any) -> Any:
    """Name of an `AutoresetMode`, which text can say; anything else as it is."""
    if isinstance(value, str):
        value = next((mode for mode in AutoresetMode if mode.value == value), value)
    return value.name.lower() if isinstance(value, AutoresetMode) else value


class PlainSpec:
    """The attribute `spec` of an environment, whose values are plain, a mode its name: `spec.to_json()` must work."""

    def __get__(self, env: Any, owner: type) -> Any:
        return None if env is None else vars(env).get("_spec")

    def __set__(self, env: Any, spec: Any) -> None:
        if spec is not None:
            spec.kwargs = {option: plain_value(name_of_mode(value)) for option, value in spec.kwargs.items()}
            if (core := vars(env).get("core")) is not None and core.spec is None:  # whose checkpoints tell of it
                core.spec = spec
        vars(env)["_spec"] = spec


def is_price(value: Any) -> bool:
    """Whether a value can be the cost of one multiply-accumulate: a number of at least 0 that is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def restored(env: RoutingVectorEnv, state: Any, given: Collection[str]) -> tuple[EnvConfig, Stream]:
    """Put the saved blocks, their optimiser and running shares back; gives the options and the order from here on.

    Options of the optimisation that were `given` when it was made stay (with a `schedule` its `schedule_epochs`), the
    others become those of the state; a warning tells what differs. Where anything is refused, nothing has changed.
    """
    check_form(state, {"blocks": dict, "stream": dict, "share": env.rewards.share.total}, "env")
    saved, config = state["blocks"].get("optimization"), env.config
    if isinstance(saved, dict) and "task_balance" not in saved:  # of a time that knew neither it nor its state
        saved = {"task_balance": None, **saved}
        state = {**state, "blocks": {"balance": {}, **state["blocks"], "optimization": saved}}
    check_form(saved, dict.fromkeys(OF_OPTIMIZATION, object), "blocks.optimization")
    try:
        before = EnvConfig.of("the environment", dict(saved))
    except (ValueError, TypeError) as error:
        raise ValueError(f"blocks.optimization: {error}") from error
    for option in ("optimizer", "decayed"):
        there, here = getattr(before, option), getattr(config, option)
        if there != here:
            raise ValueError(
                f"the blocks were trained with {option}={there!r}, here it is {here!r}: make the environment with "
                f"{option}={there!r}"
            )
    bound = {*given, "schedule_epochs"} if "schedule" in given else given
    taken, told = {}, []
    for option in OF_OPTIMIZATION:
        values = (getattr(part, option) for part in (config, before))
        here, there = (tuple(value) if isinstance(value, list) else value for value in values)
        if here != there and option in bound:
            told.append(f"{option}={here!r}, as asked for here, instead of {there!r}, as saved")
        elif here != there:
            taken[option] = there
            told.append(f"{option}={there!r}, as saved, instead of {here!r}, the default")
    config = dataclasses.replace(config, **taken)
    stream = copy.deepcopy(env.stream)
    stream.load_state_dict(state["stream"])
    env.trainer.load_state_dict(state["blocks"], config.optimization(env.dataset, env.num_envs))
    env.rewards.share.total = state["share"].to(env.device, copy=True)
    if told:
        warnings.warn(f"the blocks go on with {'; '.join(told)}", stacklevel=3)
    return config, stream
