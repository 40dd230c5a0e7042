"""DSelect-k (Hazimeh et al. 2021): a sparse gate that is continuously differentiable."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.demands import offers
from routing_gym.agents.parts.gates import ScoredGate, ScoredGateConfig
from routing_gym.agents.parts.scores import TableScores
from routing_gym.envs import Context, Observation, Trajectory
from routing_gym.options import count, divisor, not_negative


@dataclasses.dataclass(frozen=True)
class DSelectKConfig(ScoredGateConfig):
    """Options of DSelect-k.

    Attributes:
        k: How many selectors there are, and so the most blocks a row is mixed from in the end.
        gamma: Width γ of the smooth step: a binary variable is certain once its number is γ / 2 from 0.
        entropy: Weight of the selectors' entropy, which drives them to one block each.
    """

    k: int = count(2)
    gamma: float = divisor(1.0)
    entropy: float = not_negative(0.01)


class DSelectK(ScoredGate):
    """DSelect-k: k selectors, each of which spells a block's number in binary, are mixed by a softmax.

    Selector i has a number z_ij for each of ⌈log₂ n⌉ bits, and gives block c the weight
    r(z_i)_c = Π_j S(z_ij) where bit j of c is 1, 1 − S(z_ij) where it is 0; the weights of a decision are
    Σ_i softmax(α)_i r(z_i) (Hazimeh et al. 2021, Eqs. 3 and 4). S is a cubic step that is exactly 0 and 1 outside
    ±γ / 2: from there on only k blocks run, in training as well. Numbers that no legal block has stand for the legal
    blocks from the first on.

    Raises:
        ValueError: k is larger than the number of choices of any decision.
    """

    by_task = True
    Config = DSelectKConfig
    config: DSelectKConfig

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        offers(self, self.config.k)
        if isinstance(self.scores, TableScores):  # at 0 all selectors would stay alike
            numbers = torch.Generator().manual_seed(self.config.seed)
            with torch.no_grad():
                first = (torch.rand(self.scores.table.shape, generator=numbers) - 0.5) * self.config.gamma / 50
                self.scores.table.copy_(first)
        codes = torch.arange(2**self.num_bits, device=self.env.device)
        bits = codes.unsqueeze(-1) >> torch.arange(self.num_bits, device=codes.device) & 1 == 1
        self._bits = nn.Buffer(bits, persistent=False)
        blocks = torch.zeros(len(self.arrangement.legal), len(codes), self.num_choices, device=codes.device)
        for row, legal in enumerate(self.arrangement.legal):
            choices = legal.nonzero().flatten()
            blocks[row, codes, choices[codes % len(choices)]] = 1
        self._blocks = nn.Buffer(blocks, persistent=False)

    @property
    def num_bits(self) -> int:
        """Binary variables of a selector."""
        return max(1, (self.num_choices - 1).bit_length())

    @property
    def num_outputs(self) -> int:
        """The mixture's number and the binary variables of each selector."""
        return self.config.k * (self.num_bits + 1)

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Weights `(B, A)`, the same in training and evaluation."""
        numbers = self.scored(observation).unflatten(-1, (self.config.k, self.num_bits + 1))
        share, step = numbers[..., 0].softmax(-1), smooth_step(numbers[..., 1:], self.config.gamma).unsqueeze(-2)
        selected = torch.where(self._bits, step, 1 - step).prod(-1)  # (B, k, codes)
        if torch.is_grad_enabled() and self.config.entropy:
            context.record["entropy"] = torch.special.entr(selected.clamp(min=1e-12)).sum((-2, -1))
        weights = (share.unsqueeze(-1) * selected).sum(1).unsqueeze(1)
        weights = (weights @ self._blocks.index_select(0, observation["depth"])).squeeze(1)
        return self.noted(weights, context)

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Entropy of the selectors (Eq. 6), and the expected cost of computation where that has a price."""
        cost, steps = super().auxiliary_loss(trajectory), trajectory.steps
        if not self.config.entropy:
            return cost
        entropy = torch.stack([step.record["entropy"] * step.active for step in steps]).sum(0).mean()
        loss = self.config.entropy * entropy
        return loss if cost is None else cost + loss


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    """Smooth step S(t): 0 up to −γ/2, 1 from γ/2, between them −2 t³ / γ³ + 3 t / (2 γ) + 1/2 (Eq. 2)."""
    inside = (t / gamma).clamp(-0.5, 0.5)  # so that the ends are exactly 0 and 1, whatever γ is
    return -2 * inside**3 + 1.5 * inside + 0.5
