"""Seeds side by side: the records of runs alone, but for rounding; what cannot be trained like that runs alone."""

import json

import numpy as np
import pytest
from commands import forget_plugins, run

from routing_gym.agents import AGENTS
from routing_gym.experiments.engine.training import read_arrays

pytestmark = [pytest.mark.usefixtures("no_pictures"), pytest.mark.long]

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "120"]
COMPARED = ("test_accuracy", "loss", "macs", "task_accuracy", "routes", "live_paths", "settled", "blocks_used")

CODE = """
import torch
from routing_gym.agents import AGENTS, register_agent

class Failing(AGENTS["wpl"]):
    '''Its rewards are no numbers any more in the second epoch of a run of its own, of seed 1.'''

    by_task = True

    def auxiliary_loss(self, trajectory):
        broken = self.env.trainer.runs > 1 or self.config.seed == 1
        return torch.tensor(torch.nan) if broken and self.passes > 1.3 else None

register_agent("failing", Failing)
"""


def records(folder):
    return json.loads((folder / "results.json").read_text())


def test_records_are_those_of_runs_alone(tmp_path, capsys):
    """Accuracies, curves, routes, checkpoints and policies; agents that look at whole batches say so and run alone."""
    arguments = ["compare", *SMALL, "--agents", "reinforce", "top-k", "random-fixed", "--seeds", 3]
    assert run(*arguments, "--out", tmp_path / "alone") == 0
    capsys.readouterr()
    assert run(*arguments, "--out", tmp_path / "together", "--population", 3) == 0
    said = capsys.readouterr().out
    assert said.count("run one after the other") == 1
    assert "top-k, seed 0 and 2 more run one after the other: ValueError: agent 'top-k' cannot learn" in said
    assert "reinforce, seed 0 and 2 more: epoch 2/2" in said
    for one, other in zip(records(tmp_path / "alone"), records(tmp_path / "together"), strict=True):
        assert other.get("population", 1) == (1 if other["agent"] == "top-k" else 3)
        assert other["asked"] == one["asked"]
        for name in COMPARED:
            np.testing.assert_allclose(
                other[name], one[name], rtol=1e-3, atol=1e-3, err_msg=name
            ) if name in one else None
        for name, column in one["curve"].items():
            if name not in ("seconds", "judged_on"):
                np.testing.assert_allclose(other["curve"][name], column, rtol=1e-3, atol=1e-3, err_msg=name)
        folder = f"{one['agent']}/seed-{one['seed']}"
        mine, theirs = (
            read_arrays(tmp_path / way / folder / "routes.npz", epoch=1, routes=4) for way in ("alone", "together")
        )
        np.testing.assert_array_equal(mine["routes"], theirs["routes"])
        if one["agent"] == "reinforce":
            axes = {"epoch": 1, "episodes": 1, "policies": 4}
            mine, theirs = (
                read_arrays(tmp_path / way / folder / "policies.npz", **axes) for way in ("alone", "together")
            )
            np.testing.assert_array_equal(mine["episodes"], theirs["episodes"])
            np.testing.assert_allclose(mine["policies"], theirs["policies"], atol=2e-3)


def test_going_on_alone_and_together(tmp_path):
    """What was trained together goes on alone, and the other way round; new seeds join those that are finished."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ["compare", *SMALL, "--agents", "wpl", "--seeds", 2, "--out", out]
    assert run(*arguments, "--population", 2) == 0
    for seed in range(2):
        folder = out / "wpl" / f"seed-{seed}"
        (folder / "results.json").unlink()
    (out / "results.json").unlink()
    longer = [*arguments, "--epochs", 4]
    assert run(*longer, "--resume", "--population", 2) == 0
    assert run(*longer, "--out", whole) == 0
    for one, other in zip(records(whole), records(out), strict=True):
        assert other["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=2e-3)
        np.testing.assert_allclose(other["curve"]["train_loss"], one["curve"]["train_loss"], rtol=1e-3)
    assert run(*longer, "--seeds", 4, "--resume", "--population", 4) == 0
    assert [record["seed"] for record in records(out)] == [0, 1, 2, 3]


def test_one_that_diverges_takes_no_other_along(tmp_path, capsys):
    """Where the loss of one is no number, each goes on alone from its last epoch, and that one fails alone."""
    path = tmp_path / "agents.py"
    path.write_text(CODE)
    try:
        assert (
            run(
                "compare",
                *SMALL,
                "--plugin",
                path,
                "--agents",
                "failing",
                "--seeds",
                3,
                "--out",
                tmp_path / "out",
                "--population",
                3,
            )
            == 1
        )
        said = capsys.readouterr().out
        assert "failing, seed 0 and 2 more run one after the other: TrainingDivergedError" in said
        assert "failing, seed 1: TrainingDivergedError" in said
        assert [record["seed"] for record in records(tmp_path / "out")] == [0, 2]
    finally:
        AGENTS.pop("failing", None)
        forget_plugins("agents")


def test_where_it_is_refused(tmp_path, capsys):
    for option, why in (
        (["--launcher", "print"], "--population is for --launcher local or submitit, got print"),
        (["--population", 0], "--population must be at least 1"),
    ):
        assert run("compare", *SMALL, "--population", 2, *option, "--out", tmp_path / "out") == 2
        assert why in capsys.readouterr().err


def test_sweep_and_suite_take_it(tmp_path):
    """Settings of a sweep, and problems whose data are of each seed."""
    for population in (1, 2):
        arguments = ["--seeds", 2, "--out", tmp_path / f"sweep-{population}", "--population", population]
        assert run("sweep", *SMALL, "--agent", "wpl", "--grid", "policy_rate=0.003,0.01", *arguments) == 0
        arguments = ["--seeds", 2, "--out", tmp_path / f"suite-{population}", "--population", population, "--passes", 2]
        assert run("suite", "--problems", "hidden-groups", "--agents", "wpl", *arguments) in (0, 1)
    alone, together = (records(tmp_path / f"sweep-{population}") for population in (1, 2))
    for one, other in zip(alone, together, strict=True):
        assert other["population"] == 2
        assert other["validation_accuracy"] == pytest.approx(one["validation_accuracy"], abs=2e-3)
    alone, together = (
        json.loads((tmp_path / f"suite-{population}" / "scores.json").read_text()) for population in (1, 2)
    )
    assert [score["accuracy"] for score in together] == pytest.approx([score["accuracy"] for score in alone], abs=2e-3)
