"""Mixture of depths (Raposo et al. 2024): who is run, what it weighs, what is predicted."""

import math

import pytest
import torch
from resuming import assert_goes_on
from skips import skip_env
from stepping import block_loss
from toys import RunSkip, small_env

from routing_gym.agents import make_agent
from routing_gym.agents.mixture_of_depths import capacity_of
from routing_gym.agents.parts.assignments import among_highest
from routing_gym.envs import Context, Known, RoutingVectorEnv, rollout
from routing_gym.ranks import Ranks
from routing_gym.tasks import MultiTaskDataset


def weights_env(num_envs=10, **options):
    torch.manual_seed(3)
    return small_env(RunSkip(), num_envs, action_type="weights", **options)


def made(env=None, **options):
    """An agent whose scores differ from row to row."""
    agent = make_agent("mixture-of-depths", weights_env() if env is None else env, **options)
    if agent.config.representation == "mlp":
        with torch.no_grad():
            agent.scores.output.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    return agent


def test_the_highest_of_some_rows_by_hand():
    wish = torch.tensor([0.1, 3.0, -1.0, 0.1, 9.0, 0.1])
    rows = torch.tensor([True, True, True, True, False, True])
    found = [among_highest(wish, rows, torch.tensor(count)).nonzero().flatten().tolist() for count in (0, 1, 2, 3, 5)]
    # Of five rows none, one, two, three, all; of equal wishes the first.
    assert found == [[], [1], [0, 1], [0, 1, 3], [0, 1, 2, 3, 5]]


