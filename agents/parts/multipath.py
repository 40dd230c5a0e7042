"""Strategies of multipath early exit: what they have in common (McGill and Perona 2017, section 4)."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import RouterAgent, RouterConfig
from routing_gym.agents.parts.scores import ModuleScores, legal_rows
from routing_gym.blocks import OwnedParameter
from routing_gym.envs import TALR, Context, Observation, Trajectory
from routing_gym.networks import EXIT, RoutedNetwork, actions
from routing_gym.networks.pyramid import DECAY, EPSILON
from routing_gym.options import not_negative, positive

HIDDEN = 16
LEAST_TEMPERATURE = 1e-30
"""Temperatures halve for ever; the reciprocal of this one is still a float32."""


@dataclasses.dataclass(frozen=True)
class MultipathConfig(RouterConfig):
    """Options of every strategy.

    Attributes:
        temperature: τ of the training policy softmax(s / τ) at first.
        temperature_epochs: Passes over the split in which it halves; 30 are the paper's 10 000 steps of 128 on the
            hybrid data (the authors' code has twice as many).
        weight_decay: k_L2 of Eq. 9: penalty on the squared weights of every layer, in proportion to how likely
            instances pass it. Biases and batch norms are not penalised.
    """

    temperature: float = positive(1.0)
    temperature_epochs: float = positive(30.0)
    weight_decay: float = not_negative(1e-4)


class Multipath(RouterAgent):
    """A strategy: a softmax policy on the scores of one module per decision, and a penalty on weights.

    Where the environment adjusts learning rates to the throughput (`talr=True`), those of the scores are adjusted too.
    """

    Config = MultipathConfig
    config: MultipathConfig
    scores: ModuleScores
    uses_rewards = False

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        network, price = self.env.network, self.env.config.price
        self.train_scores(ModuleScores(network, partial(_layers, network), price=price, seed=self.config.seed))
        self._legal = nn.Buffer(legal_rows(network.masks, single=True), persistent=False)
        places = [(d, c) for d, decision in enumerate(network.decisions) for c in range(decision.n)]
        owned = {place: network.parameters_of(*place) for place in places}
        several = {id(one.parameter) for parameters in owned.values() for one in parameters}
        self._for_all = [p for p in network.parameters() if id(p) not in several and p.ndim > 1]
        self._owned = {place: [one for one in parameters if one.value.ndim > 1] for place, parameters in owned.items()}
        costs = [*map(self.scores.macs, range(self.num_decisions)), 0.0]  # the last of rows that have left
        self._scores_macs = nn.Buffer(torch.tensor(costs, device=self.env.device), persistent=False)
        self._talr = TALR([[OwnedParameter(p) for p in module.parameters()] for module in self.scores.of])

    @property
    def temperature(self) -> float:
        """τ now."""
        return self.config.temperature * 0.5 ** (self.passes / self.config.temperature_epochs)

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Report the temperature; all learning is in the joint backward pass."""
        return {"temperature": torch.tensor(self.temperature, device="cpu")}

    def scored(self, observation: Observation, context: Context) -> Tensor:
        """Scores `(B, A)`, −inf where a choice is not legal; those without −inf are recorded, with graph."""
        raw = context.record["scores"] = self.scores(observation, context)
        return self.masked(raw, observation["depth"])

    def masked(self, scores: Tensor, decision: Tensor) -> Tensor:
        """Scores `(B, A)`, −inf where a choice is not legal at a row's decision, `(B,)`."""
        return scores.masked_fill(~self._legal.index_select(0, decision), -torch.inf)

    def softened(self, scores: Tensor) -> Tensor:
        """Training policy softmax(s / τ), `(B, A)`; at temperatures near 0 the best choice, and no division by 0."""
        highest = scores.detach().amax(-1, keepdim=True)  # s / τ overflows, (s − max s) / τ is at most 0
        return ((scores - highest) / max(self.temperature, LEAST_TEMPERATURE)).softmax(-1)

    def before_step(self, trajectory: Trajectory) -> None:
        """Follow the blocks' learning rate, adjusted to the throughput of decisions where that is asked for."""
        super().before_step(trajectory)
        if (throughput := self.env.trainer.throughput) is not None and throughput.probable:
            self._talr.scale(throughput.of_decisions())

    def weight_penalty(self, trajectory: Trajectory, through_policy: bool = False) -> Tensor:
        """Penalty k_L2 E[Σ w²] over the layers an instance passes (Eq. 9), 0-dimensional; see `passage`."""
        reach, taken = self.passage(trajectory, through_policy)
        terms = [weight.square().sum() for weight in self._for_all]
        for (decision, choice), owned in self._owned.items():
            terms += [taken[decision, choice] * one.value.square().sum() for one in owned]
        for decision, module in enumerate(self.scores.of):
            terms += [reach[decision] * weight.square().sum() for weight in module.parameters() if weight.ndim > 1]
        return self.config.weight_decay * torch.stack(terms).sum()

    def passage(self, trajectory: Trajectory, through_policy: bool) -> tuple[Tensor, Tensor]:
        """Mean probability of being at each decision, `(N + 1,)`, and of each choice there, `(N + 1, A)`.

        `through_policy` lets the gradient go on into the probabilities, which are constants otherwise.
        """
        reach = trajectory.loss.new_zeros(self.num_decisions + 1)
        taken = trajectory.loss.new_zeros(self.num_decisions + 1, self.num_choices)
        for step in trajectory.steps:
            there = step.record["reach"] if through_policy else step.reach
            chances = actions.dense(step.action, self.num_choices)
            chances = chances if through_policy else chances.detach()
            reach = reach.index_add(0, step.decision, there)
            taken = taken.index_add(0, step.decision, there.unsqueeze(1) * chances)
        return reach / len(trajectory), taken / len(trajectory)


class ExactMultipath(Multipath):
    """A strategy that runs every path of every instance, weighed by the training policy.

    Raises:
        ValueError: A network that mixes activations, or in which paths meet again.
    """

    action_type = "weights"
    EPSILON = 1e-6
    """Every path keeps a probability of at least this times its share of the leaves (authors' code)."""

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        decisions, left = self.env.network.decisions, self.num_decisions
        leaves = torch.ones(left + 1, dtype=torch.float64, device="cpu")
        of_choice = torch.zeros(left + 1, self.num_choices, dtype=torch.float64, device="cpu")
        # Where a choice leads to; exits, and choices that do not exist, go into a last place that is not read.
        following = torch.full((left + 1, self.num_choices), left, device="cpu")
        for number in reversed(range(left)):
            for choice, target in enumerate(decisions[number].next):
                following[number, choice] = left if target == EXIT else target
                of_choice[number, choice] = leaves[following[number, choice]] * self._legal[number, choice]
            leaves[number] = of_choice[number].sum()
        leaves[left], least = leaves[0], self.EPSILON / leaves[0]
        dtype = torch.get_default_dtype()
        self._least = nn.Buffer((least * leaves).to(dtype), persistent=False)
        self._least_of = nn.Buffer((least * of_choice).to(dtype), persistent=False)
        self._next = nn.Buffer(following, persistent=False)

    def _check_env(self) -> None:
        super()._check_env()
        for decision in self.env.network.decisions:
            if decision.mixing != "outcome":
                raise ValueError(
                    f"agent {self.name!r} shares every instance out among the ways on, but decision {decision.name!r} "
                    "of this network mixes activations: 'gumbel' or 'soft-mixture' route that"
                )
        if self.env.network.rejoining:
            raise ValueError(
                f"agent {self.name!r} shares every instance out among the ways on, but paths of this network meet again"
            )

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Probabilities `(B, A)` of the training policy; the best choice alone when deterministic."""
        scores = self.scored(observation, context)
        if context.deterministic:
            return functional.one_hot(scores.argmax(-1), self.num_choices).to(scores.dtype)
        depth = observation["depth"]
        arrived = scores.new_zeros(len(scores), self.num_decisions + 1) if context.carry is None else context.carry
        reach = arrived.gather(1, depth.unsqueeze(1))
        # Reach is 1 at the first decision, and where it is not known (`predict` without a state).
        # Of rows that have left it is not read.
        reach = torch.where(((depth == 0) | ~context.active).unsqueeze(1) | (reach == 0), 1.0, reach)
        chances = self.chances(scores, depth, reach)
        context.carry = arrived.scatter(1, self._next.index_select(0, depth), reach * chances)
        context.record["reach"] = reach.squeeze(1)
        return chances

    def chances(self, scores: Tensor, depth: Tensor, reach: Tensor) -> Tensor:
        """Training policy `(B, A)`: softmax(s / τ), a little of which goes to every path (Eq. 4).

        Without that little the softmax underflows at low temperatures: choices would no longer be tried, and a layer
        that no instance passes has no throughput. `reach (B, 1)` is the probability of being at the decision.
        """
        least = self._least.index_select(0, depth).unsqueeze(1)
        soft = (1 - least / reach).clamp(min=0) * self.softened(scores)
        return soft + self._least_of.index_select(0, depth) / reach


def _layers(network: RoutedNetwork, decision: int, inputs: int) -> nn.Sequential:
    """Router of section 3.1, Fig. 3: two layers of 16 with batch norm and ReLU, and one that begins at 0.

    The other layers are drawn from Xavier's uniform distribution.
    """
    sizes = (inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, network.decisions[decision].n)
    first, second, last = (nn.Linear(*size) for size in sizes)
    for layer in (first, second, last):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(last.weight)
    norms = [nn.BatchNorm1d(HIDDEN, eps=EPSILON, momentum=1 - DECAY) for _ in range(2)]
    return nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU(), last)
