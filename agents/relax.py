"""RELAX (Grathwohl et al. 2018) and REBAR (Tucker et al. 2017): a control variate at every choice."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import ScoredAgent, ScoredConfig, mean_of_steps, stacked
from routing_gym.agents.parts.draws import drawn
from routing_gym.agents.parts.losses import joint_choice
from routing_gym.agents.parts.scores import TableScores, make_scores
from routing_gym.envs import Trajectory
from routing_gym.options import divisor, not_negative


@dataclasses.dataclass(frozen=True)
class RelaxConfig(ScoredConfig):
    """Options of RELAX.

    `gamma` discounts action rewards; the final reward is not discounted.

    Attributes:
        control: What trains the control variate: `"relax"`, the variance of the gradient alone; or `"rebar"`, where it
            is η times an estimate of the returns by regression, and only η goes by the variance.
        temperature: τ of the relaxed choice.
        entropy: Weight of the policy's entropy in the loss.
    """

    control: Literal["relax", "rebar"] = "relax"
    temperature: float = divisor(0.5)
    entropy: float = not_negative(0.0)


class Relax(ScoredAgent):
    """RELAX: REINFORCE whose baseline may depend on the choice, because its own gradient is put back.

    Of a choice b ~ π(· | s), z is a Gumbel sample with b = argmax z and z̃ another one given b. With a control variate
    c(z, s) = Σ_a softmax(z / τ)_a q(s, a) the gradient is that of (R − c(z̃)) log π(b | s) + c(z) − c(z̃), the first c
    held fixed, summed over decisions (Grathwohl et al. 2018, Eq. 7 and section 3.3). Its expectation is that of the
    policy gradient whatever q is, so q, a table or approximators like the policy's, goes down the gradient of the
    estimate's squared length (Eq. 6), as far as the policy's scores.

    With `control="rebar"` c is η times the return at the relaxed choice (Tucker et al. 2017, Eq. 9). A network's return
    is known at choices only; q(s, a) estimates it, and c is its multilinear extension.
    """

    by_task = True
    Config = RelaxConfig
    config: RelaxConfig

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.control = make_scores(self.arrangement, (self.config.seed + 1) % 2**64)
        self.strength = TableScores(self.arrangement, 1).to(self.env.device)  # η − 1, of every agent and decision
        parts = [self.scores, self.control, *([self.strength] if self.config.control == "rebar" else [])]
        self.train_by(nn.ModuleList(parts), self.rate)

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Take one step of the policy and of its control variate."""
        config, steps = self.config, trajectory.steps
        action, returns = stacked(steps, "action"), trajectory.returns(config.gamma)
        active = stacked(steps, "active").to(returns.dtype)
        scores = self.scores_at(steps)
        worth = self.scores_at(steps, self.control)
        worth = worth.masked_fill(~scores.isfinite(), 0.0)
        seen, given = scores.detach().requires_grad_(), worth.detach().requires_grad_()
        strength = torch.ones_like(returns)
        if config.control == "rebar":
            strength = 1 + self.scores_at(steps, self.strength).squeeze(-1)
        noise = [drawn(torch.empty_like(seen[0]), "exponential_", self.generator) for _ in range(2 * len(steps))]
        pairs = torch.stack(noise[::2]), torch.stack(noise[1::2])
        gain, entropy = relaxed_gain(seen, strength.unsqueeze(-1) * given, action, returns, pairs, config.temperature)
        gain = active * (gain + config.entropy * entropy)
        (estimate,) = torch.autograd.grad(-gain.sum(), seen, create_graph=True)
        variance = estimate.square().sum() / active.shape[1]
        if config.control == "rebar":  # q by regression, of which nothing goes into the estimate but η's part
            value = worth.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            rest = variance + (active * (returns - value).square()).sum() / active.shape[1]
        else:
            (slope,) = torch.autograd.grad(variance, given)
            rest = (worth * slope).sum()
        # What is not legal has a score of −inf and no slope.
        policy = (scores.masked_fill(~scores.isfinite(), 0.0) * estimate.detach()).sum() / active.shape[1]
        self.descend(policy + rest)
        return {"policy_entropy": mean_of_steps(entropy.detach(), active), "gradient_variance": variance.detach()}


def relaxed_gain(
    scores: Tensor, worth: Tensor, action: Tensor, returns: Tensor, noise: tuple[Tensor, Tensor], temperature: float
) -> tuple[Tensor, Tensor]:
    """What RELAX climbs, (R − c(z̃)) log π(b) + c(z) − c(z̃), and the entropy of π, `(S, B)` each.

    Of `scores`, −inf where a choice is not legal, and `worth`, q, 0 there, `(S, B, A)`; of choices `action`, b, and
    `returns`, R, `(S, B)`; and of two draws `(S, B, A)` from the exponential distribution, for z and for z̃.
    """
    log_policy, legal = scores.log_softmax(-1), scores.isfinite()
    chosen, entropy = joint_choice(log_policy, action)
    drawn_first = gumbel_given(log_policy.detach(), action, noise[0])
    z = drawn_first + (log_policy - log_policy.detach()).where(legal, 0.0)  # moves with the scores, the noise stays
    relaxed, anew = (of / temperature for of in (z, gumbel_given(log_policy, action, noise[1])))
    c, c_given = ((of.softmax(-1) * worth).sum(-1) for of in (relaxed, anew))
    fixed = (anew.detach().softmax(-1) * worth).sum(-1)  # of q, but not of the scores
    return (returns - fixed) * chosen + c - c_given, entropy


def gumbel_given(log_policy: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """Gumbel samples `(..., A)` of which the choices `action (...)` are the largest; −inf where π is 0.

    With E from the exponential distribution, `noise`, z_b = −log E_b and z_i = −log(E_i / π_i + E_b) for the others
    (Tucker et al. 2017, appendix C).
    """
    legal = log_policy.isfinite()
    top = noise.log().gather(-1, action.unsqueeze(-1)).expand_as(noise)
    # By logarithms, since 1 / π_i is infinite where a choice has become unlikely enough.
    others = torch.stack([noise.log() - log_policy.where(legal, 0.0), top]).logsumexp(0)
    largest = torch.arange(noise.shape[-1], device=noise.device) == action.unsqueeze(-1)
    return torch.where(largest, top, others).neg().masked_fill(~legal, -torch.inf)
