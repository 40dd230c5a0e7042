"""Static rows at equal cost, against trying every width; and gains over networks of single tasks, by hand."""

import csv
import json

import numpy as np
import pytest
from rich.console import Console

from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.equal import at_equal, widest
from routing_gym.experiments.engine.records import metrics_of, with_delta_m
from routing_gym.experiments.engine.settings import TrainingSettings, parse_options

ENV = "routing_gym/HiddenGroups-v0"
FEATURES, CLASSES, TASKS = 64, 5, 24
OPTIONS = ("num_blocks=3", "width=20")
STATIC = {
    "single-task": [24, 24, 24],
    "task-specific-all": [24, 24, 24],
    "task-specific-last": [1, 1, 24],
    "shared": [1, 1, 1],
    "shared-with-task": [1, 1, 1],
    "random-fixed": [3, 3, 3],
    "best-random": [3, 3, 3],
}


def costs(agent, width, blocks):
    """Parameters of a network of three layers, and its multiply-accumulates per instance, by hand."""
    widths = [FEATURES + TASKS * (agent == "shared-with-task"), width, width, CLASSES]
    pairs = list(zip(widths, widths[1:], strict=False))
    parameters = sum(count * (inputs + 1) * outputs for count, (inputs, outputs) in zip(blocks, pairs, strict=True))
    return {"parameters": parameters, "macs": sum(inputs * outputs for inputs, outputs in pairs)}


@pytest.mark.parametrize("cost", ["parameters", "macs"])
def test_every_static_agent_has_the_largest_width_that_does_not_cost_more(cost):
    training = TrainingSettings(env=ENV, env_options=(*OPTIONS, "layers=3"))
    agents = ("shared", "oracle", "soft-mixture", "random", *(set(STATIC) - {"shared"}))
    rows, console = {name: (training, ()) for name in agents}, Console(record=True, width=200)
    found = at_equal(cost, rows, console)
    most = costs("soft-mixture", 20, [3, 3, 3])[cost]
    # It runs all blocks, and has 3 scores at each decision and behind the last.
    most = 3 * most if cost == "macs" else most + 4 * 3
    for name in agents:
        options = parse_options("env_options", found[name][0].env_options)
        if name not in STATIC:
            assert found[name] == rows[name]
            continue
        width = max(width for width in range(1, 400) if costs(name, width, STATIC[name])[cost] <= most)
        blocks = options["num_blocks"]
        assert options["width"] == width and options["layers"] == 3
        assert ([blocks] * 3 if isinstance(blocks, int) else blocks) == STATIC[name]
    said = console.export_text()
    assert f"soft-mixture {most:,.0f}" in said and "task-specific-last with width=" in said and len(STATIC) == 7


def test_widths_are_searched_up_and_down():
    for begin in (1, 2, 7, 8, 9, 100):
        for most in (49, 64, 65, 80, 1e4):
            assert widest(lambda width: width**2, most, begin, "shared") == int(most**0.5)
        assert widest(lambda width: width**2 + 5, 5, begin, "shared") == 1  # nothing is below
    with pytest.raises(UsageError, match="what 'shared' costs does not depend on the width"):
        widest(lambda width: 3, 4, 8, "shared")


def test_what_cannot_be_made_equal_is_said(tmp_path, capsys):
    def said(*arguments):
        assert main(["compare", "--out", str(tmp_path / "out"), *arguments]) == 2
        return " ".join(capsys.readouterr().err.split())

    equal = ["--equal", "macs", "--agents", "shared"]
    assert "the first of --agents that learns, and none of them does" in said("--env", ENV, *equal, "random", "oracle")
    assert "searches the width of mlp or simple-convnet, the network is lock" in said(
        "--env", "routing_gym/Credit-v0", *equal, "reinforce"
    )


def test_gains_over_single_tasks_are_where_comparisons_are(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--env", ENV, "--env-options", "num_tasks=3", "num_blocks=2", "--epochs", "2", "--seeds", "2"]
    agents = ["--agents", "single-task", "shared", "reinforce", "--equal", "parameters", "--batch-size", "32"]
    assert main(["compare", *arguments, *agents, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Δm %" in printed and "shared with width=" in printed
    records = json.loads((out / "results.json").read_text())
    accuracies = {(record["agent"], record["seed"]): record["task_accuracy"] for record in records}
    delta = {(record["agent"], record["seed"]): record["delta_m"] for record in records}
    with (out / "results.csv").open() as file:
        rows = {(row["agent"], int(row["seed"])): row for row in csv.DictReader(file)}
    for (agent, seed), row in rows.items():
        single, gains = accuracies["single-task", seed], []
        for task in range(3):
            gains.append((accuracies[agent, seed][task] - single[task]) / single[task])
        assert float(row["delta_m"]) == pytest.approx(np.mean(gains)) == delta[agent, seed]
        assert row["env_options.num_blocks"] == {"single-task": "3", "shared": "1", "reinforce": "2"}[agent]
    widths = {record["agent"]: record["asked"]["env_options"]["width"] for record in records}
    assert widths["single-task"] < widths["reinforce"] == 32 < widths["shared"]
    assert '"delta_m"' in (out / "report.html").read_text()
    assert main(["compare", *arguments, *agents, "--out", str(out), "--resume"]) == 0


def test_gains_mean_nothing_without_the_other_run():
    def made_up(agent, accuracies, seed=0, env="one"):
        return {"agent": agent, "seed": seed, "env": env, "dataset": "d", "asked": {"split": "test"},
                "task_accuracy": accuracies}  # fmt: skip

    single, ours = made_up("single-task", [0.5, 0.8]), made_up("wpl", [0.6, 0.4])
    others = [made_up("wpl", [0.6, 0.4], 1), made_up("wpl", [0.6, 0.4], env="two"), made_up("wpl", [0.6])]
    metric, records = metrics_of([single, ours, *others])[-1], with_delta_m([single, {**ours, "delta_m": 9}, *others])
    of_single, of_ours, *of_others = [metric.value(record) for record in records]
    assert of_single == 0 and of_ours == pytest.approx((0.2 - 0.5) / 2) and of_others == [None] * 3
    assert metric.text([of_ours]) == "-15.0"
    assert "delta_m" not in with_delta_m([made_up("single-task", [0.0, 1.0]), ours])[1]
    assert metric not in metrics_of([ours, *others])
