"""A route followed at once is the route taken step by step, also where a subclass does something of its own."""

import pytest
import torch
from stepping import outcome, routed, step, walked
from torch import nn
from toys import CLASSES, IMAGE, TREE, ExitTree

from routing_gym.blocks import LinearBlocks, WithPass, plain
from routing_gym.networks import RoutedMLP, route


@pytest.mark.parametrize("kind", ["layered", "recurrent", "trunk", "unlike costs"])
def test_a_route_followed_at_once_is_the_route_taken_step_by_step(kind):
    torch.manual_seed(0)
    images, task = torch.randn(9, 1, 2, 2), torch.randint(2, (9,))
    if kind == "unlike costs":
        module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        network = route(module, ["1", "3"], [2, 4], input_shape=(1, 2, 2)).eval()
    else:
        trunk = nn.Sequential(nn.Flatten(), nn.Linear(4, 6)) if kind == "trunk" else None
        network = RoutedMLP((1, 2, 2), 3, 3, width=4, recurrent=kind == "recurrent", trunk=trunk)
    assert network.in_order
    plan = torch.stack([torch.randint(decision.n, (9,)) for decision in network.decisions], 1)
    state = walked(network, network.start(images, task), lambda state: plan[:, int(state.at[0])])
    at_once = network.follow(network.start(images, task), plan)
    torch.testing.assert_close(outcome(network, at_once)[0], outcome(network, state)[0])
    torch.testing.assert_close(at_once.macs, state.macs)
    assert not bool(at_once.active.any()) and torch.equal(at_once.task, task)
    torch.testing.assert_close(network.route_macs(plan).sum(1) + network.stem_macs, state.macs)
    parameters = list(network.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(outcome(network, at_once)[0].square().sum(), parameters, allow_unused=True),
        torch.autograd.grad(outcome(network, state)[0].square().sum(), parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(
            torch.zeros(()) if ours is None else ours, torch.zeros(()) if theirs is None else theirs
        )
    assert not ExitTree(TREE).in_order


class Halved(RoutedMLP):
    """Halves what every layer gives."""

    def transition(self, decision, activation, action, task):
        (y,) = super().transition(decision, activation, action, task)
        return (plain(y) / 2,)


class Entered(RoutedMLP):
    """Adds one on arrival."""

    def enter(self, decision, activation):
        return (plain(activation[0]) + 1,)


@pytest.mark.parametrize("family", [Halved, Entered])
def test_what_a_subclass_does_between_layers_is_not_left_out_of_a_route_followed_at_once(family):
    torch.manual_seed(0)
    network = family(IMAGE, CLASSES, 3, width=8)
    images, task = torch.randn(6, *IMAGE), torch.zeros(6, dtype=torch.int64)
    plan = torch.randint(3, (6, 3))
    one_by_one = walked(network, network.start(images, task), lambda state: plan[:, state.sole])
    at_once = network.follow(network.start(images, task), plan)
    torch.testing.assert_close(outcome(network, at_once)[0], outcome(network, one_by_one)[0])


@pytest.mark.parametrize("recurrent", [False, True])
def test_linear_blocks_that_a_subclass_runs_its_own_way_are_run_so(recurrent):
    class Nothing(LinearBlocks):
        def run(self, x, choice):
            return 0 * super().run(x, choice)

    network = RoutedMLP(IMAGE, CLASSES, 2, width=8, layers=3, recurrent=recurrent)
    own = Nothing(2, 8, 8)
    network.banks[1] = WithPass(own) if recurrent else own
    images, task = torch.randn(5, *IMAGE), torch.zeros(5, dtype=torch.int64)
    plan = torch.zeros(5, 3, dtype=torch.int64)
    state = routed(network, images, plan.unbind(1)[:2])
    assert not bool(network.observe(state).any())
    last = step(network, state, plan[:, 2])
    at_once = network.follow(network.start(images, task), plan)
    torch.testing.assert_close(outcome(network, at_once)[0], outcome(network, last)[0])
