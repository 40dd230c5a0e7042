"""Task clustering: tasks that label alike what looks alike share blocks (Thrun and O'Sullivan 1996)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.reinforce import Reinforce, ReinforceConfig
from routing_gym.envs import Context, Observation, Trajectory
from routing_gym.options import count, positive, share

CLEAR = 3.0
"""Standard errors above 0 from which halves of tasks count as resembling themselves."""
STARTS = 20
"""Random starts of k-means."""

Likeness = tuple[Tensor, Tensor, Tensor]
"""Mean cosine of the two halves of a task, its standard error, and cosines `(T, T)` of all pairs of halves."""


@dataclasses.dataclass(frozen=True)
class TaskClusteringConfig(ReinforceConfig):
    """Options of task clustering, and of the REINFORCE that decides where there are no clusters.

    Attributes:
        passes: Passes over the data after which tasks are clustered for the first time.
        memory: Passes after which what was seen counts 1/e.
        relatedness: How alike tasks of a cluster must be, as a share of how alike a task is to itself, in [0, 1].
    """

    entropy: float = 0.2
    passes: int = count(2)
    memory: float = positive(10.0)
    relatedness: float = share(0.65)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arrangement != "per_task":
            raise ValueError(f"{self.owner()}clusters are of tasks: leave arrangement='per_task'")


class TaskClustering(Reinforce):
    """Task clustering: one block for tasks whose gradients agree, found before blocks settle; else REINFORCE.

    A task's signature is the mean over its images of x ⊗ (onehot(label) − 1/C), x the centred and normalised activation
    at the first decision: up to its sign the gradient of the loss in the weights of a linear classifier that knows
    nothing yet. Tasks that label alike what looks alike have like signatures, whoever routes, and however well blocks
    know their images by heart. k-means puts the tasks into as many clusters as a decision has choices. At the first
    decision the mean of x is a signature, too: tasks whose inputs are unlike.

    Clusters are believed where they are real: of signatures of halves of the images, those of different tasks of a
    cluster must be nearly as alike as those of the same task (`relatedness`). Where they are not, as where a decision
    has to be right for more than one reason, REINFORCE decides; and where choices are not alike but for their blocks,
    because they differ in cost or in where they lead. PASS is dealt to no cluster. Tasks are sorted anew after every
    pass.

    Source: clustering of tasks is Thrun and O'Sullivan's (1996, "Discovering structure in multiple learning tasks: the
    TC algorithm"), by how well they learn from each other; by gradients Sattler et al.'s (2020, "Clustered federated
    learning"). The test by halves and the use in routing are ours.
    """

    Config = TaskClusteringConfig
    config: TaskClusteringConfig

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self._alike = [self._choices_alike(number) for number in range(self.num_decisions)]
        if self.num_tasks > 1 and not any(self._alike):
            raise ValueError(
                f"agent {self.name!r} deals clusters of tasks to choices that are alike, but at no decision of this "
                "network do all cost the same and lead to the same place: 'reinforce' learns which to take"
            )
        tasks, inputs, classes = self.num_tasks, self.env.network.observation_size, self.env.dataset.num_classes
        # By halves of the images: sums of x ⊗ (onehot − 1/C), of x, and of rows; the sum of x before it is centred.
        self._labelled = nn.Buffer(torch.zeros(2 * tasks, inputs * classes))
        self._seen = nn.Buffer(torch.zeros(2 * tasks, inputs))
        self._rows = nn.Buffer(torch.zeros(2 * tasks, 1))
        self._total = nn.Buffer(torch.zeros(inputs))
        # Choices `(T, N)` of tasks that are in clusters, -1 where REINFORCE decides.
        self.found = nn.Buffer(torch.full((tasks, self.num_decisions + 1), -1))

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B, ...)`: those of the clusters, else drawn."""
        if not context.deterministic:  # what `learn_from` wants of the first decision: seen is what is looked at
            observation["activation"]
        drawn, found = super().act(observation, context), self.found[observation["task"], observation["depth"]]
        if self.shares_wanted:
            context.record["probabilities"] = self._chances(found, context.record["probabilities"])
        return self._of_clusters(found, drawn)

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N, ...)`, when nothing is to be seen."""
        plan = super().plan(task, deterministic) if deterministic else None
        return None if plan is None else self._of_clusters(self.found[task, :-1], plan)

    def _of_clusters(self, found: Tensor, drawn: Tensor) -> Tensor:
        found = found if found.ndim == drawn.ndim else found.unsqueeze(-1)
        return torch.where(found >= 0, found, drawn)

    def policy(self) -> Tensor | None:
        """Probabilities `(T, N, A)`, 1 for the choice of a cluster."""
        policy = super().policy()
        return None if policy is None else self._chances(self.found[:, :-1], policy)

    def _chances(self, found: Tensor, chances: Tensor) -> Tensor:
        """Probabilities `(..., A)`, 1 for the choice of a cluster where one was `found`."""
        found = found if found.ndim == chances.ndim - 1 else found.unsqueeze(-1)
        chosen = functional.one_hot(found.clamp(min=0), self.num_choices).to(chances.dtype)
        return torch.where((found >= 0).unsqueeze(-1), chosen, chances)

    def learn_from(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Take in a batch, sort tasks anew when a pass is over, and let REINFORCE learn."""
        before, epoch = self.passes, self.env.trainer.optimization.epoch
        if self.num_tasks > 1:
            self._take_in(trajectory, math.exp(-len(trajectory) / (epoch * self.config.memory)))
            now = before + len(trajectory) / epoch
            if int(now) > int(before) and now >= self.config.passes:
                self._sort()
        return super().learn_from(trajectory)

    def _take_in(self, trajectory: Trajectory, kept: float) -> None:
        x = trajectory.steps[0].observation["activation"].to(self._total.dtype)
        place = 2 * trajectory.task + trajectory.instance % 2
        self._total.mul_(kept).add_(x.sum(0))
        self._rows.mul_(kept).index_add_(0, place, torch.ones_like(x[:, :1]))
        x = functional.normalize(x - self._total / self._rows.sum(), dim=1)
        classes = self.env.dataset.num_classes
        error = functional.one_hot(trajectory.label, classes).to(x.dtype) - 1 / classes
        self._labelled.mul_(kept).index_add_(0, place, torch.einsum("bi,bc->bic", x, error).flatten(1))
        self._seen.mul_(kept).index_add_(0, place, x)

    def _sort(self) -> None:
        """Find clusters for every decision, under the numbers they had."""
        sums = (self._labelled, self._seen, self._rows)
        by_label, by_input, rows = (of.unflatten(0, (-1, 2)).transpose(0, 1).cpu() for of in sums)
        means = by_input / rows.clamp(min=1)
        views = [by_label, means - means.mean(1, keepdim=True)]
        alike = [likeness(*view) for view in views]
        clearest = sorted(range(len(views)), key=lambda view: -float(alike[view][0]))
        known: dict[tuple[int, int], Tensor | None] = {}
        for number, choices in enumerate(self._alike):
            if not choices:
                continue
            legal = torch.tensor(choices, device="cpu")
            was, column = self.found[:, number].cpu(), None
            for view in clearest if number == 0 else [0]:
                key = view, len(legal)
                if key not in known:
                    known[key] = self._clusters(views[view], alike[view], len(legal))
                if (column := known[key]) is not None:
                    break
            if column is None:
                self.found[:, number] = -1
                continue
            place = torch.full((self.num_choices,), -1)
            place[legal] = torch.arange(len(legal))
            names = matched(column, torch.where(was >= 0, place[was], was), len(legal))
            self.found[:, number] = legal[names[column]].to(self.found.device)

    def _choices_alike(self, number: int) -> list[int]:
        """Legal choices of a decision that clusters are dealt to: all but PASS if they are alike, else none."""
        network, decision = self.env.network, self.env.network.decisions[number]
        legal = network.masks[number] | ~network.exists[number].unsqueeze(-1)
        choices = legal.all(0).nonzero().flatten().tolist()  # for all tensors that there are
        choices = [choice for choice in choices if decision.macs[choice]] or choices  # PASS alone costs nothing
        alike = len({(decision.macs[choice], decision.next[choice]) for choice in choices}) == 1
        return choices if alike and len(choices) > 1 else []

    def _clusters(self, halves: Tensor, likeness: Likeness, clusters: int) -> Tensor | None:
        """Clusters `(T,)` of tasks by signatures of halves of their images, `(2, T, F)`; None if they are not real."""
        if len(halves[0]) <= clusters:
            return torch.arange(len(halves[0]))
        alike, error, similar = likeness
        if alike <= CLEAR * error:
            return None
        from sklearn.cluster import KMeans  # takes a while to import

        whole = functional.normalize(halves.sum(0), dim=1).double().numpy()
        found = KMeans(clusters, n_init=STARTS, random_state=self.config.seed % 2**32).fit_predict(whole)
        column = torch.from_numpy(found).long()
        together = (column.unsqueeze(0) == column.unsqueeze(1)).fill_diagonal_(False)
        if not bool(together.any()) or similar[together].mean() < self.config.relatedness * alike:
            return None
        return column


def likeness(one: Tensor, other: Tensor) -> Likeness:
    """How alike halves of tasks are, by signatures `(T, F)` of either."""
    similar = functional.normalize(one, dim=1) @ functional.normalize(other, dim=1).T
    own = similar.diagonal()
    return own.mean(), own.std() / math.sqrt(len(own)), similar


def matched(column: Tensor, was: Tensor, clusters: int) -> Tensor:
    """Numbers `(clusters,)` of new clusters `(T,)`, so that as many tasks as possible keep theirs; -1 had none."""
    from scipy.optimize import linear_sum_assignment

    common = torch.zeros(clusters, clusters, dtype=torch.int64)
    kept = was >= 0
    common.index_put_((column[kept], was[kept]), torch.ones_like(was[kept]), accumulate=True)
    _, numbers = linear_sum_assignment(common.numpy(), maximize=True)
    return torch.from_numpy(numbers).long()
