"""Records of runs: read strictly, compared without their times, or made up as rows of papers could have left them."""

import dataclasses
import json

import numpy as np

from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.papers.reproduction import Plan

COSTS = np.array([1.36, 5.27, 7.56, 11.39, 13.46, 17.0, 18.19, 20.55]) * 1e6
"""Multiply-accumulates of leaving by each way out of the chain."""

SCATTERED = {"test_accuracy", "macs", "paths", "kept_rotated", "kl"}
"""What differs between the seeds of made-up records."""
CLASSES = 10
PRICES = (0.0, 1e-9, 2e-9, 4e-9, 8e-9, 1.6e-8, 3.2e-8, 6.4e-8)


def chain_decisions():
    return [{"name": f"column {i + 1}", "next": [-1, i + 1 if i < 6 else -1]} for i in range(7)]


def chain_ways():
    return [[i, 0] for i in range(7)] + [[6, 1]]


def tree_decisions():
    """The branching pyramid: 1 + 2 + 4 columns, then eight chains of five, the last of which is no decision."""
    levels = [1, 2, 4, 8, 8, 8, 8]
    starts = np.cumsum([0, *levels])
    decisions = []
    for depth, count in enumerate(levels):
        for j in range(count):
            if depth < 3:
                following = [int(starts[depth + 1]) + 2 * j + way for way in (0, 1)]
            else:
                following = [int(starts[depth + 1]) + j if depth < 6 else -1]
            decisions.append({"name": f"column {depth + 1}", "next": [-1, *following]})
    return decisions


def ways_of(decisions):
    return [[i, c] for i, decision in enumerate(decisions) for c, target in enumerate(decision["next"]) if target == -1]


def exits_of(decisions, ways, share, accuracy, instances=10_000, lean=None):
    """Return `(N, A, C, 2)` counts: share `(W,)` by way out, accuracy `(W,)`, `lean (W, C)` weights of classes."""
    table = np.zeros((len(decisions), max(len(d["next"]) for d in decisions), CLASSES, 2), dtype=int)
    lean = np.ones((len(ways), CLASSES)) if lean is None else lean
    for (decision, choice), part, right, classes in zip(ways, share, accuracy, lean, strict=True):
        count = instances * part * classes / classes.sum()
        table[decision, choice, :, 1] = np.round(count * right)
        table[decision, choice, :, 0] = np.round(count * (1 - right))
    return table


def made(run, *options, **training):
    """Return the agent of a run with further options of the environment, trained otherwise."""
    options = (*run.training.env_options, *options)
    return dataclasses.replace(run, training=dataclasses.replace(run.training, env_options=options, **training)).make()


def cells(paper, settings, out, **options):
    """Return the rows of a paper under some settings, each with its run of seed 0."""
    plan = Plan(paper, settings, TrainingSettings(device="cpu"), out, **options)
    return list(zip(plan.rows, plan.runs(1), strict=True))


def of_row(label, accuracy, macs=4e7, **more):
    """Return one record of a row: what all tables show of it, and more."""
    known = {
        "label": label,
        "groups": [],
        "settings": "paper",
        "series": "",
        "part": "CIFAR-10",
        "agent": "",
        "seed": 0,
    }
    known |= {"test_accuracy": accuracy, "macs": macs, "router_macs": 0.01 * macs, "parameters": 1_110_000}
    return known | {"epochs": 8, "seconds": 80.0, "dataset": more.get("part", "CIFAR-10"), **more}


def made_up(series, macs, error, *, part="hybrid", label=None, price=None, exits=None, instances=10_000, **more):
    """Return one record; with all exits at the first way out unless told otherwise."""
    decisions = more.pop("decisions", chain_decisions())
    ways = ways_of(decisions)
    if exits is None:
        first = np.eye(len(ways))[0]
        exits = exits_of(decisions, ways, first, np.full(len(ways), 1 - error), instances)
    found = {"x": price, "cost": 0.1 + 4e-9 * macs, "exits": np.asarray(exits).tolist(), "ways_out": ways}
    known = {"agent": series, "series": series, "part": part, "groups": ["fig5"], "dataset": f"{part} data"}
    return of_row(label or f"{series}, {part}, {macs}", 1 - error, macs, decisions=decisions, **known | found | more)


def curve(series, macs, error, **more):
    """Return a record for each point."""
    return [made_up(series, float(m), float(e), **more) for m, e in zip(macs, error, strict=True)]


def over_seeds(records, count=3, spread=1e-3):
    """Return the records of so many seeds: what claims go by differs by a share of about `spread`."""
    numbers = np.random.default_rng(0)

    def moved(value, key=""):
        if isinstance(value, dict):
            return {name: moved(of, name) for name, of in value.items()}
        if key == "by_price":
            return list(map(moved, value))
        scattered = key in SCATTERED and isinstance(value, int | float)
        return value * (1 + spread * numbers.normal()) if scattered else value

    return [{**moved(record), "seed": seed} for seed in range(count) for record in records]


def verdict(claims, start):
    """Return verdict and numbers of the one claim that begins so."""
    (claim,) = [claim for claim in claims if claim.text.startswith(start)]
    return claim.verdict, claim.numbers


def verdicts(claims):
    """Return the verdict of each claim by its text."""
    return {claim.text: claim.verdict for claim in claims}


def strict(path):
    """The records of a file, which must be JSON as the standard has it."""

    def refused(token):
        raise AssertionError(token)

    return json.loads(path.read_text(), parse_constant=refused)


def untimed(record):
    """A record without its times, and the commit: somebody may commit while the tests run."""
    curve = {key: value for key, value in record["curve"].items() if key != "seconds"}
    left_out = ("seconds", "samples_per_second", "curve", "commit")
    rest = {key: value for key, value in record.items() if key not in left_out}
    return {**rest, "curve": curve}
