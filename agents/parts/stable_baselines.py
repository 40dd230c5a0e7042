"""Parts of the agents of Stable-Baselines3: options, features of observations, counting of episodes, seeding."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import Agent, AgentConfig
from routing_gym.agents.base.learning import REPORTED, Report
from routing_gym.blocks import first_weights
from routing_gym.envs import Observation
from routing_gym.options import count, not_negative, positive, share


@dataclasses.dataclass(frozen=True)
class SB3Config(AgentConfig):
    """Options of every agent of Stable-Baselines3, by the names they have there.

    Attributes:
        representation: What the policy sees, and is: `"table"`, task and decision only, with an entry for each pair; or
            `"mlp"`, the library's own, the whole observation and hidden layers. (It does not find the tasks of
            DIGITS-MTL ways of their own in 20 epochs, see `SB3Agent`.)
        learning_rate: Step size of the policy's optimiser; None for that of the representation in `DEFAULT_RATES`.
        gamma: Discount per decision, of the final reward too.
        net_arch: Widths of the hidden layers of the policy, and of the critic where there is one; of `"mlp"`.
    """

    DEFAULT_RATES: ClassVar[dict[str, float]] = {"table": 0.1, "mlp": 1e-3}

    representation: Literal["table", "mlp"] = "table"
    learning_rate: float | None = positive(None)
    gamma: float = share(1.0)
    net_arch: tuple[int, ...] = (64, 64)

    OURS: ClassVar[frozenset[str]] = frozenset({"seed", "net_arch", "representation"})
    """What the library's constructors do not take by this name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = self.net_arch
        if not isinstance(widths, list | tuple) or not all(type(width) is int and width > 0 for width in widths):
            raise ValueError(f"{self.owner()}net_arch must be a list of positive integers, got {widths!r}")

    def arguments(self, num_decisions: int, num_envs: int) -> dict[str, Any]:
        """Arguments of the library's constructor, for so many decisions and rows."""
        given = {name: value for name, value in vars(self).items() if name not in self.OURS}
        rate, table = self.learning_rate or self.DEFAULT_RATES[self.representation], self.representation == "table"
        features = {"features_extractor_class": Features, "features_extractor_kwargs": {"table": table}}
        policy = {"net_arch": [] if table else list(self.net_arch), **features}
        return {**given, "learning_rate": rate, "policy_kwargs": policy}


@dataclasses.dataclass(frozen=True)
class OnPolicyConfig(SB3Config):
    """Options of on-policy agents.

    Attributes:
        n_steps: Decisions of each row between two updates; by default those of one whole instance.
        gae_lambda: How far advantages look ahead: 1 for the whole return.
        ent_coef: Weight of the policy's entropy in the loss.
    """

    n_steps: int | None = count(None)
    gae_lambda: float = share(1.0)
    ent_coef: float = not_negative(0.01)

    def arguments(self, num_decisions: int, num_envs: int) -> dict[str, Any]:
        """Those of every agent, and `n_steps`."""
        steps = self.n_steps or max(num_decisions, 2)  # of a single value there is no spread to normalise by
        return {**super().arguments(num_decisions, num_envs), "n_steps": steps}


@dataclasses.dataclass(frozen=True)
class SB3PPOConfig(OnPolicyConfig):
    """Options of PPO and MaskablePPO.

    Attributes:
        batch_size: Decisions per step of the optimiser; by default all that were made since the last update.
        n_epochs: How often those are gone through.
    """

    batch_size: int | None = count(None, least=2)
    n_epochs: int = count(4)

    def arguments(self, num_decisions: int, num_envs: int) -> dict[str, Any]:
        """Those of on-policy agents, and `batch_size`."""
        given = super().arguments(num_decisions, num_envs)
        return {**given, "batch_size": self.batch_size or given["n_steps"] * num_envs}


@dataclasses.dataclass(frozen=True)
class DQNConfig(SB3Config):
    """Options of DQN.

    The defaults explore little and move slowly, so that routes mostly stay and the blocks can fit them: of an early
    choice a table learns nothing, because one step ahead all choices look the same. With `learning_rate=0.001` and
    `batch_size=256` the routes wander, and what has been learned on DIGITS-MTL is lost again.

    Attributes:
        buffer_size: Decisions remembered: not many, because what a choice is worth changes with the blocks. Up to 32 MB
            of them are saved in checkpoints: a table's 50 000 are 2.6 MB, but `"mlp"` remembers activations.
        learning_starts: Decisions before the first update.
        batch_size: Decisions per step of the optimiser.
        exploration_initial_eps: Share of random decisions at first; all rows are random at once.
        exploration_final_eps: Share of random decisions in the end.
        exploration_episodes: Instances over which it falls, in a straight line. (The library measures this as a share
            of a call to `learn`; commands call that once per epoch.)
    """

    OURS = SB3Config.OURS | {"exploration_episodes"}
    DEFAULT_RATES = {"table": 3e-4, "mlp": 1e-3}

    buffer_size: int = count(50_000)
    learning_starts: int = count(1000, least=0)
    batch_size: int = count(1024)
    exploration_initial_eps: float = share(0.05)
    exploration_final_eps: float = share(0.05)
    exploration_episodes: int = count(50_000)

    def arguments(self, num_decisions: int, num_envs: int) -> dict[str, Any]:
        """Those of every agent; an update at every step, a target network renewed every 3 000."""
        return {**super().arguments(num_decisions, num_envs), "train_freq": 1, "target_update_interval": 3000}


class Features(nn.Module):
    """Features `(B, features_dim)` of observations as the library prepares them, `task` and `depth` one-hot.

    Of a `table` task and decision together, one-hot, and nothing else: a linear layer on that is a table. Otherwise
    activation, price where it is seen, decision and task: last, so that another can be added.
    """

    def __init__(self, space: Any, table: bool) -> None:
        super().__init__()
        self.table, self.price = table, "price" in space.spaces
        tasks, places = int(space["task"].n), int(space["depth"].n)
        self.features_dim = tasks * places if table else space["activation"].shape[0] + self.price + places + tasks

    def forward(self, observation: Observation) -> Tensor:
        """Features `(B, features_dim)`."""
        task, depth = observation["task"].flatten(1), observation["depth"].flatten(1)
        if self.table:
            return (task.unsqueeze(-1) * depth.unsqueeze(1)).flatten(1)
        price = [observation["price"]] if self.price else []
        return torch.cat([observation["activation"], *price, depth, task], 1)


class Tally:
    """Counts an agent's episodes while a model learns, and reports the means of every `num_envs` of them."""

    def __init__(self, agent: Agent, report: Report | None) -> None:
        self.agent, self.report, self.batch = agent, report, agent.env.num_envs
        self.earned = np.zeros(self.batch)
        self.ended: list[tuple[float, float, float, float]] = []

    def __call__(self, given: dict[str, Any], _: dict[str, Any]) -> bool:
        """Look at one step of the environment; go on."""
        self.earned += given["rewards"]
        ended = np.flatnonzero(given["dones"])
        for row in ended:
            info = given["infos"][row]
            self.ended.append((info["loss"], info["correct"], self.earned[row], info["macs"]))
        self.earned[ended] = 0
        self.agent.episodes += len(ended)
        while len(self.ended) >= self.batch:
            means = torch.tensor(self.ended[: self.batch], device="cpu").mean(0).unbind()
            del self.ended[: self.batch]
            if self.report is not None:
                self.report(dict(zip(REPORTED, means, strict=True)))
        return True


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators that the library draws from, PyTorch's, NumPy's and Python's own, and put them back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with first_weights(seed), torch.random.fork_rng():  # of every device
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
