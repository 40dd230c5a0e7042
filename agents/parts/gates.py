"""Gates: agents whose weights of blocks have a gradient, trained in the blocks' backward pass."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import ScoringAgent, TrainedConfig
from routing_gym.agents.parts.scores import ArrangedScores, Arrangement, make_scores
from routing_gym.envs import Context, Observation, Step, Trajectory
from routing_gym.networks import Action
from routing_gym.networks.actions import dense, of_one_tensor


class Gate(ScoringAgent):
    """An agent whose weights have a gradient, with an optimiser of its own."""

    action_type = "weights"
    needs_gradients = True

    def pays_by(self, chances: Tensor, context: Context) -> None:
        """Record chances `(B, ..., A)` of choices, by which computation is paid for, where that has a price.

        For actions whose weights are no chances: what a block costs does not depend on what its output is weighed by.
        """
        if self.env.rewards.priced and not context.deterministic:
            context.record["chances"] = chances

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Expected cost of computation, mean over instances, where that has a price: the blocks' loss knows of none.

        Σ_a π_a c_a at every decision, π being the weights, or the chances that were recorded (`pays_by`): a price does
        not tell routes of the same cost apart, whatever they are weighed by.
        """
        if not self.env.rewards.priced:
            return None
        expected = trajectory.expected_macs
        for step in trajectory.steps:
            if "chances" in step.record:
                by_chance, by_weight = (self._macs_by(of, step) for of in (step.record["chances"], step.action))
                expected = expected + step.reach * (by_chance - by_weight)
        return (trajectory.price * expected).mean()

    def _macs_by(self, weights: Action, step: Step) -> Tensor:
        """Expected multiply-accumulates `(B,)` of a step by weights of its choices; 0 in rows that had left."""
        network, sole = self.env.network, getattr(step.observation, "sole", None)
        weights, macs = dense(weights, self.num_choices), torch.zeros_like(step.reach)
        weights = of_one_tensor(weights) if self.num_tensors == 1 else weights * step.choosing.unsqueeze(-1)
        assert isinstance(weights, Tensor)
        for number in range(self.num_decisions) if sole is None else (sole,):
            decision = network.decisions[number]
            own = weights[..., : decision.n]
            if self.num_tensors > 1:
                own = own[:, : decision.m] if decision.m > 1 else own[:, 0]
            macs = torch.where(step.decision == number, network.macs(number, own)[1], macs)
        return macs

    def takes_no_outcomes(self, why: str) -> None:
        """Refuse a network that shares outcomes out: its weights have to sum to 1."""
        if self.env.network.shares_outcomes:
            raise ValueError(f"agent {self.name!r}: this network shares outcomes out by weights that sum to 1, {why}")


@dataclasses.dataclass(frozen=True)
class ScoredGateConfig(TrainedConfig):
    """Options of every gate that goes by scores; Adam's step size is 0.1 on a table and 0.003 on approximators.

    Attributes:
        arrangement: `"per_task"`, one gate per task, or `"single"`, one for all.
        representation: `"table"`, or `"mlp"`, two-layer approximators that see activation and task.
    """

    arrangement: Literal["per_task", "single"] = "per_task"
    representation: Literal["table", "mlp"] = "table"


class ScoredGate(Gate):
    """A gate that goes by scores, of which `num_outputs` are learned for a row; by default by their softmax."""

    Config: ClassVar[type[AgentConfig]] = ScoredGateConfig
    config: Any  # with an arrangement and a representation
    scores: ArrangedScores

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        kind, single = (self.config.arrangement, self.config.representation), self.max_tensors is not None
        self.arrangement = Arrangement(self.env, *kind, single=single)
        self.scores = make_scores(self.arrangement, self.config.seed, outputs=self.num_outputs)
        self.train_by(self.scores, self.DEFAULT_RATES[self.config.representation])

    @property
    def num_outputs(self) -> int | None:
        """How many numbers are learned for a row; None for a score of every choice."""
        return None

    def scored(self, observation: Observation) -> Tensor:
        """Scores `(B, ..., A)`, −inf where a choice is not legal; or `(B, outputs)`."""
        return self.scores(observation, self.arrangement.agent_of(observation["task"]))

    def act(self, observation: Observation, context: Context) -> Action:
        """Weights `(B, A)`, the softmax of the scores, the same in training and evaluation."""
        return self.noted(self.scored(observation).softmax(-1), context)
