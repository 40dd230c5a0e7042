"""The environment: a batch of instances on their way through a routed network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from routing_gym.blocks import allow_small_groups, share_statistics, subsample_first, with_gradients
from routing_gym.envs.accept import Splits, accept_instances, accept_pair, accept_reset_options, spaces_of
from routing_gym.envs.batch import Batch, Watch
from routing_gym.envs.config import EnvConfig, PlainSpec, restored
from routing_gym.envs.rewards import Rewards, RunningShare
from routing_gym.envs.routes import Pictures, Replayer, RouteLog
from routing_gym.envs.training import BlocksTrainer
from routing_gym.envs.turns import Manner, Seen, Turn
from routing_gym.networks import RoutedNetwork, RoutingState
from routing_gym.networks.actions import formed
from routing_gym.ranks import Ranks
from routing_gym.tasks.checking import whole_number
from routing_gym.tasks.sampling import sent

Observations = dict[str, Tensor]


def core_of(env: Any) -> RoutingVectorEnv:
    """The vector environment under any wrapper or face."""
    inner = getattr(env, "unwrapped", env)
    core = getattr(inner, "core", inner)  # faces hold theirs
    if not isinstance(core, RoutingVectorEnv):
        raise ValueError(f"expected an environment of routing_gym, got {type(inner).__name__}")
    return core


class RoutingVectorEnv(VectorEnv[Observations, Any, Tensor]):
    """`num_envs` instances routed together through one network.

    ## Description
    An instance (image, task, label) is classified by a network whose way through its function blocks is decided
    step by step. One `step` takes one decision per row and runs the chosen blocks, grouped, on the device.

    In mode `"disabled"` (no autoreset; for agents that train on whole batches) a batch of instances is one batch of
    episodes: rows that have left idle until all have; the graph of the forward pass is kept and `train_blocks` makes
    the one backward pass. In the modes for outside agents a row that leaves is restarted, in the same step
    (`"same_step"`) or in the next one, whose action it ignores (`"next_step"`, Gymnasium's own default); acting runs
    without a graph and in eval mode, finished routes are stored, and whenever `replay_batch` of them are complete they
    are replayed: run again in train mode, and the blocks take one step. `replay=True` trains the blocks like this in
    mode `"disabled"` too.

    `rollout`, which `learn` and `evaluate` use, begins a batch of its own in any mode and gives up the episodes that
    are under way. In the faces `RoutingEnv`, `RoutingParallelEnv` and `RoutingAECEnv` all is numpy and Python, and the
    blocks are trained by replay; they say only what else differs.

    ## Action Space
    `Discrete(A)`: the choice at the decision each row waits at; `MultiDiscrete([A] * M)` where M tensors choose.
    With `action_type="weights"` a `Box` of shape `(A,)` or `(M, A)`; a pair of tensors `(indices, weights)`, both
    `(num_envs, K)`, is taken as well. `info["action_mask"]` says what is legal. Where routes are replayed a masked
    choice is replaced by the first legal one, and `info["illegal_action"]` is 1 then (`illegal`).

    ## Observation Space
    `Dict` of torch tensors on `device`: `activation`, `(D,)` of the blocks' type, what is seen, with zeros behind;
    `task`; `depth`, the number of the decision, N for a row that has left; `(1,)` `price`, where `EnvConfig` says so.

    ## Rewards
    Each action: -k_cpt x MACs, plus rho x the running frequency of the chosen block over all tasks, or in the choices
    of the row's own (`collaboration="frequency"`, `"task-frequency"`). At the exit: +1 for a correct class and -1
    otherwise, or minus the cross-entropy. And terms of one's own (`register_reward`).

    ## Starting State
    Instances of `split`, without repetition until all have been drawn, then in a new order.

    ## Episode End
    `terminated` when the instance has left the network; never `truncated`. `info` then holds `loss`, `correct`,
    `macs`, `label` and `final_reward`, each with its mask `_loss`, ...; at every step `action_mask` and
    `action_reward`.

    ## Arguments
    `network`, the `RoutedNetwork` (moved to `device`); `data`, the splits by name, or one split; `num_envs`, the
    instances routed together; and the fields of `EnvConfig`.

    ## Version History
    * v0: first version.

    Attributes:
        dataset: The split instances are drawn from.
        datasets: All splits by name.
        trainer: The optimiser of the blocks.
        watchers: List of functions called with every `Turn` of this environment, whoever drives it.

    Raises:
        TypeError: An unknown option.
        ValueError: A value an option does not take.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}
    spec: Any = PlainSpec()

    def __init__(self, network: RoutedNetwork, data: Splits, num_envs: int = 1, **options: Any) -> None:
        self.num_envs = num_envs = whole_number("num_envs", num_envs)
        self.config = config = EnvConfig.of("the environment", options)
        self._given = frozenset(options)
        network, splits = accept_pair(network, data)
        if config.split not in splits:
            called = "" if config.split != "train" else ": instances are drawn from the one called 'train'"
            raise ValueError(f"split must be one of {sorted(splits)}, got {config.split!r}{called}")
        self.render_mode = config.render_mode
        self.datasets = {name: dataset.to(config.torch_device) for name, dataset in splits.items()}
        self.dataset = self.datasets[config.split]
        self.device = self.dataset.device
        self.network = network.to(self.device)
        self.network.let_blocks_merge(config.merge_blocks)
        self.ranks = Ranks.here() if config.distributed else Ranks()
        allow_small_groups(subsample_first(self.network))
        if self.ranks.count > 1:
            if not network.in_order:
                raise ValueError("distributed=True needs a network whose rows all pass every decision (in_order)")
            owned = {of.parameter for part in network.parts() for of in part}
            share_statistics(self.network, self.ranks, owned)
        self.stream = config.stream(self.dataset, self.batch_size)
        self.trainer = BlocksTrainer(self.network, config.optimization(self.dataset, self.batch_size), self.ranks)
        rows = len(network.decisions) + 1  # one for instances that have left: it stays empty
        rows *= self.dataset.num_tasks if config.collaboration == "task-frequency" else 1
        self.rewards = Rewards(config, RunningShare(rows, network.num_choices, self.device, self.ranks))
        self._prices = torch.tensor(config.prices, dtype=torch.get_default_dtype(), device=self.device)
        self.single_observation_space, self.single_action_space = spaces_of(network, self.dataset.num_tasks, config)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.autoreset_mode = AutoresetMode[config.autoreset_mode.upper()]
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        # Replaying waits for the device anyway, to know who has left.
        asked = self.device.type == "cpu" if config.validate is None else config.validate
        validates = asked or config.replays
        self._stepping = config.manner(config.train and not config.replays, config.replays, validates)
        self._rolling_out = config.manner(config.train, False, validates)
        runs = {"dense_backward": config.dense_backward, "merge_blocks": config.merge_blocks}
        replaying = Manner(graph=True, precision=config.precision, **runs)
        self._log: RouteLog | None = None
        if config.replays or self.render_mode == "ansi":
            self._log = RouteLog(network, num_envs, config.action_type == "weights", self.device)
        self._replayer = Replayer(self.dataset, self.trainer, config.replay_batch, replaying)
        self.pictures = Pictures(network, self.dataset.num_tasks, num_envs, self.device)
        drawing: dict[str | None, Watch] = {"rgb_array": self.pictures.count, "ansi": self._draw_routes}
        self.watchers = [drawing[self.render_mode]] if self.render_mode else []
        self._batch: Batch | None = None
        self._due: Tensor | None = None

    @cached_property
    def observation_space(self) -> spaces.Space:  # type: ignore[override]
        """Observations of all rows."""
        return batch_space(self.single_observation_space, self.num_envs)

    @property
    def batch_size(self) -> int:
        """Instances of a batch, `num_envs` in every process that shares it."""
        return self.num_envs * self.ranks.count

    @property
    def keeps_graph(self) -> bool:
        """Whether steps keep the graph that `train_blocks` needs."""
        return self._stepping.graph

    @property
    def batch(self) -> Batch:
        """The instances that are under way."""
        if self._batch is None:
            raise ResetNeeded("no instances are on their way: call reset() first")
        return self._batch

    @property
    def state(self) -> RoutingState:
        """Where the instances stand."""
        return self.batch.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Draw new instances.

        Args:
            seed: Start the order of instances over from this seed; the blocks are not touched.
            options: `reset_mask`, `(num_envs,)` bool: restart only these rows (while a graph is held, only rows that
                have left). `instances`, `(restarted,)` integers: rows of the data set, instead of drawn ones.

        Raises:
            ValueError: A mask or instances of the wrong form, or an unfinished row while a graph is held.
        """
        rows, instances = accept_reset_options(options or {}, self)
        super().reset(seed=seed)
        if seed is not None:
            self.stream.seed(seed)
            self.trainer.seed(seed)
        if rows is not None:
            self._restart(rows, instances)
        else:
            self._begin(self._stepping, instances)
        if self.render_mode == "ansi":
            self._draw_routes()
        return self.observe(), {"action_mask": self.action_mask()}

    def begin(self, instances: Tensor | None = None) -> Batch:
        """Begin a batch for whoever drives it to the end, see `rollout`; the one under way is given up."""
        if instances is not None:
            instances = accept_instances(instances, self.num_envs, len(self.dataset), self.config.augmentations)
        batch = self._begin(self._rolling_out, instances)
        batch.keeps_exits = True
        return batch

    def _begin(self, manner: Manner, instances: Tensor | None) -> Batch:
        self._batch, self._due = self._start(self.num_envs, instances, manner), None
        self._batch.watchers = self.watchers  # the list itself, which may grow
        if self._log is not None:
            self._log.clear(None)
        return self._batch

    def _start(self, count: int, instances: Tensor | None, manner: Manner) -> Batch:
        """Instances at the first decision; fewer than `num_envs` will take the place of some rows."""
        # Every part is asked: a network in train mode may have been built around parts in eval mode.
        if any(part.training != manner.graph for part in self.network.modules()):
            self.network.train(manner.graph)
        statistics = self.trainer.begin() if manner.graph and count == self.num_envs else {}
        times = self.config.augmentations
        whole = count * self.ranks.count
        if instances is None:
            instances = self.stream.draw(whole // times, self.trainer.passes).repeat_interleave(times)
            instances = self.ranks.own(instances)
        drawn, augmentation = sent(instances, self.device), None
        if self.config.train:
            augmentation = self.dataset.draw_augmentation(whole, self.stream.generator)
            augmentation = None if augmentation is None else self.ranks.own(augmentation)
        pixels, task = self.dataset.pixels(drawn, augmentation), self.dataset.task.index_select(0, drawn)
        prices = self._prices
        if len(prices) > 1:
            dealt = torch.randint(len(prices), (whole,), generator=self.stream.generator, device="cpu")
            prices = prices[sent(self.ranks.own(dealt), self.device)]
        with manner.forward_pass(self.device, manner.graph):
            state = self.network.start(pixels, task, instance=drawn, price=prices.expand(count))
        label, throughput = self.dataset.label.index_select(0, drawn), self.trainer.throughput
        own = augmentation, throughput, statistics
        return Batch(self.network, state, label, self.rewards, manner, *own, keeps_exits=manner.graph)

    def _restart(self, rows: Tensor, instances: Tensor | None = None) -> None:
        """Put new instances into some rows, `(r,)` int64; what the others are doing goes on."""
        batch = self.batch
        if self.config.replays and batch.keeps_exits:
            raise ResetNeeded("an agent of ours has routed the last batch: reset all rows, without reset_mask")
        if batch.manner.graph and not batch.exits and len(rows) < self.num_envs:
            raise ResetNeeded("this batch has been trained on: reset all rows, without reset_mask")
        if batch.manner.graph and len(rows) < self.num_envs and self.trainer.throughput is not None:
            self.trainer.throughput.begin(rows)
        batch.restart(rows, self._start(len(rows), instances, batch.manner))
        if self._log is not None:
            self._log.clear(rows)
        if self._due is not None:
            self._due = self._due.index_fill(0, rows, False)

    def observe(self) -> Observations:
        """Observation of all rows."""
        seen = Seen(self.network, self.state, self.batch.manner)
        return {key: value.clone() for key, value in seen.items()}  # outsiders may write into what they are given

    def action_mask(self) -> Tensor:
        """Legal choices now, `(num_envs, A)` bool, `(num_envs, M, A)` where M > 1."""
        mask = self.network.action_mask(self.state)
        return mask[:, 0] if self.network.num_tensors == 1 else mask

    def step(self, actions: Any) -> tuple[Observations, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Take one decision per row.

        Args:
            actions: Integers `(num_envs,)` or `(num_envs, M)`, or weights where `action_type="weights"`; a tensor on
                `device`, or a numpy array. For rows that have left any choice will do, and is ignored.

        Returns:
            Observations, `(num_envs,)` float32 rewards, bool terminations and truncations, infos.

        Raises:
            ValueError: An action that is not allowed. Nothing has changed then.
            ResetNeeded: Before the first reset, or when every row has left.
        """
        batch, due = self.batch, self._due
        if not batch.state.waiting and due is None:
            raise ResetNeeded("every instance has left the network: call reset()")
        active, earned_before = batch.state.active, batch.final_reward
        infos: dict[str, Any] = {}
        reward, ended = torch.zeros_like(earned_before), False
        if not batch.state.waiting:  # all begin anew, and nothing is done; yet what came in is looked at
            formed(actions, batch.state.macs, self.network.num_tensors, self.network.num_choices)
        else:
            turn, rewards = batch.take(lambda seen: actions)
            if self._log is not None and self.render_mode != "ansi":
                self._log.write(turn)
            reward, ended = sum(rewards.values(), start=reward), bool(turn.exits)
            if turn.replaced is not None:
                infos["illegal_action"] = turn.replaced
        infos["action_reward"] = reward
        left = ~batch.state.active
        leaving = active & left
        if ended:
            reward = reward + (batch.final_reward - earned_before)
            told = batch.infos()
            infos |= told | {f"_{key}": leaving for key in told}
        if due is not None:
            self._restart(due.nonzero().flatten())
        observation = self.observe()
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            left, self._due = leaving, leaving if ended and bool(leaving.any()) else None
        if self.config.replays and ended and bool(leaving.any()):
            rows = leaving.nonzero().flatten()
            if self.config.train:
                assert self._log is not None
                self._replayer.waiting.append(self._log.read(rows, batch))
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                infos["final_obs"], infos["final_info"] = observation, told
                infos["_final_obs"] = infos["_final_info"] = leaving
                self._restart(rows)
                observation = self.observe()
            self._replayer.train()  # last, so that a loss that is no number finds everything in its place
        infos["action_mask"] = self.action_mask()
        return observation, reward, left, torch.zeros_like(left), infos

    @with_gradients()
    def train_blocks(
        self,
        extra_loss: Tensor | None = None,
        before_step: Callable[[], Tensor | None] | None = None,
        doubtful: Tensor | None = None,
    ) -> Tensor:
        """Make the one backward pass of a batch and take a step of the blocks' optimiser (Algorithm 2, line 3).

        Args:
            extra_loss: Added to the block loss: the agent's auxiliary loss.
            before_step: Called between backward pass and step; sees the gradients. May return whether others that are
                to step with the blocks are finite, a 0-dimensional bool.
            doubtful: 0-dimensional bool, read with the gradients: take no step.

        Returns:
            The block loss, detached: the mean over the batch of each instance's cross-entropy, smoothed and weighted
            where options say so.

        Raises:
            RuntimeError: No graph is held (see `keeps_graph`), not every row has left, or called twice.
            TrainingDivergedError: The loss is not finite. The blocks are unchanged.
        """
        batch = self.batch
        if not batch.manner.graph:
            raise RuntimeError("no graph is held: train_blocks needs mode 'disabled', train=True and replay=False")
        if batch.state.waiting:
            raise RuntimeError(f"{int(batch.state.active.sum())} rows have not left the network: go on stepping")
        if not batch.exits:
            raise RuntimeError("this batch has been trained on already: call reset()")
        if doubtful is not None:
            batch.doubts.append(doubtful)
        loss = self.trainer.loss(batch.exits, batch.label, batch.state.task)
        whole = loss if extra_loss is None else loss + extra_loss
        batch.manner.set_up(self.network)
        self.trainer.step(whole, self.batch_size, batch.statistics, before_step, batch.doubtful)
        batch.exits, batch.state = [], batch.state.without_graph()  # which a copy could not take along
        return self.ranks.total(loss.detach()) / self.ranks.count

    def sibling(self, num_envs: int, **options: Any) -> Self:
        """Another environment over the same network and data, of another size and with some options changed."""
        # Its rows may not come in versions, and are all its own.
        config = {**dataclasses.asdict(self.config), "augmentations": 1, "distributed": False, **options}
        return type(self)(self.network, self.datasets, num_envs, **config)

    def state_dict(self) -> dict[str, Any]:
        """State from which to go on, between two batches."""
        return {
            "blocks": self.trainer.state_dict(),
            "stream": self.stream.state_dict(),
            "share": self.rewards.share.total.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, see `restored`; episodes under way and routes not replayed yet are given up."""
        self.config, self.stream = restored(self, state, self._given)
        self.give_up()

    def give_up(self) -> None:
        """Give up the episodes under way, and routes that have not been replayed yet."""
        self._batch = self._due = None
        self._replayer.waiting.clear()

    def render(self) -> tuple[Any, ...] | None:
        """Route of each row in a line (`"ansi"`), the `routing_map` of all so far for each (`"rgb_array"`), or None."""
        return None if self.render_mode is None else self.pictures.draw(self.render_mode)

    def _draw_routes(self, turn: Turn | None = None) -> None:
        assert self._log is not None
        if turn is not None:
            self._log.write(turn)
        self.pictures.note_routes(self.state.task, self._log.routes())
