"""Parallel paths' rows, tables, ensembles and claims, on stand-in data and on made-up records."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from records import cells, made, of_row, over_seeds, verdicts
from standins import write_cifar10, write_cifar100

from routing_gym.envs import evaluate
from routing_gym.experiments import reproduce
from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.instances import accuracy_together, keep_logits
from routing_gym.experiments.engine.metrics import count_parameters
from routing_gym.experiments.engine.run import LOGITS
from routing_gym.experiments.papers.parallel_paths import PARALLEL_PATHS
from routing_gym.experiments.papers.parallel_paths.results import (
    claims,
    cnns,
    ensembles,
    hard_routes,
    resnets,
)
from routing_gym.experiments.papers.parallel_paths.rows import (
    ALL_ENSEMBLE,
    BASE,
    BASE_ENSEMBLE,
    CIFAR10,
    CIFAR100,
    CNNS,
    DATA,
    DEEP,
    DEEP_SQUEEZED,
    OWN_PATHS,
    PAPER,
    PATHS,
    RESNET,
    RESNETS,
    SQUEEZED,
    STITCHED,
    TOLD,
    UNROUTED,
    WIDE,
    on,
    routed,
)

TINY = ("width=2", "hidden=4")


# ------------------------------------------------------------------------------------------------------------ rows


def test_the_rows_are_the_papers(tmp_path):
    rows = {row.label: (row, cell) for row, cell in cells(PARALLEL_PATHS, PAPER, tmp_path)}
    assert len(rows) == len(PARALLEL_PATHS.rows) == len({cell.folder for _, cell in rows.values()})
    assert set(CNNS) - set(rows) == {BASE_ENSEMBLE, ALL_ENSEMBLE}, "ensembles are not trained"
    assert {on(label, data) for label in RESNETS for data in DATA} <= set(rows)
    row, cell = rows[routed(2, "CC")]
    assert row.agent == "cross-connection" and row.paper == {200: pytest.approx(92.97)}
    assert cell.training.epochs == 200 and cell.training.batch_size == 128
    assert {"schedule_epochs=(80, 150)", "learning_rate=0.1", "momentum=0.9"} <= set(cell.training.env_options)
    assert not any("weight_decay" in option for option in cell.training.env_options)
    row, cell = rows[on(routed(4, "CC", "ResNet32"), "CIFAR-100")]
    assert row.env == CIFAR100 and row.paper == {350: pytest.approx(76.48)}
    assert cell.training.epochs == 350 and cell.training.batch_size == 64
    assert cell.training.env_options[-1] == "schedule_epochs=(150, 250)", "the last one counts"
    assert rows[on(RESNET, "CIFAR-100")][0].paper == {}
    kept = {label for label, (_, cell) in rows.items() if cell.keep_logits}
    assert kept == {BASE, WIDE, DEEP} and "keep_logits" in rows[BASE][1].asked
    assert "keep_logits" not in rows[STITCHED][1].asked


def test_epochs_may_be_others_than_the_settings_say(tmp_path):
    assert {cell.training.epochs for _, cell in cells(PARALLEL_PATHS, PAPER, tmp_path, epochs=3)} == {3}


def test_a_row_can_be_asked_for_by_its_whole_name(tmp_path):
    assert [row.label for row, _ in cells(PARALLEL_PATHS, PAPER, tmp_path, only=("=BaseCNN", "SEDeep"))] == [
        BASE,
        DEEP_SQUEEZED,
    ]


@pytest.mark.long
def test_every_row_on_cifar10_can_be_made(tmp_path):
    """The networks are the paper's in form, made narrow; each has the decisions and tensors it should have."""
    write_cifar10(tmp_path / "cifar-10-batches-bin", 20)
    seen = set()
    for row, cell in cells(PARALLEL_PATHS, PAPER, tmp_path):
        if row.env != CIFAR10:
            continue
        narrow = TINY if "ResNet" not in row.label else TINY[:1]
        agent = made(cell, *narrow, data_dir=str(tmp_path))
        name = row.part if row.groups == ("hard",) else row.series
        paths = next((number for number in PATHS if f"-{number}" in name), 2 if name == STITCHED else 1)
        assert agent.name == row.agent and agent.env.network.paths == agent.num_choices == paths, row.label
        assert agent.num_tensors == paths
        assert agent.env.network.cross == ("predictions" if name.endswith("CP") else "connections")
        if OWN_PATHS in row.label:
            assert (agent.routes == torch.arange(paths)).all()
        assert agent.num_tasks == (2 if TOLD in row.label else 1)
        seen.add(row.agent)
    assert seen == {row.agent for row in PARALLEL_PATHS.rows}


