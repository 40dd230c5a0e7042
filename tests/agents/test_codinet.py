"""CoDiNet (Wang et al.): Eqs. 6, 8, 9, 11, 12 and 13 against numbers worked by hand and plain loops."""

import itertools
import math

import gymnasium
import pytest
import torch
from by_hand import double_precision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import ExitTree, RunSkip, small_env

import routing_gym
from routing_gym.agents import CoDiNetConfig, make_agent, needs, train_batch
from routing_gym.agents.paths import consistency, diversity
from routing_gym.envs import Context, RoutingVectorEnv, rollout
from routing_gym.networks import RoutedMLP, make_network
from routing_gym.tasks import synthetic_mtl

M = 2


def skip_env(num_envs=8, *, stages=(1, 1, 1), augmentations=M, **options):
    """Three blocks for images of 8x8 pixels, of 36 images of three classes."""
    data = {"num_tasks": 1, "num_classes": 3, "image_size": 8, "images_per_class": 12, "shift": 1}
    own = {"network": "resnet32-skip", "width": 2, "stages": list(stages), "learning_rate": 0.01}
    forms = {**needs("codinet"), "augmentations": augmentations, "num_envs": num_envs}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", **{**data, **own, **forms, **options}).unwrapped


def codinet(env=None, **options):
    return make_agent("codinet", skip_env() if env is None else env, **options)


def with_scores(agent, *scores):
    """Make every router of linear layers say the same of everything."""
    for router in agent.routers.of:
        nn.init.zeros_(router[-1].weight)
        router[-1].bias.data = torch.tensor(scores, dtype=router[-1].bias.dtype)
    return agent


def asked(agent, rows, deterministic=False):
    """What it does at the first block with so many rows, and what it records."""
    seen = {
        "activation": torch.zeros(rows, agent.env.network.observation_size),
        "task": torch.zeros(rows, dtype=torch.int64),
        "depth": torch.zeros(rows, dtype=torch.int64),
    }
    everyone = torch.ones(rows, dtype=torch.bool)
    context = Context(everyone, everyone.unsqueeze(1).expand(-1, 2), deterministic)
    return agent.act(seen, context), context.record


def learned(agent, batches):
    seen = []
    agent.learn(agent.env, batches * agent.env.num_envs, seen.append)
    return [{name: value.item() for name, value in metrics.items()} for metrics in seen]


# ---------------------------------------------------------------------- Eqs. 8 and 9, the losses on paths


def slow_consistency(paths, margin):
    total = 0.0
    for versions in paths:
        mean = [sum(column) / len(versions) for column in zip(*versions, strict=True)]
        total += sum(max(0.0, math.dist(path, mean) - margin) ** 2 for path in versions) / len(versions)
    return total / len(paths)


def slow_diversity(paths, margin):
    means = [[sum(column) / len(versions) for column in zip(*versions, strict=True)] for versions in paths]
    total, count = 0.0, len(paths)
    for i in range(count):
        for j in range(count):
            if i != j:
                total += max(0.0, margin - math.dist(means[i], means[j])) ** 2
    return total / (count * (count - 1)) if count > 1 else 0.0


def test_consistency_by_hand():
    paths = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.2, 0.6], [0.2, 1.0]]])
    # Around (0.5, 0) both lie 0.5 away, 0.3 beyond the margin; around (0.2, 0.8) 0.2, none: (2 · 0.09 + 0) / 2 / 2.
    assert float(consistency(paths, 0.2)) == pytest.approx(0.045)
    assert float(consistency(paths, 0.5)) == pytest.approx(0.0, abs=1e-12)
    assert float(consistency(paths, 0.0)) == pytest.approx((2 * 0.25 + 2 * 0.04) / 4)


