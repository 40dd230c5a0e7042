"""The table of the suite's problems: every one can be made at every difficulty, and says nothing that is unknown."""

import itertools

import gymnasium
import pytest

from routing_gym import evaluate
from routing_gym.agents import make_agent, needs
from routing_gym.envs.make import known_options
from routing_gym.experiments.engine.metrics import METRICS
from routing_gym.experiments.suite.problems import DIFFICULTIES, PROBLEMS
from routing_gym.registration import ENV_IDS

NAMES = "hidden-groups compositions clusters credit crowd noise drift budget late-task imbalance".split()


def test_there_are_ten_problems_of_different_abilities():
    assert [name for name, problem in PROBLEMS.items() if not problem.download] == NAMES
    assert len({problem.ability for problem in PROBLEMS.values()}) == 10


@pytest.mark.parametrize("name", PROBLEMS)
def test_options_and_metrics_are_known_and_knobs_sorted(name):
    problem = PROBLEMS[name]
    known = known_options(ENV_IDS[problem.env]["dataset"], ENV_IDS[problem.env]["network"])
    assert {*problem.knobs, *problem.options, *problem.oracle_options} <= known
    assert not set(problem.knobs) & set(problem.options)
    assert METRICS[problem.scored].better is not None
    assert problem.passes % problem.judgements == 0
    for values in problem.knobs.values():
        assert len(set(values)) == 3 and list(values) in (sorted(values), sorted(values, reverse=True))
    assert problem.options_at("hard") == {**problem.options, **{knob: at[2] for knob, at in problem.knobs.items()}}
    # What changes in mid-training is said in shares of it.
    if {"drift_at", "late_at"} & set(problem.knobs):
        assert problem.options["passes"] == problem.passes


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_made_and_its_oracle_routes_it(name, difficulty):
    problem = PROBLEMS[name]
    options = {**problem.options_at(difficulty), **problem.oracle_options, **needs("oracle")}
    env = gymnasium.make_vec(problem.env, num_envs=problem.batch_size, **options)
    agent = make_agent("oracle", env)
    agent.learn(env, 1)
    assert set(env.unwrapped.datasets) == {"train", "validation", "test"}
    # Whoever is not told routes over the same blocks.
    untold = gymnasium.make_vec(problem.env, num_envs=4, **problem.options_at(difficulty), **needs("random"))
    ours, theirs = ([decision.n for decision in e.unwrapped.network.decisions] for e in (env, untold))
    assert ours == theirs
    # Batches are whole, or nearly: an epoch is no longer than a pass by more than a fifth.
    assert env.unwrapped.trainer.optimization.epoch <= 1.2 * env.unwrapped.dataset.rows_per_pass


@pytest.mark.slow
def test_of_all_pairs_of_exits_that_of_the_oracle_of_budget_costs_least():
    problem, exits = PROBLEMS["budget"], ([0, 0], [1, 0], [1, 1])
    cost = {}
    for easy, hard in itertools.product(range(3), repeat=2):
        for seed in range(3):
            options = {**problem.options_at("default"), **problem.oracle_options, "data_seed": seed}
            env = gymnasium.make_vec(problem.env, num_envs=problem.batch_size, seed=seed, **options)
            agent = make_agent("fixed-routes", env, routes=[exits[easy], exits[hard]])
            agent.learn(env, env.unwrapped.trainer.optimization.epoch * problem.passes)
            found = evaluate(agent, env)
            for price in problem.knobs["k_cpt"]:  # the blocks do not know it
                cost[price, seed, easy, hard] = found.cost(price)
    for price in problem.knobs["k_cpt"]:
        mean = {
            (e, h): sum(cost[price, seed, e, h] for seed in range(3)) for e, h in itertools.product(range(3), repeat=2)
        }
        assert min(mean, key=mean.__getitem__) == (0, 2)
