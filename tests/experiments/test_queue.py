"""The queue of papers' runs and their protocols: kept records, searches, pins, kills."""

import dataclasses
import gzip
import json
import os

import numpy as np
import pytest

from routing_gym.agents import Agent
from routing_gym.experiments import queue, reproduce
from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.settings import TrainingSettings, parse_options
from routing_gym.experiments.papers import pinning
from routing_gym.experiments.papers.judging import claims_of
from routing_gym.experiments.papers.reproduction import Claim, Plan
from routing_gym.experiments.papers.rows import Change, Protocol, Row, Search

SYNTHETIC = "routing_gym/SyntheticMTL-v0"
ROWS = (
    Row("routed", ("main",), SYNTHETIC, "wpl"),
    Row("frozen", ("main", "other"), SYNTHETIC, "random-fixed"),
    Row("left out", ("main",), SYNTHETIC, "shared"),
)
RATES = ("policy_rate=0.001", "policy_rate=0.05")
SMALL = Protocol(
    "small",
    "small",
    2,
    ("schedule_epochs={epochs}",),
    changes={"frozen": Change(env=("learning_rate=0.01",))},
    rows=("frozen", "routed"),
    seeds=2,
    search=Search(1, {"routed": tuple(Change(agent=(rate,)) for rate in RATES)}, seeds=(100, 101)),
    keeps="the data",
    shrinks="all else",
    decides="routed errs less than frozen",
    effect="a point",
)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A paper of two rows, its queue, and folders `kept` and `work`."""
    paper = dataclasses.replace(
        reproduce.REPRODUCTIONS["codinet"],
        rows=ROWS,
        settings=(SMALL,),
        groups={"main": "Main", "other": "Other"},
        judge=lambda records: [Claim("routed errs less than frozen", "not enough", f"{len(records)} runs.")],
        draw=lambda drawing: None,
        table=lambda records: [f"- {record['label']}, seed {record['seed']}" for record in records],
    )
    monkeypatch.setitem(reproduce.REPRODUCTIONS, "codinet", paper)
    (tmp_path / "queue.toml").write_text('[[protocol]]\npaper = "codinet"\nsettings = "small"\nhours = 1.0\n')
    monkeypatch.setattr(queue, "QUEUE", tmp_path / "queue.toml")
    monkeypatch.setattr(pinning, "PINNED", tmp_path / "pinned.toml")
    monkeypatch.setattr(queue.os, "nice", lambda more: more)
    monkeypatch.setattr(queue, "AUTOGROUP", tmp_path / "autogroup")
    (tmp_path / "pinned.toml").write_text("[env]\n[agent]\n")
    (tmp_path / "kept").mkdir()
    pinning.known.cache_clear()
    yield paper
    pinning.known.cache_clear()


def call(tmp_path, *arguments):
    return main(["queue", *arguments, "--records", str(tmp_path / "kept"), "--out", str(tmp_path / "work")])


@pytest.mark.skipif(not hasattr(os, "getsid"), reason="there are sessions on POSIX systems alone")
@pytest.mark.parametrize("own", [True, False])
def test_a_worker_lowers_the_share_of_a_session_of_its_own_alone(toy, tmp_path, monkeypatch, own):
    (tmp_path / "autogroup").write_text("/autogroup-7 nice 0\n")
    monkeypatch.setattr(queue.os, "getsid", lambda _: os.getpid() if own else os.getpid() + 1)
    monkeypatch.setattr(queue, "perform", lambda *_: ["failed"])
    call(tmp_path, "start")
    assert (tmp_path / "autogroup").read_text() == ("19" if own else "/autogroup-7 nice 0\n")


def kept(tmp_path):
    """Records by the folder they are kept in."""
    folder = tmp_path / "kept"
    files = sorted(folder.rglob("results.json.gz"))
    return {str(file.parent.relative_to(folder)): json.loads(gzip.decompress(file.read_bytes()))[0] for file in files}


@pytest.mark.long
def test_a_search_then_its_choice_and_nothing_twice(toy, tmp_path, monkeypatch, capsys):
    assert call(tmp_path) == 0
    (line,) = [line.split() for line in capsys.readouterr().out.splitlines() if "codinet small" in line]
    assert line[2:6] == ["0", "8", "0.0", "1.0"]  # 2 rates x 2 seeds, 2 rows x 2 seeds
    assert call(tmp_path, "start") == 0
    records = kept(tmp_path)
    searched = {name: record for name, record in records.items() if "/search/" in name}
    runs = {
        name.removeprefix("codinet/small/main/"): record for name, record in records.items() if name not in searched
    }
    assert len(searched) == 4 and all(record["asked"]["split"] == "validation" for record in searched.values())
    assert sorted(runs) == [f"{row}/seed-{seed}" for row in ("frozen", "routed") for seed in (0, 1)]
    mean = {rate: sum(record["validation_accuracy"] for record in searched.values()
                      if record["config"]["policy_rate"] == float(rate[12:])) for rate in RATES}  # fmt: skip
    best = max(RATES, key=mean.__getitem__)
    assert {record["config"]["policy_rate"] for record in runs.values() if record["agent"] == "wpl"} == {
        float(best[12:])
    }
    assert {record["env_config"]["learning_rate"] for record in runs.values() if record["agent"] != "wpl"} == {0.01}
    assert all(record["epochs"] == 2 and record["env_config"]["schedule_epochs"] == 2 for record in runs.values())
    assert not {"label", "folder", "settings"} & set.union(*map(set, runs.values()))  # the rows know that

    monkeypatch.setattr(queue, "perform", lambda *_: pytest.fail("all is finished"))
    assert call(tmp_path, "start") == 0 and call(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "8    8" in shown and "0.0 hours of one core are left" in shown
    page = tmp_path / "page.md"
    arguments = ["--settings", "small", "--records", str(tmp_path / "kept" / "codinet"), "--report", str(page)]
    assert main(["reproduce", "codinet", *arguments, "--out", str(tmp_path / "out")]) == 0
    text = page.read_text()
    assert "- frozen, seed 1\n" in text and "- Keeps: the data." in text and "**not enough**. 4 runs." in text
    assert "- Chooses on validation, 1 epoch, seed 100, 101 (chosen in bold):\n" in text
    rates = ", ".join(f"**{rate}**" if rate == best else rate for rate in RATES)
    assert f"  - routed: {rates}.\n" in text


@pytest.mark.long
def test_a_protocol_can_be_followed_without_the_queue(toy, tmp_path):
    command = ["reproduce", "codinet", "--settings", "small", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    records = json.loads((tmp_path / "out/results.json").read_text())
    assert [(record["label"], record["seed"]) for record in records] == [
        (label, seed) for seed in (0, 1) for label in ("frozen", "routed")
    ]
    searched = list((tmp_path / "out/small/search").rglob("results.json"))
    assert len(searched) == 4
    written = [path.stat().st_mtime_ns for path in searched]
    assert main([*command, "--rows", "=routed"]) == 0
    assert [path.stat().st_mtime_ns for path in searched] == written
    assert [record["label"] for record in json.loads((tmp_path / "out/results.json").read_text())] == ["routed"] * 2


@pytest.mark.long
def test_a_kill_loses_nothing_that_is_finished_and_changes_no_result(toy, tmp_path, monkeypatch, capsys):
    assert call(tmp_path, "start") == 0
    whole = kept(tmp_path)
    for folder in ("kept", "work"):
        (tmp_path / folder).rename(tmp_path / f"whole-{folder}")
    (tmp_path / "kept").mkdir()
    save, count = Agent.save, 0

    def killed(*arguments, **options):
        nonlocal count
        count += 1
        if count == 6:  # four runs of the search, one epoch of the next run, and then
            raise KeyboardInterrupt
        return save(*arguments, **options)

    monkeypatch.setattr(Agent, "save", killed)
    assert call(tmp_path, "start") == 130
    assert "start it again, and it goes on" in capsys.readouterr().err and len(kept(tmp_path)) == 4
    monkeypatch.setattr(Agent, "save", save)
    assert call(tmp_path, "start") == 0
    halves = kept(tmp_path)
    assert halves.keys() == whole.keys()
    for name, record in halves.items():
        assert record["test_accuracy" if "/search/" not in name else "validation_accuracy"] is not None
        assert record["curve"]["train_loss"] == whole[name]["curve"]["train_loss"]


@pytest.mark.long
def test_what_diverges_is_not_chosen_and_not_tried_again(toy, tmp_path, monkeypatch, capsys):
    away = Change(env=("optimizer=sgd", "learning_rate=1e20"))
    search = Search(1, {"routed": (away, Change(agent=RATES[1:]))})
    settings = dataclasses.replace(SMALL, seeds=1, search=search)
    monkeypatch.setitem(reproduce.REPRODUCTIONS, "codinet", dataclasses.replace(toy, settings=(settings,)))
    assert call(tmp_path, "start") == 1 and "the loss is nan" in capsys.readouterr().out
    (routed,) = [record for record in kept(tmp_path).values() if record["seed"] == 0 and record["agent"] == "wpl"]
    assert routed["env_config"]["learning_rate"] == 0.001
    monkeypatch.setattr(queue, "perform", lambda *_: pytest.fail("all is finished"))
    assert call(tmp_path, "start") == 0


@pytest.mark.long
def test_records_are_known_by_what_was_asked(toy, tmp_path, capsys):
    assert call(tmp_path, "start") == 0
    file = tmp_path / "kept/codinet/small/main/frozen/seed-0/results.json.gz"
    (record,) = json.loads(gzip.decompress(file.read_bytes()))

    def write(**changes):
        options = {name: value for name, value in record["asked"]["env_options"].items() if name != "label_smoothing"}
        changed = {**record, "asked": {**record["asked"], "env_options": {**options, **changes}}}
        file.write_bytes(gzip.compress(json.dumps([changed]).encode()))

    capsys.readouterr()
    write()  # of a time that did not know the option: its default is what was done then
    assert call(tmp_path) == 0 and "8    8" in capsys.readouterr().out
    write(label_smoothing=0.1)
    assert call(tmp_path) == 2
    assert "its env_options label_smoothing is 0.1, asked for is 0.0" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:-9])
    assert call(tmp_path) == 2 and "cannot be read back" in capsys.readouterr().err


def test_a_changed_default_changes_no_run(toy, tmp_path, monkeypatch, capsys):
    base = TrainingSettings(device="cpu")

    def asked():
        pinning.known.cache_clear()
        return [run.asked for _, _, run in Plan(toy, SMALL, base, tmp_path).search()]

    assert call(tmp_path, "pin") == 0 and "options pinned" in capsys.readouterr().out
    before = asked()
    assert call(tmp_path, "pin") == 0 and "0 options pinned" in capsys.readouterr().out
    pins = (tmp_path / "pinned.toml").read_text()
    assert "action_type" not in pins and "autoreset_mode" not in pins  # which agents decide
    (tmp_path / "pinned.toml").write_text(pins.replace("rho = 0.0", "rho = 0.5"))
    changed = asked()
    assert [one["env_options"]["rho"] for one in changed] == [0.5] * 4 and changed != before


def test_rows_that_decide_come_first(toy, tmp_path):
    protocol = dataclasses.replace(SMALL, first=("routed",))
    plan = Plan(toy, protocol, TrainingSettings(device="cpu"), tmp_path)
    searched = [run for _, _, run in plan.search()]
    runs = [*searched, *plan.runs(chosen={"routed": Change(agent=(RATES[0],))})]
    turns = {"now": queue.Entry(toy, protocol, 1.0), "later": queue.Entry(toy, protocol, 1.0, later=True)}
    order = sorted(((turns[when].turn(run), when, run.title) for when in turns for run in runs), key=lambda one: one[0])
    of_one = [run.title for run in searched] + [
        f"small, {row}, seed {seed}" for row in ("routed", "frozen") for seed in (0, 1)
    ]
    assert [title for _, when, title in order if when == "now"] == of_one
    assert [when for _, when, _ in order] == ["now"] * len(runs) + ["later"] * len(runs)


def test_protocols_pin_every_option_and_decide_a_claim_of_their_paper():
    base = TrainingSettings(device="cpu")
    for entry in queue.entries():
        plan = Plan(entry.paper, entry.protocol, base, queue.QUEUE)
        searched = list(plan.search())
        runs = list(plan.runs(1, {row.label: choice for row, choice, _ in searched}))
        assert len(runs) == len(entry.protocol.rows), entry.name
        for run in [*runs, *(run for _, _, run in searched)]:
            given = parse_options("env_options", run.training.env_options).keys() | run.training.decided_by(run.agent)
            assert run.asked["env_options"].keys() <= given, entry.name
            assert run.asked["agent_options"].keys() == parse_options("agent_options", run.agent_options).keys()
        assert entry.protocol.seeds >= 3
        assert entry.protocol.decides in [claim.text for claim in entry.paper.judge([])], entry.name


BEST_FIRST = {
    "codinet two-cores": ("with both",),
    "codinet two-cores-margins": ("CoDiNet, margin of diversity 1", "CoDiNet, margin of diversity 0.75", "with both"),
    "diversity two-cores": ("convolutions, pooling, identity, k = 2",),
    "diversity two-cores-order": ("convolutions, pooling, identity, k = 2", "only convolutions", "only 5x5"),
    "multipath two-cores-hybrid": ("actor",),
    "routing-networks two-cores-fig4": ("routing-all-fc (WPL)",),
    "routing-networks two-cores-fig5": ("routing-all-fc (WPL)",),
    "routing-networks two-cores-fig12": ("WPL, ρ = 0.0",),
}
"""How rows begin that do best, in order, all others last; where it is not said, those that are routed."""
STATIC = ("shared", "shared-with-task", "random-fixed", "task-specific-all", "task-specific-last")


@pytest.mark.parametrize("entry", queue.entries(), ids=lambda entry: entry.name)
def test_what_a_protocol_decides_can_come_out_either_way(entry):
    """By made-up errors of the rows that come first: as the paper says, against it, and all alike."""
    plan = Plan(entry.paper, entry.protocol, TrainingSettings(device="cpu"), queue.QUEUE)
    labels, first = entry.protocol.rows, entry.protocol.first or entry.protocol.rows
    assert set(first) <= set(labels)
    chosen = {row.label: choice for row, choice, _ in plan.search()}
    runs = [run for run in plan.runs(chosen=chosen) if run.facts["label"] in first]
    best = BEST_FIRST.get(entry.name, ())

    def rank(run):
        """0 for what does best, 1 for what does worst."""
        if not best:
            return run.agent in STATIC
        return next((n for n, name in enumerate(best) if run.facts["label"].startswith(name)), len(best)) / len(best)

    def verdict(good, bad):
        records = []
        for run in runs:
            place, routed = labels.index(run.facts["label"]), run.agent not in STATIC
            error = good + (bad - good) * rank(run)
            error += 0.002 * np.random.default_rng([run.seed, place]).random()  # paired differences differ a little
            of_all = {
                "parameters": 10,
                "blocks_used": 1.0,
                "paths": 100 * (1 - error),
                "compared_paths": {"kl": place, "kept_rotated": place},
                "exits": [[[[1, 1]]]],
                "ways_out": [[0, 0]],
            }
            records.append({**run.facts, **of_all, "seed": run.seed, "agent": run.agent, "env": run.training.env,
                            "test_accuracy": 1 - error, "macs": 1e6 * (1 if routed else 10) * (1 + 0.1 * place),
                            "curve": {"validation_accuracy": [1 - error]}})  # fmt: skip
        claims = claims_of(entry.paper, entry.protocol, records)
        (claim,) = [claim for claim in claims if claim.text == entry.protocol.decides]
        return claim.verdict

    assert [verdict(0.1, 0.3), verdict(0.3, 0.1), verdict(0.2, 0.2)] == ["holds", "does not hold", "not enough"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["--records", "nowhere"], "there is no folder nowhere"),
        (["--only", "codinet large"], "--only: unknown name 'codinet large'"),
    ],
)
def test_wrong_options_are_refused(toy, text, message, tmp_path, capsys):
    (tmp_path / "here").mkdir()
    assert main(["queue", "--records", str(tmp_path / "here"), *text]) == 2
    assert message in capsys.readouterr().err


def test_what_is_later_begins_when_all_seeds_of_the_others_are_done(toy, tmp_path, monkeypatch):
    more = dataclasses.replace(SMALL, name="more")
    monkeypatch.setitem(reproduce.REPRODUCTIONS, "codinet", dataclasses.replace(toy, settings=(SMALL, more)))
    one = 'paper = "codinet"\nhours = 1.0\nsettings ='
    queue.QUEUE.write_text(f'[[later]]\n{one} "more"\n[[protocol]]\n{one} "small"\n')
    begun = []
    monkeypatch.setattr(queue, "perform", lambda runs, *_: begun.append(runs[0].title) or ["failed"])
    assert call(tmp_path, "start") == 1
    assert [title.partition(",")[0] for title in begun] == ["small"] * 6 + ["more"] * 6


def test_a_way_of_training_is_no_protocol(toy, tmp_path):
    queue.QUEUE.write_text('[[protocol]]\npaper = "multipath"\nsettings = "paper"\nhours = 1.0\n')
    with pytest.raises(UsageError, match="paper of multipath is no protocol"):
        queue.entries()