def test_a_share_of_many_rows_is_exact():
    for percent in range(0, 101, 5):
        for count in (1, 7, 20, 100, 180, 300):
            assert int(capacity_of(torch.ones(count).bool(), percent / 100)) == -(-percent * count // 100)


@pytest.mark.parametrize("capacity", [0.2, 0.5, 0.75])
def test_exactly_the_capacity_is_run_and_adds_what_its_router_says(capacity):
    """x + sigmoid(s) F(x) for those of the highest s, by a loop over blocks."""
    agent = made(capacity=capacity)
    env, network = agent.env, agent.env.network
    network.rows_run = 0
    trajectory = rollout(agent, env)
    most = math.ceil(capacity * 10)
    assert network.rows_run == 3 * most
    x, expected = env.dataset.pixels(trajectory.instance).flatten(1), torch.zeros(10)
    for number, residual in enumerate(network.residual):
        scores = agent.scored({"activation": x, "task": trajectory.task, "depth": torch.full((10,), number)})
        wish = (scores[:, 1] - scores[:, 0]).tolist()
        highest = sorted(range(10), key=lambda row: -wish[row])[:most]
        added = residual(x)
        x = torch.stack([
            x[row] + added[row] / (1 + math.exp(-wish[row])) if row in highest else x[row] for row in range(10)
        ]).detach()  # fmt: skip
        for row in range(10):
            right = 1 / (1 + math.exp(-wish[row]))
            expected[row] -= math.log(right if row in highest else 1 - right)
    torch.testing.assert_close(trajectory.exits[0].logits, network.head(x))
    assert set(trajectory.macs.tolist()) <= {36.0 * blocks for blocks in range(4)}
    assert float(trajectory.macs.sum()) == 36.0 * 3 * most
    loss = agent.auxiliary_loss(trajectory)
    assert loss.item() == pytest.approx(0.01 * float(expected.mean()), rel=1e-4)


def test_a_skippable_block_keeps_its_shortcut_whole():
    """Of (1 − v) shortcut(x) + v F(x), F with its own shortcut: x + sigmoid(s) (F(x) − x)."""
    env = skip_env(8, augmentations=1, shift=0, action_type="weights", differentiable=False)
    agent = made(env, capacity=0.5)
    for deterministic in (False, True):
        for step in rollout(agent, env, deterministic=deterministic).steps:
            skip, run = step.action.unbind(-1)
            torch.testing.assert_close(skip, 1 - run)
            assert deterministic or int((run > 0).sum()) == 4
    with torch.no_grad():
        agent.scores.output.weight.zero_()
        agent.scores.output.bias.copy_(torch.tensor([0.0, 0.7]))  # all run
        trajectory = rollout(agent, env, deterministic=True)
        env.network.train()  # all rows run, so that a block's batch norm sees them all
        x = env.network.stem(env.dataset.pixels(trajectory.instance), trajectory.task)[0]
        gate = 1 / (1 + math.exp(-0.7))
        for bank in env.network.banks:
            shortcut = bank.block.shortcut(x)
            x = shortcut + gate * (bank.block(x) - shortcut)
        logits = env.network.readout(2, 1, (x.mean((2, 3)),), trajectory.task)
    torch.testing.assert_close(trajectory.exits[0].logits, logits, rtol=1e-4, atol=1e-5)


def test_only_what_ran_teaches_the_router_besides_the_prediction():
    env = weights_env()
    agent = made(env, prediction=0.0, representation="table", arrangement="per_task")
    trajectory = rollout(agent, env)
    assert agent.auxiliary_loss(trajectory) is None
    block_loss(env).backward()
    ran = {int(task) for task, run in zip(trajectory.task, trajectory.steps[0].record["run"], strict=True) if run}
    touched = agent.scores.table.grad[:, 0].abs().sum(-1).nonzero().flatten().tolist()
    assert touched and set(touched) <= ran


def test_judged_no_row_depends_on_another():
    agent = made(capacity=0.3)
    seen = agent.env.reset()[0]
    with torch.no_grad():
        agent.scores.output.bias[0, 1] -= agent.scored(seen).diff(dim=-1).mean()
    wish = agent.scored(seen).diff(dim=-1)[:, 0]
    together = agent.act(seen, Context(Known(torch.ones(10).bool(), None), deterministic=True))
    assert torch.equal(together[:, 1] > 0, wish > 0) and 0 < int((wish > 0).sum()) < 10
    for row in range(10):
        own = {key: value[row : row + 1] for key, value in seen.items()}
        alone = agent.act(own, Context(Known(torch.ones(1).bool(), None), deterministic=True))
        torch.testing.assert_close(alone[0], together[row])


def test_every_decision_has_a_capacity_of_its_own_where_rows_have_gone_on():
    agent = made(capacity=0.5)
    depth = torch.tensor([0, 0, 1, 1, 1, 1, 3, 3, 0, 0])
    seen = {**agent.env.reset()[0], "depth": depth}
    run = agent.act(seen, Context(Known(depth < 3, None)))[:, 1] > 0
    wish = agent.scored(seen).diff(dim=-1)[:, 0]
    for number in (0, 1):
        rows = (depth == number).nonzero().flatten()
        assert set(rows[run[rows]].tolist()) == set(rows[wish[rows].topk(2).indices].tolist())


@pytest.mark.long
def test_it_learns_which_rows_need_a_block_and_says_so_before_it_has_seen_the_others():
    """The block helps the half of the rows whose first pixel is bright, and harms the others."""

    class Helps(torch.nn.Module):
        def forward(self, x):
            return torch.where(x[:, :1] > 0.5, 1.0, -0.5) * torch.nn.functional.pad(x[:, 1:4], (1, 2))

    rows, bright = torch.arange(12), torch.arange(12) % 2
    label, task = rows % 3, torch.zeros(12, dtype=torch.int64)
    images = torch.zeros(12, 6, dtype=torch.uint8)
    images[:, 0] = 255 * bright.to(torch.uint8)
    images[rows, 1 + label] = 255
    of_images = images.view(12, 1, 2, 3), rows, task, label, 1, 3, torch.zeros(1), torch.full((1,), 255.0)
    data = {split: MultiTaskDataset("halves", split, *of_images) for split in ("train", "test")}
    network = RunSkip(1)
    network.residual = torch.nn.ModuleList([Helps()])
    network.head.weight.data, network.head.bias.data = torch.eye(3, 6).roll(1, 1), torch.zeros(3)
    env = RoutingVectorEnv(network, data, 60, autoreset_mode="disabled", action_type="weights")
    agent = make_agent("mixture-of-depths", env, learning_rate=0.01).learn(env, 60 * 150)
    trajectory = rollout(agent, env, deterministic=True)
    for step in trajectory.steps:
        assert torch.equal(step.action[:, 1] > 0, bright[trajectory.instance] == 1)


def test_a_row_pays_by_its_chance_to_run_whoever_else_is_there():
    """σ(s) is what it would run by, judged alone; which rows of a batch did says the capacity."""
    agent = made(weights_env(k_cpt=1e-3), prediction=0.0, representation="table", arrangement="per_task")
    with torch.no_grad():
        agent.scores.table.normal_(generator=torch.Generator().manual_seed(4))
    trajectory, expected = rollout(agent, agent.env), 0.0
    assert float(trajectory.macs.mean()) == 54.0  # three halves of 36
    for number in range(3):
        for task in trajectory.task.tolist():
            skip, run = agent.scores.table[task, number]
            expected = expected + 1e-3 * 36 * run.exp() / (skip.exp() + run.exp()) / 10
    loss = agent.auxiliary_loss(trajectory)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(of, agent.scores.table) for of in (loss, expected))
    torch.testing.assert_close(ours, theirs)
    free = made(prediction=0.0)
    assert free.auxiliary_loss(rollout(free, free.env)) is None


@pytest.mark.parametrize("representation", ["table", "mlp"])
def test_learning_goes_on_where_it_stopped(representation, tmp_path):
    def made():
        env = skip_env(8, augmentations=1, action_type="weights", differentiable=False)
        return make_agent("mixture-of-depths", env, representation=representation)

    assert_goes_on(made, (3, 3), tmp_path)


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="'mixture-of-depths' says whether a block is skipped .* take one of the netw"):
        make_agent("mixture-of-depths", small_env(action_type="weights"))
    env = weights_env()
    env.ranks = Ranks(0, 2)
    with pytest.raises(ValueError, match="'mixture-of-depths' chooses among the rows .*: it trains in one process"):
        make_agent("mixture-of-depths", env)
    with pytest.raises(ValueError, match=r"capacity must .* got 1\.5"):
        make_agent("mixture-of-depths", weights_env(), capacity=1.5)
