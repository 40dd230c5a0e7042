"""DSelect-k (Hazimeh et al. 2021): Eqs. 2 to 4 and 6 against a loop over codes."""

import functools
import math

import pytest
import torch
import weighing
from toys import of_family, small_env

from routing_gym.agents import make_agent, train_batch
from routing_gym.agents.dselect_k import smooth_step
from routing_gym.envs import rollout

weights_env = functools.partial(weighing.weights_env, num_envs=12)


def step_by_hand(t, gamma):
    if t <= -gamma / 2:
        return 0.0
    return 1.0 if t >= gamma / 2 else -2 * t**3 / gamma**3 + 3 * t / (2 * gamma) + 0.5


def by_hand(numbers, k, bits, legal, blocks, gamma):
    """Weights of blocks, and the selectors' entropy, of a row's numbers: those of each selector one after the other."""
    selectors = [numbers[i * (bits + 1) : (i + 1) * (bits + 1)] for i in range(k)]
    total = sum(math.exp(own[0]) for own in selectors)
    weights, entropy = [0.0] * blocks, 0.0
    for own in selectors:
        for code in range(2**bits):
            r = 1.0
            for bit in range(bits):
                s = step_by_hand(own[1 + bit], gamma)
                r *= s if (code >> bit) % 2 else 1 - s
            weights[legal[code % len(legal)]] += math.exp(own[0]) / total * r
            entropy -= r * math.log(r) if r > 0 else 0.0
    return weights, entropy


@pytest.mark.parametrize("gamma", [0.1, 0.3, 0.7, 1.0, 3.0])
def test_the_smooth_step_is_a_cube_between_an_exact_0_and_an_exact_1(gamma):
    t = torch.linspace(-gamma, gamma, 41)
    torch.testing.assert_close(smooth_step(t, gamma), torch.tensor([step_by_hand(one, gamma) for one in t.tolist()]))
    assert smooth_step(torch.tensor([-9.0, -gamma / 2, gamma / 2, 9.0]), gamma).tolist() == [0, 0, 1, 1]
    slope = torch.func.vmap(torch.func.grad(lambda one: smooth_step(one, gamma)))(torch.tensor([-gamma, 0.0, gamma]))
    torch.testing.assert_close(slope, torch.tensor([0.0, 1.5 / gamma, 0.0]))


@pytest.mark.parametrize(("blocks", "k", "bits"), [(2, 1, 1), (3, 2, 2), (4, 2, 2), (5, 3, 3), (8, 2, 3)])
@pytest.mark.parametrize("representation", ["table", "mlp"])
def test_weights_and_entropy_are_those_of_a_loop_over_codes(blocks, k, bits, representation):
    masks = torch.ones(2, 1, blocks, dtype=torch.bool)
    masks[1, 0, 1] = False
    env = weights_env(blocks=blocks, masks=masks)
    agent = make_agent("dselect-k", env, k=k, representation=representation, gamma=0.8, entropy=0.3)
    with torch.no_grad():
        (agent.scores.table if representation == "table" else agent.scores.output.bias).normal_(
            std=0.3, generator=torch.Generator().manual_seed(5)
        )
    trajectory, expected = rollout(agent, env), 0.0
    for number, step in enumerate(trajectory.steps):
        legal = [c for c in range(blocks) if bool(masks[number, 0, c])]
        rows = agent.scored(step.observation).tolist()
        for row, numbers in enumerate(rows):
            weights, entropy = by_hand(numbers, k, bits, legal, blocks, 0.8)
            torch.testing.assert_close(step.action[row], torch.tensor(weights), rtol=1e-4, atol=1e-6)
            expected += 0.3 * entropy / len(rows)
        torch.testing.assert_close(step.action.sum(-1), torch.ones(12))
    assert float(agent.auxiliary_loss(trajectory).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_once_certain_only_k_blocks_run_and_have_a_gradient(gamma):
    env = weights_env()
    agent = make_agent("dselect-k", env, arrangement="single", gamma=gamma, entropy=0.0)
    sure = gamma / 2
    with torch.no_grad():  # α, then the bits of 3 and 4, from the lowest
        agent.scores.table[0] = torch.tensor([0.5, sure, sure, -sure, -0.5, -sure, -sure, 2 * sure])
    trajectory, _, _ = train_batch(agent, env)
    weights = torch.tensor([0.5, -0.5]).softmax(0)
    for step in trajectory.steps:
        assert (step.action != 0).tolist() == [[False, False, False, True, True]] * 12
        torch.testing.assert_close(step.action[:, 3:], weights.expand(12, -1))
    assert set(trajectory.macs.tolist()) == {2.0 * (6 * 4 + 4 * 3)}
    used = torch.cat([bank.bias.grad.abs().sum(-1) for bank in env.network.banks[-1:]])
    assert (used != 0).tolist() == [False, False, False, True, True]


def test_the_entropy_makes_selectors_certain():
    for entropy, fewest, most in ((0.0, 4, 4), (0.1, 1, 2)):
        env = weights_env(blocks=4, num_envs=24, learning_rate=1e-4)
        agent = make_agent("dselect-k", env, k=2, entropy=entropy, gamma=5.0).learn(env, 24 * 40)
        for step in rollout(agent, env, deterministic=True).steps:
            used = (step.action != 0).sum(-1)
            assert fewest <= int(used.min()) and int(used.max()) <= most


def test_selectors_differ_at_first_and_begin_alike_with_the_same_seed():
    tables = [make_agent("dselect-k", weights_env(), seed=seed).scores.table for seed in (0, 0, 1)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert 0 < float(tables[0].detach().abs().max()) <= 0.01 and len(tables[0].unique()) > 0.9 * tables[0].numel()


def test_it_shares_outcomes_out_and_chooses_for_one_tensor():
    tree = small_env(of_family("tree"), action_type="weights")
    agent = make_agent("dselect-k", tree)
    for _ in range(3):
        trajectory, _, _ = train_batch(agent, tree)
    share = torch.zeros(len(trajectory))
    for exit in trajectory.exits:
        share[slice(None) if exit.rows is None else exit.rows] += exit.weight.detach()
    torch.testing.assert_close(share, torch.ones(len(trajectory)))
    with pytest.raises(
        ValueError, match="'dselect-k' mixes k=6 blocks, no decision of this network offers more than 5"
    ):
        make_agent("dselect-k", weights_env(), k=6)
    with pytest.raises(ValueError, match="'dselect-k' chooses for 1 tensor"):
        make_agent("dselect-k", small_env(of_family("columns"), action_type="weights"))
