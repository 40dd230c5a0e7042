"""The rows, tables, claims and pictures of diverse experts, on stand-in data and on made-up records."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from pictures import height_and_colours
from records import cells, made, of_row, over_seeds, verdict

from routing_gym.agents import make_agent
from routing_gym.envs import evaluate
from routing_gym.experiments import reproduce
from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.metrics import Judged, mean_parameters
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.papers.diversity import DIVERSITY
from routing_gym.experiments.papers.diversity.results import across, depth, mutual_information, told_and_shuffled
from routing_gym.experiments.papers.diversity.rows import (
    ANNEALED,
    CELLS,
    CELLS_6X32,
    CELLS_6X64,
    CELLS_12X32,
    CIFAR,
    CIFAR_MTL,
    COMPARED,
    CONV3,
    CONV5,
    CONVS,
    DIVERSE,
    FIXED_K,
    MNIST,
    OMNIGLOT,
    OMNIGLOT_EXPERTS,
    ONE_SHOT,
    PAPER,
    REFUSED,
    SINGLE_TASK,
    SPECIALIZED,
    from_the_task,
)
from routing_gym.experiments.papers.rows import Change, Settings

LITTLE = ("layers=3", "width=4", "expert_mid=2")


def test_the_rows_are_the_papers_and_all_agents(tmp_path):
    rows = {row.label: (row, cell) for row, cell in cells(DIVERSITY, PAPER, tmp_path)}
    assert len(rows) == len(DIVERSITY.rows) == len({cell.folder for _, cell in rows.values()})
    assert [row.label for row in DIVERSITY.rows[:5]] == [DIVERSE, CONVS, CONV5, CONV3, SINGLE_TASK]
    row, cell = rows[DIVERSE]
    assert row.paper == {100: pytest.approx(92.19)} and cell.training.batch_size == 32 and cell.training.epochs == 100
    gates = {"k=7", "k_last=2", "balance=0.1", "balance_epochs=100", "task_embedding=16", "learning_rate=2e-4"}
    assert gates == set(cell.agent_options)
    assert {"alphabets=liang-2018", "differentiable=True"} <= set(cell.training.env_options)
    few = {label: cell for label, (row, cell) in rows.items() if "few-steps" in row.groups}
    assert len(few) == 4 + 2 + 3 + 1, "Table 2, k falling, by the task alone, what they are compared with, the control"
    assert {"k=2", "embedding_scale=5.0", "noise=False"} <= set(few[from_the_task(CONV5)].agent_options)
    assert "network=omniglot-conv5" in few[from_the_task(CONV5)].training.env_options
    assert rows[SPECIALIZED][1].training.epochs == 10
    assert {row.env for row in DIVERSITY.rows} == {OMNIGLOT, MNIST, CIFAR, CELLS}
    there = {(row.series, row.part) for row in DIVERSITY.rows if "agents" in row.groups}
    assert there | set(REFUSED) == {(agent, part) for agent in COMPARED for part in (OMNIGLOT_EXPERTS, CIFAR_MTL)}
    assert not there & set(REFUSED)


@pytest.mark.long
def test_every_row_can_be_made(tmp_path):
    for row, cell in cells(DIVERSITY, PAPER, tmp_path):
        layers = {MNIST: 1, CELLS: 8}.get(row.env, 3)
        little = {OMNIGLOT: ("size=32", "readout=flat", *LITTLE), CELLS: ("cells=1", "filters=1")}.get(row.env, ())
        agent = made(cell, *little, *(["held_out=5"] if row.label == ONE_SHOT else []))
        assert ("network=cells-12x32" in cell.training.env_options) == ("C = 12" in row.label)
        assert agent.name == row.agent and agent.env.spec.id == row.env and agent.num_decisions == layers
        if row.label == SINGLE_TASK:
            assert agent.env.network.block_counts == (20, 20, 20)
            assert agent.routes.tolist() == [[task] * 3 for task in range(20)]


def test_what_is_refused_is_refused_for_the_reason_given(tmp_path):
    (row, cell) = next((row, cell) for row, cell in cells(DIVERSITY, PAPER, tmp_path) if row.env == OMNIGLOT)
    for series, part in REFUSED:
        assert part == OMNIGLOT_EXPERTS
        agent, *options = COMPARED[series]
        wanted = {"cross-stitch": "form='columns'", "shared-with-task": "task_input=True"}
        training = dataclasses.replace(cell.training, env_options=("alphabets=liang-2018", "size=28", *LITTLE))
        with pytest.raises(UsageError, match=wanted.get(agent, "a block for each of the 20 tasks.*offers 7")):
            dataclasses.replace(cell, training=training, agent=agent, agent_options=tuple(options)).make()
        assert wanted.get(agent, "20 tasks, 7 experts") in REFUSED[series, part]


def run(label, accuracy, *, counts=None, instances=4000, **more):
    """Return one made-up record."""
    exits = np.zeros((1, 1, 10, 2), int)
    exits[..., 0] = instances // 10
    table = np.zeros((10, 1, 5), int) if counts is None else np.asarray(counts)[:, None]
    found = {"exits": exits.tolist(), "routes_by_label": table.tolist(), "parameters_used": 2.5e6, "paper": None}
    known = {"series": ANNEALED if label == DIVERSE else "", "part": OMNIGLOT_EXPERTS, "agent": "top-k"}
    return of_row(label, accuracy, **known | found | {"asked": {"split": "test"}} | more)


def judged(records, start):
    return verdict(DIVERSITY.judge(records), start)[0]


def test_the_order_of_the_tables():
    def table(*accuracies):
        labels = (DIVERSE, CONVS, CONV5, CONV3, SINGLE_TASK)
        return over_seeds([run(label, a) for label, a in zip(labels, accuracies, strict=True)])

    ordered = table(0.92, 0.89, 0.86, 0.83, 0.6)
    assert judged(ordered, "Table 2") == "holds" and judged(ordered, "Table 1") == "holds"
    turned = table(0.6, 0.83, 0.86, 0.89, 0.92)
    assert judged(turned, "Table 2") == "does not hold" and judged(turned, "Table 1") == "does not hold"
    one_swapped = table(0.92, 0.86, 0.89, 0.83, 0.6)
    assert judged(one_swapped, "Table 2") == "does not hold"
    close = table(0.92, 0.92, 0.86, 0.83, 0.92)
    assert judged(close, "Table 2") == "not enough" and judged(close, "Table 1") == "not enough"
    two_seeds = [one for one in ordered if one["seed"] < 2]
    assert judged(two_seeds, "Table 2") == "not enough" and judged([], "Table 1") == "not enough"
    missing = [one for one in ordered if one["label"] != CONV3]
    assert judged(missing, "Table 2") == "not enough"
    # Means that seeds scatter more widely around than they are apart decide nothing.
    scattered = over_seeds([run(DIVERSE, 0.75), run(SINGLE_TASK, 0.7)], spread=0.1)
    assert judged(scattered, "Table 1") == "not enough"
    for six, twelve, wanted in ((0.95, 0.9, "holds"), (0.9, 0.95, "does not hold")):
        several = over_seeds([run(CELLS_6X32, six), run(CELLS_6X64, six), run(CELLS_12X32, twelve)])
        assert judged(several, "Table 4") == wanted
    for fixed, wanted in ((0.8, "holds"), (0.95, "does not hold")):
        assert judged([*ordered, *over_seeds([run("any", fixed, series=FIXED_K)])], "k that falls") == wanted


def test_specialization_is_more_than_shuffled_labels_give():
    assert mutual_information(np.eye(4, dtype=int) * 7, np.full(4, 7)) == pytest.approx(2)  # four choices, four labels
    assert mutual_information(np.outer([1, 2, 3], [3, 4]), np.array([7, 14, 21])) == pytest.approx(0)
    by_hand = 1 + 0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)
    assert mutual_information(np.array([[3, 1], [1, 3]]), np.array([4, 4])) == pytest.approx(by_hand)
    random = np.random.default_rng(0)

    def runs(*tables):
        return [run(SPECIALIZED, 0.98, seed=seed, counts=counts) for seed, counts in enumerate(tables)]

    pairs = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]] * 5)
    # Between 400 and 380 instances of a label take two experts, the rest two others.
    preferred = runs(*((400 - n) * pairs + n * np.roll(pairs, 2, 1) for n in (0, 10, 20)))
    assert judged(preferred, "Fig. 4") == "holds" and judged(preferred[:2], "Fig. 4") == "not enough"
    # The labels of the very same instances, dealt out again, one instance after the other.
    taken, label = np.repeat(pairs, 400, 0), np.repeat(np.arange(10), 400)
    by_hand = []
    for _ in range(20):
        counts = np.zeros((10, 5), int)
        np.add.at(counts, random.permutation(label), taken)
        by_hand.append(mutual_information(counts, np.full(10, 400)))
    assert told_and_shuffled(preferred[0])[1].mean() == pytest.approx(np.mean(by_hand), rel=0.2)
    chance = [np.full((10, 5), 160) + random.integers(-4, 5, (10, 5)) for _ in range(3)]
    assert judged(runs(*chance), "Fig. 4") == "does not hold"
    dead = np.tile([400, 400, 0, 0, 0], (10, 1))
    assert judged(runs(dead, dead, dead), "Fig. 4") == "not enough", "who always chooses alike tells nothing"
    assert judged([], "Fig. 4") == "not enough"


def test_no_hole_in_the_table_of_agents_is_unexplained():
    runs = [run("a", 0.5 + 0.1 * s, series="WPL", part=CIFAR_MTL, macs=2e6, seed=s) for s in (0, 1)]
    head, _, *lines, _, below = across(runs)
    assert head == f"|  | {OMNIGLOT_EXPERTS} | {CIFAR_MTL} |" and f"; 8 ({CIFAR_MTL}) epochs." in below
    assert [line.split(" | ")[0] for line in lines] == [f"| {agent}" for agent in COMPARED]
    (wpl,) = [line for line in lines if line.startswith("| WPL ")]
    assert wpl.startswith("| WPL | not run | **55.00 ± ") and wpl.endswith(" at 2.00, 2 seeds |")
    assert "| cross-stitch | refused: needs a column of equal blocks per task (form='columns') | not run |" in lines
    longer = run("b", 0.5, series="WPL", part=OMNIGLOT_EXPERTS, epochs=16)
    assert f"; 8 ({CIFAR_MTL}) and 16 ({OMNIGLOT_EXPERTS}) epochs." in across([*runs, longer])[-1]
    (row,) = depth([run(CELLS_6X64, 0.9, paper=0.955)])[2:3]
    assert row.startswith(f"| {CELLS_6X64} | **90.00** | *95.5* | 2.50 | *9.6* | 1.11 | 40.00 |")


QUICK = Settings(
    "quick",
    "as quick as can be",
    2,
    ("optimizer=adam", "learning_rate=0.003"),
    {OMNIGLOT: Change(env=("size=16", *LITTLE))},
)


@pytest.mark.long
def test_report_records_and_pictures(tmp_path, monkeypatch):
    wanted = (DIVERSE, CONVS, SPECIALIZED, f"WPL, {OMNIGLOT_EXPERTS}")
    rows = tuple(row for row in DIVERSITY.rows if row.label in wanted)
    quick = dataclasses.replace(DIVERSITY, rows=rows, settings=(QUICK,), batch_size=96)
    monkeypatch.setitem(reproduce.REPRODUCTIONS, "diversity", quick)
    assert main(["reproduce", "diversity", "--out", str(tmp_path), "--seeds", "1"]) == 0
    records = {record["label"]: record for record in json.loads((tmp_path / "results.json").read_text())}
    diverse, mnist = records[DIVERSE], records[SPECIALIZED]
    assert diverse["experts"][0][-1] == "identity" and mnist["experts"] == [["fully connected"] * 5]
    assert diverse["paper"] == pytest.approx(0.9219) and diverse["curve"]["judged_on"] == "validation"
    assert np.shape(mnist["routes_by_label"]) == (10, 1, 5) and mnist["dataset"] == "MNIST"
    assert np.sum(mnist["routes_by_label"], (1, 2)).tolist() == [2 * 5] * 10  # k = 2, five test images a digit
    assert np.sum(mnist["routes_by_label"], 0).tolist() == mnist["routes"][0]
    for record in records.values():
        assert np.shape(record["curve"]["use"]) == (2, *np.shape(record["use"]))
        assert np.sum(record["use"], 1) == pytest.approx(1, abs=1e-3)
        assert record["parameters_used"] < record["parameters"]
    report = (tmp_path / "diversity.md").read_text()
    error = f"**{100 * (1 - diverse['test_accuracy']):.2f}** | *7.81* |"
    assert f"| {DIVERSE} | {error}" in report and "An expert tells" in report
    assert "| WPL | **" in report and "| SARSA | not run | not run |" in report and "20 tasks, 7 experts" in report
    assert "Needs runs of one seed: only 5x5; only convolutions." in report
    names = ("omniglot", "omniglot-experts", "omniglot-training", "mnist", "mnist-training", "agents")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(f"quick-{name}.png" for name in names)
    for name in names:
        height, colours = height_and_colours(tmp_path / f"quick-{name}.png")
        assert height > 150 and colours > 20, name


def test_cells_are_drawn_by_kind_of_decision(tmp_path):
    decisions = [
        {"name": f"cell 1, block {b}: {kind}", "next": [0] * n}
        for b in (1, 2)
        for kind, n in (("inputs", b + 1), ("operations", 4))
    ]
    use = [[0.5, 0.5, 0, 0], [0.25] * 4, [0.2, 0.3, 0.5, 0], [1.0, 0, 0, 0]]
    course = {"epoch": [1, 2, 3], "use": [None, use, use], "judged_on": "test", "validation_accuracy": [0.1, 0.2, 0.3]}
    record = run(CELLS_6X32, 0.9, groups=["depth"], use=use, experts=[], decisions=decisions, curve=course)
    drawn = DIVERSITY.pictures(tuple(DIVERSITY.groups), [record], tmp_path)
    assert [path.name for path in drawn] == [f"paper-depth{end}.png" for end in ("", "-experts", "-training")]


def test_parameters_per_example_are_those_an_instance_passes():
    training = TrainingSettings(OMNIGLOT, 1, 8, ("alphabets=3", "size=16", *LITTLE), device="cpu")
    env = training.make_env("random", 0)
    agent = make_agent("random", env)
    judged = evaluate(agent, env)
    network = env.network
    owned = {p for n in range(3) for c in range(7) for o in network.parameters_of(n, c) for p in [o.parameter]}
    by_hand = sum(p.numel() for p in network.parameters() if p not in owned)
    for decision in range(3):
        for choice in range(7):
            size = sum(o.value.numel() for o in network.parameters_of(decision, choice))
            by_hand += size * int(judged.routes[:, decision, choice].sum()) / len(env.datasets["test"])
    assert mean_parameters(Judged(agent, judged, 1.0, 1.0)) == pytest.approx(by_hand)
    recurrent = TrainingSettings("routing_gym/SyntheticMTL-v0", 1, 8, ("recurrent=True", "layers=4"), device="cpu")
    env = recurrent.make_env("random", 0)
    agent = make_agent("random", env)
    assert mean_parameters(Judged(agent, evaluate(agent, env), 1.0, 1.0)) is None
    assert torch.allclose(judged.use.sum(1), torch.ones(3, dtype=torch.float64))
