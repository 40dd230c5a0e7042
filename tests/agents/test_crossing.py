"""Data-dependent gates between parallel paths, against a loop over rows and tensors."""

import gymnasium
import pytest
import torch
from resuming import assert_goes_on

import routing_gym
from routing_gym.agents import make_agent, needs, train_batch
from routing_gym.envs import rollout
from routing_gym.testing import check_vector_env

GATES = ["cross-connection", "cross-prediction"]


def path_env(agent="cross-connection", network="basecnn-3-cc", num_envs=6, **options):
    data = {"num_tasks": 1, "num_classes": 3, "image_size": 8, "images_per_class": 24}
    sizes = {"width": 2, "hidden": 4} if network.startswith("base") else {"width": 2}
    own = {**needs(agent), **data, **sizes, **options}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", network=network, num_envs=num_envs, **own)


def slow_gates(agent, number, activation, mask):
    """G_i = softmax(W2_i ReLU(W1_i Z_i + b1_i) + b2_i), tensor by tensor, row by row."""
    decision, gate = agent.env.network.decisions[number], agent.scores.of[number]
    channels = decision.width // decision.m
    rows = []
    for row, seen in enumerate(activation):
        tensors = []
        for i in range(decision.m):
            z = seen[i * channels : (i + 1) * channels]
            hidden = (z @ gate.hidden.weight[i] + gate.hidden.bias[i]).clamp(min=0)
            score = hidden @ gate.scores.weight[i] + gate.scores.bias[i]
            score = score.masked_fill(~mask[row, i, : decision.n], -torch.inf)
            tensors.append((score - score.max()).exp() / (score - score.max()).exp().sum())
        rows.append(torch.stack(tensors))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("name", "network"),
    [*((name, network) for name in GATES for network in ("basecnn-3-cc", "resnet20-2-cp")), (GATES[0], "basecnn-3")],
)
def test_gates_against_a_loop(name, network):
    env = path_env(name, network)
    agent = make_agent(name, env)
    batch = rollout(agent, env.unwrapped)
    for number, step in enumerate(batch.steps):
        decision = agent.env.network.decisions[number]
        mask = agent.env.network.masks[number].expand(6, -1, -1)
        expected = slow_gates(agent, number, step.observation["activation"].detach(), mask)
        torch.testing.assert_close(step.action[:, : decision.m, : decision.n].detach(), expected.detach())


def test_gates_and_blocks_are_one_network():
    """One backward pass reaches the gates, and through what they see the layers before them (Eq. 9)."""
    env = path_env(optimizer="sgd", learning_rate=0.1, momentum=0.9, schedule="step", schedule_epochs=1)
    agent = make_agent("cross-connection", env)
    core = agent.env
    before = [parameter.detach().clone() for parameter in agent.parameters()]
    for _ in range(2):
        train_batch(agent, core)
    assert all(not torch.equal(old, new) for old, new in zip(before, agent.parameters(), strict=True))
    assert type(agent.optimizer) is type(core.trainer.optimizer)
    for _ in range(40):
        train_batch(agent, core)
    assert agent.optimizer.param_groups[0]["lr"] == core.trainer.optimizer.param_groups[0]["lr"] < 0.1

    core.reset()
    assert rollout(agent, core).steps[1].observation["activation"].requires_grad


@pytest.mark.parametrize("name", GATES)
def test_it_learns(name):
    env = path_env(name, num_envs=24, learning_rate=3e-3)
    agent = make_agent(name, env).learn(env, 24 * 40)
    assert routing_gym.evaluate(agent, env, split="train").accuracy > 0.8  # a third by chance


@pytest.mark.parametrize("name", GATES)
def test_saved_and_loaded_it_goes_on_bit_for_bit(name, tmp_path):
    assert_goes_on(lambda: make_agent(name, path_env(name)), (3, 3), tmp_path, lambda: path_env(name, seed=5))


