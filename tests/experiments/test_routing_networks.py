"""What Routing Networks says in words, and what its epochs cost, on made-up records."""

import pytest
from records import over_seeds, verdict

from routing_gym.experiments.papers.routing_networks import ROUTING_NETWORKS
from routing_gym.experiments.papers.routing_networks.cost import AGENTS, PARTS, cost_by_blocks
from routing_gym.experiments.papers.routing_networks.results import claims
from routing_gym.experiments.papers.routing_networks.rows import (
    BASELINES,
    CIFAR,
    MNIST,
    PAIRS,
    ROUTING,
    STITCHED,
    TASKS,
)


def row(label, accuracy, env=CIFAR, blocks=40, early=0.3):
    course = {"validation_accuracy": [early, accuracy]}
    return {"label": label, "env": env, "test_accuracy": accuracy, "blocks_used": blocks, "curve": course}


def judged(records, start, count=3):
    return verdict(claims(over_seeds(records, count)), start)


def test_every_pair_is_of_rows_there_are():
    known = {(row.env, row.label) for row in ROUTING_NETWORKS.rows}
    assert {(env, label) for _, env, *pair in PAIRS for label in pair} <= known
    assert {(CIFAR, f"{label}, {n} tasks") for label in (ROUTING, *BASELINES) for n in TASKS} <= known
    assert [claim.verdict for claim in claims([])] == ["not enough"] * (len(PAIRS) + len(BASELINES) + 2)


@pytest.mark.parametrize(("text", "env", "better", "worse"), PAIRS, ids=lambda value: str(value))
def test_pairs(text, env, better, worse):
    elsewhere = MNIST if env == CIFAR else CIFAR  # rows of one name on other data do not count
    others = [row(better, 0.1, elsewhere), row(worse, 0.9, elsewhere)]
    assert judged([row(better, 0.6, env), row(worse, 0.5, env), *others], text)[0] == "holds"
    assert judged([row(better, 0.5, env), row(worse, 0.6, env), *others], text)[0] == "does not hold"
    assert judged([row(better, 0.5, env), row(worse, 0.5, env), *others], text)[0] == "not enough"
    assert judged([row(better, 0.6, env), row(worse, 0.5, env), *others], text, count=2)[0] == "not enough"


def test_the_first_tasks_are_one_number():
    def records(*leads):
        pairs = zip(TASKS, leads, strict=False)
        return [
            row(f"{label}, {n} tasks", 0.5 + by) for n, lead in pairs for label, by in ((ROUTING, lead), (STITCHED, 0))
        ]

    text = f"Fig. 15, the first tasks of CIFAR-MTL: routing errs less than {STITCHED}"
    kind, numbers = judged(records(0.04, 0.02, -0.01, 0.03), text)
    assert kind == "holds" and "mean over 2, 3, 5, 10 tasks: +1.98 points" in numbers
    assert judged(records(0.01, -0.04, -0.03, -0.02), text)[0] == "does not hold"
    assert judged(records(0.04, 0.02, -0.01), text)[0] == "not enough"  # one is missing


def test_convergence_and_use_of_blocks():
    def verdict_of(text, ours, theirs):
        """Over three seeds, ours a little better in the later ones."""
        return verdict(claims([{**run, "seed": seed} for seed in range(3) for run in (ours(seed), theirs)]), text)[0]

    faster, uses = "Section 4, CIFAR-MTL: routing conv", "Section 4, CIFAR-MTL: an agent per task makes"
    errs_less = f"Fig. 6: {ROUTING} errs less than cross-stitch"
    stitched, soft = row(STITCHED, 0.5, early=0.3), row("soft mixture", 0.5, early=0.3)
    single = row("single agent", 0.4, blocks=3)
    assert verdict_of(faster, lambda seed: row(ROUTING, 0.48, early=0.4 + seed / 100), soft) == "holds"
    assert verdict_of(errs_less, lambda seed: row(ROUTING, 0.48 + seed / 1000, early=0.4), stitched) == "does not hold"
    assert verdict_of(faster, lambda seed: row(ROUTING, 0.52, early=0.1 + seed / 100), soft) == "does not hold"
    assert verdict_of(faster, lambda seed: row(ROUTING, 0.5, early=0.29 + seed / 100), soft) == "not enough"
    assert verdict_of(uses, lambda seed: row(ROUTING, 0.4, blocks=38 + seed), single) == "holds"
    assert verdict_of(uses, lambda seed: row(ROUTING, 0.4, blocks=1 + seed / 2), single) == "does not hold"


def test_the_cost_says_how_much_is_saved_by_either_network():
    seconds = {"wpl": 10.0, "task-specific-all": 9.0, "cross-stitch": 50.0}
    costs = [
        {"network": network, "agent": agent, "blocks": blocks, "tasks": min(blocks, 20), "env": "env", "batch_size": 8,
         "seconds_per_epoch": by, "seconds_per_epoch_and_task": by / min(blocks, 20), "device": "cpu", "threads": 1}
        for network, scale in zip(PARTS, (1, 0.1), strict=True)
        for agent in AGENTS
        for blocks in (10, 20, 40)
        for by in [seconds[agent] * scale * (0.5 if agent == "wpl" and network in list(PARTS)[1:] else 1)]
    ]  # fmt: skip
    lines = cost_by_blocks(costs)
    assert lines[0] == "| blocks | 10 | 20 | 40 |" and len(lines) == 2 + 12 + 4
    assert "| wpl, the paper's network, s per epoch and task | 1.00 | 0.50 | 0.50 |" in lines
    assert "20 tasks: the paper's network 80 %; routed layers alone 90 % (paper: 85 %" in lines[-3]
