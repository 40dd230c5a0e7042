"""What Ramachandran and Le (2019) say in words and by the order of their tables, judged by recorded runs."""

from __future__ import annotations

import numpy as np

from routing_gym.experiments.engine.records import Record
from routing_gym.experiments.papers.diversity import rows
from routing_gym.experiments.papers.judging import Judge, Judged, all_of
from routing_gym.experiments.papers.reproduction import Claim, Runs

SHUFFLES = 200


def claims(records: Runs) -> list[Claim]:
    """Judge all claims by records that were trained in one way; for `series` and `part` see `Row`."""
    judge, of_omniglot = Judge(records), Judge(records, "series", part=rows.OMNIGLOT_EXPERTS)
    order = (rows.DIVERSE, rows.CONVS, rows.CONV5, rows.CONV3)
    return [
        all_of(
            "Table 2: convolutions, pooling and identity err less than convolutions alone, these less than only 5x5, "
            "and these less than only 3x3",
            *judge.in_order(*order),
        ),
        all_of("In few steps: the order of Table 2 with k = 2", *judge.in_order(*map(rows.from_the_task, order))),
        all_of(
            "Table 1: diverse routing errs less than single-task networks", judge.less(rows.DIVERSE, rows.SINGLE_TASK)
        ),
        all_of(
            "k that falls over the layers errs less than a small fixed k",
            of_omniglot.less(rows.ANNEALED, rows.FIXED_K),
        ),
        all_of(
            "Fig. 4: examples of a class tend to be routed through the same experts",
            _specialized([record for record in records if "mnist" in record["groups"]]),
        ),
        all_of(
            "Table 4: 96 decisions are less accurate than 48",
            judge.less(rows.CELLS_6X32, rows.CELLS_12X32),
            judge.less(rows.CELLS_6X64, rows.CELLS_12X32),
        ),
    ]


def counts_of(record: Record) -> np.ndarray:
    """Return `(C, A)`: how often the instances of each label took each choice at the first decision."""
    return np.array(record["routes_by_label"])[:, 0]


def _instances_of(record: Record) -> np.ndarray:
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
    return mutual_information(counts_of(record), _instances_of(record))


def shuffled(record: Record) -> np.ndarray:
    """Return what `specialization` comes to be if labels are dealt out to the instances anew, `(SHUFFLES,)`.

    No instance takes a choice twice, so that the labels of those that took one are drawn without replacement. Each
    choice is drawn for by itself, though instances take several: they add up, so that the mean is the same.
    """
    random, instances = np.random.default_rng(0), _instances_of(record)
    drawn = [random.multivariate_hypergeometric(instances, n, size=SHUFFLES) for n in counts_of(record).sum(0)]
    return np.array([mutual_information(table, instances) for table in np.stack(drawn, -1)])


def _specialized(runs: Runs) -> Judged:
    """Judge whether, in every run, an expert tells more of the label than it does of any shuffled ones."""
    if not runs:
        return "not enough", "Needs the network for MNIST."
    found = [(specialization(run), shuffled(run).max()) for run in runs]
    told, by_chance = np.mean(found, 0)
    numbers = f"An expert tells {told:.3f} bits of the class, with labels shuffled {by_chance:.3f} at most."
    return "holds" if all(bits > highest for bits, highest in found) else "does not hold", numbers