def test_diversity_by_hand():
    # One block, mean paths 0, 0.3 and 0.8: only the first two are nearer than 0.5, by 0.2, both ways: 2 · 0.04 / 6.
    paths = torch.tensor([[[0.0], [0.0]], [[0.1], [0.5]], [[1.0], [0.6]]])
    assert float(diversity(paths, 0.5)) == pytest.approx(0.08 / 6)
    # With a margin of 1 by 0.7, 0.2 and 0.5.
    assert float(diversity(paths, 1.0)) == pytest.approx(2 * (0.49 + 0.04 + 0.25) / 6)
    assert float(diversity(paths[:1], 0.5)) == 0.0
    same = torch.full((4, 2, 3), 0.5)
    assert float(diversity(same, 0.5)) == pytest.approx(0.25)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.floats(0, 2))
def test_losses_on_paths_are_those_of_a_loop(seed, images, versions, blocks, margin):
    numbers = torch.Generator().manual_seed(seed)
    paths = torch.rand(images, versions, blocks, generator=numbers, dtype=torch.float64)
    paths = (paths.round() if seed % 3 == 0 else paths).requires_grad_()
    for fast, slow in ((consistency, slow_consistency), (diversity, slow_diversity)):
        loss = fast(paths, margin)
        assert loss.item() == pytest.approx(slow(paths.tolist(), margin), rel=1e-9, abs=1e-12)
        (gradient,) = torch.autograd.grad(loss, paths)
        assert bool(gradient.isfinite().all())


