"""The one way through a network: what it computes, what it does not, and that nothing goes round it."""

import ast
from pathlib import Path

import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import FlattenObservation
from toys import TREE, ExitTree, Gates, RunSkip, small_env, toy_env

import routing_gym
from routing_gym.agents import make_agent
from routing_gym.envs import Seen, ToNumpy, along, drive, rollout, take_turn
from routing_gym.networks import RoutedMLP
from routing_gym.testing import legal_actions

ROOT = Path(__file__).parents[2]
NETWORKS = [lambda: ExitTree(TREE), lambda: Gates(3), RunSkip, lambda: RoutedMLP((1, 2, 3), 3, 3, width=4)]


def calls_of(name):
    """Where the product calls a method of this name."""
    for folder in ("routing_gym", "agents", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.relative_to(ROOT).parts[1] in ("agents", "experiments"):
                continue  # links
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
                    owner = node.func.value
                    if not (isinstance(owner, ast.Attribute) and owner.attr == "bars"):  # a progress bar's
                        yield str(path.relative_to(ROOT))


def test_only_a_turn_advances():
    assert list(calls_of("advance")) == ["routing_gym/envs/turns.py"]
    assert set(calls_of("follow")) <= {
        "routing_gym/envs/batch.py",  # whole routes, beside the turns they stand for
        "routing_gym/networks/route.py",
        "agents/trained/reshape.py",  # one task's route
        "agents/annealed_em.py",  # whole routes that are tried out, beside the turns they stand for
    }


@pytest.mark.parametrize("make", NETWORKS)
def test_turns_are_those_of_the_states(make):
    torch.manual_seed(0)
    network = make()
    images, task = torch.randn(5, *(network.input_shape or (1, 2, 3))), torch.zeros(5, dtype=torch.int64)
    state = network.start(images, task, price=torch.full((5,), 2.0))
    by_hand, numbers = state, torch.Generator().manual_seed(1)

    def decide(seen):
        assert torch.equal(seen.decision, by_hand.at) and seen.sole == by_hand.sole
        assert torch.equal(seen["activation"], network.observe(by_hand)) and "price" not in seen
        assert torch.equal(seen.mask, network.action_mask(by_hand))
        assert torch.equal(seen.choosing, network.choosing(by_hand)) and torch.equal(seen.reach, by_hand.reach)
        return (torch.rand(seen.mask.shape, generator=numbers) * seen.mask).argmax(-1)

    for turn in drive(network, state, decide):
        after = network.advance(by_hand, turn.action)
        assert torch.equal(turn.macs, after.macs - by_hand.macs) and torch.equal(turn.seen.active, by_hand.active)
        assert len(turn.exits) == len(after.exits)
        with pytest.raises(LookupError, match="has gone on"):
            _ = turn.seen.state
        by_hand = after
    assert not by_hand.waiting


def test_what_nobody_looks_at_is_not_computed():
    for name, looks in (("wpl", False), ("random", False), ("reinforce", True)):
        env = toy_env(ExitTree(TREE), 6, autoreset_mode="disabled")
        agent = make_agent(name, env, **({"representation": "mlp"} if looks else {}))
        agent.plan = lambda task, deterministic: None  # asked at every decision
        describe, looked = env.network.describe, []

        def watched(number, activation, describe=describe, looked=looked):
            looked.append(number)
            return describe(number, activation)

        env.network.describe = watched
        batch = rollout(agent, env)
        assert bool(looked) == looks and all(("activation" in step.observation) == looks for step in batch.steps)


def test_what_was_seen_in_time_can_be_seen_afterwards():
    env = toy_env(ExitTree(TREE), 4, autoreset_mode="disabled")
    batch = env.begin()
    first = env.network.observe(batch.state)
    turn, _ = batch.take(lambda seen: seen["activation"].argmax(1) * 0)
    assert torch.equal(turn.seen["activation"], first) and set(turn.seen) == {"activation", "task", "depth"}
    turn, _ = batch.take(lambda seen: torch.zeros(4, dtype=torch.int64))
    assert set(turn.seen) == {"task", "depth"} and len(turn.seen) == 2
    with pytest.raises(KeyError):
        turn.seen["activation"]


def test_the_sole_decision_is_known_on_the_host():
    env = small_env()
    soles = []

    class Asks:
        def act(self, observation, context):
            soles.append(context.sole)
            return torch.zeros_like(observation["task"])

    rollout(Asks(), env)
    assert soles == [0, 1]
    spread = toy_env(ExitTree(TREE), 8, autoreset_mode="disabled")
    soles.clear()
    rollout(type("Some", (Asks,), {"act": lambda self, o, c: Asks.act(self, o, c) + (o["task"] > 0)})(), spread)
    assert soles[0] == 0 and soles[-1] is None


@pytest.mark.parametrize("make", NETWORKS)
def test_a_refused_action_leaves_a_batch_where_it_was(make):
    env = toy_env(make(), 4, autoreset_mode="disabled")
    batch = env.begin()
    state = batch.state
    with pytest.raises(ValueError, match="choices must lie in"):
        batch.take(lambda seen: torch.full(seen.choosing.shape, 99))
    assert batch.state is state
    with pytest.raises(ValueError, match="written into its observation, 'activation'"):
        take_turn(env.network, state, lambda seen: seen["activation"].zero_().sum(1).long())


def test_routes_known_beforehand_go_at_once_and_step_by_step():
    torch.manual_seed(0)
    plan, runs = torch.randint(3, (12, 2, 1)), []
    for at_once in (True, False):
        env = small_env(seed=3)
        batch = env.begin(torch.arange(12))
        turns = list(batch.follow(plan[..., 0]) if at_once else batch.drive(along(plan)))
        env.train_blocks()
        assert [turn.seen.sole for turn, _ in turns] == [0, 1]
        runs.append((turns, batch, [p.clone() for p in env.network.parameters()]))
    (ours, batch, blocks), (theirs, other, same) = runs
    for (mine, _), (slow, _) in zip(ours, theirs, strict=True):
        assert torch.equal(mine.action, slow.action) and torch.equal(mine.macs, slow.macs)
        assert torch.equal(mine.seen.decision, slow.seen.decision) and torch.equal(mine.seen.active, slow.seen.active)
        assert torch.equal(mine.seen.choosing, slow.seen.choosing) and torch.equal(mine.seen.reach, slow.seen.reach)
    torch.testing.assert_close(batch.loss, other.loss)
    torch.testing.assert_close(blocks, same)


def test_watchers_see_every_turn_whoever_drives():
    env = small_env()
    turns = []
    env.watchers.append(turns.append)
    make_agent("random-fixed", env).learn(env, 24)
    assert len(turns) == 4 and all(isinstance(turn.seen, Seen) for turn in turns)
    env.reset()
    env.step(torch.zeros(12, dtype=torch.int64))
    assert len(turns) == 5 and turns[-1].macs.shape == (12,)


def test_next_step_restarts_rows_one_step_later():
    """As Gymnasium's own vector environments do: the step after the last one ignores its action and begins anew."""
    env = toy_env(ExitTree(TREE), 3, autoreset_mode="next_step", replay_batch=4)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.reset(seed=0, options={"instances": [0, 1, 2]})
    first = env.state.instance.clone()
    observation, _, left, _, infos = env.step(torch.tensor([0, 1, 1]))
    assert left.tolist() == [True, False, False] and "final_obs" not in infos
    assert int(observation["depth"][0]) == len(env.network.decisions) and torch.equal(env.state.instance, first)
    observation, reward, left, _, infos = env.step(torch.tensor([2, 0, 0]))  # the 2 is ignored
    assert int(observation["depth"][0]) == 0 and not left[0] and float(reward[0]) == 0 and not infos["_loss"][0]
    steps = env.trainer.instances
    for number in range(12):
        env.step(legal_actions(env, torch.Generator().manual_seed(number)))
    assert env.trainer.instances > steps and not env.network.training


def test_gymnasiums_observation_wrappers_take_next_step():
    env = FlattenObservation(ToNumpy(routing_gym.envs.make_routing_vector_env(
        dataset="synthetic", num_envs=4, autoreset_mode="next_step"
    )))  # fmt: skip
    observation, _ = env.reset(seed=0)
    assert observation.shape == (4, *env.single_observation_space.shape)
    for _ in range(5):
        observation, *_ = env.step(env.action_space.sample())
    assert observation.dtype == env.observation_space.dtype


@pytest.mark.parametrize(
    "options", [{}, {"autoreset_mode": "next_step"}, {"autoreset_mode": "disabled", "replay": True}]
)
def test_after_an_agent_of_ours_all_rows_have_to_begin_anew(options):
    env = toy_env(ExitTree(TREE), 4, replay_batch=4, **options)
    make_agent("random", env).learn(env, 4)
    with pytest.raises(ResetNeeded, match="reset all rows, without reset_mask"):
        env.reset(options={"reset_mask": torch.ones(4, dtype=torch.bool)})
    env.reset(seed=0)
    for number in range(8):
        if not env.state.waiting and env.autoreset_mode is AutoresetMode.DISABLED:
            env.reset()
        env.step(legal_actions(env, torch.Generator().manual_seed(number)))
    assert env.trainer.instances > 4


def test_watchers_may_come_and_go_at_any_time():
    env, turns = toy_env(ExitTree(TREE), 4), []
    env.reset(seed=0)
    env.watchers.append(turns.append)
    env.step(torch.zeros(4, dtype=torch.int64))
    env.watchers.remove(turns.append)
    env.step(torch.zeros(4, dtype=torch.int64))
    assert len(turns) == 1


@pytest.mark.parametrize("plan", [torch.zeros(12, 2), torch.zeros(12, 2, dtype=torch.bool), [[0, 0]] * 12])
def test_a_plan_that_is_none_is_refused(plan):
    class Planner:
        def plan(self, task, deterministic):
            return plan

    with pytest.raises(ValueError, match="a plan is a tensor of integers, or None, got"):
        rollout(Planner(), small_env())


def test_where_all_rows_begin_anew_actions_are_looked_at_too():
    env = toy_env(ExitTree([[1], []]), 2, autoreset_mode="next_step")
    env.reset(seed=0)
    _, _, left, _, _ = env.step(torch.zeros(2, dtype=torch.int64))
    assert left.all()
    with pytest.raises(ValueError, match="shape"):
        env.step(torch.zeros(3, dtype=torch.int64))
    observation, reward, left, _, _ = env.step(torch.zeros(2, dtype=torch.int64))
    assert not left.any() and reward.tolist() == [0, 0] and observation["depth"].tolist() == [0, 0]
