"""CoDiNet (Wang et al.): Eqs. 6, 8, 9, 11, 12 and 13 against numbers worked by hand and plain loops."""

import itertools
import math

import pytest
import torch
from by_hand import double_precision
from hypothesis import given, settings
from hypothesis import strategies as st
from resuming import learned
from skips import M, codinet, skip_env
from torch import nn

from routing_gym.agents import CoDiNetConfig, needs, train_batch
from routing_gym.agents.parts.losses import consistency, diversity
from routing_gym.envs import Context, Known, RoutingVectorEnv, rollout
from routing_gym.networks import make_network
from routing_gym.tasks import synthetic_mtl


def with_scores(agent, *scores):
    """Make every router of linear layers say the same of everything."""
    for router in agent.scores.of:
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
    context = Context(Known(everyone, everyone.unsqueeze(1).expand(-1, 2)), deterministic=deterministic)
    return agent.act(seen, context), context.record


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
        whole = env.network.stem_macs + sum(costs)
        shares = [len(costs) * c / whole for c in costs]
        spent = [gamma * sum(c * u for c, u in zip(shares, row, strict=True)) for row in v]
    con, div = slow_consistency(paths, 0.02), slow_diversity(paths, 0.6)
    assert div > 1e-4 and (con > 1e-5 or relaxation == "softmax")
    assert loss.item() == pytest.approx(0.3 * con + 0.4 * div + sum(spent) / 8, rel=1e-4)
    loss.backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in agent.scores.parameters())


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
    before = {name: value.detach().clone() for name, value in agent.scores.named_parameters()}
    blocks = [parameter.detach().clone() for parameter in agent.env.network.parameters()]
    _, loss, reported = train_batch(agent, agent.env)
    assert bool(loss.isfinite()) and 0 < float(reported["cost_share"]) < 1 and float(reported["gamma"]) == 0
    assert all(not torch.equal(value, before[name]) for name, value in agent.scores.named_parameters())
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


@pytest.mark.long
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
    parameters = [*agent.env.network.parameters(), *agent.scores.parameters()]
    return torch.autograd.grad(loss, parameters, materialize_grads=True)


WEIGHED = {"class_weights": (0.5, 2.0, 1.0), "label_smoothing": 0.2, "task_balance": "uncertainty"}


@pytest.mark.parametrize(("rows", "options"), [(1, {}), (2, {}), (1, WEIGHED), (2, WEIGHED)])
@pytest.mark.parametrize("gamma", [None, 0.5])
def test_sampling_has_the_gradient_of_the_expectation(rows, options, gamma, monkeypatch):
    """All ways of all rows are drawn once, each counting as often as it would come, against the sum over ways."""
    with double_precision():
        env = plain_env(rows, k_cpt=1e-4, **options)
        if options:
            env.trainer.balance.log_variance.weight.data.fill_(0.7)
        agent = codinet(env, alpha=0.0, gamma=gamma, beta=0.0, relaxation="sampling")
        for router in agent.scores.of:
            nn.init.normal_(router[-1].weight, std=2.0)
        instances = torch.tensor([3, 7])[:rows]

        def drawn(ways):
            """Roll out with decisions that are given: row by row, block by block."""
            places = iter(range(3))

            def numbers(empty, how, generator):
                place = next(places)
                return torch.tensor([0.0 if way[place] else 1.0 for way in ways])

            monkeypatch.setattr("routing_gym.agents.codinet.drawn", numbers)
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
                scores = agent.scores(step.observation, Context(Known(step.active, None)))
                chance = chance * scores.softmax(1)[:, choice]
            spent = sum(c for c, run in zip(costs, way, strict=True) if run)
            whole = env.network.stem_macs + sum(costs)
            cost = gamma * 3 * spent / whole if gamma else 1e-4 * (env.network.stem_macs + spent)
            # Smoothed labels have a share of every class; an instance weighs what its class does.
            smoothing, log_chances = options.get("label_smoothing", 0.0), trajectory.exits[0].logits.log_softmax(1)
            wrong = -(1 - smoothing) * log_chances[range(rows), trajectory.label] - smoothing * log_chances.mean(1)
            weight = torch.tensor(options.get("class_weights", (1.0,) * 3))[trajectory.label]
            wrong = math.exp(-0.7) * wrong if options else wrong
            exact = exact + (chance * weight * wrong).sum() / weight.sum() + (chance * cost).mean()
            chances[way] = chance.detach()
        torch.testing.assert_close(sum(chances.values()), torch.ones(rows))
        expected = gradients(exact, agent)

        mean = [torch.zeros_like(g) for g in expected]
        for ways in itertools.product(every, repeat=rows):
            trajectory = drawn(ways)
            loss = env.trainer.loss(trajectory.exits, trajectory.label, trajectory.task)
            loss = loss + agent.auxiliary_loss(trajectory)
            chance = math.prod(float(chances[way][row]) for row, way in enumerate(ways))
            mean = [m + chance * g for m, g in zip(mean, gradients(loss, agent), strict=True)]
    assert sum(float(g.abs().sum()) for g in expected[-12:]) > 1e-3
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-9)


