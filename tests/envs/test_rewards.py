"""Rewards as named terms: of one action, of leaving, and what is refused about them."""

import gymnasium
import pytest
import torch
from toys import TREE, ExitTree, Gates, toy_env

import routing_gym
from routing_gym.agents import make_agent
from routing_gym.envs import REWARDS, rollout
from routing_gym.networks import NotFiniteError


@pytest.fixture(autouse=True)
def registered():
    """Whatever a test registers is forgotten after it."""
    known = dict(REWARDS)
    yield
    REWARDS.clear()
    REWARDS.update(known)


def test_a_term_of_the_action_sees_what_the_action_costs():
    seen = []

    def cheap(macs, task, depth, price, action, reach):
        seen.append((macs, task, depth, price, action, reach))
        return -macs / 100 - depth

    routing_gym.register_reward("cheap", cheap, at="action")
    env = toy_env(ExitTree(TREE), 6, rewards=("cheap",), k_cpt=1e-3, autoreset_mode="disabled")
    batch = rollout(make_agent("random", env), env)
    spent = torch.zeros(6)
    for step, (macs, task, depth, price, action, reach) in zip(batch.steps, seen, strict=True):
        assert torch.equal(depth, step.decision) and torch.equal(action, step.action.view(6))
        assert torch.equal(task, batch.task) and torch.equal(price, batch.price) and torch.equal(reach, step.reach)
        assert step.rewards.keys() == {"price", "cheap"}
        expected = torch.where(step.active, -macs / 100 - depth, 0)
        assert torch.equal(step.rewards["cheap"], expected)
        torch.testing.assert_close(step.rewards["price"], -1e-3 * macs)
        spent = spent + macs
    assert torch.equal(spent, batch.macs - env.network.stem_macs)
    assert batch.rewards.keys() == {"correctness", "price", "cheap"}
    torch.testing.assert_close(sum(batch.rewards.values()), batch.reward())
    torch.testing.assert_close(batch.returns()[0], batch.reward())


def test_a_term_of_the_exit_sees_what_has_come_of_the_instance():
    seen = {}

    def told(loss, correct, label, macs, task, depth, price):
        seen.update(loss=loss, correct=correct, label=label, macs=macs, task=task, depth=depth, price=price)
        return loss + 10 * correct + 100 * label + macs

    routing_gym.register_reward("told", told)
    env = toy_env(Gates(2), 6, final_reward="told", autoreset_mode="disabled", price=True, k_cpt=2.0)
    batch = rollout(make_agent("random", env), env)
    assert torch.equal(seen["loss"], batch.loss) and torch.equal(seen["correct"], batch.correct)
    assert torch.equal(seen["label"], batch.label) and torch.equal(seen["macs"], batch.macs)
    assert torch.equal(seen["task"], batch.task) and seen["price"].tolist() == [2.0] * 6
    assert seen["depth"].tolist() == [len(env.network.decisions) - 1] * 6
    expected = batch.loss + 10 * batch.correct + 100 * batch.label + batch.macs
    torch.testing.assert_close(batch.final_reward, expected)


def test_several_terms_add_up_at_the_exit_and_on_every_face():
    routing_gym.register_reward("half", lambda correct: correct / 2)
    routing_gym.register_reward("dear", lambda macs: macs / 1e4, at="action")
    env = toy_env(ExitTree(TREE), 5, rewards=("half", "dear"), seed=1)
    plain = toy_env(ExitTree(TREE), 5, seed=1)
    plain.network.load_state_dict(env.network.state_dict())
    numbers = torch.Generator().manual_seed(0)
    env.reset(seed=0), plain.reset(seed=0)
    left = 0
    for _ in range(12):
        action = torch.randint(2, (5,), generator=numbers)
        _, reward, terminated, _, infos = env.step(action)
        _, other, _, _, told = plain.step(action)
        more = infos["action_reward"].clone()
        if "loss" in infos:
            more += torch.where(terminated, infos["correct"] / 2, 0)
            left += int(terminated.sum())
            finals = torch.where(terminated, infos["final_reward"] - told["final_reward"], 0)
            torch.testing.assert_close(finals, torch.where(terminated, told["correct"] / 2, 0))
        torch.testing.assert_close(reward, other + more)
    assert left > 5


def test_rewards_changed_by_hand_count_in_sums_and_returns():
    env = toy_env(Gates(2), 6, autoreset_mode="disabled")
    batch = rollout(make_agent("random", env), env)
    before = batch.reward()
    for step in batch.steps:
        step.reward += 1
    torch.testing.assert_close(batch.reward(), before + len(batch.steps))
    torch.testing.assert_close(batch.returns()[0], before + len(batch.steps))
    torch.testing.assert_close(batch.returns()[-1], batch.final_reward + 1)


