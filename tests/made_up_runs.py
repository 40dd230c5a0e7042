"""Made-up records of runs and their folders: what a comparison could have written, without one."""

import json
import re

import numpy as np

from routing_gym.experiments.engine.metrics import METRICS
from routing_gym.experiments.engine.records import OF_TRAINING, VERSION, write_arrays

TASKS, DECISIONS, CHOICES = 10, 3, 10
ENV = "routing_gym/DigitsMTL-v0"


def made_up_run(agent="wpl", seed=0, *, level=0.95, epochs=5, rng=None, options=None, **more):
    """Return a record as `record_of` makes it: accuracies rise to `level`, routes settle."""
    rng = np.random.default_rng(seed) if rng is None else rng
    spread = 0.01 * rng.normal()
    accuracy = [float(level - 0.4 * 0.6**epoch + spread) for epoch in range(epochs)]
    curve = {"judged_on": "validation", "epoch": list(range(1, epochs + 1))}
    curve |= {name: accuracy for name in OF_TRAINING}
    for metric in METRICS.values():
        if metric.curve:
            curve[metric.key("validation")] = [float(epoch + 1) for epoch in range(epochs)]
    curve |= {"validation_accuracy": accuracy, "macs": [5472.0] * epochs, "exits": [[100]] * epochs}
    curve |= {"use": [[[0.1] * CHOICES] * DECISIONS] * epochs}
    metrics = {metric.key("test"): float(10 + rng.normal()) for metric in METRICS.values()}
    asked = {"env": ENV, "agent": agent, "seed": seed, "epochs": epochs, "batch_size": 256, "split": "test"}
    asked |= {"env_options": {"num_blocks": 10, "rho": 0.0}, "agent_options": dict(options or {})}
    return {
        **{"version": VERSION, "agent": agent, "env": ENV, "seed": seed, "epochs": epochs, "best_epoch": epochs},
        **{"batch_size": 256, "asked": asked, "config": {}, "env_config": {}, "curve": curve},
        **metrics,
        **{"test_accuracy": accuracy[-1], "worst_task": 0.9 * accuracy[-1], "macs": 5472.0 + 100 * rng.normal()},
        **{"task_accuracy": [accuracy[-1]] * TASKS, "task_macs": [5472.0] * TASKS},
        **{"routes": routes(rng, epochs).tolist(), "routes_by_label": routes(rng, epochs)[:2].tolist()},
        **{"use": [[0.1] * CHOICES] * DECISIONS, "exits": [], "ways_out": [[2, 0]], "experts": []},
        "decisions": [{"name": f"layer {number + 1}", "next": [number + 1] * CHOICES} for number in range(DECISIONS)],
        **{"dataset": "DIGITS-MTL", "device": "cpu", "processor": "a processor", "torch": "2.13", "commit": "abc"},
        "threads": 1,
        **more,
    }


def routes(rng, epoch):
    """Counts `(T, N, A)`: mixed at first, most in one block later."""
    shares = rng.dirichlet([0.5 / (1 + epoch)] * CHOICES, size=(TASKS, DECISIONS))
    return np.rint(360 * shares).astype(np.int32)


def block(path):
    """The data of a report."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    return json.loads(found[1])


def write_runs(folder, records, *, with_routes=True, rng=None):
    """Write records as `compare` does: one file of all, and a folder of each run."""
    rng = np.random.default_rng(0) if rng is None else rng
    for record in records:
        own = folder / record["agent"].replace("/", "-").replace(":", "-") / f"seed-{record['seed']}"
        own.mkdir(parents=True)
        (own / "results.json").write_text(json.dumps([record]))
        (own / "config.toml").write_text(f"epochs = {record['epochs']}\n")
        if with_routes:
            epochs = record["curve"]["epoch"]
            write_arrays(own / "routes.npz", epoch=np.array(epochs), routes=np.stack([routes(rng, e) for e in epochs]))
    (folder / "results.json").write_text(json.dumps(records))
    return folder