def test_gradients_of_the_losses_on_paths():
    paths = torch.rand(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    for loss in (consistency, diversity):
        assert torch.autograd.gradcheck(
            lambda paths, loss=loss: loss(paths, 0.1 if loss is consistency else 2.0), paths
        )


def test_paths_that_are_the_same_pull_and_push_nowhere():
    same = torch.full((4, 2, 3), 0.5, requires_grad=True)
    for loss in (consistency(same, 0.0), consistency(same, 0.2), diversity(same, 0.5)):
        (gradient,) = torch.autograd.grad(loss, same)
        assert gradient.abs().sum() == 0
    # Two mean paths that are the same are pushed by a third one alone, away from it.
    paths = torch.tensor([[[0.5]], [[0.5]], [[0.6]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(diversity(paths, 0.5), paths)
    assert gradient.flatten().sign().tolist() == [1, 1, -1]  # going down leads away


# ---------------------------------------------------------------------- Eqs. 6 and 13, decisions


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gumbel_softmax_has_the_distribution_of_eq_6(temperature):
    """The difference of two Gumbel numbers is logistic: so is log v / (1 - v), around log p / (1 - p), over T."""
    agent = with_scores(codinet(temperature=temperature), 3.0, 2.2)
    count = 40_000
    action, record = asked(agent, count)
    v = action[:, 1].detach()
    assert torch.equal(record["path"], action[:, 1])
    torch.testing.assert_close(action.sum(1), torch.ones(count))
    assert v.unique().numel() > 0.9 * count
    for at in (-2.0, -0.8, 0.0, 0.5, 2.0):
        # P(logit(v) <= x) = sigmoid(T x - log p / (1 - p)), and p is the softmax of the scores.
        expected = 1 / (1 + math.exp(-(temperature * at + 0.8)))
        share = float((v <= 1 / (1 + math.exp(-at))).float().mean())
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / count))
    again, _ = asked(with_scores(codinet(temperature=temperature), 3.0, 2.2), count)
    assert torch.equal(again, action)  # by the agent's own seed


def test_scores_are_made_log_probabilities():
    """What is added to both scores changes nothing: log(U) in Eq. 6 is read as the log-softmax."""
    drawn = [asked(with_scores(codinet(), *scores), 50)[0] for scores in ((-3.0, -1.0), (5.0, 7.0), (0.0, 2.0))]
    for other in drawn[1:]:
        torch.testing.assert_close(drawn[0], other)


def test_softmax_and_sampling():
    action, record = asked(with_scores(codinet(relaxation="softmax"), 1.0, 0.0), 5)
    torch.testing.assert_close(action, torch.tensor([[1.0, 0.0]] * 5).softmax(1))
    torch.testing.assert_close(record["path"], action[:, 1])
    agent = with_scores(codinet(relaxation="sampling"), math.log(3), 0.0)
    (indices, weights), record = asked(agent, 20_000)
    assert indices.shape == weights.shape == (20_000, 1) and bool((weights == 1).all())
    assert float(indices.float().mean()) == pytest.approx(0.25, abs=0.013)
    torch.testing.assert_close(record["path"], torch.full((20_000,), 0.25))
    expected = torch.where(indices[:, 0] == 1, math.log(0.25), math.log(0.75))
    torch.testing.assert_close(record["log_probability"], expected)


@pytest.mark.parametrize("relaxation", ["gumbel", "softmax", "sampling"])
def test_a_block_runs_where_v_is_at_least_a_half(relaxation):
    for scores, run in (((1.0, 1.0), 1), ((1.0, 1.0 - 1e-6), 0), ((-30.0, -29.0), 1), ((2.0, -2.0), 0)):
        agent = with_scores(codinet(relaxation=relaxation), *scores)
        (indices, weights), record = asked(agent, 3, deterministic=True)
        assert indices.tolist() == [[run]] * 3 and weights.tolist() == [[1.0]] * 3
        assert "path" not in record


# ---------------------------------------------------------------------- Eqs. 11 and 12, the whole loss


@pytest.mark.parametrize("relaxation", ["gumbel", "softmax"])
@pytest.mark.parametrize("gamma", [None, 0.0, 0.07])
@pytest.mark.parametrize("versions", [2, 4])
def test_the_loss_of_a_batch_is_that_of_a_loop(versions, gamma, relaxation):
    env = skip_env(8, augmentations=versions, k_cpt=3e-5)
    options = {"alpha": 0.3, "beta": 0.4, "consistency_margin": 0.02, "diversity_margin": 0.6}
    agent = codinet(env, gamma=gamma, relaxation=relaxation, **options)
    trajectory = rollout(agent, env)
    loss = agent.auxiliary_loss(trajectory)
    v = [[float(step.action[row, 1].detach()) for step in trajectory.steps] for row in range(8)]
    paths = [v[i * versions : (i + 1) * versions] for i in range(8 // versions)]
    costs = [decision.macs[1] for decision in env.network.decisions]
    if gamma is None:
        spent = [3e-5 * (env.network.stem_macs + sum(c * u for c, u in zip(costs, row, strict=True))) for row in v]
    else:
        shares = [len(costs) * c / sum(costs) for c in costs]
        spent = [gamma * sum(c * u for c, u in zip(shares, row, strict=True)) for row in v]
    con, div = slow_consistency(paths, 0.02), slow_diversity(paths, 0.6)
    assert div > 1e-4 and (con > 1e-5 or relaxation == "softmax")
    assert loss.item() == pytest.approx(0.3 * con + 0.4 * div + sum(spent) / 8, rel=1e-4)
    loss.backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in agent.routers.parameters())


def test_instances_pay_their_own_price():
    env = skip_env(8, k_cpt=(0.0, 1e-4), price=True)
    agent = codinet(env, alpha=0.0, beta=0.0, relaxation="softmax")
    trajectory = rollout(agent, env)
    assert sorted(set(trajectory.price.tolist())) == pytest.approx([0.0, 1e-4])
    expected = sum(float(p * m) for p, m in zip(trajectory.price, trajectory.expected_macs.detach(), strict=True)) / 8
    assert agent.auxiliary_loss(trajectory).item() == pytest.approx(expected, rel=1e-5)


def test_defaults_are_those_of_the_paper():
    config = CoDiNetConfig()
    assert (config.alpha, config.beta, config.consistency_margin, config.diversity_margin) == (0.2, 0.2, 0.2, 0.5)
    assert (config.temperature, config.relaxation, config.router, config.hidden) == (1.0, "gumbel", "linear", 48)
    assert needs("codinet")["augmentations"] == 4


def test_classification_alone_trains_routers_and_blocks():
    agent = codinet(alpha=0.0, beta=0.0, relaxation="softmax")
    before = {name: value.detach().clone() for name, value in agent.routers.named_parameters()}
    blocks = [parameter.detach().clone() for parameter in agent.env.network.parameters()]
    _, loss, reported = train_batch(agent, agent.env)
    assert bool(loss.isfinite()) and 0 < float(reported["cost_share"]) < 1 and float(reported["gamma"]) == 0
    assert all(not torch.equal(value, before[name]) for name, value in agent.routers.named_parameters())
    changed = [not torch.equal(a, b) for a, b in zip(agent.env.network.parameters(), blocks, strict=True)]
    assert sum(changed) >= len(changed) - 1


# ---------------------------------------------------------------------- what a block costs, steered


def test_gamma_moves_by_how_far_the_share_is_off_its_target():
    for start in (None, 1, 0.4):
        agent = codinet(gamma=start, cost_target=0.45, cost_step=0.5)
        gamma = float(start or 0.0)
        for metrics in learned(agent, 4):
            gamma = max(0.0, gamma + 0.5 * (metrics["cost_share"] - 0.45))
            assert metrics["gamma"] == pytest.approx(gamma, rel=1e-5)
    agent = codinet(cost_target=1.0, cost_step=0.5)
    assert [metrics["gamma"] for metrics in learned(agent, 2)] == [0.0, 0.0]  # never below
    assert [metrics["gamma"] for metrics in learned(codinet(gamma=0.3), 2)] == pytest.approx([0.3, 0.3])


def test_the_share_that_is_reported_is_that_of_the_blocks():
    agent = codinet(relaxation="softmax")
    trajectory = rollout(agent, agent.env)
    costs = [decision.macs[1] for decision in agent.env.network.decisions]
    spent = sum(c * step.action[:, 1].mean().item() for c, step in zip(costs, trajectory.steps, strict=True))
    assert float(agent.update(trajectory)["cost_share"]) == pytest.approx(spent / sum(costs), rel=1e-5)


@pytest.mark.parametrize("target", [0.25, 0.8])
def test_a_target_is_come_near_to(target):
    agent = codinet(cost_target=target, cost_step=0.1, learning_rate=0.03, alpha=0.0, beta=0.0, relaxation="softmax")
    shares = [metrics["cost_share"] for metrics in learned(agent, 120)]  # without a price all blocks are run
    assert sum(shares[-20:]) / 20 == pytest.approx(target, abs=0.1)


# ---------------------------------------------------------------------- the score function


def plain_env(rows, **options):
    """Blocks without batch norm, so that rows know nothing of each other; no augmentation."""
    torch.manual_seed(1)
    network = make_network("resnet32-skip", num_tasks=1, num_classes=3, input_shape=(1, 8, 8), width=2, stages=[1] * 3)
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, nn.Identity())
    data = synthetic_mtl(num_tasks=1, num_classes=3, image_size=8, images_per_class=4)
    forms = {**needs("codinet"), "augmentations": 1}
    return RoutingVectorEnv(network, data, rows, **{**forms, **options})


def gradients(loss, agent):
    parameters = [*agent.env.network.parameters(), *agent.routers.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("gamma", [None, 0.5])
def test_sampling_has_the_gradient_of_the_expectation(rows, gamma, monkeypatch):
    """All ways of all rows are drawn once, each counting as often as it would come, against the sum over ways."""
    with double_precision():
        env = plain_env(rows, k_cpt=1e-4)
        agent = codinet(env, alpha=0.0, gamma=gamma, beta=0.0, relaxation="sampling")
        for router in agent.routers.of:
            nn.init.normal_(router[-1].weight, std=2.0)
        instances = torch.tensor([3, 7])[:rows]

        def drawn(ways):
            """Roll out with decisions that are given: row by row, block by block."""
            places = iter(range(3))

            def numbers(count, generator=None, device=None):
                place = next(places)
                return torch.tensor([0.0 if way[place] else 1.0 for way in ways])

            monkeypatch.setattr(torch, "rand", numbers)
            trajectory = rollout(agent, env, instances=instances)
            monkeypatch.undo()
            for place, step in enumerate(trajectory.steps):
                assert step.action[0][:, 0].tolist() == [way[place] for way in ways]
            return trajectory

        every = list(itertools.product((0, 1), repeat=3))
        costs = [decision.macs[1] for decision in env.network.decisions]
        exact, chances = 0.0, {}
        for way in every:
            trajectory = drawn([way] * rows)
            chance = 1.0
            for choice, step in zip(way, trajectory.steps, strict=True):
                scores = agent.routers(step.observation, step.active)
                chance = chance * scores.softmax(1)[:, choice]
            spent = sum(c for c, run in zip(costs, way, strict=True) if run)
            cost = gamma * 3 * spent / sum(costs) if gamma else 1e-4 * (env.network.stem_macs + spent)
            exact = exact + (chance * (trajectory.exits[0].loss + cost)).mean()
            chances[way] = chance.detach()
        torch.testing.assert_close(sum(chances.values()), torch.ones(rows))
        expected = gradients(exact, agent)

        mean = [torch.zeros_like(g) for g in expected]
        for ways in itertools.product(every, repeat=rows):
            trajectory = drawn(ways)
            loss = env.outcome.block_loss() + agent.auxiliary_loss(trajectory)
            chance = math.prod(float(chances[way][row]) for row, way in enumerate(ways))
            mean = [m + chance * g for m, g in zip(mean, gradients(loss, agent), strict=True)]
    assert sum(float(g.abs().sum()) for g in expected[-12:]) > 1e-3
    for ours, theirs in zip(mean, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_with_sampling_losses_on_paths_are_of_the_probabilities():
    agent = codinet(relaxation="sampling", alpha=0.3, beta=0.4, consistency_margin=0.0, diversity_margin=1.0)
    trajectory = rollout(agent, agent.env)
    chances = torch.stack([agent.routers(s.observation, s.active).softmax(1)[:, 1] for s in trajectory.steps], 1)
    paths = chances.detach().unflatten(0, (-1, M)).tolist()
    likelihood = sum(step.record["log_probability"] for step in trajectory.steps)
    loss = trajectory.loss  # costs nothing here; each row's less the mean of all others'
    others = (loss.sum() - loss) / 7
    expected = 0.3 * slow_consistency(paths, 0.0) + 0.4 * slow_diversity(paths, 1.0)
    expected += ((loss - others) * likelihood).mean().item()
    assert agent.auxiliary_loss(trajectory).item() == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------------- the second stage


@pytest.mark.parametrize("router", ["linear", "rnn", "cnn"])
def test_in_the_second_stage_routers_stay_and_decisions_are_hard(router):
    env = skip_env(8, observes="map", optimizer="sgd", momentum=0.9, weight_decay=0.01)
    agent = codinet(env, router=router, freeze_after=0.5, cost_target=0.3)
    # 36 images twice are 9 batches: half a pass is over within the fifth.
    learned(agent, 4)
    assert not agent.frozen
    before = {name: value.clone() for name, value in agent.state_dict().items() if name.startswith("routers")}
    learned(agent, 1)
    assert agent.frozen and any(not torch.equal(agent.state_dict()[name], value) for name, value in before.items())
    kept = {name: value.clone() for name, value in agent.state_dict().items() if not name.startswith("_extra")}
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


# ---------------------------------------------------------------------- routers


def test_linear_routers_by_hand():
    env = skip_env(price=True, k_cpt=3e-8)
    agent = codinet(env, hidden=5, seed=3)
    trajectory = rollout(agent, env, deterministic=True)
    for number, step in enumerate(trajectory.steps):
        first, _, second = agent.routers.of[number]
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
    cell, h, c = agent.routers.cell, torch.zeros(8, 10), torch.zeros(8, 10)
    for number, step in enumerate(trajectory.steps):
        width, front = env.network.decisions[number].width, agent.routers.inputs.of[number]
        seen = step.observation["activation"][:, :width]
        if price:
            seen = torch.cat([torch.full((8, 1), 0.3), seen], 1)
        x = seen @ front.weight.t() + front.bias
        gates = x @ cell.weight_ih.t() + cell.bias_ih + h @ cell.weight_hh.t() + cell.bias_hh
        let_in, forget, new, out = gates.chunk(4, 1)
        c = sigmoid(forget) * c + sigmoid(let_in) * new.tanh()
        h = sigmoid(out) * c.tanh()
        scores = h @ agent.routers.output.weight.t() + agent.routers.output.bias
        torch.testing.assert_close(step.action, scores.softmax(1), rtol=1e-4, atol=1e-5)
        assert agent.macs(number) == 10 * (width + price) + 2 * 4 * 10 * 10 + 2 * 10
    agent.auxiliary_loss(trajectory).backward()
    assert all(parameter.grad is not None for parameter in agent.routers.parameters())


def test_convolutional_routers_by_hand():
    env = skip_env(observes="map", stages=(2, 2, 2), price=True, k_cpt=3e-8)
    agent = codinet(env, router="cnn").eval()
    for router in agent.routers.of:
        nn.init.uniform_(router[3].running_var, 0.5, 2.0)
        nn.init.normal_(router[3].running_mean)
    trajectory = rollout(agent, env, deterministic=True)
    for number, step in enumerate(trajectory.steps):
        shape, router = env.network.observed_shapes[number], agent.routers.of[number]
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
    {"router": "cnn", "relaxation": "softmax", "freeze_after": 0.8, "learning_rate": 0.05},
]


@pytest.mark.parametrize("options", RUNS, ids=lambda options: options.get("router", options.get("relaxation", "gamma")))
def test_same_seed_same_curves_bit_for_bit_also_after_a_resume(options, tmp_path):
    forms = {"observes": "map", "optimizer": "sgd", "momentum": 0.9, "schedule": "step", "schedule_epochs": 1}
    whole_agent = codinet(skip_env(**forms), seed=4, **options)
    whole = learned(whole_agent, 12)
    agent = codinet(skip_env(**forms), seed=4, **options)
    first = learned(agent, 5)
    agent.save(tmp_path / "half.pt")
    resumed = routing_gym.agents.Agent.load(tmp_path / "half.pt", skip_env(**forms, seed=9))
    assert resumed.passes == agent.passes == pytest.approx(5 / 9) and torch.equal(resumed.gamma, agent.gamma)
    assert first + learned(resumed, 7) == whole and len({metrics["loss"] for metrics in whole}) == 12
    for ours, theirs in zip(resumed.state_dict().values(), whole_agent.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(resumed.env.network.state_dict().values(), whole_agent.env.network.state_dict().values(),
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)


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
        ({"relaxation": "hard"}, "relaxation must be one of"),
        ({"router": "mlp"}, "router must be one of"),
        ({"alpha": -0.1}, "alpha must be at least 0"),
        ({"beta": math.inf}, "beta must be at least 0"),
        ({"gamma": -1.0}, "gamma must be at least 0"),
        ({"cost_target": 0.0}, r"cost_target must lie in \(0, 1\]"),
        ({"cost_target": 1.5}, r"cost_target must lie in \(0, 1\]"),
        ({"cost_step": 0.0}, "cost_step must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"hidden": 0}, "hidden must be an integer of at least 1"),
        ({"freeze_after": -1.0}, "freeze_after must be at least 0"),
        ({"consistency_margin": -0.2}, "consistency_margin must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CoDiNetConfig(**options)
