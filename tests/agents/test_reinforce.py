"""REINFORCE against the formula, one visit at a time."""

import copy

import gymnasium
import pytest
import stepping
import torch
from deciding import learned_from, policies_of, who_decides
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ExitTree, of_family, small_env

import routing_gym
from routing_gym.agents import make_agent, needs, train_batch
from routing_gym.envs import rollout


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single", "dispatched"]),
    representation=st.sampled_from(["table", "mlp"]),
    baseline=st.sampled_from(["average", "none"]),
    entropy=st.sampled_from([0.0, 0.3]),
    gamma=st.sampled_from([0.5, 1.0]),
    family=st.sampled_from(["mlp", "tree", "gates", "columns"]),
    seed=st.integers(0, 10**4),
)
def test_the_gradient_is_that_of_the_formula(arrangement, representation, baseline, entropy, gamma, family, seed):
    env = small_env(of_family(family), k_cpt=0.01, seed=seed)
    agent = make_agent(
        "reinforce", env, arrangement=arrangement, representation=representation, baseline=baseline, entropy=entropy,
        gamma=gamma, seed=seed,
    )  # fmt: skip
    for _ in range(2):
        rolled = rollout(agent, env)
        trajectory = learned_from(agent, rolled)
        assert representation == "table" or "activation" in trajectory.steps[0].observation
        loss, returns = torch.zeros(()), {}
        for row in range(12):
            rewards = [float(step.reward[row]) for step in trajectory.steps]
            policies = policies_of(agent, trajectory.steps, row)
            for i, step in enumerate(trajectory.steps):
                if not step.active[row]:
                    continue
                value = float(trajectory.final_reward[row])
                value += sum(gamma ** (j - i) * reward for j, reward in enumerate(rewards) if j >= i)
                who = who_decides(agent, step, row)
                returns.setdefault((who, int(step.decision[row])), []).append(value)
                if baseline == "average":
                    value -= float(agent.average[who, int(step.decision[row])])
                for log_policy, taken in policies[i]:
                    loss = loss - value * log_policy[taken]
                    loss = loss + entropy * (log_policy.exp() * log_policy).sum()
        parameters = list(agent.scores.parameters())
        expected = torch.autograd.grad(loss / 12, parameters, materialize_grads=True)
        average = agent.average.clone()
        agent.receive(rolled)
        torch.testing.assert_close([parameter.grad for parameter in parameters], [*expected])
        for (who, decision), values in returns.items():
            moved = average[who, decision] + 0.1 * (sum(values) / len(values) - average[who, decision])
            torch.testing.assert_close(agent.average[who, decision], moved)


def test_illegal_choices_are_never_drawn_and_the_cost_is_counted():
    env = small_env(ExitTree([[1, 2], [], [3], []]), 64)
    agent = make_agent("reinforce", env, representation="mlp", entropy=0.1)
    for _ in range(5):
        agent.receive(rollout(agent, env))  # an illegal choice would be refused
    assert all(bool(parameter.isfinite().all()) for parameter in agent.parameters())
    assert agent.macs(0) == (4 + 1) * 64 + 64 * 3
    assert routing_gym.evaluate(agent, env).router_macs >= agent.macs(0)
    assert make_agent("reinforce", env).macs(0) == 0


def test_what_it_cannot_be_is_refused():
    for options, message in (
        ({"representation": "tree"}, "representation must be '"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"entropy": -1.0}, "entropy must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent("reinforce", small_env(), **options)


@pytest.mark.long
@pytest.mark.parametrize("representation", ["mlp", "table"])
def test_blocks_of_a_resnet_are_dropped_where_they_are_dear(representation):
    """As BlockDrop does: the policy gradient of a reward that goes down with what is run."""
    data = {"num_tasks": 1, "num_classes": 3, "image_size": 8, "images_per_class": 12}
    form = {"network": "resnet32-skip", "width": 2, "stages": [1, 1, 1], "num_envs": 12, "learning_rate": 0.03}
    rate = {"mlp": 0.03, "table": 1.0}[representation]
    ran = []
    for k_cpt in (0.0, 3e-4):
        env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", **data, **form, k_cpt=k_cpt, **needs("reinforce"))
        agent = make_agent("reinforce", env, representation=representation, learning_rate=rate)
        agent.learn(env, 12 * 50)
        judged = routing_gym.evaluate(agent, env)
        assert judged.accuracy > 0.6  # by chance 0.33; what the stem gives will do
        ran.append(judged.macs - judged.router_macs - env.unwrapped.network.stem_macs)
    assert ran[1] == 0 < ran[0]


@pytest.mark.parametrize(("family", "arrangement"), [("mlp", "per_task"), ("mlp", "dispatched"), ("tree", "single")])
def test_gradients_of_choices_go_on_into_the_blocks(family, arrangement):
    """Blocks get the gradient of cross-entropy − Σ (R − b) log π: a loop over rows, each run again by itself."""
    env = small_env(of_family(family), k_cpt=0.01, differentiable=True, optimizer="sgd")
    options = {"representation": "mlp", "arrangement": arrangement, "entropy": 0.1, "into_blocks": True}
    agent = make_agent("reinforce", env, **options)
    for _ in range(2):  # at first the average is 0
        before = copy.deepcopy(env.network), copy.deepcopy(agent.scores), agent.average.clone()
        trajectory, *_ = train_batch(agent, env)
    network, scores, average = before
    losses = []
    for row in range(12):
        task, instance = trajectory.task[row : row + 1], trajectory.instance[row : row + 1]
        state, value = network.start(env.dataset.pixels(instance), task), float(trajectory.final_reward[row])
        rewards = [float(step.reward[row]) if step.active[row] else 0.0 for step in trajectory.steps]

        def of_choice(state, depth, who, chosen, to_come, value=value, task=task):
            seen = {"activation": network.observe(state), "task": task, "depth": torch.tensor([depth])}
            raw = scores(seen, torch.tensor([who])).flatten()
            legal = raw.isfinite().nonzero().flatten()
            log_policy = raw[legal].log_softmax(-1)
            entropy = -(log_policy.exp() * log_policy).sum()
            log_chosen = log_policy[legal.tolist().index(chosen)]
            return -(value + to_come - float(average[who, depth])) * log_chosen - 0.1 * entropy

        who = int(trajectory.task[row]) if arrangement == "per_task" else 0
        if arrangement == "dispatched":
            who = int(trajectory.steps[0].record["agent"][row])
            losses.append(of_choice(state, len(network.decisions) + 1, 0, who, sum(rewards)))
        for number, step in enumerate(trajectory.steps):
            if step.active[row]:
                action = step.action[row].flatten()
                losses.append(of_choice(state, int(step.decision[row]), who, int(action), sum(rewards[number:])))
                state = stepping.step(network, state, action.view(1, 1))
        label = trajectory.label[row : row + 1]
        losses += [torch.nn.functional.cross_entropy(left.logits, label) for left in state.exits]
    (sum(losses) / 12).backward()
    for ours, theirs in ((env.network, network), (agent.scores, scores)):
        for (name, parameter), twin in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            grad = torch.zeros_like(twin) if twin.grad is None else twin.grad
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.equal(agent.average, average)


def test_gradients_into_blocks_need_a_graph_and_approximators():
    with pytest.raises(ValueError, match="into_blocks is for representation='mlp'"):
        make_agent("reinforce", small_env(), into_blocks=True)
    with pytest.raises(ValueError, match="into_blocks=True needs an environment with differentiable=True"):
        make_agent("reinforce", small_env(), into_blocks=True, representation="mlp")
