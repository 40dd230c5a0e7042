"""Agents of Stable-Baselines3 and sb3-contrib, trained by their own loops while the blocks are trained by replay.

Neither library is imported before one of these agents is made.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.base.agent import Agent, AgentConfig
from routing_gym.agents.base.capture import check_capturable
from routing_gym.agents.base.learning import Report, check_learning
from routing_gym.agents.parts.draws import running_sums
from routing_gym.agents.parts.scores import sample
from routing_gym.agents.parts.stable_baselines import DQNConfig, OnPolicyConfig, SB3Config, SB3PPOConfig, Tally, seeded
from routing_gym.blocks import count_macs, with_gradients
from routing_gym.envs import Context, Observation, TrainingDivergedError
from routing_gym.forms import check_form
from routing_gym.networks import NotFiniteError, actions

SAVED_MEMORY = 32 * 2**20
"""Bytes up to which a replay memory is saved with its agent."""


class SB3Agent(Agent):
    """A model of Stable-Baselines3 as an agent.

    `learn` is the library's own: it collects and updates round by round, on `RoutingVecEnv`. A choice that is not legal
    stands for the first legal one, as it does while learning.

    Rewards say nothing about routes until the routes of the tasks part, so that a policy first moves by chance. The
    entries of a table move apart for each task; a policy network for all tasks moves them together, down one path,
    where all that blocks can learn is the majority class (as does `reinforce` with `arrangement="single"` and
    `representation="mlp"`). `model` is the library's model, `actor` its policy.
    """

    env_kwargs = {"autoreset_mode": "same_step"}
    max_tensors: ClassVar[int | None] = None
    exportable = False
    Config = SB3Config
    config: SB3Config
    algorithm: ClassVar[tuple[str, str]]  # module and class of the model

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        module, name = self.algorithm
        try:
            algorithm = getattr(importlib.import_module(module), name)
        except ImportError as error:
            extra = module.replace("_", "-")
            raise ValueError(
                f"agent {self.name!r} needs {extra}, which cannot be imported ({error}): "
                f"pip install 'routing-gym[{extra}]'"
            ) from error
        from stable_baselines3.common.logger import Logger

        from routing_gym.envs.sb3 import RoutingVecEnv

        if (default := torch.get_default_dtype()) != torch.float32:
            wanted = f"Stable-Baselines3 computes in float32, PyTorch's default is {default}"
            raise ValueError(f"agent {self.name!r}: {wanted}: set another, then make the environment")
        arguments = self.config.arguments(self.num_decisions, self.env.num_envs)
        try:
            with seeded(self.config.seed):
                env = RoutingVecEnv(self.env)
                self.model = algorithm("MultiInputPolicy", env, device=self.env.device, **arguments)
        except (AssertionError, ValueError) as error:
            raise ValueError(f"agent {self.name!r}: {error}") from error
        self.model.set_logger(Logger(folder=None, output_formats=[]))  # its own makes a folder for every `learn`
        self.actor: nn.Module = self.model.policy
        self.optimizer = self.model.policy.optimizer
        self._macs = 0.0 if self.config.representation == "table" else self.policy_macs()

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B, M)` of the model's policy, drawn; the best when deterministic."""
        with torch.no_grad():
            chances = self.probabilities(observation, context)
        choice = chances.argmax(-1) if context.deterministic else sample(running_sums(chances), self.generator)
        legal = actions.made_legal(choice, context.mask)
        assert isinstance(legal, Tensor)
        return legal

    def probabilities(self, observation: Observation, context: Context) -> Tensor:
        """Probabilities `(B, M, A)` of the choices."""
        return self.chances(self.model.policy.get_distribution(dict(observation)))

    def chances(self, distribution: Any) -> Tensor:
        """Probabilities `(B, M, A)` of a distribution of the library's."""
        if self.num_tensors == 1:
            return distribution.distribution.probs.unsqueeze(1)
        parts = distribution.distributions if hasattr(distribution, "distributions") else distribution.distribution
        return torch.stack([part.probs for part in parts], 1)

    @property
    def sees_price(self) -> bool:
        """The library's own policy does, a table does not."""
        return self.config.representation != "table" and super().sees_price

    def policy_macs(self) -> float:
        """Multiply-accumulates of the policy's networks on a decision, without the critic's."""
        policy = self.model.policy
        features = torch.zeros(1, policy.features_dim, device=self.env.device)
        latent = torch.zeros(1, policy.mlp_extractor.latent_dim_pi, device=self.env.device)
        return count_macs(policy.mlp_extractor.policy_net, features) + count_macs(policy.action_net, latent)

    def macs(self, decision: int) -> float:
        """Multiply-accumulates of the policy; 0 for a table, though the library multiplies by one-hot vectors."""
        return self._macs

    @with_gradients()
    def learn(self, env: Any, episodes: int, callback: Report | None = None) -> Self:
        """Let the model learn, round by round, until at least `episodes` instances have left the network.

        Begins with new instances; those under way are given up, and so are finished routes not trained on yet: nothing
        of them is in a checkpoint. The blocks are trained on `replay_batch` finished routes at a time. `episodes` is
        rounded up to whole batches and to the model's rounds; the callback is called whenever `num_envs` instances have
        left, with their mean `loss`, `accuracy`, `reward` and `macs`.

        Raises:
            ValueError: A count below 1, or an environment the agent was not made for.
            TrainingDivergedError: The blocks' loss, or the policy, is no longer a number.
        """
        core = check_learning(self, env, episodes)
        if core.config.capture:
            check_capturable(self, core)
        goal = self.episodes + -(-episodes // core.num_envs) * core.num_envs
        tally = Tally(self, callback)
        self.train()
        self.model._last_obs = None
        core.give_up()
        seed = int(torch.randint(2**31, (), generator=self.generator, device=core.device))
        try:
            with seeded(seed):
                self.model.action_space.seed(seed)
                while self.episodes < goal:
                    # One step is asked for, one round is made.
                    self.model.learn(1, callback=tally, reset_num_timesteps=False, log_interval=None)
        except (ValueError, RuntimeError) as error:  # which of the two a policy that is no number raises, depends
            where = f"agent {self.name or type(self).__name__!r}, batch {self.episodes // core.num_envs + 1}"
            sound = all(bool(parameter.isfinite().all()) for parameter in self.parameters())
            if not sound or isinstance(error, TrainingDivergedError | NotFiniteError):
                raise TrainingDivergedError(f"{where}: {error}") from error
            if isinstance(error, ValueError):
                raise ValueError(f"{where}: {error}") from error
            raise
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Counts of the model, for a checkpoint."""
        counts = [self.model.num_timesteps, self.model._n_updates, getattr(self.model, "_n_calls", 0)]
        return {"counts": torch.tensor(counts, device="cpu")}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from saved counts; refuse, by a `ValueError`, a state of another form."""
        check_form(state, self.get_extra_state(), "extra_state")
        self.model.num_timesteps, self.model._n_updates, calls = state["counts"].tolist()
        if hasattr(self.model, "_n_calls"):
            self.model._n_calls = calls


class SB3PPO(SB3Agent):
    """PPO of Stable-Baselines3."""

    Config = SB3PPOConfig
    algorithm = ("stable_baselines3", "PPO")


class SB3A2C(SB3Agent):
    """A2C of Stable-Baselines3."""

    Config = OnPolicyConfig
    algorithm = ("stable_baselines3", "A2C")


class SB3MaskablePPO(SB3Agent):
    """MaskablePPO of sb3-contrib: PPO that never makes an illegal choice."""

    Config = SB3PPOConfig
    algorithm = ("sb3_contrib", "MaskablePPO")

    def probabilities(self, observation: Observation, context: Context) -> Tensor:
        """Probabilities `(B, M, A)` of the choices, 0 of those that are not legal."""
        legal = context.mask.flatten(1)
        return self.chances(self.model.policy.get_distribution(dict(observation), action_masks=legal))


class SB3DQN(SB3Agent):
    """DQN of Stable-Baselines3.

    Its replay memory is saved with it where it takes up to `SAVED_MEMORY` bytes, so that learning goes on bit for bit.
    A larger one begins empty when the agent is loaded, which a warning says; a smaller `buffer_size` mends that.
    """

    Config = DQNConfig
    config: DQNConfig
    algorithm = ("stable_baselines3", "DQN")
    max_tensors = 1  # its action space is `Discrete`

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.model.exploration_schedule = self._explored

    def _explored(self, progress: float) -> float:
        """What its library asks for by the share that is left of one call of `learn`."""
        return self.exploration()

    def learn(self, env: Any, episodes: int, callback: Report | None = None) -> Self:
        """Let the model learn; see `SB3Agent.learn`."""
        self.model.exploration_rate = self.exploration()  # it asks for the first time after the first step
        return super().learn(env, episodes, callback)

    def get_extra_state(self) -> dict[str, Any]:
        """Counts and replay memory, for a checkpoint."""
        buffer = self.model.replay_buffer
        saved = {name: torch.from_numpy(array) for name, array in self._memory().items()}
        return {
            **super().get_extra_state(),
            "place": torch.tensor([buffer.pos, buffer.full], device="cpu"),
            "memory": saved,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from saved counts and replay memory."""
        super().set_extra_state(state)
        buffer, memory, (place, full) = self.model.replay_buffer, self._memory(), state["place"].tolist()
        if memory:
            for name, array in memory.items():
                array[:] = state["memory"][name].numpy()
            buffer.pos, buffer.full = place, bool(full)
        elif place or full:
            warnings.warn(
                f"the replay memory of agent {self.name!r} takes more than the {SAVED_MEMORY // 2**20} MB that are "
                "saved: it begins empty, so that learning does not go on bit for bit; a smaller buffer_size mends that",
                stacklevel=2,
            )

    def _memory(self) -> dict[str, np.ndarray]:
        """The library's arrays of the replay memory that the policy looks at; none if too large for a checkpoint."""
        buffer = self.model.replay_buffer
        arrays = {name: getattr(buffer, name) for name in ("actions", "rewards", "dones", "timeouts")}
        for name in ("observations", "next_observations"):
            for key, array in getattr(buffer, name).items():
                if self.config.representation != "table" or key in ("task", "depth"):
                    arrays[f"{name}.{key}"] = array
        return arrays if sum(array.nbytes for array in arrays.values()) <= SAVED_MEMORY else {}

    def exploration(self) -> float:
        """Share of random decisions now."""
        done = min(1.0, self.episodes / self.config.exploration_episodes)
        return (1 - done) * self.config.exploration_initial_eps + done * self.config.exploration_final_eps

    def probabilities(self, observation: Observation, context: Context) -> Tensor:
        """Probabilities `(B, A)` of the choices, exploration included unless deterministic."""
        values = self.model.policy.q_net(dict(observation))
        random_share = 0.0 if context.deterministic else self.exploration()
        best = functional.one_hot(values.argmax(-1), self.num_choices)
        return (1 - random_share) * best + random_share / self.num_choices

    def policy_macs(self) -> float:
        """Multiply-accumulates of the values of a decision."""
        net = self.model.policy.q_net
        return count_macs(net.q_net, torch.zeros(1, net.features_dim, device=self.env.device))
