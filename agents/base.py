"""What an agent is: two short methods, and what every agent gets for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from routing_gym.envs import Context, Observation, RoutingVectorEnv, RunningShare, Trajectory, core_of
from routing_gym.networks import Action

ARRANGEMENTS = ("single", "per_task")


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Options every agent has.

    Attributes:
        seed: Seed of the agent's own random choices.
    """

    seed: int = 0


class Agent(nn.Module):
    """Decides the way of every instance, and learns from it.

    A subclass implements `act` and, if it learns, `update`; with one `register_agent` call it works in every script
    and command.

    Attributes:
        Config: The dataclass of its options.
        action_type: What it acts by, `"discrete"` or `"weights"`.
        needs_gradients: Its parameters are trained by the backward pass of the blocks (Gumbel gates, mixtures); it
            must then have an `optimizer`.
        max_tensors: The most tensors per decision it can choose for; None for any number.
        env_kwargs: Options the environment must have been made with, `{"differentiable": True}` say.
        env: The vector environment it was made for.
        config: Its options.
        generator: Random numbers on the environment's device.
        optimizer: Takes a step together with the blocks' where `needs_gradients`.

    Args:
        env: An environment of routing_gym, or a face of one.
        config: Options; the defaults where left out.

    Raises:
        ValueError: The environment is not one this agent can route, said by name.
    """

    Config: ClassVar[type[AgentConfig]] = AgentConfig
    action_type: ClassVar[str] = "discrete"
    needs_gradients: ClassVar[bool] = False
    max_tensors: ClassVar[int | None] = 1
    env_kwargs: ClassVar[Mapping[str, Any]] = {}

    name: ClassVar[str] = ""
    """The name it is registered under."""

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__()
        self.env: RoutingVectorEnv = core_of(env)
        self.config = self.Config() if config is None else config
        if not isinstance(self.config, self.Config):
            raise ValueError(f"{type(self).__name__} takes a {self.Config.__name__}, got {self.config!r}")
        self._check_env()
        network = self.env.network
        self.num_tasks = self.env.dataset.num_tasks
        self.num_decisions = len(network.decisions)
        self.num_choices, self.num_tensors = network.num_choices, network.num_tensors
        self.generator = torch.Generator(self.env.device).manual_seed(self.config.seed)
        self.optimizer: torch.optim.Optimizer | None = None
        self.episodes = 0
        # Whether this agent has to add the collaboration reward itself, from the probabilities it records.
        self.shares_wanted = self.env.config.rho > 0 and self.env.config.collaboration == "probability"
        self._shares = RunningShare(self.num_decisions, self.num_choices, self.env.device)

    def _check_env(self) -> None:
        """Refuse an environment this agent cannot route."""
        name, network, config = self.name or type(self).__name__, self.env.network, self.env.config
        if config.action_type != self.action_type:
            raise ValueError(
                f"agent {name!r} acts by {self.action_type}; make the environment with action_type="
                f"{self.action_type!r}, got {config.action_type!r}"
            )
        if self.max_tensors is not None and network.num_tensors > self.max_tensors:
            raise ValueError(
                f"agent {name!r} chooses for {self.max_tensors} tensor per decision, this network has up to "
                f"{network.num_tensors}"
            )
        for option, value in self.env_kwargs.items():
            if getattr(config, option) != value:
                raise ValueError(
                    f"agent {name!r} needs an environment made with {option}={value!r}, got {getattr(config, option)!r}"
                )

    # ------------------------------------------------------------------------------------- what a subclass implements

    def act(self, observation: Observation, context: Context) -> Action:
        """Choose for every row.

        Args:
            observation: `activation (B, D)`, `task (B,)`, `depth (B,)`.
            context: Which rows are active, which choices are legal, whether to take the best action; may be written
                to: `context.carry`, `context.record`.

        Returns:
            `(B,)` int64, or weights `(B, A)` where `action_type` is `"weights"`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no act()")

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Learn from a batch of whole episodes; by default nothing. Returns metrics, 0-dimensional tensors."""
        return {}

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Return a loss to be added to the blocks' before the one backward pass, or None."""
        return None

    def macs(self, decision: int) -> float:
        """Return the multiply-accumulates the agent itself spends on one decision; 0 for tables."""
        return 0.0

    def policy(self) -> Tensor | None:
        """Return the policy `(T, N, A)` as it depends on task and decision alone; None where it depends on more."""
        return None

    def extra_state(self) -> dict[str, Any]:
        """Return what has to be saved beside the `state_dict`: tensors and plain values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave."""

    # ------------------------------------------------------------------------------------------------- what it inherits

    def receive(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Add the collaboration reward only the agent can know, then `update`.

        The probability form (Rosenbaum et al. 2018, section 3.1.1): ρ × the average historical probability of
        choosing the block, one running average per (decision, block) over all tasks, of what went before this batch.
        It needs `context.record["probabilities"]`; an agent that records none gets none.
        """
        if self.shares_wanted:
            known = [step for step in trajectory.steps if "probabilities" in step.record]
            for step in known:
                if isinstance(step.action, Tensor) and not step.action.is_floating_point():
                    bonus = self.env.config.rho * self._shares.of(step.decision, step.action)
                    step.reward = step.reward + bonus * step.active
            for step in known:
                self._shares.count_probabilities(step.decision, step.record["probabilities"], step.active)
        return self.update(trajectory)

    def learn(self, env: Any, episodes: int, callback: Callable[[dict[str, Tensor]], None] | None = None) -> Agent:
        """Train agent and blocks together; see `routing_gym.agents.learn.learn`."""
        from routing_gym.agents.learn import learn

        learn(self, env, episodes, callback)
        return self

    def predict(
        self,
        observation: Mapping[str, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """Act on an observation, as Stable-Baselines3's `predict` does.

        Args:
            observation: `activation`, `task`, `depth`; of one instance or of a batch, numpy or torch.
            state: What the last call returned: the carried state of each instance, None at the beginning.
            episode_start: `(B,)` bool: instances that begin anew; their carried state is zeroed.
            deterministic: Take the best action.

        Returns:
            The action in the form of the observation, and the state for the next call.
        """
        single = np.ndim(observation["depth"]) == 0
        as_tensors = all(isinstance(value, Tensor) for value in observation.values())
        batch = {key: torch.as_tensor(value, device=self.env.device) for key, value in observation.items()}
        if single:
            batch = {key: value.unsqueeze(0) for key, value in batch.items()}
        carry = None if state is None else torch.as_tensor(state, device=self.env.device)
        if carry is not None and episode_start is not None:
            begins = torch.as_tensor(episode_start, device=self.env.device).view(-1, *[1] * (carry.ndim - 1))
            carry = torch.where(begins, torch.zeros_like(carry), carry)
        masks = self.env.network.masks
        mask = torch.cat([masks, torch.ones_like(masks[:1])])[batch["depth"]]
        context = Context(
            active=batch["depth"] < self.num_decisions,
            mask=mask[:, 0] if self.num_tensors == 1 else mask,
            deterministic=deterministic,
            carry=carry,
        )
        with torch.no_grad():
            action = self.act(batch, context)

        def back(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(back(part) for part in value)
            value = value[0] if single else value
            return value if as_tensors else value.cpu().numpy()

        carried = context.carry if context.carry is None or as_tensors else context.carry.cpu().numpy()
        return back(action), carried

    def save(self, path: str | Path) -> None:
        """Write agent, blocks, optimisers and random states into one file; see `routing_gym.agents.checkpoint`."""
        from routing_gym.agents.checkpoint import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path, env: Any) -> Agent:
        """Read an agent and its blocks from a file; the blocks go into `env`'s network.

        Raises:
            ValueError: Not a checkpoint, or one of another network or agent.
        """
        from routing_gym.agents.checkpoint import load

        agent = load(path, env)
        if not isinstance(agent, cls):
            raise ValueError(f"{path} holds a {type(agent).__name__}, expected a {cls.__name__}")
        return agent