def test_records_count_the_parameters_that_the_paper_prints(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-bin", 20)
    for row, cell in cells(PARALLEL_PATHS, PAPER, tmp_path):
        if row.groups[0] == "cnn" and row.label != UNROUTED:  # as read, it has as many as three BaseCNNs
            count = count_parameters(made(cell, data_dir=str(tmp_path)))
            printed = CNNS[row.label].parameters
            last_digit = 10.0 ** -len(str(printed).partition(".")[2])
            assert count / 1e6 == pytest.approx(printed, abs=max(0.5 * last_digit, 0.015 * printed)), row.label


def test_own_paths_are_what_a_network_without_crossings_does(tmp_path):
    """BaseCNN-3 by masks, and BaseCNN-3-CC whose tensors are told to stay, give the same logits."""
    write_cifar10(tmp_path / "cifar-10-batches-bin", 20)
    said = []
    for row, cell in cells(PARALLEL_PATHS, PAPER, tmp_path, only=(f"={UNROUTED}", on(routed(3, "CC"), OWN_PATHS))):
        agent = made(cell, *TINY, data_dir=str(tmp_path))
        assert not said or agent.name == row.agent
        keep_logits(agent, "test", tmp_path / f"{len(said)}.npz")
        with np.load(tmp_path / f"{len(said)}.npz") as saved:
            said.append(saved["logits"])
        test = agent.env.datasets["test"]
        with np.load(tmp_path / "0.npz") as saved:
            right = (saved["logits"].argmax(1) == saved["label"]).mean()
            assert np.array_equal(saved["label"], test.label.numpy())
        assert right == pytest.approx(evaluate(agent, agent.env).accuracy)
    np.testing.assert_allclose(said[0], said[1], atol=1e-5)


# ------------------------------------------------------------------------------------------------- made-up records


def record(label, accuracy, *, folder="nowhere", **more):
    known = {"folder": str(folder), "router_macs": 4e3, "paths": 1, "series": label}
    return of_row(label, accuracy, **known | more)


def member(folder, label, seed, logits, labels, **more):
    """A record with its logits beside it."""
    own = folder / f"{label}-{seed}"
    own.mkdir()
    np.savez(own / LOGITS, logits=logits, label=labels)
    return record(label, float((logits.argmax(1) == labels).mean()), seed=seed, folder=own, **more)


def test_ensembles_average_class_probabilities(tmp_path):
    """Against a loop over images, classes and members."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 50)
    logits = {(name, seed): random.normal(size=(50, 10)) for name in (BASE, WIDE, DEEP) for seed in (0, 1, 2)}
    for values in logits.values():
        values[np.arange(50), labels] += 0.7
    sizes = {BASE: 100, WIDE: 300, DEEP: 500}

    def by_hand(members):
        right = 0
        for image in range(50):
            chances = [0.0] * 10
            for name in members:
                odds = [np.exp(value) for value in logits[name][image]]
                for kind in range(10):
                    chances[kind] += odds[kind] / sum(odds) / len(members)
            right += max(range(10), key=lambda kind: chances[kind]) == labels[image]
        return right / 50

    there = [(BASE, 0), (BASE, 1), (BASE, 2), (WIDE, 0), (WIDE, 1), (DEEP, 1), (DEEP, 2)]
    records = [member(tmp_path, name, seed, logits[name, seed], labels, parameters=sizes[name]) for name, seed in there]
    made = {run["label"]: run for run in ensembles(records)}
    assert set(made) == {BASE_ENSEMBLE, ALL_ENSEMBLE}
    base, together = made[BASE_ENSEMBLE], made[ALL_ENSEMBLE]
    assert base["test_accuracy"] == pytest.approx(by_hand([(BASE, 0), (BASE, 1), (BASE, 2)]))
    assert together["test_accuracy"] == pytest.approx(by_hand([(BASE, 1), (WIDE, 1), (DEEP, 1)]))
    assert together["seed"] == 1, "the one seed that all three have"
    assert base["parameters"] == 300 and together["parameters"] == 900 and together["seconds"] == 240
    assert together["macs"] == 1.2e8 and "is not there" not in cnns(records)[-1]
    assert ensembles(records[:2]) == []
    assert cnns(records[:2])[-1].endswith(
        "BaseCNN ensemble is not there: it needs 3 seeds of BaseCNN. "
        "All ensemble is not there: it needs one seed of BaseCNN, WideCNN, DeepCNN."
    )
    (tmp_path / f"{BASE}-1" / LOGITS).unlink()
    assert ensembles(records) == [], "a member whose logits are gone is no member"


def test_nine_base_networks_are_three_ensembles(tmp_path):
    labels = np.zeros(4, int)
    runs = [member(tmp_path, BASE, seed, np.eye(2)[[0, 0, 0, seed // 3 % 2]], labels) for seed in reversed(range(8))]
    made = ensembles(runs)
    assert [(run["seed"], run["test_accuracy"]) for run in made] == [(0, 1.0), (1, 0.75)], "of eight seeds two"
    runs.append(member(tmp_path, BASE, 8, np.eye(2)[[0, 0, 0, 0]], labels))
    assert [run["label"] for run in ensembles(runs)] == [BASE_ENSEMBLE] * 3


def test_ensembles_of_different_images_are_refused(tmp_path):
    for name, labels in (("a", [0, 1]), ("b", [1, 0])):
        np.savez(tmp_path / f"{name}.npz", logits=np.eye(2), label=np.array(labels))
    with pytest.raises(ValueError, match=r"b\.npz is of other instances than .*a\.npz"):
        accuracy_together([tmp_path / "a.npz", tmp_path / "b.npz"])
    with pytest.raises(ValueError, match="at least one member"):
        accuracy_together([])


def test_tables_have_ours_and_theirs():
    lines = cnns([record(routed(2, "CC"), 0.90), record(routed(2, "CC"), 0.92, seed=1), record(BASE, 0.85)])
    assert lines[2].startswith("| BaseCNN | 1.11 *0.55* | **15.00** *9.26* |  | 40.00 | 0.010 | 8 | 0.0 | 1 |")
    assert lines[3].startswith("| BaseCNN-2-CC | 1.11 *1.11* | **9.00 ± ") and "*7.03* | *6.53* |" in lines[3]
    assert lines[-1].startswith("On the test split of CIFAR-10. BaseCNN ensemble is not there")
    name = routed(3, "CC", RESNET)
    lines = resnets(
        [
            record(on(name, data), accuracy, part=data, series=name, parameters=size)
            for data, accuracy, size in (("CIFAR-10", 0.9, 820_000), ("CIFAR-100", 0.7, 840_000))
        ]
    )
    assert lines[2].startswith("| ResNet20-3-CC | 0.82 *0.82* | **10.00** *5.18* | **30.00** *25.76* | 40.00 |")
    (line,) = resnets([record(on(RESNET, "CIFAR-100"), 0.7, part="CIFAR-100", series=RESNET)])[2:3]
    assert line.startswith("| ResNet20 | 1.11 *0.27* | *8.75* | **30.00** | 40.00 |")
    lines = hard_routes(
        [
            record(BASE, 0.8),
            *(
                record(on(routed(2, "CC"), "random"), 0.7, seed=seed, live_paths=[2.0, live], paths=8)
                for seed, live in enumerate((1.5, 1.2))
            ),
        ]
    )
    assert "| **20.00** | 1.11 | 40.00 | 0.010 |  | 1 |" in lines[2] and "| 2.00 1.35 | 8 |" in lines[3]
    assert "told the coarse class know part of the answer" in lines[-1]


def table(folder, base, wide, deep, unrouted, squeezed, stitched, routed_ones, resnets):
    """Records of both tables over three seeds, of BaseCNN over nine; members of ensembles err on the same images."""
    folder.mkdir()
    labels, members = np.zeros(10_000, int), []
    for label, accuracy, seeds in ((BASE, base, 9), (WIDE, wide, 3), (DEEP, deep, 3)):
        for seed in range(seeds):
            logits = np.tile([2.0, 0.0], (10_000, 1))
            logits[: round(10_000 * (1 - accuracy)) + (7 * seed**2) % 10] = (0.0, 2.0)
            members.append(member(folder, label, seed, logits, labels))
    others = {UNROUTED: unrouted, SQUEEZED: squeezed, DEEP_SQUEEZED: squeezed, STITCHED: stitched}
    records = [record(label, accuracy) for label, accuracy in others.items()]
    for cross, size in (("CC", 1_000_000), ("CP", 2_000_000)):
        for paths, accuracy in zip(PATHS, routed_ones[cross], strict=True):
            records.append(record(routed(paths, cross), accuracy, parameters=size))
        for data in DATA:
            for paths, accuracy in zip(PATHS, resnets[1:], strict=True):
                name = routed(paths, cross, RESNET)
                records.append(record(on(name, data), accuracy, part=data, series=name))
    records += [record(on(RESNET, data), resnets[0], part=data, series=RESNET) for data in DATA]
    return [*members, *over_seeds(records, spread=1e-4)]


def test_claims_follow_the_records(tmp_path):
    good = table(
        tmp_path / "good",
        *(0.80, 0.82, 0.83, 0.81, 0.81, 0.82),
        {"CC": (0.90, 0.92, 0.92), "CP": (0.90, 0.92, 0.92)},
        (0.80, 0.84, 0.88, 0.92),
    )
    found = verdicts(claims(good))
    assert len(found) == 11 and set(found.values()) == {"holds"}, found
    assert set(verdicts(claims([run for run in good if run["seed"] < 2])).values()) == {"not enough"}
    bad = table(
        tmp_path / "bad",
        *(0.90, 0.90, 0.90, 0.95, 0.90, 0.90),
        {"CC": (0.80, 0.84, 0.70), "CP": (0.82, 0.87, 0.80)},
        (0.80, 0.75, 0.70, 0.65),
    )
    found = verdicts(claims(bad))
    assert set(found.values()) == {"does not hold"}, found
    assert set(verdicts(claims(over_seeds([record(BASE, 0.9)]))).values()) == {"not enough"}


def test_as_good_means_fewer_parameters_too():
    text = "Table 2: cross-connections do about as well as cross-predictions, with fewer parameters"

    def verdict(cc, cp, size):
        runs = [record(routed(n, "CC"), cc, parameters=size) for n in PATHS]
        runs += [record(routed(n, "CP"), cp, parameters=2_000_000) for n in PATHS]
        return verdicts(claims(over_seeds(runs, spread=1e-4)))[text]

    assert verdict(0.95, 0.93, 1_000_000) == "holds" and verdict(0.95, 0.93, 3_000_000) == "does not hold"
    assert verdict(0.928, 0.93, 1_000_000) == "holds", "0.2 points more are about as many"
    assert verdict(0.925, 0.93, 1_000_000) == "not enough" and verdict(0.90, 0.93, 1_000_000) == "does not hold"


# ----------------------------------------------------------------------------------------------------- the command


@pytest.mark.long
def test_the_command_runs_and_draws(monkeypatch, tmp_path):
    """Some rows of each group, on stand-in images and narrow networks; tables and ensembles are of what was run."""
    write_cifar10(tmp_path / "data" / "cifar-10-batches-bin", 20)
    write_cifar100(tmp_path / "data" / "cifar-100-binary", {"train": 300, "test": 100})
    monkeypatch.setattr("routing_gym.experiments.papers.parallel_paths.gates.STEPS", 10)
    partial = {CIFAR10: PAPER.changes[CIFAR10]}
    small = dataclasses.replace(PAPER, epochs=1, env_options=(*PAPER.env_options, "width=2"), changes=partial)
    labels = [BASE, WIDE, DEEP, STITCHED, routed(2, "CC"), on(RESNET, "CIFAR-10")]
    labels += [on(routed(2, "CP", RESNET), data) for data in DATA]
    labels += [on(routed(2, "CC"), name) for name in ("REINFORCE", TOLD, OWN_PATHS)]
    rows = [
        dataclasses.replace(row, env_options=(*row.env_options, *(["hidden=4"] if "ResNet" not in row.label else [])))
        for row in PARALLEL_PATHS.rows
        if row.label in labels
    ]
    assert len(rows) == len(labels)
    paper = dataclasses.replace(PARALLEL_PATHS, rows=tuple(rows), settings=(small,), batch_size=40)
    monkeypatch.setitem(reproduce.REPRODUCTIONS, "parallel-paths", paper)
    out = tmp_path / "out"
    command = ["reproduce", "parallel-paths", "--data-dir", str(tmp_path / "data"), "--out", str(out)]
    command += ["--seeds", "1", "--device", "cpu", "--threads", "1"]
    assert main(command) == 0
    found = {run["label"]: run for run in json.loads((out / "results.json").read_text())}
    assert set(found) == set(labels)
    told = found[on(routed(2, "CC"), TOLD)]
    assert told["dataset"].startswith("CIFAR-10 by coarse class") and len(told["task_accuracy"]) == 2
    assert len(told["live_paths"]) == 4 and "live_paths" not in found[BASE]
    assert found[on(routed(2, "CC"), OWN_PATHS)]["live_paths"] == [2.0] * 4
    report = (out / "parallel-paths.md").read_text()
    assert "| All ensemble |" in report and "BaseCNN ensemble is not there" in report
    assert "told the coarse class know part of the answer" in report
    members = [out / "paper" / "cnn" / name / "seed-0" / LOGITS for name in ("basecnn", "widecnn", "deepcnn")]
    assert f"**{100 - 100 * accuracy_together(members):.2f}** *6.90*" in report
    for name in (
        *("cnn-curves-cifar-10", "cnn-parameters", "cnn-routes", "cnn-gates", "cnn-gates-by-class", "cnn-weights"),
        *("hard-curves-basecnn-2-cc", "hard-live-paths"),
        *("resnet-curves-cifar-10", "resnet-curves-cifar-100", "resnet-parameters"),
    ):
        assert f"(paper-{name}.png)" in report
        assert imread(out / f"paper-{name}.png").std() > 0.01, name

    records = {path: path.stat().st_mtime_ns for path in out.rglob("seed-*/results.json")}
    assert len(records) == len(labels)
    monkeypatch.setattr(type(paper), "pictures", lambda *_: [])  # they have been looked at
    assert main([*command[:-6], "--seeds", "3", *command[-4:], "--rows", "=BaseCNN"]) == 0
    assert "| BaseCNN ensemble |" in (out / "parallel-paths.md").read_text()
    assert len(list(out.rglob("seed-*/results.json"))) == len(labels) + 2
    assert all(path.stat().st_mtime_ns == before for path, before in records.items()), "finished runs are kept"