def test_instances_that_weigh_nothing_teach_routers_nothing():
    """Not even by the baseline; the others are compared with one another, each by its weight."""
    weights = (0.0, 1.0, 3.0)
    env = skip_env(12, class_weights=weights, label_smoothing=0.1)
    agent = codinet(env, relaxation="sampling", alpha=0.0, beta=0.0)
    trajectory = rollout(agent, env)
    likelihood = [step.record["log_probability"] for step in trajectory.steps]
    slopes = torch.stack(torch.autograd.grad(agent.auxiliary_loss(trajectory), likelihood)).T
    log_chances, label = trajectory.exits[0].logits.detach().log_softmax(1), trajectory.label.tolist()
    wrong = [-0.9 * float(log_chances[i, own]) - 0.1 * float(log_chances[i].mean()) for i, own in enumerate(label)]
    assert set(label) == {0, 1, 2}
    for row, own in enumerate(label):
        others = [i for i in range(12) if i != row]
        baseline = sum(weights[label[i]] * wrong[i] for i in others) / sum(weights[label[i]] for i in others)
        expected = weights[own] * (wrong[row] - baseline) / sum(weights[of] for of in label)
        assert slopes[row].tolist() == pytest.approx([expected] * 3, rel=1e-3, abs=1e-6)
        assert own or not slopes[row].any()


def test_a_batch_in_which_nothing_weighs_anything_teaches_routers_nothing():
    env = plain_env(4, class_weights=(0.0, 1.0, 3.0))
    agent = codinet(env, relaxation="sampling", alpha=0.0, beta=0.0)
    (rows,) = (env.dataset.label == 0).nonzero().T
    loss = agent.auxiliary_loss(rollout(agent, env, instances=rows[:4]))
    assert loss.item() == 0 and not any(bool(slope.any()) for slope in gradients(loss, agent))


def test_with_sampling_losses_on_paths_are_of_the_probabilities():
    agent = codinet(relaxation="sampling", alpha=0.3, beta=0.4, consistency_margin=0.0, diversity_margin=1.0)
    trajectory = rollout(agent, agent.env)
    chances = torch.stack(
        [agent.scores(s.observation, Context(Known(s.active, None))).softmax(1)[:, 1] for s in trajectory.steps], 1
    )
    paths = chances.detach().unflatten(0, (-1, M)).tolist()
    likelihood = sum(step.record["log_probability"] for step in trajectory.steps)
    loss = trajectory.loss  # costs nothing here; each row's less the mean of all others'
    others = (loss.sum() - loss) / 7
    expected = 0.3 * slow_consistency(paths, 0.0) + 0.4 * slow_diversity(paths, 1.0)
    expected += ((loss - others) * likelihood).mean().item()
    assert agent.auxiliary_loss(trajectory).item() == pytest.approx(expected, rel=1e-4)
