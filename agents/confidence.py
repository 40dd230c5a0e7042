"""Early exit by how sure the classifier at an exit is.

BranchyNet (Teerapittayanon, McDanel and Kung 2016), MSDNet (Huang et al. 2018) and PABEE (Zhou et al. 2020).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.base.agent import Agent, AgentConfig
from routing_gym.agents.base.learning import Report
from routing_gym.agents.parts.scores import at_each_decision
from routing_gym.envs import Context, Observation, classified_right, route_split
from routing_gym.envs.evaluation import EVALUATION_BATCH
from routing_gym.networks import EXIT, RoutedNetwork
from routing_gym.options import not_negative, rate

Measure = Literal["max-softmax", "entropy", "patience"]

CANDIDATES = 512
"""The most thresholds that are tried on the validation split."""


@dataclasses.dataclass(frozen=True)
class ConfidenceConfig(AgentConfig):
    """Options of early exit by confidence.

    Attributes:
        measure: What an instance leaves by: `"max-softmax"`, the largest probability is at least the threshold;
            `"entropy"`, that of the probabilities, in nats, is at most the threshold; `"patience"`, as many exits, one
            after the other, have named the class of the exit before.
        threshold: The threshold, one for all exits; None to find it on the validation split after every call of
            `learn`.
        budget: What an instance may cost there on average, as a share of the MACs of the network run to its end, if
            the threshold is to be found; None to find the one of the lowest loss + `k_cpt` × MACs instead.
    """

    measure: Measure = "max-softmax"
    threshold: float | None = not_negative(None)
    budget: float | None = rate(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is None:
            return
        if self.budget is not None:
            raise ValueError(f"{self.owner()}a budget is for finding a threshold: give one of the two")
        if self.measure == "max-softmax" and self.threshold > 1:
            raise ValueError(f"{self.owner()}threshold is a probability here, at most 1, got {self.threshold!r}")
        if self.measure == "patience" and self.threshold != int(self.threshold):
            raise ValueError(f"{self.owner()}threshold counts exits here, an integer, got {self.threshold!r}")


@dataclasses.dataclass(frozen=True)
class Answers:
    """What every exit of a chain answers to every row of a split, and what leaving there costs; on the host.

    Attributes:
        sureness: `(N, R)`, how sure each exit but the last is; see `Confidence.sureness`.
        loss: `(N + 1, R)` cross-entropy, in nats.
        right: `(N + 1, R)` bool.
        macs: `(N + 1,)` multiply-accumulates of leaving at each exit, the classifiers looked at before included.
    """

    sureness: Tensor
    loss: Tensor
    right: Tensor
    macs: Tensor

    def leaving(self, least: Tensor) -> Tensor:
        """Exit `(R,)` int64 of each row: the first that is sure enough, or the last."""
        always = torch.ones_like(self.right[:1])
        return torch.cat([self.sureness >= least, always]).to(torch.uint8).argmax(0)

    def judged(self, exit: Tensor) -> tuple[float, float, float]:
        """Mean accuracy, cross-entropy and multiply-accumulates if every row, `(R,)` int64, leaves at an exit."""
        columns = self.right.double(), self.loss.double()
        accuracy, loss = (float(column.gather(0, exit.unsqueeze(0)).mean()) for column in columns)
        return accuracy, loss, float(self.macs[exit].mean())


class Confidence(Agent):
    """Early exit by a threshold on how sure the classifier of an exit is of its answer; no router is trained.

    The loss is the mean of the exits' cross-entropies: in training every instance is shared out equally among all
    exits. To look at an exit costs its classifier's multiply-accumulates, also for instances that go on then; those
    that leave use what was computed.

    Raises:
        ValueError: A network that is not a chain of early exits; or a threshold to be found without a validation split,
            without one price (`k_cpt`) or by a budget below what leaving at once costs.
    """

    Config = ConfidenceConfig
    config: ConfidenceConfig
    action_type = "weights"
    sees_price = False

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        given, device, number = self.config.threshold, self.env.device, self.num_decisions
        self.sign = -1.0 if self.config.measure == "entropy" else 1.0  # the larger the entropy, the less sure
        least = torch.inf if given is None else self.sign * given  # instances go to the end until one has been found
        self._least = nn.Buffer(torch.tensor(least, dtype=torch.get_default_dtype(), device=device))
        looks = torch.tensor([*map(self.macs, range(number)), 0.0], device=device)  # the last of rows that have left
        self._looks = nn.Buffer(looks, persistent=False)
        leaving = 1 / torch.arange(number + 1, 0, -1, device=device).to(looks.dtype)
        self._leaving = nn.Buffer(leaving, persistent=False)  # share of those there that leave, in training
        self.whole, self.costs = _costs(self.env.network)
        if self.config.budget is not None and self.config.budget * self.whole < self.costs[0]:
            raise ValueError(
                f"agent {self.name!r}: leaving at once costs {self.costs[0] / self.whole:.4f} of the whole network, "
                f"budget must be at least that, got {self.config.budget!r}"
            )

    def _check_env(self) -> None:
        super()._check_env()
        network, config = self.env.network, self.env.config
        last = len(network.decisions) - 1
        chain = all(
            decision.mixing == "outcome" and decision.next == (EXIT, EXIT if number == last else number + 1)
            for number, decision in enumerate(network.decisions)
        )
        if type(network).exit_logits is RoutedNetwork.exit_logits or not chain or not network.nothing_masked:
            raise ValueError(
                f"agent {self.name!r} asks the classifier at every exit whether to go on: it needs a chain of early "
                f"exits, network='pyramid-chain' say, or one of your own with exit_logits(); {type(network).__name__} "
                "is none"
            )
        if self.config.threshold is None and "validation" not in self.env.datasets:
            raise ValueError(
                f"agent {self.name!r} finds its threshold on a validation split, {self.env.dataset.name} has only "
                f"{', '.join(self.env.datasets)}: hold data out by an option of theirs, or give threshold=..."
            )
        if self.config.threshold is self.config.budget is None and not isinstance(config.k_cpt, int | float):
            raise ValueError(
                f"agent {self.name!r} finds its threshold at one price, this environment has k_cpt={config.k_cpt!r}: "
                "give budget=... or threshold=..."
            )

    @property
    def threshold(self) -> float:
        """The threshold now, in the measure's own terms."""
        return self.sign * float(self._least)

    def macs(self, decision: int) -> float:
        """Multiply-accumulates of the classifier that is looked at; nothing on top for instances that leave by it."""
        return self.env.network.decisions[decision].macs[0]

    def sureness(self, logits: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Sureness `(B,)` of logits `(B, C)`: instances leave from a least one on; and what to carry to the next exit.

        The largest probability; minus the entropy −Σ p log p; or how many exits in a row have named the class of the
        one before. Then `(B, 2)` is carried: the class, from 1 on, and that number; zeros at the first exit.
        """
        if self.config.measure == "patience":
            named = (logits.argmax(1) + 1).to(logits.dtype)
            before = torch.zeros_like(logits[:, :2]) if before is None else before
            agreed = torch.where(named == before[:, 0], before[:, 1] + 1, 0.0)
            return agreed, torch.stack([named, agreed], 1)
        chances = logits.softmax(1)
        if self.config.measure == "max-softmax":
            return chances.amax(1), None
        return torch.special.entr(chances).sum(1).neg(), None

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Weights `(B, 2)`: equal shares of all exits; the choice by the threshold when deterministic."""
        depth = observation["depth"]
        if not context.deterministic:
            leaving = self._leaving.index_select(0, depth)
            context.record["macs"] = torch.zeros_like(leaving)
            return torch.stack([leaving, 1 - leaving], 1)
        with torch.no_grad():
            seen, outputs = observation["activation"], self.env.network.num_classes
            logits = at_each_decision(self._logits, seen, depth, context, outputs)
            sure, context.carry = self.sureness(logits, context.carry)
        on = sure < self._least
        context.record["macs"] = on * self._looks.index_select(0, depth)
        return functional.one_hot(on.long(), 2).to(logits.dtype)

    def _logits(self, decision: int, seen: Tensor) -> Tensor:
        network = self.env.network
        return network.exit_logits(decision, seen[:, : network.decisions[decision].width])

    def learn(self, env: Any, episodes: int, callback: Report | None = None) -> Self:
        """Train the blocks, see `Agent.learn`; then find the threshold, unless it is given."""
        super().learn(env, episodes, callback)
        if self.config.threshold is None:
            self._least.copy_(self.found(self.answers("validation"), self.config.budget))
        return self

    def found(self, answers: Answers, budget: float | None) -> Tensor:
        """Least sureness, 0-dimensional, that suits answers.

        That by which most is computed within a budget, a share of the whole network's multiply-accumulates; or, where
        that is None, that of the lowest mean loss + `k_cpt` × multiply-accumulates. Candidates lie between values there
        are, `CANDIDATES` at most, spaced evenly among them; by the lowest all leave at once, by the highest nobody.
        """
        values, inf = answers.sureness.unique(), answers.sureness.new_full((1,), torch.inf)
        few = torch.linspace(1, max(len(values) - 1, 1), CANDIDATES, device="cpu").long().unique()
        few = few[few < len(values)]
        # Between two values, since in another batch they may be rounded otherwise; counts are exact.
        between = values[few] if self.config.measure == "patience" else (values[few - 1] + values[few]) / 2
        candidates = torch.cat([-inf, between, inf])
        means = [answers.judged(answers.leaving(least)) for least in candidates]
        if budget is None:
            costs = [loss + self.env.config.k_cpt * macs for _, loss, macs in means]
            return candidates[min(range(len(costs)), key=costs.__getitem__)]
        within = [number for number, (_, _, macs) in enumerate(means) if macs <= budget * self.whole]
        return candidates[max(within, default=0)]

    @torch.no_grad()
    def answers(self, split: str) -> Answers:
        """What all exits answer to every row of a split, in eval mode; see `Answers`."""
        size = min(EVALUATION_BATCH, len(self.env.datasets[split]))
        options: dict[str, Any] = {"train": False, "precision": "float32", "render_mode": None, "rho": 0.0, "seed": 0}
        judged = self.env.sibling(size, split=split, autoreset_mode="disabled", **options)
        parts: list[list[Tensor]] = [[], [], []]
        for batch, kept in route_split(self, judged, deterministic=False):
            carry, sureness = None, []
            for exit in batch.exits[:-1]:
                sure, carry = self.sureness(exit.logits, carry)
                sureness.append(sure)
            right = [classified_right(exit.logits, batch.label) for exit in batch.exits]
            for part, columns in zip(parts, (sureness, [exit.loss for exit in batch.exits], right), strict=True):
                part.append(torch.stack(columns)[:, kept])
        sure, loss, answered = (torch.cat(part, 1).cpu() for part in parts)
        return Answers(sure, loss, answered, torch.tensor(self.costs, dtype=torch.float64, device="cpu"))


def _costs(network: RoutedNetwork) -> tuple[float, list[float]]:
    """Multiply-accumulates of a chain run to its end, and of leaving it at each exit after a look at those before."""
    columns, looked, costs = network.stem_macs, 0.0, []
    for decision in network.decisions:
        looked += decision.macs[0]
        costs.append(columns + looked)
        columns += decision.macs[1]
    return columns, [*costs, columns + looked]
