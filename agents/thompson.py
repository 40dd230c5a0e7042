"""Thompson sampling (Thompson 1933; Russo et al. 2018): a posterior over what each choice is worth."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import LearningAgent, LearningConfig, stacked
from routing_gym.agents.parts.draws import drawn
from routing_gym.agents.parts.scores import look_up
from routing_gym.envs import Context, Observation, Trajectory
from routing_gym.options import positive


@dataclasses.dataclass(frozen=True)
class ThompsonConfig(LearningConfig):
    """Options of Thompson sampling.

    `gamma` discounts action rewards; the final reward is not discounted. `memory` and `spread` are the best of six
    settings on the suite's problems, at seeds for tuning.

    Attributes:
        representation: `"table"`: posteriors are kept for every task and decision.
        memory: Half-life of what is known of a choice, in visits of its decision by the agent: blocks learn, so that
            what they earned long ago says little about now.
        prior: How many visits the prior, of the mean of all the decision's returns, counts for; and for the variance,
            where it is 1.
        spread: Factor of the posterior's deviation when a mean is drawn: 1 for Thompson sampling, more to look further
            for what the blocks may become.
    """

    representation: Literal["table"] = "table"
    memory: float = positive(100.0)
    prior: float = positive(1.0)
    spread: float = positive(2.0)


class Thompson(LearningAgent):
    """Thompson sampling: draws what every choice may be worth from its posterior, and takes the best of these.

    The returns of a choice are taken to be normal, with a mean of its own and the decision's common variance σ². After
    n visits of mean R̄ its posterior is N((p R̄₀ + n R̄) / (p + n), σ² / (p + n)), with a prior of p visits at the
    decision's mean return R̄₀ (Russo et al. 2018, section 4). σ² is that of the decision's returns and of p
    visits more, of variance 1: a decision that has seen one return only does not know that there are no others. Visits
    fade, those of all choices of a decision alike, so that a choice that has not been taken for long becomes uncertain
    again. Every instance draws anew.
    """

    by_task = True
    Config = ThompsonConfig
    config: ThompsonConfig
    visits: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        shape = (self.arrangement.num_agents, self.arrangement.num_rows, self.arrangement.num_choices)
        # Sums over visits of 1, R and R², in which what is older fades; float32 would leave nothing of differences.
        for name in ("visits", "total", "squares"):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device=self.env.device))

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of what every choice is worth, `(agents, rows, A)` each; −inf where it is not legal."""
        visits = self.visits.sum(-1, keepdim=True)
        seen = visits.clamp(min=1)
        overall = self.total.sum(-1, keepdim=True) / seen
        prior, squared = self.config.prior, self.squares.sum(-1, keepdim=True) - visits * overall.square()
        variance, weight = (prior + squared.clamp(min=0)) / (prior + visits), prior + self.visits
        mean = (prior * overall + self.total) / weight
        return mean.masked_fill(~self.arrangement.legal, -torch.inf), (variance / weight).sqrt()

    def preferences(self, observation: Observation, agent: Tensor) -> Tensor:
        """Posterior means `(B, A)` of agents, `(B,)`."""
        return look_up(self.posterior()[0], agent, observation["depth"])

    @torch.no_grad()
    def choose(self, observation: Observation, agent: Tensor, context: Context) -> Tensor:
        """Choices `(B,)`: the best by means drawn from the posterior, or by its means when deterministic."""
        mean, deviation = (look_up(of, agent, observation["depth"]) for of in self.posterior())
        best = self._drawn(mean, deviation, context.deterministic).argmax(-1)
        if self.shares_wanted:
            taken = functional.one_hot(best, mean.shape[-1]).to(torch.get_default_dtype())
            context.record["probabilities"] = taken[:, : self.num_choices]
        return best

    @torch.no_grad()
    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N)`, unless a dispatcher has to be asked or the collaboration reward needs probabilities."""
        if self.shares_wanted or self.arrangement.dispatch_row is not None:
            return None
        agent = self.arrangement.agent_of(task)
        mean, deviation = (of[:, : self.num_decisions].index_select(0, agent) for of in self.posterior())
        return self._drawn(mean, deviation, deterministic).argmax(-1)

    def _drawn(self, mean: Tensor, deviation: Tensor, deterministic: bool) -> Tensor:
        if deterministic:
            return mean
        noise = drawn(torch.empty_like(mean), "normal_", self.generator)
        return mean + self.config.spread * deviation * noise

    @torch.no_grad()
    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Let what is known fade, and take in a batch."""
        steps = trajectory.steps
        active, returns = stacked(steps, "active"), trajectory.returns(self.config.gamma).double()
        cells = (self.cells(trajectory) * self.arrangement.num_choices + stacked(steps, "action")).flatten()
        counting = active.to(returns.dtype).flatten()
        sums = []
        for value in (counting, counting * returns.flatten(), counting * returns.flatten().square()):
            sums.append(torch.zeros_like(self.visits).view(-1).index_put_((cells,), value, accumulate=True))
        kept = 0.5 ** (sums[0].view_as(self.visits).sum(-1, keepdim=True) / self.config.memory)
        for known, new in zip((self.visits, self.total, self.squares), sums, strict=True):
            known.mul_(kept).add_(new.view_as(known))
        deviation = self.posterior()[1][:, : self.num_decisions]
        return {"posterior_deviation": deviation.mean()}
