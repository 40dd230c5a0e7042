"""What Ramachandran and Le (2019) say in words and by the order of their tables, judged by recorded runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.papers.diversity.labels import (
    ANNEALED,
    CELLS_6X32,
    CELLS_6X64,
    CELLS_12X32,
    CONV3,
    CONV5,
    CONVS,
    DIVERSE,
    FIXED_K,
    OMNIGLOT_EXPERTS,
    SINGLE_TASK,
    from_the_task,
)
from routing_gym.experiments.papers.judging import Verdict, all_of, errs_less
from routing_gym.experiments.papers.reproduction import Claim

SHUFFLES = 200


def claims(records: Sequence[Record]) -> list[Claim]:
    """Judge all claims.

    Args:
        records: All trained in one way; see `record_of` for what they hold, and `Row` for `series` and `part`.
    """

    def lower(better: str, worse: str) -> tuple[Verdict, str]:
        return errs_less(better, _labelled(records, better), worse, _labelled(records, worse))

    def of_omniglot(series: str) -> list[Record]:
        return [record for record in records if (record["series"], record["part"]) == (series, OMNIGLOT_EXPERTS)]

    order = (DIVERSE, CONVS, CONV5, CONV3)
    return [
        all_of(
            "Table 2: convolutions, pooling and identity err less than convolutions alone, these less than only 5x5, "
            "and these less than only 3x3",
            list(map(lower, order, order[1:])),
        ),
        all_of(
            "In few steps: the order of Table 2 with k = 2",
            [lower(from_the_task(less), from_the_task(more)) for less, more in zip(order, order[1:], strict=False)],
        ),
        all_of("Table 1: diverse routing errs less than single-task networks", [lower(DIVERSE, SINGLE_TASK)]),
        all_of(
            "k that falls over the layers errs less than a small fixed k",
            [errs_less(ANNEALED, of_omniglot(ANNEALED), FIXED_K, of_omniglot(FIXED_K))],
        ),
        all_of(
            "Fig. 4: examples of a class tend to be routed through the same experts",
            [_specialized([record for record in records if "mnist" in record["groups"]])],
        ),
        all_of(
            "Table 4: 96 decisions are less accurate than 48",
            [lower(CELLS_6X32, CELLS_12X32), lower(CELLS_6X64, CELLS_12X32)],
        ),
    ]


def counts_of(record: Record, decision: int = 0) -> np.ndarray:
    """Return `(C, A)`: how often the instances of each label took each choice at a decision."""
    return np.array(record["routes_by_label"])[:, decision]


def instances_of(record: Record) -> np.ndarray:
    """Return `(C,)`: how many instances of each label a run was judged on."""
    return np.array(record["exits"]).sum((0, 1, 3))


def mutual_information(counts: np.ndarray, instances: np.ndarray) -> float:
    """Return how many bits a choice tells of the label: Σ_i p(i) KL(p(label | i) ‖ p(label)), 0 where all choose alike.

    Args:
        counts: `(C, A)`: how often the instances of each label took each choice.
        instances: `(C,)`: how many there are.
    """
    joint = counts / counts.sum()
    by_chance = instances[:, None] / instances.sum() * joint.sum(0)
    there = joint > 0
    return float((joint[there] * np.log2(joint[there] / by_chance[there])).sum())


def specialization(record: Record) -> float:
    """Return the mutual information of label and choice at the first decision, in bits."""
    return mutual_information(counts_of(record), instances_of(record))


def shuffled(record: Record) -> np.ndarray:
    """Return what `specialization` comes to be if labels are dealt out to the instances anew, several times.

    No instance takes a choice twice, so that the labels of those that took one are drawn without replacement. Each
    choice is drawn for by itself, though instances take several: they add up, so that the mean is the same.

    Returns:
        `(SHUFFLES,)`.
    """
    random, instances = np.random.default_rng(0), instances_of(record)
    drawn = [random.multivariate_hypergeometric(instances, n, size=SHUFFLES) for n in counts_of(record).sum(0)]
    return np.array([mutual_information(table, instances) for table in np.stack(drawn, -1)])


def _labelled(records: Sequence[Record], label: str) -> list[Record]:
    return [record for record in records if record["label"] == label]


def _specialized(runs: Sequence[Record]) -> tuple[Verdict, str]:
    """Judge whether, in every run, an expert tells more of the label than it does of any shuffled ones."""
    if not runs:
        return "not enough", "Needs the network for MNIST."
    found = [(specialization(run), shuffled(run).max()) for run in runs]
    told, by_chance = np.mean(found, 0)
    verdict: Verdict = "holds" if all(bits > highest for bits, highest in found) else "does not hold"
    return verdict, f"An expert tells {told:.3f} bits of the class, with labels shuffled {by_chance:.3f} at most."