@pytest.mark.parametrize(
    ("term", "at", "message"),
    [
        (lambda loss, answer: loss, "exit", "reward 'odd' is called by the names .* loss, correct, .*, got 'answer'"),
        (lambda loss: loss, "action", "at='action' may be macs, action, .*, got 'loss'"),
        (lambda macs, /: macs, "exit", "called by the names of its parameters"),
        (lambda macs: macs, "end", "at must be 'exit' or 'action', got 'end'"),
        (3, "exit", "something that can be called, got 3"),
        (max, "exit", "its parameters cannot be seen"),
    ],
)
def test_a_wrong_signature_is_refused_at_registration(term, at, message):
    with pytest.raises(ValueError, match=message):
        routing_gym.register_reward("odd", term, at=at)
    assert "odd" not in REWARDS


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda loss: 1.0, r"reward 'odd' must return a tensor \(\d,\), a number for each row, got 1.0"),
        (lambda loss: loss.mean(), r"must return a tensor \(\d,\), a number for each row, got \(\), torch.float32"),
        (lambda loss: loss.unsqueeze(1), r"got \(\d, 1\)"),
        (lambda loss: loss * torch.nan, "reward 'odd' is not finite"),
        (lambda loss: loss / 0, "reward 'odd' is not finite"),
    ],
)
@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_what_a_term_returns_is_checked_by_name(term, message, mode):
    routing_gym.register_reward("odd", term)
    env = toy_env(ExitTree(TREE), 6, final_reward="odd", autoreset_mode=mode)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message) as refused:
        for _ in range(4):
            env.step(torch.zeros(6, dtype=torch.int64))
    assert isinstance(refused.value, NotFiniteError) == ("finite" in message)


def test_terms_are_options_of_every_way_to_make_an_environment():
    routing_gym.register_reward("dear", lambda macs: -macs / 1e6, at="action")
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=4, rewards=("dear",))
    env.reset(seed=0)
    assert float(env.step(torch.zeros(4, dtype=torch.int64))[1].max()) < 0
    with pytest.raises(ValueError, match=r"rewards must be some of \[.*'dear'.*\], got 'cheap'"):
        toy_env(rewards=("cheap",))
    with pytest.raises(ValueError, match="a term of the reward counts once"):
        toy_env(rewards=("correctness",))
    with pytest.raises(ValueError, match="final_reward must be 'correctness' or 'negative-loss', got 'dear'"):
        toy_env(final_reward="dear")
    with pytest.raises(ValueError, match="belongs to"):
        routing_gym.register_reward("correctness", len)


def test_rows_that_have_left_do_not_matter():
    routing_gym.register_reward("inverse", lambda macs: 1 / macs, at="action")  # infinite where nothing was run
    env = toy_env(ExitTree(TREE), 6, rewards="inverse", autoreset_mode="disabled")
    batch = rollout(make_agent("random", env), env)
    assert bool(batch.reward().isfinite().all()) and not bool(batch.steps[-1].active.all())


@pytest.mark.parametrize("at", ["exit", "action"])
def test_what_a_term_is_given_cannot_be_written_into(at):
    routing_gym.register_reward("writes", lambda task: task.zero_().float(), at=at)
    options = {"final_reward": "writes"} if at == "exit" else {"rewards": "writes"}
    env = toy_env(ExitTree(TREE), 6, autoreset_mode="disabled", **options)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="reward 'writes' has written into 'task', which others need"):
        for _ in range(4):
            env.step(torch.zeros(6, dtype=torch.int64))


def test_a_refused_term_leaves_the_batch_where_it_was():
    routing_gym.register_reward("late", lambda loss: loss * torch.nan)
    env = toy_env(ExitTree(TREE), 6, rewards="late", rho=0.5, collaboration="frequency", autoreset_mode="disabled")
    env.reset(seed=0)
    while True:
        state, share, reward = env.state, env.rewards.share.total.clone(), env.batch.final_reward
        try:
            env.step(torch.zeros(6, dtype=torch.int64))
        except NotFiniteError:
            break
    assert env.state is state and torch.equal(env.rewards.share.total, share) and env.batch.final_reward.equal(reward)


@pytest.mark.parametrize("name", ["price", "collaboration", "reward"])
def test_names_of_the_environments_own_terms_are_refused(name):
    with pytest.raises(ValueError, match=f"the environment has a term '{name}' of its own"):
        routing_gym.register_reward(name, lambda macs: macs, at="action")


@pytest.mark.parametrize(
    ("term", "got"), [(lambda **known: known["loss"], "known"), (lambda *known: known[0], "known")]
)
def test_parameters_without_a_name_are_refused(term, got):
    with pytest.raises(ValueError, match=rf"called by the names of its parameters, .*got '\*+{got}'"):
        routing_gym.register_reward("odd", term)


def test_several_terms_are_named_in_a_line():
    routing_gym.register_reward("one", lambda macs: macs * 0 + 1, at="action")
    routing_gym.register_reward("two", lambda correct: correct * 0 + 2)
    env = toy_env(ExitTree(TREE), 4, rewards="one, two", autoreset_mode="disabled")
    batch = rollout(make_agent("shared", env), env)
    assert batch.rewards["two"].tolist() == [2.0] * 4 and batch.rewards["one"].min() >= 1


def test_recorded_probabilities_of_another_shape_are_refused():
    class Odd:
        max_tensors = None

        def act(self, observation, context):
            context.record["probabilities"] = torch.ones(3)
            return torch.zeros_like(observation["task"]).unsqueeze(1)

    env = toy_env(ExitTree(TREE), 4, rho=0.5, autoreset_mode="disabled")
    with pytest.raises(ValueError, match=r"record\['probabilities'\] must have shape \(4, 1, 3\), got \(3,\)"):
        rollout(Odd(), env)
