"""The suite: scores, standings, the oracle that may not be beaten, holes, and the command from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest

from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.statistics import iqm
from routing_gym.experiments.suite import leaderboard, suite
from routing_gym.experiments.suite.leaderboard import told_iqm
from routing_gym.experiments.suite.problems import Problem
from routing_gym.experiments.suite.scoring import Scale, broken, improvement, scale_of, score_of, standings
from routing_gym.experiments.suite.suite import Entrant, read_all, write_all


def scale(problem="credit", difficulty="default", scored="accuracy", oracle=(0.9, 0.9), random=(0.5, 0.7), macs=100.0):
    return Scale(
        problem, difficulty, scored, dict(enumerate(oracle)), dict(enumerate(random)), macs, "routing_gym/Credit-v0", {}
    )


def scored(agent, value, seed=0, problem="credit", difficulty="default", more_macs=False, **more):
    score = (value - 0.6) / 0.3
    of_run = {"alignment": 0.5, "alignments": [0.5], "effective_blocks": 2.0, "settled": 0.5, "macs": 100.0}
    of_run |= {"epochs": 3, "seconds": 1.5, "parameters": 10, "commit": "abc", "torch": "2", "processor": "a processor"}
    return {
        **{"agent": agent, "problem": problem, "difficulty": difficulty, "seed": seed, "scored": "accuracy"},
        **{"value": value, "accuracy": value, "oracle": 0.9, "random": 0.6, "score": score, "more_macs": more_macs},
        **{"env": "routing_gym/Credit-v0", "agent_options": {}, **of_run, **more},
    }


def record(value, seed=0, data_seed=0, macs=100.0, router_macs=0.0):
    return {
        **{"label": "wpl", "seed": seed, "env": "routing_gym/Credit-v0", "epochs": 4, "seconds": 2.0, "settled": 2},
        **{"test_accuracy": value, "cost": -value, "macs": macs, "router_macs": router_macs, "alignment": 1.0},
        **{"alignments": [1.0], "effective_blocks": 1.0, "parameters": 5},
        **{"commit": "abc", "torch": "2", "processor": "a processor"},
        "asked": {
            "split": "test",
            "env_options": {"data_seed": data_seed, "depth": 4},
            "agent_options": {"gamma": 1.0},
        },
    }


def test_a_score_is_0_at_random_frozen_paths_and_1_at_the_oracle():
    problem = Problem("routing_gym/Credit-v0", "credit", {"depth": (2, 4, 8)}, 10)
    oracle = [record(value, seed, seed) for seed, value in enumerate((0.8, 1.0))]
    random = [record(value, 1000 + seed, seed) for seed, value in enumerate((0.4, 0.2))]
    found = scale_of("credit", "default", problem, oracle, random)
    assert found.ends == pytest.approx((0.3, 0.9)) and found.env_options == {"depth": 4}
    assert (found.oracle, found.random, found.macs) == ({0: 0.8, 1: 1.0}, {0: 0.4, 1: 0.2}, 100.0)
    score = score_of(record(0.75), found)
    assert score["score"] == pytest.approx(0.75) and score["accuracy"] == score["value"] == 0.75
    assert (score["random"], score["oracle"]) == pytest.approx((0.3, 0.9))
    assert score["settled"] == 0.25 and not score["more_macs"]
    assert score_of(record(0.3), found)["score"] == pytest.approx(0) and score_of(record(0.9), found)["score"] == 1


def test_less_is_better_of_costs():
    problem = Problem("routing_gym/Budget-v0", "budget", {"k_cpt": (1, 2, 3)}, 10, scored="cost")
    found = scale_of("budget", "default", problem, [record(0.9)], [record(0.5)])
    assert score_of(record(0.7), found)["score"] == pytest.approx(0.5)
    assert found.ahead({0: -0.9}, {0: -0.5}).mean == pytest.approx(0.4)


def test_who_spends_more_than_the_oracle_is_marked_and_a_router_does_not_count():
    found = scale(macs=100.0)
    assert score_of(record(0.9, macs=103.0), found)["more_macs"]
    assert not score_of(record(0.9, macs=130.0, router_macs=30.0), found)["more_macs"]


def test_standings_by_hand():
    scores = [scored("a", value, seed) for seed, value in enumerate((0.9, 0.9, 0.6, 0.9))]
    scores += [scored("b", value, seed) for seed, value in enumerate((0.6, 0.9, 0.6, 0.6))]
    scores += [scored(agent, 0.75, seed, "clusters") for agent in "ab" for seed in range(4)]
    a, b = standings(scores)
    assert (a.agent, b.agent) == ("a", "b")
    assert a.iqm == pytest.approx(iqm([[1, 0.5], [1, 0.5], [0, 0.5], [1, 0.5]]))
    assert (a.rank, b.rank) == (1.0, 1.5)  # equal on one of two problems
    assert a.seconds == 3.0
    # Of 4 x 4 pairs of runs: 9 better, 1 better as (1, 1) is equal ...; counted by hand below.
    pairs = [np.sign(x - y) for x in (1, 1, 0, 1) for y in (0, 1, 0, 0)]
    assert improvement(a, b) == pytest.approx((np.mean([(sign + 1) / 2 for sign in pairs]) + 0.5) / 2)


def test_a_hole_is_no_zero():
    scores = [scored(agent, 0.8, seed) for agent in ("whole", "part") for seed in range(3)]
    scores += [scored("whole", 0.5, seed, "clusters") for seed in range(3)]
    whole, part = standings(scores)
    assert (whole.agent, part.agent) == ("whole", "part") and "clusters" not in part.scores
    assert part.iqm == pytest.approx(2 / 3) and leaderboard.cell(part, "clusters") == "–"
    assert improvement(part, whole) == pytest.approx(0.5)
    *_, holes = leaderboard.parts_of(
        [scale(), scale("clusters")],
        scores,
        [{"agent": "part", "problem": "clusters", "difficulty": "default", "reason": "no"}],
    )
    assert "| part | clusters | default | no |" in holes.markdown()


def test_an_oracle_that_is_beaten_is_a_bug_of_the_problem():
    rng = np.random.default_rng(0)
    best = dict(enumerate(0.8 + 0.01 * rng.normal(size=10)))
    of = scale(oracle=list(best.values()))
    better = [scored("wpl", value + 0.05 + 0.005 * rng.normal(), seed) for seed, value in best.items()]
    noise = [scored("wpl", value + 0.01 * rng.normal(), seed) for seed, value in best.items()]
    (line,) = broken([of], better)
    assert "wpl beats the oracle of credit (default) by 0.0" in line and "10 seeds" in line
    assert broken([of], noise) == []
    assert broken([of], [{**score, "more_macs": True} for score in better]) == []
    assert broken([of], [{**score, "agent": "oracle"} for score in better]) == []
    assert line in leaderboard.parts_of([of], better, [])[1].note


@pytest.mark.parametrize(("oracle", "random"), [((0.5,), (0.6,)), ((0.6,), (0.6,))])
def test_an_oracle_below_random_frozen_paths_scores_nobody(oracle, random, tmp_path, capsys):
    fallen = scale(oracle=oracle, random=random)
    assert not fallen.upright and scale().upright
    (line,) = broken([fallen], [])
    assert "the oracle of credit (default) is not above random frozen paths" in line
    write_all(tmp_path, [fallen], [], [])
    assert main(["suite", "--scores", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "nobody has a score there" in " ".join(capsys.readouterr().out.split())


def test_files_are_read_back_compressed_or_not(tmp_path):
    import gzip

    scales, scores, holes = (
        [scale()],
        [scored("a", 0.7)],
        [{"agent": "b", "problem": "p", "difficulty": "d", "reason": ""}],
    )
    write_all(tmp_path, scales, scores, holes)
    assert read_all(tmp_path) == (scales, scores, holes)
    for path in [*tmp_path.glob("*.json")]:
        path.with_suffix(".json.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_all(tmp_path) == (scales, scores, holes)


@pytest.fixture
def quick(monkeypatch):
    """Few draws and small problems."""
    monkeypatch.setattr(suite, "DRAWS", 2)


def run(tmp_path, *more, agents=("reinforce(entropy=0.2)", "shared"), seeds=2):
    command = ["suite", "--agents", *agents, "--problems", "credit", "--seeds", str(seeds), "--passes", "2"]
    return main([*command, "--out", str(tmp_path), *more])


def test_the_command_from_end_to_end(tmp_path, quick, capsys):
    assert run(tmp_path) == 0
    said = capsys.readouterr()
    assert "reinforce(entropy=0.2)" in said.out and "credit, shared, seed 1: 8 of 8" in said.err + said.out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [(of["agent"], of["problem"], of["seed"]) for of in scores] == [
        (agent, "credit", seed) for agent in ("reinforce(entropy=0.2)", "shared") for seed in (0, 1)
    ]
    for of in scores:
        assert of["score"] == pytest.approx((of["accuracy"] - of["random"]) / (of["oracle"] - of["random"]))
        assert -1 <= of["alignment"] <= 1 and len(of["alignments"]) == 4
    assert scores[0]["agent_options"]["entropy"] == 0.2 and scores[2]["alignment"] == 0
    (found,) = json.loads((tmp_path / "scales.json").read_text())
    assert (
        found["oracle"].keys() == {"0", "1"} == found["random"].keys() and np.mean(list(found["oracle"].values())) == 1
    )
    page = (tmp_path / "leaderboard.md").read_text()
    assert "| depth=4 | 2 (100) |" in page  # what it was trained, not what the problem has by itself
    assert "| reinforce(entropy=0.2) |" in page and (tmp_path / "profiles.png").exists()

    # Called again it goes on: what is there is not run again, another agent and seed join.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("credit/*/*/seed-*/results.json")}
    assert len(before) == 8
    assert run(tmp_path, agents=("reinforce(entropy=0.2)", "shared", "random-fixed"), seeds=3) == 0
    assert before.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.glob("credit/*/*/seed-*/results.json")}.items()
    again = json.loads((tmp_path / "scores.json").read_text())
    assert len(again) == 9 and {of["agent"] for of in again} > {of["agent"] for of in scores}

    # Shown from its files alone.
    shown = tmp_path / "shown"
    assert main(["suite", "--scores", str(tmp_path), "--out", str(shown)]) == 0
    assert (shown / "leaderboard.md").read_text() == (tmp_path / "leaderboard.md").read_text()


def test_the_best_setting_is_written_down_and_used(tmp_path, quick):
    settings = ("reinforce(learning_rate=1e-9)", "reinforce(learning_rate=0.3,entropy=0.1)")
    assert run(tmp_path / "tune", "--passes", "8", "--first-seed", "100", agents=(*settings, "shared")) == 0
    (path,) = (tmp_path / "tune" / "tuned").glob("*/*.toml")
    text = path.read_text()
    assert path.parts[-2:] == ("suite", "reinforce.toml") and "seeds 100 to 101: credit" in text
    assert "learning_rate = 0.3\n" in text and "entropy = 0.1\n" in text
    tuned = ("--tuned", "--tuned-dir", str(tmp_path / "tune" / "tuned"))
    assert run(tmp_path / "then", *tuned, agents=("reinforce", "shared"), seeds=1) == 0
    first, _ = json.loads((tmp_path / "then" / "scores.json").read_text())
    assert (first["agent_options"]["learning_rate"], first["agent_options"]["entropy"]) == (0.3, 0.1)


def test_every_seed_has_data_of_its_own_and_the_zero_draws_of_its_own(tmp_path):
    command = suite.Suite(agents=("shared",), problems=("credit",), seeds=3, first_seed=5, out=tmp_path)
    oracle, random = command._floors(("credit", "default"))

    def data_seed(run):
        return run.asked["env_options"]["data_seed"]

    assert [(run.seed, data_seed(run)) for run in oracle] == [(5, 5), (6, 6), (7, 7)]
    assert [(run.seed, data_seed(run)) for run in random] == [(1000 + k, 5 + k) for k in range(10)]
    assert data_seed(command._run(("credit", "default"), Entrant.of("shared"), 6)) == 6


def test_what_cannot_run_is_a_hole_with_its_reason(tmp_path, quick, capsys):
    command = ["suite", "--agents", "shared", "shared-with-task", "--seeds", "1", "--passes", "1"]
    command += ["--problems", "credit", "hidden-groups", "--out", str(tmp_path)]
    assert main(command) == 0
    holes = json.loads((tmp_path / "holes.json").read_text())
    for hole in holes:
        assert (hole["agent"], hole["problem"]) == ("shared-with-task", "credit") and "task_input" in hole["reason"]
    assert holes and {of["agent"] for of in json.loads((tmp_path / "scores.json").read_text())} >= {"shared"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agents", "nobody"], "--agents: unknown agent 'nobody'; known are actor"),
        (["--agents", "reinforce(entropy=0.2"], "got 'reinforce(entropy=0.2'"),
        (["--agents", "reinforce(entropi=0.2)"], "entropi"),
        (["--agents", "shared", "shared"], "--agents names 'shared' twice"),
        (["--agents", "reinforce(equal=macs)"], "for agents with fixed routes, got 'reinforce(equal=macs)'"),
        (["--agents", "shared(equal=time)"], "equal=parameters or equal=macs"),
        (["--agents", "shared(equal=macs)"], "shared(equal=macs) can run none of these problems: --equal searches"),
        (["--problems", "nothing"], "--problems: unknown name 'nothing'; known are hidden-groups"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--passes", "0"], "--passes must be at least 1"),
        (["--first-seed", "-1"], "--first-seed must lie in"),
        (["--first-seed", "998"], "--first-seed must lie in [0, 995], since random frozen paths have seeds from 1000"),
        (["--agents", "reinforce(entropy=0.2,entropy=0.3)"], "--agents names 'entropy' twice"),
        (["--agents", "reinforce(entropy)"], "--agents takes NAME=VALUE, got 'entropy'"),
        (["--agent-options", "wpl.gamma=1"], "--agent-options takes AGENT.NAME=VALUE"),
        (["--agents", "oracle", "--agent-options", "oracle.block_lr=0.1"], "--agents 'oracle(block_lr=0.1)'"),
        (["--scores", "nowhere"], "--scores nowhere is no folder: name one that suite has written"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    default = {"--agents": "shared", "--problems": "credit", "--out": "out"}
    others = [text for flag, value in default.items() if flag not in arguments for text in (flag, value)]
    assert main(["suite", *others, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path("out").glob("**/results.json"))


def test_fixed_agents_at_equal_cost(tmp_path, quick):
    """A block per task in a narrow network costs no more parameters than few blocks in a wide one."""
    label = "task-specific-last(equal=parameters)"
    command = suite.Suite(problems=("hidden-groups",), seeds=2, out=tmp_path)
    runs = command._runs(("hidden-groups", "default"), Entrant.of(label))
    cost = [sum(p.numel() for p in run.make().env.network.parameters()) for run in runs]
    plain = command._run(("hidden-groups", "default"), Entrant.of("random-fixed"), 0).make()
    most = sum(p.numel() for p in plain.env.network.parameters())
    assert cost[0] == cost[1] <= most and cost[0] > 0.9 * most
    assert {run.asked["env_options"]["num_blocks"] == [1, 24] for run in runs} == {True}
    assert [run.asked["env_options"]["data_seed"] for run in runs] == [0, 1]


def test_spaces_between_options_do_not_matter():
    assert Entrant.of("reinforce( entropy = 0.2, gamma=0.9 )").options == ("entropy=0.2", "gamma=0.9")


def test_data_that_need_no_download_do_not_ask_where_it_lies(tmp_path, quick):
    assert run(tmp_path, "--data-dir", str(tmp_path / "nowhere"), agents=("shared",), seeds=1) == 0


def test_who_is_not_asked_for_is_told(tmp_path, quick, capsys):
    assert run(tmp_path, agents=("shared",), seeds=1) == 0
    assert "Not shown" not in capsys.readouterr().out
    assert run(tmp_path, agents=("random",), seeds=1) == 0
    assert "Not shown, since they were not asked for, are runs of shared" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("broken", ['[{"a": 1}]', "[]", "{", '[{"problem": "other"}]'])
@pytest.mark.parametrize("name", ["scores.json", "scales.json"])
def test_damaged_scores_are_named(name, broken, tmp_path, capsys):
    write_all(tmp_path, [scale()], [scored("a", 0.7)], [])
    (tmp_path / name).write_text(broken)
    status = main(["suite", "--scores", str(tmp_path), "--out", str(tmp_path / "out")])
    if (name, broken) == ("scores.json", "[]"):
        assert status == 0  # nobody has scored yet
    else:
        assert status == 2 and f"{name} cannot be read back" in capsys.readouterr().err


SCALES = [{"scored": "luck"}, {"difficulty": "odd"}, {"env": 5}, {"macs": float("nan")}, {"oracle": {}}]
SCALES += [{"random": {"0": None}}, {"random": {"0": float("inf")}}, {"env_options": 3}, {"more": 1}]


@pytest.mark.parametrize("wrong", SCALES)
def test_scales_of_another_form_are_named(wrong, tmp_path, capsys):
    write_all(tmp_path, [scale()], [], [])
    written = json.loads((tmp_path / "scales.json").read_text())
    (tmp_path / "scales.json").write_text(json.dumps([{**written[0], **wrong}]))
    assert main(["suite", "--scores", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "scales.json cannot be read back (scale" in said and said.count("\n") == 1


SCORES = [{"scored": "luck"}, {"difficulty": "odd"}, {"value": float("nan")}, {"score": 10**400}, {"alignment": "x"}]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [*(("scores", wrong) for wrong in SCORES), ("holes", {"agent": "b"}), ("holes", {"reason": 3, "problem": "p"})],
)
def test_scores_and_holes_of_another_form_are_named(name, wrong, tmp_path, capsys):
    write_all(tmp_path, [scale()], [scored("a", 0.7)], [])
    written = json.loads((tmp_path / f"{name}.json").read_text()) or [{}]
    (tmp_path / f"{name}.json").write_text(json.dumps([{**written[0], **wrong}]))
    assert main(["suite", "--scores", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"{name}.json cannot be read back ({name[:-1]}" in said and said.count("\n") == 1


def test_scores_that_do_not_tell_how_routes_settle_are_shown(tmp_path):
    score = scored("a", 0.7)
    del score["alignment"], score["settled"]
    write_all(tmp_path, [scale()], [score], [])
    assert main(["suite", "--scores", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "| a | – | 2.00 | – |" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_a_run_is_repeated_by_its_configuration_where_data_decide_the_depth(tmp_path):
    for env in ("routing_gym/Credit-v0", "routing_gym/Compositions-v0"):
        first, again = tmp_path / env[-8:] / "first", tmp_path / env[-8:] / "again"
        assert main(["train", "--env", env, "--agent", "oracle", "--epochs", "1", "--out", str(first)]) == 0
        assert main(["train", "--config", str(first / "config.toml"), "--out", str(again)]) == 0
        one, two = (json.loads((folder / "results.json").read_text())[0] for folder in (first, again))
        assert (one["test_accuracy"], one["macs"]) == (two["test_accuracy"], two["macs"])
        assert one["asked"]["env_options"]["layers"] == len(one["decisions"])


def test_options_of_an_entrant_may_hold_lists():
    entrant = Entrant.of("fixed-routes(routes=[[0,0],[1,1]],seed_=2)")
    assert entrant == Entrant(
        "fixed-routes(routes=[[0,0],[1,1]],seed_=2)", "fixed-routes", ("routes=[[0,0],[1,1]]", "seed_=2")
    )


def test_who_can_run_nothing_keeps_nobody_from_running(tmp_path, quick, capsys):
    agents, out = ["shared", "cross-stitch", "actor"], tmp_path / "out"
    short = ["--seeds", "1", "--passes", "1", "--problems", "credit", "hidden-groups"]
    assert main(["suite", *short, "--agents", *agents, "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("actor cannot run") == said.count("actor cannot run credit, hidden-groups: ") == 1
    holes = {(hole["agent"], hole["problem"]) for hole in json.loads((out / "holes.json").read_text())}
    assert holes == {(agent, problem) for agent in agents[1:] for problem in ("credit", "hidden-groups")}
    assert {score["agent"] for score in json.loads((out / "scores.json").read_text())} == {"shared"}


def test_no_seed_in_common_is_no_reason_to_have_no_leaderboard(tmp_path, quick, capsys):
    values = [("flaky", 0.3, 0, "credit"), ("flaky", 0.4, 1, "budget"), ("shared", 0.5, 0, "credit"),
              ("shared", 0.6, 0, "budget")]  # fmt: skip
    scores = [scored(agent, value, seed, problem) for agent, value, seed, problem in values]
    shared, flaky = standings(scores)
    assert (shared.agent, flaky.agent) == ("shared", "flaky") and np.isnan(flaky.iqm) and flaky.interval is None
    assert told_iqm(flaky, ["credit", "budget"]) == "–" and told_iqm(shared, ["credit", "budget"])[:1] != "–"
    assert improvement(flaky, shared) is None
    two, three = (standings([scored("shared", value, seed, "credit") for seed, value in enumerate((0.5, 0.6, 0.8)[:n])])
                  for n in (2, 3))  # fmt: skip
    assert two[0].interval is None and three[0].interval is not None  # of two the bootstrap gives the two


def test_a_damaged_checkpoint_is_a_failure_and_no_hole(tmp_path, quick, capsys):
    assert run(tmp_path, agents=("shared",)) == 0
    folder = tmp_path / "credit" / "default" / "shared" / "seed-0"
    (folder / "results.json").unlink()
    (folder / "checkpoint.pt").write_bytes(b"")
    assert run(tmp_path, agents=("shared",)) == 1
    assert "is not a checkpoint" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "holes.json").read_text()) == []
