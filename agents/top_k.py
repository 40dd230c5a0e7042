"""Sparsely gated routing: every row is mixed from the k blocks its gate likes best, and only these run."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import ChainMap
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.assignments import expert_choice
from routing_gym.agents.parts.demands import offers
from routing_gym.agents.parts.draws import drawn
from routing_gym.agents.parts.gates import Gate
from routing_gym.agents.parts.losses import chance_of_being_picked, chance_of_staying, cv_squared
from routing_gym.agents.parts.scores import ArrangedScores, Arrangement, make_scores
from routing_gym.blocks import Adam, Embedding
from routing_gym.envs import Context, Observation, Step, Trajectory
from routing_gym.networks import Action
from routing_gym.options import count, not_negative, positive


@dataclasses.dataclass(frozen=True)
class TopKConfig(AgentConfig):
    """Options of sparse gates.

    Attributes:
        k: How many blocks each row is mixed from; where fewer are legal, all that are.
        k_last: How many at the last decision, k changing in a straight line, rounded (k-annealing; 7 to 2 over 8
            decisions is 7 6 6 5 4 3 3 2); by default k everywhere.
        softmax: What the weights are a softmax over: the `"chosen"` k, so that they sum to 1; or `"all"` choices, of
            which the k chosen keep their weights (Switch Transformer, Fedus et al. 2022). With k = 1 the weight of the
            former is always 1, and all the gate learns is balance.
        noise: Add noise of learned size to the scores while training: else blocks never among the best k go untried.
        choice: `"row"`: every row takes its k best blocks; or `"expert"`: in training every block takes the rows that
            like it best, as many as every other block (expert choice, Zhou et al. 2022). When deterministic rows
            choose, so that no row's route depends on the others.
        balance: Weight of the importance and of the load loss at first.
        balance_epochs: Passes over the split in which that weight falls to 0, in a straight line; by default it stays.
        shared: How many of a decision's first legal choices always run besides, each with weight 1 (DeepSeekMoE, Dai et
            al. 2024); the gate then picks k of the others.
        z_loss: Weight of the squared logarithm of the sum of exp(scores), mean over rows, summed over decisions, which
            keeps scores small (Zoph et al. 2022, Eq. 5).
        bias_rate: Step by which a bias of every block rises after each batch if rows took it less often than the mean,
            else falls; it counts for what is picked, not for the weights (0.001 in Wang et al. 2024). 0 for none.
        task_embedding: Width of a learned embedding of the task that joins what a gate sees; 0 for none.
        embedding_scale: Deviation of the embedding's first values. Where it outweighs the activations rows of a task
            take one way at first, and part later; ways through many random layers that differ from row to row from the
            beginning can take long to be learned from.
        task_only: Show the gate nothing but the embedding: all rows of a task then take one way.
        arrangement: `"single"`, one gate per decision for all tasks; or `"per_task"`, one for each of them.
        learning_rate: Step size of Adam on the gates.
    """

    k: int = count(2)
    k_last: int | None = count(None)
    softmax: Literal["chosen", "all"] = "chosen"
    noise: bool = True
    choice: Literal["row", "expert"] = "row"
    balance: float = not_negative(0.1)
    balance_epochs: float | None = positive(None)
    shared: int = count(0, least=0)
    z_loss: float = not_negative(0.0)
    bias_rate: float = not_negative(0.0)
    task_embedding: int = count(0, least=0)
    embedding_scale: float = positive(1.0)
    task_only: bool = False
    arrangement: Literal["single", "per_task"] = "single"
    learning_rate: float = positive(0.003)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_only and not self.task_embedding:
            raise ValueError(f"{self.owner()}task_only=True shows the gate the embedding alone: give its width")
        if self.softmax == "all" and self.choice == "expert":
            raise ValueError(f"{self.owner()}softmax='all' is for choice='row'; experts share rows out to sum to 1")
        if self.shared and self.choice == "expert":
            raise ValueError(f"{self.owner()}shared={self.shared} is for choice='row': all rows take shared blocks")


class TopK(Gate):
    """Noisy top-k gates (Shazeer et al. 2017), a linear one per decision; Diverse experts (Ramachandran and Le 2019).

    H(x)_i = (x·W_g)_i + ε·softplus((x·W_noise)_i) with ε from N(0, 1), of which the highest k are kept: the weights are
    their softmax, y = Σ_i G(x)_i E_i(x); with `softmax="all"` what they have in the softmax of all choices, by which a
    price is paid then. Only these k blocks run and have a gradient. The noise is off when deterministic. W_noise is 0
    at first.

    Two losses keep all blocks in use, each the squared coefficient of variation over the blocks of a decision, summed
    over decisions: of the importance Σ_x G(x)_i, and of the load Σ_x P(x, i), see `chance_of_being_picked`.

    Raises:
        ValueError: k is larger than the number of choices of any decision; or `softmax="all"` on a network that shares
            outcomes out, which takes weights that sum to 1.
    """

    Config = TopKConfig
    config: TopKConfig
    scores: ArrangedScores

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        options = self.config
        most = max(options.k, options.k_last or options.k)
        offers(self, most)
        if options.softmax == "all":
            self.takes_no_outcomes("softmax='all' gives others: leave it at softmax='chosen'")
        if options.choice == "expert":
            self.in_one_process("lets blocks choose among the rows of a whole batch")
        if options.shared:
            self.takes_no_outcomes("blocks that always run give others: leave it at shared=0")
        if most == 1 and not options.balance and (options.softmax, options.choice) == ("chosen", "row"):
            moved = ", biases apart," if options.bias_rate else ""
            warnings.warn(
                f"agent {self.name!r} with k=1 and balance=0 learns nothing{moved}: the only weight is always 1, so "
                "that no gradient comes to the gates; take softmax='all', k=2 or a balance above 0",
                stacklevel=2,
            )
        self.arrangement = Arrangement(self.env, options.arrangement, "linear")
        legal = self.arrangement.legal & (self.arrangement.legal.cumsum(-1) > options.shared)
        if not bool(legal.any(-1).all()):
            raise ValueError(f"agent {self.name!r}: shared={options.shared} leaves nothing to choose at some decision")
        self._legal = nn.Buffer(legal, persistent=False)
        if options.shared:
            first = self.arrangement.legal.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
            self._always = nn.Buffer(first[:, : options.shared], persistent=False)
        annealed = torch.linspace(
            options.k, options.k_last or options.k, self.num_decisions, dtype=torch.float64, device="cpu"
        )
        k = torch.cat([(annealed + 0.5).floor().long(), torch.ones(1, dtype=torch.int64, device="cpu")]).to(
            legal.device
        )
        self._k = nn.Buffer(k.minimum(legal.sum(-1)), persistent=False)
        self._counts = self._k.tolist()
        inputs = options.task_embedding + (0 if options.task_only else self.env.network.observation_size)
        self.scores = make_scores(self.arrangement, options.seed, inputs=inputs)
        self.spread = None
        if options.noise:
            self.spread = make_scores(self.arrangement, options.seed, inputs=inputs, outputs=self.num_choices)
            for parameter in self.spread.parameters():
                nn.init.zeros_(parameter)
        self.embedding = None
        if options.task_embedding:
            numbers = torch.Generator().manual_seed(options.seed)
            first = torch.randn(self.num_tasks, options.task_embedding, generator=numbers)
            self.embedding = Embedding((options.embedding_scale * first).to(legal.device))
        if options.bias_rate:
            self.bias = nn.Buffer(torch.zeros(legal.shape, device=legal.device))
        self.optimizer = Adam(self, lr=options.learning_rate)

    @property
    def balance(self) -> float:
        """The weight of the balancing losses now."""
        return self.config.balance * max(0.0, 1 - self.passes / (self.config.balance_epochs or math.inf))

    def act(self, observation: Observation, context: Context) -> Action:
        """Pair `(indices (B, K), weights (B, K))`, the best first, or weights `(B, A)` where experts choose.

        K is the decision's k, or where rows wait at several the largest; what a decision does not take weighs 0 then.
        """
        agent, depth = self.arrangement.agent_of(observation["task"]), observation["depth"]
        seen = self._seen(observation)
        clean = self.scores(seen, agent)
        if self.config.shared:
            clean = clean.masked_fill(~self._legal.index_select(0, depth), -torch.inf)
        if self.config.z_loss:
            context.record["log_sum"] = clean.logsumexp(-1)
        scores, k = clean, self._k.index_select(0, depth)
        if self.spread is not None and not context.deterministic:
            noise = drawn(torch.empty_like(clean, requires_grad=False), "normal_", self.generator)
            spread = functional.softplus(self.spread(seen, agent))
            scores = torch.addcmul(clean, noise, spread)
        most = max(self._counts) if context.sole is None else self._counts[context.sole]
        wanted, plain = scores, clean
        if self.config.bias_rate:
            bias = self.bias.index_select(0, depth)
            wanted, plain = scores + bias, clean + bias
        one_more = context.sole is not None and self.env.network.nothing_masked and not self.config.shared
        best = wanted.topk(min(most + one_more, self.num_choices), -1)
        if scores is not clean and self.balance:
            if best.values.shape[1] > most:
                context.record["load"] = chance_of_staying(plain, wanted, spread, best.values)
            else:
                legal = self._legal.index_select(0, depth)
                context.record["load"] = chance_of_being_picked(plain, wanted, spread, k, legal)
        if self.config.choice == "expert" and not context.deterministic:
            weights = expert_choice(scores, depth, k, context, self.num_decisions)
            context.record["probabilities"] = weights.detach()
            return weights
        indices = best.indices[:, :most]
        policy = scores.softmax(-1) if self.config.softmax == "all" else None
        weights = (scores if policy is None else policy).gather(1, indices)
        if context.sole is None:
            left_out = torch.arange(indices.shape[1], device=k.device) >= k.unsqueeze(-1)
            weights = weights.masked_fill(left_out, -torch.inf if policy is None else 0.0)
        weights = weights.softmax(-1) if policy is None else weights
        if self.config.shared:
            always = self._always.index_select(0, depth)
            indices = torch.cat([always, indices], 1)
            weights = torch.cat([weights.new_ones(always.shape), weights], 1)
            policy = None if policy is None else policy.scatter(1, always, 1.0)
        if policy is not None:
            self.pays_by(policy, context)
        if self.shares_wanted:
            shares = torch.zeros_like(scores).scatter(1, indices, weights).detach()
            context.record["probabilities"] = shares / (1 + self.config.shared)
        return indices, weights

    def _seen(self, observation: Observation) -> Observation:
        """Observation of the gates: the activation, the embedding of the task, or both for `activation`."""
        if self.embedding is None:
            return observation
        embedded = self.embedding(observation["task"])
        seen = embedded if self.config.task_only else torch.cat([observation["activation"], embedded], 1)
        return ChainMap({"activation": seen}, observation)  # type: ignore[arg-type]

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Balancing losses and z-loss, and the expected cost of computation where that has a price."""
        cost = super().auxiliary_loss(trajectory)
        if self.config.z_loss:
            squares = [(step.record["log_sum"].square() * step.active).mean() for step in trajectory.steps]
            large = self.config.z_loss * torch.stack(squares).sum()
            cost = large if cost is None else cost + large
        if not self.balance:
            return cost
        legal = self._legal
        importance, load = _taken(trajectory.steps, legal.shape), trajectory.loss.new_zeros(legal.shape)
        for step in trajectory.steps:
            if "load" in step.record:
                load = _added(load, step, step.record["load"])
        both = self.env.ranks.total(torch.stack([importance, load]))
        uneven = cv_squared(both, legal)[:, : self.num_decisions].sum()
        return self.balance * uneven if cost is None else cost + self.balance * uneven

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Move the biases towards an even use, if there are any, and report how uneven the use of blocks is."""
        legal = self._legal
        used = _taken(trajectory.steps, legal.shape, count=True) * legal  # shared blocks are nobody's choice
        if self.config.bias_rate:
            mean = used.sum(-1, keepdim=True) / legal.sum(-1, keepdim=True)
            self.bias.add_(self.config.bias_rate * (mean - used).sign() * legal)
        return {"unevenness": cv_squared(used, legal)[: self.num_decisions].mean()}


def _taken(steps: Sequence[Step], shape: torch.Size, *, count: bool = False) -> Tensor:
    """Sums `(N + 1, A)` by decision of the weights that choices were given; or how often one was given any."""
    places, weights = [], []
    for step in steps:
        choice, weight = step.action if isinstance(step.action, tuple) else (None, step.action)
        assert isinstance(weight, Tensor)
        choice = torch.arange(shape[1], device=weight.device).expand_as(weight) if choice is None else choice
        places.append((step.decision.unsqueeze(1) * shape[1] + choice).flatten())
        weights.append(weight.flatten())
    given = torch.cat(weights)
    given = given.detach().ne(0).to(given.dtype) if count else given
    return given.new_zeros(shape).flatten().index_add(0, torch.cat(places), given).view(shape)


def _added(total: Tensor, step: Step, values: Tensor) -> Tensor:
    """Sums `(N + 1, A)` by decision with those of a step's rows, `(B, A)`, besides."""
    if getattr(step.observation, "sole", None) is not None:  # all rows are at one
        return total.index_add(0, step.decision[:1], values.sum(0, keepdim=True))
    return total.index_add(0, step.decision, step.active.unsqueeze(1) * values)
