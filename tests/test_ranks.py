"""Several processes that share batches are one process with whole batches; what goes wrong in one ends all."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ranked import CASES
from toys import small_env, toy_env

from routing_gym.blocks.converted import SmallGroupNorm
from routing_gym.envs import RoutingVectorEnv
from routing_gym.networks import make_network
from routing_gym.ranks import ALONE, Ranks
from routing_gym.tasks import synthetic_mtl

pytestmark = pytest.mark.long
LEARNED = [case for case in CASES if case not in ("nan", "gone")]


def run(*arguments):
    """A Python of its own; one that hangs is an error."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)


def performed(folder, cases, count):
    """How the processes ended, and what each wrote, by case and rank."""
    folder.mkdir()
    script = str(Path(__file__).with_name("ranked.py"))
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
    done = run(*launcher, script, str(folder), *cases)
    return done, {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_ranks_are_one_process_with_the_whole_batch(tmp_path):
    """Losses, weights, tables, averages and evaluations after 10 batches, to 1e-9; a number that is none ends all."""
    done, whole = performed(tmp_path / "1", LEARNED, 1)
    assert done.returncode == 0, done.stderr
    for count, cases in ((2, LEARNED), (3, ["reinforce-mlp", "top-k"])):
        done, found = performed(tmp_path / str(count), [*cases, "nan"], count)
        assert done.returncode == 0, done.stderr  # the script has caught what "nan" raises
        for case, rank in ((case, rank) for case in cases for rank in range(count)):
            numbers, expected = found[f"{case}-{rank}"], whole[f"{case}-0"]
            assert "error" not in expected and numbers.keys() == expected.keys(), numbers.get("error")
            for key, value in expected.items():
                np.testing.assert_allclose(numbers[key], value, rtol=1e-9, atol=1e-9, err_msg=f"{case}-{rank}: {key}")
        assert "TrainingDivergedError: agent 'wpl', batch 4" in found["nan-0"]["error"]
        assert "a gradient is not finite; the step was not taken" in found["nan-0"]["error"]
        assert "the loss is nan; the step was not taken" in found["nan-1"]["error"]


def test_a_rank_that_is_gone_ends_all(tmp_path):
    done, found = performed(tmp_path / "ranks", ["gone"], 2)
    assert done.returncode != 0
    if "gone-0" in found:  # else the launcher was faster
        assert "RankLostError: another rank has ended, or does not answer" in found["gone-0"]["error"]


def test_the_command(tmp_path):
    """The same numbers as from one process; gone on with by another number of them."""
    command = ["-m", "routing_gym.experiments.cli", "train", "--env", "routing_gym/SyntheticMTL-v0", "--agent", "wpl"]
    command += ["--batch-size", "120", "--callbacks", "csv"]
    ranks = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for name, start, epochs in (("one", [], 3), ("two", ranks, 2), ("two", [], 3)):
        more = [
            "--epochs",
            str(epochs),
            "--out",
            str(tmp_path / name),
            *(["--resume"] if epochs > 2 and name == "two" else []),
        ]
        done = subprocess.run([sys.executable, *start, *command, *more], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Written to") == 1
    one, two = (json.loads((tmp_path / name / "results.json").read_text())[0] for name in ("one", "two"))
    assert two["curve"]["train_loss"] == pytest.approx(one["curve"]["train_loss"], rel=1e-4)
    assert two["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.01)
    assert two["asked"] == one["asked"]


def test_what_processes_do_not_exchange_is_refused():
    for option in (
        {"talr": True},
        {"class_weights": (1.0, 1.0, 2.0)},
        {"block_gradient": "rows"},
        {"replay": True},
        {"task_balance": "pcgrad"},
    ):
        with pytest.raises(ValueError, match="distributed=True"):
            small_env(distributed=True, **option)
    assert small_env(distributed=True).ranks == ALONE  # there is no group here


def test_networks_that_would_keep_ranks_waiting_are_refused(monkeypatch):
    monkeypatch.setattr(Ranks, "here", classmethod(lambda cls: cls(0, 2)))
    with pytest.raises(ValueError, match="whose rows all pass every decision"):
        toy_env(distributed=True, autoreset_mode="disabled")
    data = synthetic_mtl(num_tasks=3, image_size=16, images_per_class=4)
    routed = make_network(
        "simple-convnet", num_tasks=3, num_classes=3, num_blocks=2, input_shape=(1, 16, 16), routed_stages=1
    )
    with pytest.raises(ValueError, match="normalises the rows of a block"):
        RoutingVectorEnv(routed, data, 4, distributed=True, autoreset_mode="disabled")


@pytest.mark.parametrize("momentum", [0.1, None])
def test_normalised_together_as_by_pytorch(momentum):
    """Of one rank that believes in two the sums are its own, so that all must be as PyTorch has it."""
    torch.manual_seed(0)
    plain, shared = (torch.nn.BatchNorm2d(3, momentum=momentum).double() for _ in range(2))
    shared = SmallGroupNorm.convert(shared)

    class Two(Ranks):
        def total(self, own):
            return own

    shared.ranks = Two(0, 2)
    for _ in range(3):
        x = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        grads = [
            torch.autograd.grad(norm(x).square().mul(torch.arange(4)).sum(), [x, *norm.parameters()])
            for norm in (plain, shared)
        ]
        torch.testing.assert_close(*grads)
    torch.testing.assert_close(shared.state_dict(), plain.state_dict())
