"""The rows, table and pictures of multipath early exit, on stand-in data and on made-up records."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import height_and_colours
from records import (
    cells,
    chain_decisions,
    curve,
    exits_of,
    made_up,
    over_seeds,
    tree_decisions,
    ways_of,
)

from routing_gym.experiments import reproduce
from routing_gym.experiments.cli import main
from routing_gym.experiments.papers.judging import claims_of
from routing_gym.experiments.papers.multipath import MULTIPATH
from routing_gym.experiments.papers.multipath.dataflow import layout
from routing_gym.experiments.papers.multipath.rows import CIFAR2, CIFAR5, CIFAR10, HYBRID, PRICES
from routing_gym.experiments.papers.rows import Row, Settings

PLAIN = ("optimizer=sgd", "learning_rate=0.1", "momentum=0.9", "allow_partial=True")


def test_the_rows_are_the_papers_networks(tmp_path):
    (paper,) = MULTIPATH.settings
    rows = {row.label: (row, cell) for row, cell in cells(MULTIPATH, paper, out=tmp_path)}
    assert len(rows) == len(MULTIPATH.rows) == len({cell.folder for _, cell in rows.values()})
    count = {group: sum(group in row.groups for row in MULTIPATH.rows) for group in MULTIPATH.groups}
    assert count == {
        "fig5": 32,
        "variants": 6 * 8 + 1,
        "classes": 48,
        "cifar-2": 24,
        "skipping": 16,
        "width": 48,
        "agents": 8,
    }
    row, cell = rows["actor, k_cpt 4e-9"]
    assert row.x == 4e-9 and row.groups == ("fig5", "agents") and row.env == HYBRID
    assert "k_cpt=4e-9" in cell.training.env_options and "schedule_epochs=23.0" in cell.training.env_options
    assert "temperature_epochs=23.0" in cell.agent_options and cell.training.epochs == 184
    steps = cell.training.epochs * -(-55596 // cell.training.batch_size)
    assert abs(steps - 80000) < 435
    assert rows["actor, CIFAR-2, k_cpt 0"][1].training.epochs == 205
    assert rows["static, 1 column"][1].training.env_options[-2:] == ("weight_decay=2e-4", "network=pyramid-static-1")
    wide = rows["actor, CIFAR-10, width 32, k_cpt 1e-9"][0]
    assert wide.x == pytest.approx(1e-9) and "width=32" in wide.env_options  # 4e-9 / 4
    dynamic, cell = rows["actor, dynamic k_cpt"]
    assert "k_cpt=(0, 1e-9, 2e-9, 4e-9, 8e-9, 1.6e-8, 3.2e-8, 6.4e-8)" in cell.training.env_options
    assert cell.judge_at == PRICES and cell.asked["judge_at"] == list(PRICES)
    assert {row.env for row in MULTIPATH.rows} == {HYBRID, CIFAR10, CIFAR5, CIFAR2}
    (row, cell), *_ = cells(MULTIPATH, paper, out=tmp_path, epochs=2, only=("static, CIFAR-5",))
    assert row.label == "static, CIFAR-5, 1 column" and "schedule_epochs=0.25" in cell.training.env_options


def test_a_protocol_counts_a_seed_once_all_points_of_a_curve_are_there():
    paper = reproduce.REPRODUCTIONS[MULTIPATH.name]
    (protocol,) = (one for one in paper.settings if one.name == "two-cores")
    rows = [row for row in paper.rows if row.label in protocol.rows]
    records = over_seeds([made_up(row.series, 1e6 * (1 + place), 0.1, part=row.part, label=row.label, price=row.x)
                          for place, row in enumerate(rows)])  # fmt: skip

    def seeds(runs):
        (main,) = (claim for claim in claims_of(paper, protocol, runs) if claim.text == protocol.decides)
        return [part.found and part.found.seeds for part in main.parts]

    def without(runs, seed):
        return [run for run in runs if (run["label"], run["seed"]) != ("static, CIFAR-2, 3 columns", seed)]

    assert seeds(records) == [3] and seeds(without(records, 1)) == [2]
    alone = [run for run in records if run["seed"] == 1]
    assert seeds(alone) == [1] and seeds(without(alone, 1)) == [None]


KINDS = {(row.series, row.part): row for row in reversed(MULTIPATH.rows)}
"""The first row of every curve."""


@pytest.mark.long
@pytest.mark.parametrize("row", KINDS.values(), ids=lambda row: row.label)
def test_rows_can_be_made(row, tmp_path):
    ((_, cell),) = [pair for pair in cells(MULTIPATH, MULTIPATH.settings[0], out=tmp_path) if pair[0] == row]
    agent = cell.make()
    assert agent.name == row.agent and agent.env.config.momentum == 0.9
    if row.series == "static":
        assert agent.env.config.weight_decay == 2e-4
    if row.groups == ("agents",):
        assert agent.env.config.k_cpt == 4e-9 and agent.env.config.final_reward == "negative-loss"
        assert getattr(agent.config, "representation", "mlp") == "mlp"  # sees the activation; routers always do


QUICK = Settings("quick", "as quick as can be", 2, (*PLAIN[:3], "learning_rate=0.01", "allow_partial=True"))
SMALL = ("columns=3", "width=2")


@pytest.fixture
def small_paper(monkeypatch):
    """Agents that learn fast, on three columns of width 2."""
    mlp = ("representation=mlp",)
    rows = (
        *(
            Row(f"actor, k_cpt {p:g}", ("fig5",), HYBRID, "reinforce", mlp, (*SMALL, f"k_cpt={p}"), x=p, series="actor",
                part="hybrid")
            for p in (0.0, 4e-8)
        ),
        *(
            Row(f"static, {n} columns", ("fig5",), HYBRID, "shared", (), (f"network=pyramid-static-{n}", "width=2"),
                series="static", part="hybrid")
            for n in (1, 2)
        ),
        Row("actor, dynamic k_cpt", ("variants",), HYBRID, "shared", (), (*SMALL, "price=True", "k_cpt=(0.0, 1e-7)"),
            series="actor, dynamic k_cpt", part="hybrid", judge_at=(0.0, 1e-7)),
    )  # fmt: skip
    paper = dataclasses.replace(MULTIPATH, rows=rows, settings=(QUICK,))
    monkeypatch.setitem(reproduce.REPRODUCTIONS, "multipath", paper)
    return paper


def run(out, *arguments):
    return main(["reproduce", "multipath", "--out", str(out), "--seeds", "1", *map(str, arguments)])


@pytest.mark.long
def test_report_records_and_pictures(small_paper, tmp_path):
    assert run(tmp_path) == 0
    records = json.loads((tmp_path / "results.json").read_text())
    assert [r["label"] for r in records] == [row.label for row in small_paper.rows]
    free, paid, one, two, dynamic = records
    assert paid["cost"] == pytest.approx(paid["test_loss"] + 4e-8 * paid["macs"]) and free["cost"] == free["test_loss"]
    assert free["ways_out"] == [[0, 0], [1, 0], [1, 1]] and two["ways_out"] == [[0, 0]]
    assert free["decisions"][1]["next"] == [-1, -1] and free["paper"] is None
    exits = np.array(free["exits"])
    assert exits.shape == (2, 2, 10, 2) and exits[..., 1].sum() / exits.sum() == pytest.approx(free["test_accuracy"])
    assert free["dataset"] == "Hybrid MNIST/CIFAR-10"
    for record in records:
        assert len(record["curve"]["macs"]) == len(record["curve"]["exits"]) == 2
        assert sum(record["curve"]["exits"][1]) == np.sum(record["exits"])
    # A fixed route does not look at the price, so that the same instances leave at the same places.
    for price, point in zip((0.0, 1e-7), dynamic["by_price"], strict=True):
        assert point["k_cpt"] == price and point["test_accuracy"] == dynamic["test_accuracy"]
        assert point["cost"] == pytest.approx(dynamic["test_loss"] + price * dynamic["macs"])
    assert dynamic["asked"]["judge_at"] == [0.0, 1e-7] and "judge_at" not in free["asked"]
    report = (tmp_path / "multipath.md").read_text()
    table = report[report.index("### Fig. 5, hybrid data: strategies") : report.index("### Fig. 5, hybrid data: varia")]
    (line,) = [line for line in table.splitlines() if line.startswith("| actor, k_cpt 4e-08")]
    assert f"**{100 * (1 - paid['test_accuracy']):.2f}**" in line and f"{paid['cost']:.4f}" in line
    assert report.count("… judged at") == 2 and "Test error in %" in report
    assert "### What the paper says" in report and "Needs runs of one seed: actor; pragmatic critic" in report
    for picture in ("fig5", "dataflow", "exits", "variants"):
        height, colours = height_and_colours(tmp_path / f"quick-{picture}.png")
        assert height > 150 and colours > 20, picture


def test_some_rows_only(small_paper, tmp_path, capsys):
    assert run(tmp_path, "--groups", "fig5", "--rows", "static, 1", "--epochs", 1) == 0
    assert [r["label"] for r in json.loads((tmp_path / "results.json").read_text())] == ["static, 1 columns"]
    assert run(tmp_path, "--groups", "fig5", "--rows", "static, 1", "dynamic", "--epochs", 1) == 2
    assert "--rows: no row of fig5 has 'dynamic' in its name" in " ".join(capsys.readouterr().err.split())


@pytest.mark.long
def test_all_pictures_can_be_drawn(tmp_path):
    def networks(series, part="hybrid", groups=("fig5",), decisions=None):
        decisions = decisions or chain_decisions()
        ways = ways_of(decisions)
        share = np.linspace(1, 2, len(ways)) / np.linspace(1, 2, len(ways)).sum()
        exits = exits_of(decisions, ways, share, np.full(len(ways), 0.9))
        course = [None, [10 + i for i in range(len(ways))], [20] * len(ways)]
        return [
            made_up(series, 2e6 * (i + 1), 0.3 - 0.05 * i, part=part, label=f"{series}, {part}, k_cpt {price:g}",
                    price=price, exits=exits, decisions=decisions, groups=list(groups),
                    curve={"exits": course, "judged_on": "test"})
            for i, price in enumerate((0.0, 4e-9))
        ]  # fmt: skip

    by_price = [{"k_cpt": p, "macs": 2e6 + 1e14 * p, "test_accuracy": 0.8, "loss": 1, "cost": 1} for p in (0.0, 4e-9)]
    records = [
        *networks("actor", groups=("fig5", "agents")),
        *networks("pragmatic critic"),
        *networks("actor, branching", groups=("variants",), decisions=tree_decisions()),
        made_up("actor, dynamic k_cpt", 3e6, 0.2, by_price=by_price, groups=["variants"]),
        *networks("static"),
        *networks("actor", "CIFAR-2", ("classes",)),
        *networks("actor", "CIFAR-10", ("classes", "width", "skipping")),
        *networks("static", "CIFAR-10", ("classes", "width", "skipping")),
    ]
    drawn = MULTIPATH.pictures(tuple(MULTIPATH.groups), records, tmp_path)
    names = ("dataflow", "exits", "fig5", "branching", "variants", "classes", "skipping", "width", "agents")
    assert sorted(path.name for path in drawn) == sorted(f"paper-{name}.png" for name in names)
    for path in drawn:
        assert height_and_colours(path)[1] > 20, path.name


def test_early_exit_is_drawn_beside_skipping_of_the_same_images(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("routing_gym.experiments.papers.multipath.figures.save", lambda figure, _: drawn.append(figure))
    groups, part = ["skipping"], "CIFAR-10"
    records = [*curve("actor", [1e6, 2e6], [0.3, 0.2], groups=groups, part=part),
               *curve("static", [1e6, 3e6], [0.4, 0.2], groups=groups, part=part)]  # fmt: skip
    skipping = curve("with both", [2e6, 4e6], [0.3, 0.25], groups=["cost"], part=part)
    others = [{**run, "dataset": "CIFAR-100"} for run in skipping]
    in_text = curve("margin", [2e6], [0.1], groups=["margins"], part=part)
    for beside in ([*skipping, *others, *in_text], others, ()):
        MULTIPATH.pictures(("skipping",), records, tmp_path, beside)
    of_figures = [figure.axes[0].lines for figure in drawn]
    lines = [{line.get_label(): line.get_xydata().tolist() for line in lines} for lines in of_figures]
    lines = [{name: points for name, points in of.items() if not name.startswith("_")} for of in lines]
    assert lines[0]["CoDiNet, one network for each gamma"] == [[2, pytest.approx(30)], [4, pytest.approx(25)]]
    assert lines[1].keys() == lines[2].keys() == {"actor", "static, first columns"}
    assert "CIFAR-10 data" in drawn[0].axes[0].get_title()


def test_records_of_the_other_paper_are_found_beside_ones_own(tmp_path, monkeypatch):
    kept = Path(__file__).parents[2] / "docs/results/records/codinet"
    shutil.copytree(kept, tmp_path / "codinet")
    (tmp_path / "multipath").mkdir()
    seen = []
    monkeypatch.setattr(
        "routing_gym.experiments.papers.reproduction.Reproduction.pictures", lambda *given: seen.extend(given[-1]) or []
    )
    records = ("--settings", "two-cores-skipping", "--records", tmp_path / "multipath")
    assert main(["reproduce", "multipath", *map(str, records), "--out", str(tmp_path / "out")]) == 0
    assert len(seen) == len(list(kept.rglob("*.json.gz"))) and {run["agent"] for run in seen} == {"codinet"}


def test_a_tree_is_laid_out_by_depth_and_branch():
    places, edges = layout(made_up("actor, branching", 1e6, 0.1, decisions=tree_decisions()))
    assert len(places) == 47 and len(edges) == 46  # the columns of the paper's tree
    assert places[0, 0] == (0.0, 3.5) and places[1, 0] == (1.0, 5.5) and places[2, 0] == (1.0, 1.5)
    assert sorted(y for x, y in places.values() if x == 7) == list(range(8))
    chain, edges = layout(made_up("actor", 1e6, 0.1))
    assert chain == {**{(i, 0): (float(i), 0.0) for i in range(7)}, (6, 1): (7.0, 0.0)}
    assert set(edges) == {((i, 0), (i + 1, 0)) for i in range(6)} | {((6, 0), (6, 1))}
