"""SMEAR: one block for every row, whose parameters are mixed, against a loop that builds it."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from toys import ExitTree, Gates, small_env

import routing_gym
from routing_gym.agents import make_agent
from routing_gym.blocks import LinearBlocks, ModuleBlocks, blocks_merge
from routing_gym.envs import Context, Known, rollout
from routing_gym.networks import RoutedMLP


def merging_env(network=None, **options):
    return small_env(network, 12, action_type="weights", merge_blocks=True, **options)


def convolutions(count=3):
    return [nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)) for _ in range(count)]


class Recurrent(nn.Module):
    """The last output of an LSTM."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


@pytest.mark.parametrize(
    ("bank", "shape"),
    [
        (LinearBlocks(3, 5, 4, relu=True), (5,)),
        (LinearBlocks(3, 5, 4), (5,)),
        (ModuleBlocks(convolutions(), (2, 4, 4)), (2, 4, 4)),
    ],
)
def test_a_merged_block_is_built_and_run(bank, shape):
    torch.manual_seed(0)
    x, weights = torch.randn(6, *shape, requires_grad=True), torch.randn(6, 3).softmax(-1).requires_grad_()
    outputs = []
    for row in range(6):
        if isinstance(bank, LinearBlocks):
            weight, bias = (sum(weights[row, c] * stack[c] for c in range(3)) for stack in (bank.weight, bank.bias))
            y = x[row] @ weight + bias
            outputs.append(y.relu() if bank.relu else y)
        else:
            names = dict(bank.blocks[0].named_parameters())
            own = {n: sum(weights[row, c] * bank.blocks[c].get_parameter(n) for c in range(3)) for n in names}
            outputs.append(functional_call(bank.blocks[0], own, (x[row : row + 1],))[0])
    expected = torch.stack(outputs)
    with blocks_merge():
        merged = bank(x, weights)
        pair = bank(x, (torch.arange(3).expand(6, 3), weights))
    torch.testing.assert_close(merged, expected)
    torch.testing.assert_close(pair, expected)
    assert not torch.allclose(bank(x, weights), expected, atol=1e-3) or not getattr(bank, "relu", True)
    leaves, slope = [x, weights, *bank.parameters()], torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(merged, leaves, slope), torch.autograd.grad(expected, leaves, slope))


@pytest.mark.parametrize("representation", ["table", "mlp"])
def test_it_merges_by_the_softmax_of_its_scores(representation):
    env = merging_env(RoutedMLP((1, 2, 3), 3, 3, width=4, layers=1))
    agent = make_agent("smear", env, representation=representation)
    trajectory = rollout(agent, env)
    (step,) = trajectory.steps
    weights = agent.scored(step.observation).softmax(-1)
    torch.testing.assert_close(step.action, weights)
    bank, pixels = env.network.bank(0), env.dataset.pixels(trajectory.instance).flatten(1)
    for row in range(12):
        weight, bias = (sum(weights[row, c] * stack[c] for c in range(3)) for stack in (bank.weight, bank.bias))
        torch.testing.assert_close(trajectory.exits[0].logits[row], pixels[row] @ weight + bias)
    # One block, and every parameter of the three that are mixed into it.
    assert bool((trajectory.macs == 6 * 3 + 3 * (6 * 3 + 3)).all())
    judged = routing_gym.evaluate(agent, env)
    assert judged.macs == 18 + 63 + agent.macs(0)


def test_it_learns_and_its_router_gets_a_gradient():
    env = merging_env(learning_rate=0.02)
    agent = make_agent("smear", env)
    before = agent.scores.table.detach().clone()
    losses = []
    agent.learn(env, 12 * 100, lambda metrics: losses.append(float(metrics["loss"])))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert bool((agent.scores.table != before)[:, :-1].all())


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(ValueError, match="merge_blocks=True needs action_type='weights'"):
        small_env(merge_blocks=True)
    norm = [nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(2)]
    for bank in (
        ModuleBlocks(norm, (2, 4, 4)),
        ModuleBlocks([nn.Linear(3, 3), nn.Identity()], (3,)),
        ModuleBlocks([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)], (3,)),
        ModuleBlocks([nn.Identity()], (3,)),
        ModuleBlocks([Recurrent() for _ in range(2)], (5, 3)),
    ):
        assert not bank.mergeable
    for network in (ExitTree([[1, 2], [], []]), Gates()):
        with pytest.raises(ValueError, match=r"merge_blocks=True: .* merged"):
            merging_env(network)
    with pytest.raises(ValueError, match="needs an environment made with merge_blocks=True, got False"):
        make_agent("smear", small_env(action_type="weights"))


@pytest.mark.parametrize(("name", "options"), [("smear", {"merge_blocks": True}), ("gumbel", {"dense_backward": True})])
def test_another_environment_over_the_same_network_changes_nothing(name, options):
    """Made before, used in the middle of a batch, and used between its end and the step."""
    learned = []
    for other in (False, True):
        env = small_env(None, 12, action_type="weights", **options)
        agent = make_agent(name, env)
        beside = env.sibling(6, merge_blocks=False, dense_backward=False, train=False) if other else None

        def meddle(beside=beside):
            if beside is not None:
                beside.reset(seed=1)
                beside.step(torch.full((6, 3), 1 / 3))

        agent.train()
        for _ in range(3):
            env.reset(seed=0)
            while env.state.waiting:
                env.step(agent.act(env.observe(), Context(Known(env.state.active, env.network.action_mask(env.state)))))
                assert env.network.training
                meddle()
            env.train_blocks()
        learned.append([env.state.macs, *(parameter.detach().clone() for parameter in env.network.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*learned, strict=True))
