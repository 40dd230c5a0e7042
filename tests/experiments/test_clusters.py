"""Many machines: Ray, two nodes of which one is killed, and submitit's local executor.

Ray listens on every interface, so that it runs in a network namespace which has the loopback alone.
"""

import importlib.util
import json

import pytest
from commands import run
from namespaces import python_in_namespace
from records import strict, untimed

from routing_gym.agents import AGENTS
from routing_gym.experiments.engine.clusters import _perform_and_send
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import TrainingSettings

pytestmark = [pytest.mark.usefixtures("no_pictures"), pytest.mark.long]

SMALL = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "256"]


TWO_NODES = """
import json, os, signal, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from routing_gym.experiments.cli import main
from routing_gym.experiments.engine import clusters
from routing_gym.experiments.engine.callbacks import PROGRESS
from routing_gym.experiments.engine.records import read_progress

arguments, out = json.loads(sys.argv[1]), Path(sys.argv[2])
clusters.GONE_SECONDS = 5.0
os.environ["STRUCK"] = str(out / "struck")
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)

def strike():
    files = [out / "waiting" / f"seed-{seed}" / PROGRESS for seed in (0, 1)]
    while not all(read_progress(file).get("epoch", 0) >= 1 for file in files):
        time.sleep(0.05)
    if sys.argv[3] == "node":
        cluster.remove_node(second, allow_graceful=False)
        Path(os.environ["STRUCK"]).touch()
    else:
        cluster.head_node.kill_all_processes(check_alive=False)

threading.Thread(target=strike, daemon=True).start()
status = main([*arguments, "--out", str(out), "--launcher", "ray"])
if sys.argv[3] == "node":
    ray.shutdown()
    cluster.shutdown()
sys.stdout.flush()
os._exit(status)
"""

WAITING = """
import os, time
from routing_gym.agents import AGENTS, register_agent

class Waiting(AGENTS["wpl"]):
    scratch = ("batches",)
    batches = 0

    def update(self, trajectory):
        self.batches += 1
        while "STRUCK" in os.environ and self.batches > 3 and not os.path.exists(os.environ["STRUCK"]):
            time.sleep(0.05)  # on the cluster: both nodes are to be seen at work, after an epoch, when one is struck
        return super().update(trajectory)

register_agent("waiting", Waiting)
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_a_node_that_dies_costs_no_finished_run_and_no_figure(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    arguments = [
        "compare",
        *SMALL,
        "--plugin",
        str(tmp_path / "waiting.py"),
        "--agents",
        "waiting",
        "shared",
        "--seeds",
        "2",
    ]
    assert run(*arguments, "--out", tmp_path / "here") == 0
    script = tmp_path / "two_nodes.py"
    script.write_text(TWO_NODES)
    del AGENTS["waiting"]
    python_in_namespace(script, json.dumps(arguments), tmp_path / "there", "node")
    assert (tmp_path / "there" / "struck").exists()
    here, there = (strict(tmp_path / name / "results.json") for name in ("here", "there"))
    assert [untimed(record) for record in here] == [untimed(record) for record in there]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_a_cluster_that_is_gone_fails_the_runs_that_were_under_way(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    script = tmp_path / "two_nodes.py"
    script.write_text(TWO_NODES)
    arguments = ["compare", *SMALL, "--plugin", str(tmp_path / "waiting.py"), "--agents", "waiting", "--seeds", "2"]
    said = python_in_namespace(script, json.dumps(arguments), tmp_path / "out", "head", status=1)
    assert (
        said.count("the cluster is gone (ConnectionError: no answer for 5 s); the last good checkpoint, of epoch") >= 2
    )


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs the extra submitit")
def test_submitted_jobs_give_the_same_results(tmp_path, monkeypatch, capsys):
    arguments = ["compare", *SMALL, "--agents", "wpl", "shared", "--seeds", 1]
    assert run(*arguments, "--out", tmp_path / "here") == 0
    submitted = ["--launcher", "submitit", "--launcher-options", "cluster=local"]
    assert run(*arguments, "--out", tmp_path / "there", *submitted) == 0
    here, there = (strict(tmp_path / name / "results.json") for name in ("here", "there"))
    assert [untimed(record) for record in here] == [untimed(record) for record in there]
    assert "no SLURM" not in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no srun
    assert run(*arguments, "--out", tmp_path / "anyway", "--launcher", "submitit") == 0
    assert "There is no SLURM here: the runs are made on this machine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--launcher-options", "num_gpus=1"], "--launcher-options is for --launcher submitit or ray, got local"),
        (["--launcher", "print", "--workers", 2], "--workers is for --launcher local, got print"),
        (["--address", "auto"], "--address is for --launcher ray, got local"),
        (["--launcher", "ray", "--address", "ray://head:10001"], "--address takes auto or HOST:PORT, on a machine of"),
        (["--workers", 0], "--workers must be at least 1, got 0"),
        (["--silence", 0], "--silence must be positive, got 0"),
        (["--launcher", "ray", "--launcher-options", "cpus=1"], "num_cpus and num_gpus, got 'cpus'"),
        (["--launcher", "ray", "--launcher-options", "num_gpus=many"], "num_gpus must be a number of at least 0"),
    ],
)
def test_options_of_launchers_that_mean_nothing_are_refused(options, message, tmp_path, capsys):
    assert run("compare", *SMALL, "--out", tmp_path, *options) == 2
    assert message in capsys.readouterr().err


def test_files_are_sent_where_the_folder_is_not_shared(tmp_path):
    asked = Run(TrainingSettings("routing_gym/SyntheticMTL-v0", 1, 256), "shared", 0, tmp_path / "elsewhere")
    outcome, files = _perform_and_send(asked, "token of another machine")
    assert outcome.record is not None and {"results.json", "checkpoint.pt", "config.toml"} <= files.keys()
    assert json.loads(files["results.json"])[0]["agent"] == "shared"
    (asked.folder / "token").touch()
    assert _perform_and_send(asked, "token")[1] == {}