def test_what_gates_cost_and_see():
    env = path_env(hidden=4)
    agent = make_agent("cross-connection", env)
    for number, decision in enumerate(agent.env.network.decisions):
        channels = decision.width // decision.m
        assert agent.macs(number) == decision.m * (channels * 16 + 16 * decision.n)
    priced = path_env(price=True, k_cpt=(1e-9, 1e-6))
    agent = make_agent("cross-connection", priced)
    observation, _ = priced.reset(seed=0)
    cheap, dear = (agent.predict(observation, k_cpt=price)[0] for price in (0.0, 1e-5))
    assert not torch.equal(cheap, dear)
    torch.testing.assert_close(cheap[:, 0].sum(-1), torch.ones(6))


def test_environments_it_cannot_route():
    for options, message in (
        ({"form": "columns"}, "needs an environment made with form='gated-columns', got 'columns'"),
        ({"cross": "predictions"}, "needs an environment made with cross='connections', got 'predictions'"),
        ({"differentiable": False}, "differentiable=True, got False"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent("cross-connection", path_env(**options))
    with pytest.raises(ValueError, match="no form of it with cross='predictions'"):
        path_env("cross-prediction", "sebasecnn")


def test_a_single_path_needs_no_gates():
    env = path_env(network="basecnn")
    agent = make_agent("cross-connection", env)
    batch = rollout(agent, agent.env)
    assert all(torch.equal(step.action, torch.ones(6, 1, 1)) for step in batch.steps)


@pytest.mark.long
@pytest.mark.parametrize("network", ["basecnn-2-cc", "basecnn-2-cp", "basecnn-3", "resnet20-2-cc"])
def test_the_environment_passes_the_checker(network):
    check_vector_env(path_env("random", network, autoreset_mode="same_step"))


@pytest.mark.parametrize("agent", ["wpl", "random", "random-fixed", "shared", "fixed-routes", "cross-stitch"])
@pytest.mark.parametrize("network", ["basecnn-2-cc", "basecnn-2-cp"])
def test_other_agents_on_the_same_paths(agent, network):
    env = path_env(agent, network)
    made = make_agent(agent, env).learn(env, 24)
    result = routing_gym.evaluate(made, env)
    assert 0 <= result.accuracy <= 1 and result.macs > 0
    if agent == "shared":
        assert result.live_paths.tolist() == [1.0] * len(env.unwrapped.network.decisions)
    if agent == "cross-stitch":
        assert result.live_paths.tolist() == [2.0] * len(env.unwrapped.network.decisions)


def test_outside_agents_route_the_paths():
    env = gymnasium.make(
        "routing_gym/SyntheticMTL-v0", network="basecnn-2-cc", width=2, hidden=4, num_classes=3, image_size=8
    )
    assert env.action_space == gymnasium.spaces.MultiDiscrete([2, 2])
    observation, info = env.reset(seed=0)
    env.action_space.seed(0)
    terminated = False
    while not terminated:
        observation, reward, terminated, _, info = env.step(env.action_space.sample())
    assert reward in (-1.0, 1.0) and info["macs"] > 0


def test_what_a_table_is_sure_of_counts_tensors_that_there_are_only():
    env = path_env("wpl", form="gated-columns")
    agent = make_agent("wpl", env, policy_rate=1e-9)
    agent._table.fill_(0.0)
    agent._table[..., 1] = 1.0
    agent._table[:, 0, 1:] = 1 / 3  # the connector has one tensor of three
    metrics = agent.receive(rollout(agent, agent.env))
    assert float(metrics["policy_entropy"]) == pytest.approx(0.0, abs=1e-6)


def test_routes_are_told_without_tensors_that_are_not_there():
    env = path_env("wpl", "basecnn-3-cc", num_envs=2, render_mode="ansi")
    env.reset(seed=0)
    env.step(torch.tensor([[2, 2, 0], [1, 1, 1]]))
    env.step(torch.tensor([[1, 0, 1], [0, 2, 0]]))
    first, second = env.render()
    assert first.endswith("after conv 2 -> [2 2 0], after conv 4 -> [1 - 1]")
    assert second.endswith("after conv 2 -> [1 1 1], after conv 4 -> [- 2 -]")


def test_a_batch_without_any_path_trains_nothing_and_does_not_fail():
    for form in ("columns", "gated-columns"):
        env = path_env("wpl", action_type="weights", form=form).unwrapped
        env.reset(seed=0)
        for _ in env.network.decisions:
            env.step(torch.zeros(6, 3, 3))
        env.train_blocks()
        assert env.trainer.instances == 6
