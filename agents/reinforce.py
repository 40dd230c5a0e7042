"""REINFORCE (Williams 1992), on a table or on approximators (Rosenbaum et al. 2018, section 3.1.2)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from routing_gym.agents.base import ARRANGEMENTS, Agent, AgentConfig
from routing_gym.agents.scores import REPRESENTATIONS, TableScores, make_scores
from routing_gym.agents.tabular import agents_of, sample
from routing_gym.envs import Context, Observation, Trajectory

DEFAULT_RATES = {"table": 0.1, "mlp": 0.003}


@dataclasses.dataclass(frozen=True)
class ReinforceConfig(AgentConfig):
    """Options of REINFORCE.

    Attributes:
        arrangement: `"per_task"`, one policy per task, or `"single"`, one for all.
        representation: `"table"` of scores, or `"mlp"`, two-layer approximators that see activation and task.
        learning_rate: Step size of Adam on the scores' parameters; None for 0.1 on a table and 0.003 on approximators.
            Below these nothing is learned on DIGITS-MTL in 20 epochs, four times above it is the same (validation
            split, 3 seeds).
        gamma: Discount of later action rewards; the final reward is not discounted.
        baseline: Subtracted from returns: `"average"`, the running mean of each agent's returns at each decision, or
            `"none"`.
        baseline_rate: Rate of that running mean, in (0, 1].
        entropy: Weight of the policy's entropy in the loss.
    """

    arrangement: Literal["per_task", "single"] = "per_task"
    representation: Literal["table", "mlp"] = "table"
    learning_rate: float | None = None
    gamma: float = 1.0
    baseline: Literal["average", "none"] = "average"
    baseline_rate: float = 0.1
    entropy: float = 0.0

    def __post_init__(self) -> None:
        for option, known in (
            ("arrangement", ARRANGEMENTS),
            ("representation", REPRESENTATIONS),
            ("baseline", ("average", "none")),
        ):
            if getattr(self, option) not in known:
                raise ValueError(f"reinforce: {option} must be one of {known}, got {getattr(self, option)!r}")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"reinforce: learning_rate must be positive and finite, got {self.learning_rate}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"reinforce: gamma must lie in [0, 1], got {self.gamma}")
        if not 0 < self.baseline_rate <= 1:
            raise ValueError(f"reinforce: baseline_rate must lie in (0, 1], got {self.baseline_rate}")
        if not 0 <= self.entropy < float("inf"):
            raise ValueError(f"reinforce: entropy must be at least 0 and finite, got {self.entropy}")


class Reinforce(Agent):
    """REINFORCE: raises the log-probability of what it chose in proportion to what came of it.

    The gradient of −mean over instances of Σ_i (R_i − b) log π(a_i | s_i) + entropy · H(π(· | s_i)), recomputed from
    the recorded observations; b is the running average before this batch.
    """

    Config = ReinforceConfig
    config: ReinforceConfig
    average: Tensor

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        options = self.config
        self.scores = make_scores(options.representation, self.env, options.arrangement, options.seed)
        self.scores.to(self.env.device)
        rate = options.learning_rate or DEFAULT_RATES[options.representation]
        self.optimizer = torch.optim.Adam(self.scores.parameters(), lr=rate)
        self.register_buffer("average", torch.zeros(self.scores.num_agents, self.num_decisions + 1))

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Sample from the softmax of the scores; take the best when deterministic."""
        with torch.no_grad():
            scores = self.scores(observation)
            if context.deterministic:
                return scores.argmax(-1)
            probabilities = scores.softmax(-1)
        context.record["probabilities"] = probabilities
        return sample(probabilities.cumsum(-1), self.generator)

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Sample whole routes from a table; an approximator has to see the activations."""
        if self.shares_wanted or not isinstance(self.scores, TableScores):
            return None
        with torch.no_grad():
            scores = self.scores.of_all_decisions(task)
        return scores.argmax(-1) if deterministic else sample(scores.softmax(-1).cumsum(-1), self.generator)

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Take one step along the policy gradient of a batch."""
        config = self.config
        returns = trajectory.returns(config.gamma)
        agent = agents_of({"task": trajectory.task}, config.arrangement)
        losses, entropies = [], []
        for step, value in zip(trajectory.steps, returns, strict=True):
            assert isinstance(step.action, Tensor)
            active = step.active.to(value.dtype)
            if config.baseline == "average":
                value = value - self.average[agent, step.decision]
            log_policy = self.scores(step.observation).log_softmax(-1)
            chosen = log_policy.gather(-1, step.action.unsqueeze(-1)).squeeze(-1)
            # 0 · (−inf) of what is not legal counts as 0.
            entropy = -(log_policy.exp() * log_policy.clamp(min=torch.finfo(value.dtype).min)).sum(-1)
            losses.append(-(active * (value * chosen + config.entropy * entropy)).sum())
            entropies.append((active * entropy.detach()).sum() / active.sum().clamp(min=1))
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().div(len(trajectory)).backward()
        self.optimizer.step()
        self._remember(trajectory, returns, agent)
        return {"policy_entropy": torch.stack(entropies).mean()}

    def _remember(self, trajectory: Trajectory, returns: Tensor, agent: Tensor) -> None:
        """Move each running average by as many visits as it had."""
        row = torch.stack([step.decision for step in trajectory.steps])
        cells = (agent * (self.num_decisions + 1) + row).flatten()
        nothing = torch.zeros_like(self.average).flatten()
        # index_put, because index_add is not the same twice on a GPU
        visits = nothing.index_put((cells,), torch.ones_like(returns).flatten(), accumulate=True)
        mean = nothing.index_put((cells,), returns.flatten(), accumulate=True) / visits.clamp(min=1)
        moved = self.average.flatten() + self.config.baseline_rate * (mean - self.average.flatten())
        self.average.copy_(torch.where(visits > 0, moved, self.average.flatten()).view_as(self.average))

    def macs(self, decision: int) -> float:
        """Return what the approximator costs; 0 for a table."""
        return self.scores.macs(decision)
