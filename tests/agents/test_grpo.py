"""GRPO and RLOO against their formulas, row by row; and what is tried leaves no trace."""

import gymnasium
import pytest
import torch
from deciding import assert_descends_by, policies_of, watched_trials
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import of_family, small_env

import routing_gym
from routing_gym.agents import make_agent, needs, train_batch
from routing_gym.agents.parts.losses import clipped_surrogate_loss, group_advantages
from routing_gym.envs import rollout
from routing_gym.ranks import Ranks


def advantages_of(returns, kind):
    """Advantages of one instance's routes, a list of numbers."""
    mean = sum(returns) / len(returns)
    if kind == "rloo":
        return [own - (sum(returns) - own) / (len(returns) - 1) for own in returns]
    spread = (sum((own - mean) ** 2 for own in returns) / len(returns)) ** 0.5
    return [(own - mean) / (spread + 1e-4 if kind == "grpo" else 1) for own in returns]


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    representation=st.sampled_from(["table", "mlp"]),
    advantage=st.sampled_from(["grpo", "rloo", "mean"]),
    group=st.sampled_from([2, 3]),
    gamma=st.sampled_from([0.5, 1.0]),
    entropy=st.sampled_from([0.0, 0.3]),
    family=st.sampled_from(["mlp", "tree", "gates", "columns"]),
    seed=st.integers(0, 10**4),
)
def test_every_step_is_along_the_gradient_of_the_formula(
    arrangement, representation, advantage, group, gamma, entropy, family, seed
):
    env = small_env(of_family(family), k_cpt=0.01, seed=seed, final_reward="negative-loss")
    agent = make_agent(
        "grpo", env, arrangement=arrangement, representation=representation, advantage=advantage, group=group,
        gamma=gamma, entropy=entropy, epochs=2, clip=0.1, learning_rate=0.1, seed=seed,
    )  # fmt: skip
    batches, old, trajectory = watched_trials(agent), {}, rollout(agent, env)

    def loss_by_hand():
        loss = torch.zeros(())
        tried = [agent.as_seen(one, detach=True) for one in batches[0]]
        for row in range(12):
            returns = []
            for one in tried:
                assert one.instance[row] == trajectory.instance[row]
                value, number = float(one.final_reward[row]), 0
                for step in one.steps:
                    value, number = value + gamma**number * float(step.reward[row]), number + 1
                returns.append(value)
            for which, (one, own) in enumerate(zip(tried, advantages_of(returns, advantage), strict=True)):
                policies = policies_of(agent, one.steps, row)
                for i, step in enumerate(one.steps):
                    if step.active[row]:
                        chosen = sum(log_policy[taken] for log_policy, taken in policies[i])
                        ratio = (chosen - old.setdefault((which, row, i), float(chosen.detach()))).exp()
                        loss = loss - torch.minimum(ratio * own, ratio.clamp(0.9, 1.1) * own)
                        for log_policy, _ in policies[i]:
                            loss = loss + entropy * (log_policy.exp() * log_policy).sum()
        return loss / 12 / group

    assert assert_descends_by(agent, loss_by_hand, lambda: agent.receive(trajectory)) == 2


def test_advantages_by_hand():
    returns = torch.tensor([[1.0, 2.0, 6.0], [-1.0, -1.0, -1.0], [0.1, 0.1, 0.1]])
    expected = {"mean": [-2.0, -1.0, 3.0], "rloo": [-3.0, -1.5, 4.5], "grpo": [-0.9258, -0.4629, 1.3887]}
    for kind, numbers in expected.items():
        found = group_advantages(returns, kind)
        torch.testing.assert_close(found[0], torch.tensor(numbers), rtol=1e-3, atol=0)
        assert float(found[1:].abs().max()) == 0


@settings(max_examples=50, deadline=None)
@given(kind=st.sampled_from(["mean", "rloo", "grpo"]), group=st.integers(2, 9), seed=st.integers(0, 10**4))
def test_returns_that_differ_by_rounding_give_no_advantage(kind, group, seed):
    returns = torch.rand(50, 1, generator=torch.Generator().manual_seed(seed)).expand(-1, group)
    assert float(group_advantages(returns, kind).abs().max()) == 0
    assert float(group_advantages(returns * (1 + 1e-7 * torch.arange(group)), kind).abs().max()) < 2e-2


