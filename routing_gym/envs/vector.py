"""The environment: a batch of instances on their way through a routed network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from routing_gym.blocks import allow_small_groups, subsample_first
from routing_gym.envs.accept import Accepted, accept, accept_network, accept_reset_options, accept_splits, check_fit
from routing_gym.envs.config import EnvConfig, PlainSpec, check_count
from routing_gym.envs.outcome import Outcome
from routing_gym.envs.precision import forward_pass
from routing_gym.envs.render import Pictures
from routing_gym.envs.restore import restored
from routing_gym.envs.rewards import ActionReward, RunningShare
from routing_gym.envs.routes import RouteLog
from routing_gym.envs.spaces import PRICED_MACS, action_space, observation_space
from routing_gym.envs.training import BlocksTrainer, Replayer
from routing_gym.networks import Action, Exit, RoutedNetwork, RoutingState
from routing_gym.tasks import MultiTaskDataset

Observations = dict[str, Tensor]


class RoutingVectorEnv(VectorEnv[Observations, Any, Tensor]):
    """`num_envs` instances routed together through one network.

    ## Description
    An instance (image, task, label) is classified by a network whose way through its function blocks is decided
    step by step. One `step` takes one decision per row and runs the chosen blocks, grouped, on the device. The
    environment trains the blocks, jointly with whoever decides. `RoutingEnv` is the view of one instance.

    In mode `"disabled"` (no autoreset; for agents that train on whole batches) a batch of instances is one batch of
    episodes: rows that have left idle until all have; the graph of the forward pass is kept and `train_blocks` makes
    the one backward pass. In mode `"same_step"` (for outside agents) a row that leaves is restarted in the same
    step; acting runs without a graph and in eval mode, finished routes are stored, and whenever `replay_batch` of
    them are complete they are run again in train mode and the blocks take one step. `replay=True` trains the blocks
    like this in mode `"disabled"` too.

    ## Action Space
    `Discrete(A)`: the choice at the decision each row waits at; `MultiDiscrete([A] * M)` where M tensors choose.
    With `action_type="weights"` a `Box` of shape `(A,)` or `(M, A)`; a pair of tensors `(indices, weights)`, both
    `(num_envs, K)`, is taken as well.

    ## Observation Space
    `Dict` of torch tensors on `device`: `activation`, `(D,)` float32, what the decision sees, padded with zeros;
    `task`; `depth`, the number of the decision, N for a row that has left; `(1,)` `price`, where `EnvConfig` says so.

    ## Rewards
    Each action: -k_cpt x MACs, plus rho x the running frequency of the chosen block over all tasks
    (`collaboration="frequency"`). At the exit: +1 for a correct class and -1 otherwise, or minus the cross-entropy.

    ## Starting State
    Instances of `split`, without repetition until all have been drawn, then in a new order.

    ## Episode End
    `terminated` when the instance has left the network; never `truncated`. `info` then holds `loss`, `correct`,
    `macs`, `label` and `final_reward`, each with its mask `_loss`, ...; at every step `action_mask`,
    `action_reward` and, where illegal choices are tolerated, `illegal_action`.

    ## Arguments
    `network`, the `RoutedNetwork` (moved to `device`); `data`, the splits by name, or one split; `num_envs`, the
    instances routed together; and the fields of `EnvConfig`.

    ## Version History
    * v0: first version.

    Attributes:
        network: The network.
        dataset: The split instances are drawn from.
        datasets: All splits by name.
        config: The options.
        trainer: The optimiser of the blocks.
        executed: The last action as `step` carried it out; routes followed at once do not set it.

    Raises:
        TypeError: An unknown option.
        ValueError: A value an option does not take.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}
    spec: Any = PlainSpec()

    def __init__(
        self,
        network: RoutedNetwork,
        data: Mapping[str, MultiTaskDataset] | MultiTaskDataset,
        num_envs: int = 1,
        **options: Any,
    ) -> None:
        check_count("num_envs", num_envs)
        self.config = config = EnvConfig.of(options)
        self._given = frozenset(options)
        network, splits = accept_network(network), accept_splits(data)
        if config.split not in splits:
            raise ValueError(f"split must be one of {sorted(splits)}, got {config.split!r}")
        self.num_envs, self.render_mode = num_envs, config.render_mode
        self.datasets = {name: dataset.to(config.torch_device) for name, dataset in splits.items()}
        self.dataset = self.datasets[config.split]
        self.device = self.dataset.device
        check_fit(network, splits)
        self.network = network.to(self.device)
        self.network.dense_backward = config.dense_backward
        allow_small_groups(subsample_first(self.network))
        self.stream = config.stream(self.dataset, num_envs)
        self.trainer = BlocksTrainer(self.network, config.optimization(len(self.dataset), num_envs))
        self.frequency = RunningShare(len(network.decisions), network.num_choices, self.device)
        self.earnings = ActionReward(any(config.prices), config.rho, config.collaboration, self.frequency)
        self.pictures = Pictures(network, self.dataset.num_tasks, num_envs, self.device)
        self.single_observation_space = observation_space(network, self.dataset.num_tasks, config.price)
        self.single_action_space = action_space(network, config.action_type)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._set_mode(AutoresetMode[config.autoreset_mode.upper()], config.replays)

    def _set_mode(self, mode: AutoresetMode, replays: bool) -> None:
        """Set the autoreset mode and how the blocks learn, and give up the episodes that are under way."""
        self.autoreset_mode, self.replays = mode, replays
        self.metadata = {**type(self).metadata, "autoreset_mode": mode}
        # Replaying waits for the device anyway, to know who has left.
        automatic = self.device.type == "cpu" or replays
        self.validates = automatic if self.config.validate is None else self.config.validate or replays
        self.illegal = self.config.illegal or ("first_legal" if replays else "raise")
        self._log: RouteLog | None = None
        if replays or self.render_mode == "ansi":
            self._log = RouteLog(self.network, self.num_envs, self.config.action_type == "weights", self.device)
        self._replayer = Replayer(
            self.network, self.dataset, self.trainer, self.config.replay_batch, self.config.precision
        )
        self._state: RoutingState | None = None
        self._outcome: Outcome | None = None
        self._doubtful: Tensor | None = None
        self.executed: Action | None = None

    @contextmanager
    def batch_mode(self) -> Iterator[RoutingVectorEnv]:
        """Switch to mode `"disabled"` without replay for a while; episodes under way are given up on both occasions."""
        mode, replays = self.autoreset_mode, self.replays
        self._set_mode(AutoresetMode.DISABLED, replays=False)
        try:
            yield self
        finally:
            self._set_mode(mode, replays)

    @property
    def keeps_graph(self) -> bool:
        """Whether steps keep the graph that `train_blocks` needs."""
        return self.config.train and not self.replays

    def forward_pass(self, graph: bool) -> AbstractContextManager[None]:
        """Let the network run, with a graph or without, in the environment's `precision`."""
        return forward_pass(self.config.precision, self.device, graph)

    @property
    def state(self) -> RoutingState:
        """Where the instances stand."""
        if self._state is None:
            raise ResetNeeded("no instances are on their way: call reset() first")
        return self._state

    @property
    def outcome(self) -> Outcome:
        """How the instances that have left fared."""
        if self._outcome is None:
            raise ResetNeeded("no instances are on their way: call reset() first")
        return self._outcome

    # ------------------------------------------------------------------------------------------------------- episodes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Draw new instances.

        Args:
            seed: Start the order of instances over from this seed; the blocks are not touched.
            options: `reset_mask`, `(num_envs,)` bool: restart only these rows (while a graph is held, only rows that
                have left). `instances`, `(restarted,)` integers: rows of the data set, instead of drawn ones.

        Returns:
            Observations, and infos with `action_mask`.

        Raises:
            ValueError: A mask or instances of the wrong form, or an unfinished row while a graph is held.
        """
        rows, instances = accept_reset_options(
            options or {}, self.config, self.num_envs, self.dataset, lambda: self.state.active & self.keeps_graph
        )
        super().reset(seed=seed)
        if seed is not None:
            self.stream.seed(seed)
        self.begin(rows, instances)
        if self.render_mode == "ansi" and self._log is not None:
            self.pictures.note_routes(self.state.task, self._log.routes())
        return self.observe(), {"action_mask": self.network.action_mask(self.state)}

    def begin(self, rows: Tensor | None = None, instances: Tensor | None = None) -> None:
        """Put new instances into some rows (None: all), without observing them; what the others are doing goes on.

        Args:
            rows: `(r,)` int64.
            instances: `(r,)` int64 rows of the data set; drawn by default.
        """
        count = self.num_envs if rows is None else len(rows)
        drawn = (self.config.draw(self.stream, count) if instances is None else instances).to(self.device)
        augmentation = self.dataset.draw_augmentation(count, self.stream.generator) if self.config.train else None
        # Every part is asked: a network in train mode may have been built around parts in eval mode.
        if any(part.training != self.keeps_graph for part in self.network.modules()):
            self.network.train(self.keeps_graph)
        if self.keeps_graph:
            self.trainer.begin(None if count == self.num_envs else rows)
        pixels = self.dataset.pixels(drawn, augmentation)
        with self.forward_pass(self.keeps_graph):
            fresh = self.network.start(pixels, self.dataset.task.index_select(0, drawn), instance=drawn)
        fresh.price = self.config.draw_prices(count, self.stream.generator).to(fresh.macs)
        label = self.dataset.label.index_select(0, drawn)

        if count == self.num_envs:
            self._state, self._augmentation = fresh, augmentation
            self._outcome = Outcome(label, self.config, self.keeps_graph)
            self._doubtful = None
        else:
            assert rows is not None
            self._state = self.state.restarted(rows, fresh)
            self.outcome.restart(rows, label)
            if augmentation is not None and self._augmentation is not None:
                self._augmentation = self._augmentation.index_copy(0, rows.cpu(), augmentation)
        if self._log is not None:
            self._log.clear(rows)

    def observe(self) -> Observations:
        """Return what is seen now."""
        state, differentiable = self.state, self.keeps_graph and self.config.differentiable
        with self.forward_pass(differentiable):
            activation = self.network.observe(state)
        observation = {
            "activation": activation if differentiable else activation.detach(),
            "task": state.task,
            "depth": state.at,
        }
        if self.config.price:
            observation["price"] = PRICED_MACS * state.price.unsqueeze(1)
        if self.replays:
            # Outsiders may write into what they are given.
            observation = {key: value.clone() for key, value in observation.items()}
        return observation

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
        before = self.state
        if not before.waiting:
            raise ResetNeeded("every instance has left the network: call reset()")
        accepted = self.accept(actions)
        earned_before = self.outcome.final_reward
        reward, exits = self.transition(accepted.action)
        after, left, leaving = self.state, ~self.state.active, before.active & ~self.state.active

        infos: dict[str, Any] = {} if accepted.replaced is None else {"illegal_action": accepted.replaced}
        infos["action_reward"] = reward
        if exits:
            reward = reward + (self.outcome.final_reward - earned_before)
            ended = self.outcome.infos(after.macs)
            infos |= ended | {f"_{key}": leaving for key in ended}
        observation = self.observe()
        if self.replays and exits and bool(leaving.any()):
            rows = leaving.nonzero().flatten()
            if self.config.train:
                assert self._log is not None
                self._replayer.push(self._log.read(rows, after.instance, self._augmentation, after.price))
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                infos["final_obs"], infos["final_info"] = observation, ended
                infos["_final_obs"] = infos["_final_info"] = leaving
                self.begin(rows)
                observation = self.observe()
            self._replayer.train()  # last, so that a loss that is no number finds everything in its place
        infos["action_mask"] = self.network.action_mask(self.state)
        return observation, reward, left, torch.zeros_like(left), infos

    def accept(self, actions: Any) -> Accepted:
        """Check what came in as an action; raise ValueError, and change nothing, if it is not allowed."""
        accepted = accept(
            self.network,
            self.state,
            actions,
            action_type=self.config.action_type,
            first_legal=self.illegal == "first_legal",
            validate=self.validates,
        )
        self.note_doubt(accepted.doubtful)
        return accepted

    def note_doubt(self, doubtful: Tensor | None) -> None:
        """Remember for the end of the batch that an action may not have been allowed, 0-dimensional bool."""
        if doubtful is not None:
            self._doubtful = doubtful if self._doubtful is None else self._doubtful | doubtful

    def transition(self, action: Action) -> tuple[Tensor, tuple[Exit, ...]]:
        """Carry every row on by an action that has been accepted.

        Returns:
            `(num_envs,)`, what the action itself earned (0 for rows that had left), and where rows have left.
        """
        before = self.state
        with self.forward_pass(self.keeps_graph):
            after = self.network.advance(before, action)
        exits = self.arrive(after)
        self.executed = action
        wanted = self.earnings.counts or self.trainer.throughput is not None
        choosing = self.network.choosing(before) if wanted else None
        if self.keeps_graph:
            self.trainer.note_throughput(before.at, before.reach, action, choosing)
        reward = self.earnings.of(before.at, choosing, action, after.macs - before.macs, before.price)
        if self._log is not None:
            self._log.write(before, action)
            if self.render_mode == "ansi":
                self.pictures.note_routes(before.task, self._log.routes())
        if self.render_mode == "rgb_array":
            self.pictures.count(before, action)
        return reward, exits

    def arrive(self, after: RoutingState) -> tuple[Exit, ...]:
        """Take over a state and settle the rows that have left; return where they did."""
        (exits, after.exits), self._state = (after.exits, ()), after
        self.outcome.settle(exits)
        return exits

    @property
    def watched(self) -> bool:
        """Whether the way of the rows is written down step by step, for replays or pictures."""
        return self._log is not None or self.render_mode is not None

    # ------------------------------------------------------------------------------------------------------- training

    def train_blocks(self, extra_loss: Tensor | None = None, before_step: Callable[[], None] | None = None) -> Tensor:
        """Make the one backward pass of a batch and take a step of the blocks' optimiser (Algorithm 2, line 3).

        Args:
            extra_loss: Added to the block loss: the agent's auxiliary loss.
            before_step: Called between backward pass and step; sees the gradients.

        Returns:
            The block loss, detached: the mean over the batch of each instance's cross-entropy.

        Raises:
            RuntimeError: No graph is held (see `keeps_graph`), not every row has left, or called twice.
            TrainingDivergedError: The loss is not finite. The blocks are unchanged.
        """
        if not self.keeps_graph:
            raise RuntimeError("no graph is held: train_blocks needs mode 'disabled', train=True and replay=False")
        if self.state.waiting:
            raise RuntimeError(f"{int(self.state.active.sum())} rows have not left the network: go on stepping")
        if not self.outcome.exits:
            raise RuntimeError("this batch has been trained on already: call reset()")
        loss = self.outcome.block_loss()
        whole = loss if extra_loss is None else loss + extra_loss
        self.trainer.step(whole, self.num_envs, before_step, self._doubtful)
        self.outcome.exits = []
        self.trainer.begin()  # rows restarted from here on belong to a new batch
        return loss.detach()

    def check_batch(self) -> None:
        """Read whether every action of this batch was allowed: what `train_blocks` does, for those who do not train.

        Raises:
            ValueError: One was not. On a GPU it was replaced when it came, so as not to wait for the device.
        """
        if self._doubtful is not None and bool(self._doubtful):
            raise ValueError("an action of this batch was out of range, masked or not finite: its results are void")

    # ---------------------------------------------------------------------------------------------------- and the rest

    def sibling(self, num_envs: int, **options: Any) -> Self:
        """Return another environment over the same network and data, of another size and with some options changed."""
        config = {**dataclasses.asdict(self.config), "augmentations": 1, **options}  # its rows may not come in versions
        return type(self)(self.network, self.datasets, num_envs, **config)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on from here, between two batches."""
        return {
            "blocks": self.trainer.state_dict(),
            "stream": self.stream.state_dict(),
            "frequency": self.frequency.total.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; episodes under way and finished routes not trained on yet are given up.

        Options of the optimisation that were given to this environment stay, the others become those of the state; a
        warning tells what differs.

        Raises:
            ValueError: The state is of another network, optimiser or data set. Nothing has changed then.
        """
        self.config, self.stream = restored(self, state, self._given)
        self._set_mode(self.autoreset_mode, self.replays)

    def render(self) -> tuple[Any, ...] | None:
        """Return the route of each row in a line (`"ansi"`), or the routing map for each (`"rgb_array"`), or None.

        The map, `(H, W, 3)` uint8, is one for all and shows all that was decided so far: a column per task, a row per
        decision.
        """
        return None if self.render_mode is None else self.pictures.draw(self.render_mode)
