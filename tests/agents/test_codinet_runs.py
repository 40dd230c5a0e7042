"""CoDiNet as a run: its second stage, its routers, checkpoints, predictions, learning, and what is refused."""

import dataclasses
import math

import pytest
import torch
from damage import same
from hypothesis import given, settings
from hypothesis import strategies as st
from resuming import assert_goes_on, learned
from skips import codinet, skip_env
from torch import nn
from toys import ExitTree, RunSkip, small_env, toy_data

import routing_gym
from routing_gym.agents import CoDiNetConfig, add_task, make_agent, needs, train_batch
from routing_gym.envs import rollout
from routing_gym.networks import RoutedMLP

# ---------------------------------------------------------------------- the second stage


@pytest.mark.parametrize("router", ["linear", "rnn", "cnn"])
def test_in_the_second_stage_routers_stay_and_decisions_are_hard(router):
    env = skip_env(8, observes="map", optimizer="sgd", momentum=0.9, weight_decay=0.01)
    agent = codinet(env, router=router, freeze_after=0.5, cost_target=0.3)
    # 36 images twice are 9 batches: half a pass is over within the fifth.
    learned(agent, 4)
    assert not agent.frozen
    before = {name: value.clone() for name, value in agent.state_dict().items() if name.startswith("scores")}
    learned(agent, 1)
    assert agent.frozen and any(not torch.equal(agent.state_dict()[name], value) for name, value in before.items())
    kept = {name: value.clone() for name, value in agent.state_dict().items()}
    blocks = {name: value.clone() for name, value in env.network.state_dict().items()}
    agent.train()
    trajectory, loss, reported = train_batch(agent, env)
    for step in trajectory.steps:
        indices, weights = step.action
        assert indices.shape == (8, 1) and bool((weights == 1).all()) and not weights.requires_grad
    assert agent.auxiliary_loss(trajectory) is None and bool(loss.isfinite()) and "gamma" in reported
    learned(agent, 3)
    for name, value in kept.items():
        assert torch.equal(agent.state_dict()[name], value), name
    changed = {
        name.split(".")[0] for name, value in env.network.state_dict().items() if not torch.equal(value, blocks[name])
    }
    assert changed >= {"trunk", "readouts"}


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 12))
def test_the_second_stage_begins_with_the_batch_after_so_many_passes(batches, rows, tenths):
    """`batches` of so many rows are ten passes: what a pass is counted in, adds up to whole passes."""
    env, rows = skip_env(), 10 * rows
    env.trainer.optimization = dataclasses.replace(env.trainer.optimization, epoch=batches * rows // 10)
    agent = codinet(env, freeze_after=tenths / 10)
    due = -(-tenths * batches // 100)  # the batch within which so many tenths of a pass are over
    for _ in range(due):
        assert not agent.frozen
        agent.episodes += rows
    assert agent.frozen


# ---------------------------------------------------------------------- routers


def test_linear_routers_by_hand():
    env = skip_env(price=True, k_cpt=3e-8)
    agent = codinet(env, hidden=5, seed=3)
    trajectory = rollout(agent, env, deterministic=True)
    for number, step in enumerate(trajectory.steps):
        first, _, second = agent.scores.of[number]
        width = env.network.decisions[number].width
        assert first.weight.shape == (5, width + 1) and agent.macs(number) == 5 * (width + 1) + 2 * 5
        seen = torch.cat([torch.full((8, 1), 0.3), step.observation["activation"][:, :width]], 1)
        scores = (seen @ first.weight.t() + first.bias).clamp(min=0) @ second.weight.t() + second.bias
        assert torch.equal(step.action[0][:, 0], (scores[:, 1] >= scores[:, 0]).long())
    assert agent.sees_price


def sigmoid(x):
    return 1 / (1 + (-x).exp())


@pytest.mark.parametrize("price", [False, True])
def test_the_recurrent_router_by_hand(price):
    """One cell of width 10 goes from block to block; only the layer in front of it is the block's own."""
    env = skip_env(price=price, k_cpt=3e-8)
    agent = codinet(env, router="rnn", relaxation="softmax")
    trajectory = rollout(agent, env)
    cell, h, c = agent.scores.cell, torch.zeros(8, 10), torch.zeros(8, 10)
    for number, step in enumerate(trajectory.steps):
        width, front = env.network.decisions[number].width, agent.scores.inputs.of[number]
        seen = step.observation["activation"][:, :width]
        if price:
            seen = torch.cat([torch.full((8, 1), 0.3), seen], 1)
        x = seen @ front.weight.t() + front.bias
        gates = x @ cell.weight_ih.t() + cell.bias_ih + h @ cell.weight_hh.t() + cell.bias_hh
        let_in, forget, new, out = gates.chunk(4, 1)
        c = sigmoid(forget) * c + sigmoid(let_in) * new.tanh()
        h = sigmoid(out) * c.tanh()
        scores = h @ agent.scores.output.weight.t() + agent.scores.output.bias
        torch.testing.assert_close(step.action, scores.softmax(1), rtol=1e-4, atol=1e-5)
        assert agent.macs(number) == 10 * (width + price) + 2 * 4 * 10 * 10 + 2 * 10
    agent.auxiliary_loss(trajectory).backward()
    assert all(parameter.grad is not None for parameter in agent.scores.parameters())


def test_convolutional_routers_by_hand():
    env = skip_env(observes="map", stages=(2, 2, 2), price=True, k_cpt=3e-8)
    agent = codinet(env, router="cnn").eval()
    for router in agent.scores.of:
        nn.init.uniform_(router[3].running_var, 0.5, 2.0)
        nn.init.normal_(router[3].running_mean)
    trajectory = rollout(agent, env, deterministic=True)
    for number, step in enumerate(trajectory.steps):
        shape, router = env.network.observed_shapes[number], agent.scores.of[number]
        x = step.observation["activation"][:, : math.prod(shape)].view(8, *shape)
        x = nn.functional.max_pool2d(x, 2)
        x = nn.functional.conv2d(x, router[2].weight, padding=1)
        mean, var = (value.view(1, -1, 1, 1) for value in (router[3].running_mean, router[3].running_var))
        x = ((x - mean) / (var + 1e-5).sqrt()).relu().mean((2, 3))
        scores = x @ router[-1].weight.t() + router[-1].bias
        assert torch.equal(step.action[0][:, 0], (scores[:, 1] >= scores[:, 0]).long())
    for number in (1, 3, 5):  # blocks that leave the shape as it is: an eighth of their cost, and the last layer
        channels = env.network.observed_shapes[number][0]
        assert agent.macs(number) == 0.125 * env.network.decisions[number].macs[1] + 2 * channels
    assert not agent.sees_price
    with pytest.raises(ValueError, match="without looking at the price"):
        agent.predict(env.reset()[0], k_cpt=1e-8)


def test_judging_counts_the_routers():
    agent = codinet()
    judged = routing_gym.evaluate(agent, agent.env)
    assert judged.router_macs == pytest.approx(sum(agent.macs(number) for number in range(3)))
    assert judged.macs > judged.router_macs + agent.env.network.stem_macs - 1 and judged.paths >= 1


@pytest.mark.parametrize("router", ["linear", "rnn"])
def test_the_price_moves_decisions(router):
    env = skip_env(price=True, k_cpt=(0.0, 2e-5))
    agent = codinet(env, router=router, alpha=0.0, beta=0.0, relaxation="softmax", learning_rate=0.02)
    learned(agent, 40)
    judged = [env.sibling(8, train=False, k_cpt=k_cpt) for k_cpt in (0.0, 2e-5)]
    cheap, dear = (rollout(agent, one, instances=torch.arange(8)).expected_macs for one in judged)
    assert bool((dear < cheap).all())


# ---------------------------------------------------------------------- checkpoints, predictions

RUNS = [
    {"cost_target": 0.4, "cost_step": 0.5},
    {"relaxation": "sampling", "gamma": 0.02, "freeze_after": 0.9},
    {"router": "rnn", "cost_target": 0.4, "freeze_after": 0.8},
    {"router": "cnn", "relaxation": "softmax", "freeze_after": 0.3, "learning_rate": 0.05},
]


@pytest.mark.parametrize("options", RUNS, ids=lambda options: options.get("router", options.get("relaxation", "gamma")))
def test_same_seed_same_curves_bit_for_bit_also_after_a_resume(options, tmp_path):
    forms = {"observes": "map", "optimizer": "sgd", "momentum": 0.9, "schedule": "step", "schedule_epochs": 1}

    def made():
        return codinet(skip_env(**forms), seed=4, **options)

    half, _, course = assert_goes_on(made, (5, 7), tmp_path, lambda: skip_env(**forms, seed=9))
    assert half.passes == 5 / 9 and len({metrics["loss"] for metrics in course}) == 12


@pytest.mark.parametrize("router", ["linear", "rnn", "cnn"])
def test_judging_and_predicting_change_nothing(router):
    curves = []
    for looked_at in (False, True):
        agent = codinet(skip_env(observes="map"), router=router, seed=4, freeze_after=0.4)
        losses = learned(agent, 2)
        if looked_at:
            state = {name: value.clone() for name, value in agent.state_dict().items()}
            routing_gym.evaluate(agent, agent.env)
            routing_gym.evaluate(agent, agent.env, deterministic=False)
            agent.predict(agent.env.sibling(8, train=False).reset(seed=3)[0], deterministic=True)
            assert all(torch.equal(agent.state_dict()[name], value) for name, value in state.items())
        curves.append(losses + learned(agent, 4))
    assert curves[0] == curves[1]


@pytest.mark.parametrize("router", ["linear", "rnn"])
def test_predictions_carried_from_block_to_block_are_those_of_a_rollout(router):
    agent = codinet(skip_env(4), router=router)
    learned(agent, 3)
    judged = agent.env.sibling(4, train=False)
    agent.eval()
    whole = rollout(agent, judged, instances=torch.arange(4), deterministic=True)
    observation, _ = judged.reset(options={"instances": torch.arange(4)})
    state = None
    for step in whole.steps:
        action, state = agent.predict(observation, state, deterministic=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(action, step.action, strict=True))
        assert (state is None) == (router == "linear")
        alone = {name: value[2].numpy() for name, value in observation.items()}
        before = None if step.carry is None else step.carry[2:3].detach().numpy()
        one, carried = agent.predict(alone, before, deterministic=True)
        assert [part.tolist() for part in one] == [part[2].tolist() for part in step.action]
        assert carried is None or carried == pytest.approx(state[2:3].numpy(), abs=1e-5)
        observation, *_ = judged.step(action)
    if router == "rnn":
        first, _ = judged.reset(options={"instances": torch.arange(4)})
        fresh, begun = agent.predict(first, None, deterministic=True)
        again, over = agent.predict(first, state, episode_start=torch.ones(4, dtype=torch.bool), deterministic=True)
        assert torch.equal(fresh[0], again[0]) and torch.equal(begun, over)


# ---------------------------------------------------------------------- learning, number formats


@pytest.mark.long
@pytest.mark.parametrize("relaxation", ["gumbel", "softmax", "sampling"])
def test_it_learns_to_tell_images_apart(relaxation):
    env = skip_env(12, learning_rate=0.03)
    agent = codinet(env, relaxation=relaxation, gamma=0.001)
    learned(agent, 60)
    agent_macs = routing_gym.evaluate(agent, env)
    assert agent_macs.accuracy > 0.6  # by chance 0.33


def test_a_batch_in_bfloat16():
    agent = codinet(skip_env(precision="bfloat16"))
    for metrics in learned(agent, 3):
        assert math.isfinite(metrics["loss"])
    assert all(parameter.dtype == torch.float32 for parameter in agent.parameters())


# ---------------------------------------------------------------------- what is refused


def test_environments_it_cannot_route_are_refused():
    forms = {**needs("codinet"), "augmentations": 1}
    # Three blocks to choose from, two of them that cost the same, and outcomes to share out.
    for network in (None, RoutedMLP((1, 2, 3), 3, 2, width=4, layers=2), ExitTree([[1], [2], []])):
        with pytest.raises(ValueError, match="'codinet' says whether a block is skipped .* take one of the networks"):
            make_agent("codinet", small_env(network, **forms), alpha=0.0)
    make_agent("codinet", small_env(RunSkip(), **forms), alpha=0.0, beta=0.0, relaxation="softmax")
    with pytest.raises(ValueError, match="'codinet' compares paths of one image: .* alpha=0, got augmentations=1"):
        codinet(skip_env(augmentations=1))
    assert codinet(skip_env(augmentations=1), alpha=0.0).config.alpha == 0
    for options, message in (
        ({"action_type": "discrete"}, "acts by weights"),
        ({"differentiable": False}, "needs an environment made with differentiable=True"),
    ):
        with pytest.raises(ValueError, match=message):
            codinet(skip_env(**options))
    with pytest.raises(ValueError, match=r"'codinet': router='cnn' .* observes='map'"):
        codinet(router="cnn")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relaxation": "hard"}, "relaxation must be '"),
        ({"router": "mlp"}, "router must be '"),
        ({"alpha": -0.1}, "alpha must be at least 0"),
        ({"beta": math.inf}, "beta must be at least 0"),
        ({"gamma": -1.0}, "gamma must be at least 0"),
        ({"cost_target": 0.0}, r"cost_target must lie in \(0, 1\]"),
        ({"cost_target": 1.5}, r"cost_target must lie in \(0, 1\]"),
        ({"cost_step": 0.0}, "cost_step must be positive"),
        ({"temperature": 0.0}, "temperature must be at least 1e-6"),
        ({"hidden": 0}, "hidden must be an integer of at least 1"),
        ({"freeze_after": -1.0}, "freeze_after must be at least 0"),
        ({"consistency_margin": -0.2}, "consistency_margin must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CoDiNetConfig(**options)


def test_it_goes_on_with_a_task_that_comes_later():
    env = small_env(RunSkip(), **{**needs("codinet"), "augmentations": 1})
    agent = make_agent("codinet", env, alpha=0.0, cost_target=0.5).learn(env, 60)
    grown = add_task(agent, {split: part.select_tasks([1]) for split, part in toy_data().items()})
    assert (grown.num_tasks, grown.passes, grown.episodes) == (4, agent.passes, 60) and torch.equal(
        grown.gamma, agent.gamma
    )
    assert same([*grown.scores.parameters()], [*agent.scores.parameters()])
    grown.learn(grown.env, 96)
    assert grown.passes == (80 + 96) / 96 and grown.episodes == 60 + 96  # 96 rows are a pass now, 60 of 72 are 80 of 96