def test_a_ratio_beyond_the_clip_is_not_paid_for():
    log_chosen = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.1, 9.0]], requires_grad=True)
    advantage, active = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0, 1.0]]), torch.tensor([[1.0] * 5 + [0.0]])
    nothing = torch.zeros(1, 6)
    loss = clipped_surrogate_loss(log_chosen, nothing, advantage, nothing, active, clip=0.2, entropy_weight=0.0)
    ratio = log_chosen.detach().exp()[0]
    paid = [1.2, -ratio[1], ratio[2], -0.8, 2 * ratio[4]]  # what had left counts nowhere
    assert float(loss.detach()) == pytest.approx(-sum(map(float, paid)) / 6)
    (gradient,) = torch.autograd.grad(loss, log_chosen)
    expected = torch.tensor([[0.0, ratio[1], -ratio[2], 0.0, -2 * ratio[4], 0.0]]) / 6
    torch.testing.assert_close(gradient, expected)


def test_what_is_tried_leaves_no_trace_in_blocks_and_stream():
    form = {"image_size": 16, "network": "simple-convnet", "routed_stages": 1, "rho": 0.2, "k_cpt": 1e-6}
    form |= {"collaboration": "frequency"}
    ran = []
    for name, options in (("reinforce", {}), ("grpo", {"group": 2})):
        env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=12, **form, **needs(name)).unwrapped
        agent = make_agent(name, env, **options)
        first, *_ = train_batch(agent, env)  # both draw the same routes
        assert env.network.training
        state = {**env.network.state_dict(), "share": env.rewards.share.total}
        ran.append({key: value.clone() for key, value in state.items()} | {"second": env.stream.draw(12, 0.0)})
        before = env.stream.generator.get_state()
        agent.receive(first)
        assert torch.equal(before, env.stream.generator.get_state())
        for key, value in {**env.network.state_dict(), "share": env.rewards.share.total}.items():
            assert torch.equal(value, ran[-1][key]), key
    assert ran[0].keys() == ran[1].keys() and any("running" in key for key in ran[0])
    for key, value in ran[0].items():
        assert torch.equal(value, ran[1][key]), key


def test_the_collaboration_reward_of_what_is_tried_is_that_of_what_was_learned_on():
    env = small_env(rho=0.5, collaboration="frequency")
    agent = make_agent("grpo", env, group=3)
    batches = watched_trials(agent)
    train_batch(agent, env)
    share = env.rewards.share.total / env.rewards.share.total.sum(1, keepdim=True).clamp(min=1)
    for step in (step for tried in batches[0] for step in tried.steps):
        expected = 0.5 * share[step.decision, step.action[:, 0]].float()
        torch.testing.assert_close(step.rewards["collaboration"], expected)


def test_what_it_cannot_be_is_refused():
    for options, message in (
        ({"group": 1}, "group must be an integer of at least 2, got 1"),
        ({"advantage": "best"}, "advantage must be '"),
        ({"epochs": 0}, "epochs must be"),
        ({"clip": 0.0}, "clip must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent("grpo", small_env(), **options)
    with pytest.raises(ValueError, match="'grpo' compares routes of an instance, which needs one price"):
        make_agent("grpo", small_env(k_cpt=(0.0, 0.1)))
    make_agent("grpo", small_env(k_cpt=(0.1,)))
    shared = small_env()
    shared.ranks = Ranks(count=2)
    with pytest.raises(ValueError, match="'grpo' tries routes on batches of its own: it trains in one process"):
        make_agent("grpo", shared)


def test_it_is_judged_by_its_best_choices():
    env = small_env()
    agent = make_agent("grpo", env)
    with torch.no_grad():
        agent.scores.table[:, 0, :, 2] = agent.scores.table[:, 1, :, 1] = 1.0
    routes = routing_gym.evaluate(agent, env).routes
    assert (routes.argmax(-1) == torch.tensor([2, 1])).all() and int((routes > 0).sum()) == 2 * env.dataset.num_tasks
