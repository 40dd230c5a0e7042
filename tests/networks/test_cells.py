"""Routed cells against cells built by hand, image by image, and against the figures the papers print."""

import copy
from collections import Counter
from functools import cache

import gymnasium
import pytest
import torch
from plain_paths import randomised
from stepping import routed, step
from torch import nn
from torch.nn import functional

import routing_gym
from routing_gym.agents import make_agent, needs, train_batch
from routing_gym.envs import RoutingVectorEnv
from routing_gym.networks import RoutedCells, make_network
from routing_gym.tasks import synthetic_mtl
from routing_gym.testing import check_vector_env

IMAGE, CLASSES = (3, 8, 8), 5
INPUTS, OPERATIONS = (2, 3, 4, 5), 7


def small(cells=3, shape=IMAGE):
    """A small network in eval mode whose batch norms do something."""
    return copy.deepcopy(built(cells, shape))


@cache
def built(cells, shape):
    torch.manual_seed(0)
    return randomised(RoutedCells(shape, CLASSES, cells=cells, filters=2)).eval()


# --------------------------------------------------------------------------------------------------- the slow reference


def normalized(x, norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return x * scale.view(-1, 1, 1) + (norm.bias - norm.running_mean * scale).view(-1, 1, 1)


def convolved(x, conv):
    """A convolution that keeps the size, of one image `(C, H, W)`, kernel position by kernel position."""
    height, width = conv.kernel_size
    padded = functional.pad(x, (width // 2, width // 2, height // 2, height // 2))
    weight, total = conv.weight, 0
    for i in range(height):
        for j in range(width):
            moved = padded[:, i : i + x.shape[1], j : j + x.shape[2]]
            if conv.groups == 1:
                total = total + torch.einsum("oc,chw->ohw", weight[:, :, i, j], moved)
            else:
                total = total + weight[:, 0, i, j].view(-1, 1, 1) * moved
    return total


def run_by_hand(x, modules):
    """ReLU, convolutions and batch norms one after the other; x is one image `(C, H, W)`."""
    for module in modules:
        if isinstance(module, nn.Sequential):
            x = run_by_hand(x, module)
        else:
            by_hand = {nn.ReLU: lambda x, _: x.clamp(min=0), nn.Conv2d: convolved, nn.BatchNorm2d: normalized}
            (run,) = (run for kind, run in by_hand.items() if isinstance(module, kind))
            x = run(x, module)
    return x


def pooled(x, kind):
    """3x3 pooling of one image that looks at what lies inside only."""
    result = torch.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            around = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].flatten(1)
            result[:, i, j] = around.amax(1) if kind == "max" else around.mean(1)
    return result


def operated(x, choice, modules):
    if choice == 6:
        return x
    if choice in (4, 5):
        return run_by_hand(pooled(x, "max" if choice == 4 else "average"), list(modules[choice])[1:])
    return run_by_hand(x, modules[choice])


def halved(x, height):
    while x.shape[1] > height:
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return x


def by_hand(network, image, weights):
    """Logits of one image, and what each router sees; `weights[d]` has a weight for every choice of decision d."""
    cells, seen, weights = len(network.decisions) // 8, [], iter(weights)
    outputs = [run_by_hand(image, network.first)] * 2
    place = 0
    for cell in range(cells):
        height = image.shape[1] // 2 ** (3 * cell // cells)
        tensors = [
            run_by_hand(halved(output, height), network.adapters[2 * cell + number])
            for number, output in enumerate(outputs[-2:])
        ]
        for _ in range(4):
            seen.append(torch.cat([tensor.mean((1, 2)) for tensor in tensors]))
            mixed = sum(
                float(weight) * run_by_hand(tensor, conv)
                for weight, tensor, conv in zip(next(weights), tensors, network.bank(2 * place).blocks, strict=True)
            )
            seen.append(mixed.mean((1, 2)))
            tensors.append(
                sum(
                    float(weight) * operated(mixed, choice, network.bank(2 * place + 1).blocks)
                    for choice, weight in enumerate(next(weights))
                    if weight
                )
            )
            place += 1
        outputs.append(sum(tensors[2:]))
    classifier = network.classifier
    return classifier.weight @ outputs[-1].clamp(min=0).mean((1, 2)) + classifier.bias, seen


def one_hot(choice, n):
    return functional.one_hot(choice, n).float()


@pytest.mark.long
@pytest.mark.parametrize("cells", [1, 2, 3, 6])
@torch.no_grad()
def test_every_row_takes_its_own_way(cells):
    network = small(cells, shape=(3, 8, 8) if cells == 3 else (1, 4, 4))
    sizes = [decision.n for decision in network.decisions]
    assert sizes == [n for _ in range(cells) for m in INPUTS for n in (m, OPERATIONS)]
    images = torch.randn(3, *network.input_shape)
    plan = torch.stack([torch.randint(n, (3,)) for n in sizes], 1)
    state = network.start(images, torch.zeros(3, dtype=torch.int64))
    seen = []
    for decision in range(len(sizes)):
        seen.append(network.observe(state)[:, : network.decisions[decision].width])
        state = step(network, state, plan[:, decision])
    for row in range(3):
        weights = [one_hot(plan[row, decision], n) for decision, n in enumerate(sizes)]
        logits, expected = by_hand(network, images[row], weights)
        torch.testing.assert_close(state.exits[0].logits[row], logits, rtol=1e-4, atol=1e-5)
        for decision, description in enumerate(expected):
            torch.testing.assert_close(seen[decision][row], description, rtol=1e-4, atol=1e-5)


def weights_of(network, kind, rows):
    """Actions for every decision of which a few weights, some negative, are not 0; and the same ones dense."""
    actions, dense = [], []
    for decision in network.decisions:
        indices = torch.stack([torch.randperm(decision.n)[:2] for _ in range(rows)])
        values = torch.randn(rows, 2)
        spread = torch.zeros(rows, network.num_choices).scatter(1, indices, values)
        if kind == "full":
            spread[:, : decision.n] = torch.randn(rows, decision.n)
        actions.append((indices, values) if kind == "sparse" else spread)
        dense.append(spread[:, : decision.n])
    return actions, dense


@pytest.mark.parametrize("kind", ["sparse", "dense", "full"])
@torch.no_grad()
def test_weights_mix_inputs_and_operations(kind):
    network = small(2, shape=(3, 4, 4))
    images = torch.randn(3, *network.input_shape)
    actions, dense = weights_of(network, kind, 3)
    logits = routed(network, images, actions).exits[0].logits
    for row in range(3):
        expected, _ = by_hand(network, images[row], [weights[row] for weights in dense])
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("training", [False, True])
def test_weights_of_0_and_1_do_what_integers_do(training):
    """While training too: batch norm sees the same rows in the same order."""
    images, plan = torch.randn(6, *IMAGE), torch.stack([torch.randint(n, (6,)) for n in INPUTS for n in (n, 7)] * 3, 1)
    results = []
    for form in ("integers", "dense", "sparse"):
        network = small().train(training)

        actions = list(plan.unbind(1))
        if form == "dense":
            actions = [one_hot(choice, 7) for choice in actions]
        elif form == "sparse":  # the second one has no weight
            weights = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
            actions = [(torch.stack([choice, (choice + 1) % 2], 1), weights) for choice in actions]
        state = routed(network, images, actions)
        state.exits[0].logits.square().sum().backward()
        grads = {name: p.grad for name, p in network.named_parameters()}
        results.append((state.exits[0].logits, state.macs, state.expected_macs, grads, network.state_dict()))
    for other in results[1:]:
        for mine, its in zip(results[0][:3], other[:3], strict=True):
            torch.testing.assert_close(mine, its)
        for mine, its in zip(results[0][3:], other[3:], strict=True):
            assert all((mine[name] is None) == (its[name] is None) for name in mine)
            torch.testing.assert_close(*({n: v for n, v in part.items() if v is not None} for part in (mine, its)))


def test_a_row_without_any_weight_goes_on_with_zeros():
    network = small(1)
    weights = torch.zeros(2, 7)
    weights[1, 0] = 1
    state = network.start(torch.randn(2, *IMAGE), torch.zeros(2, dtype=torch.int64))
    mixed = step(network, state, weights).waiting[1].activation[0]
    assert mixed[0].eq(0).all() and mixed[1].ne(0).any()
    assert step(network, state, torch.zeros(2, 7)).waiting[1].activation[0].eq(0).all()


# ------------------------------------------------------------------------------------------------- what runs, and costs


def test_only_what_is_chosen_runs_and_on_the_rows_that_chose_it():
    network = small(2).train()
    rows = Counter()
    for place in range(8):
        for kind, modules in (
            ("input", network.bank(2 * place).blocks),
            ("operation", network.bank(2 * place + 1).blocks),
        ):
            for choice, module in enumerate(modules):
                key = kind, place, choice
                module.register_forward_hook(lambda m, x, y, key=key: rows.update({key: len(y)}))
    state = routed(network, torch.randn(5, *IMAGE), [torch.tensor([0, 1, 1, 0, 1])] * 16)
    assert rows == {
        (kind, place, c): (2, 3)[c] for kind in ("input", "operation") for place in range(8) for c in (0, 1)
    }
    state.exits[0].logits.sum().backward()
    for decision in range(len(network.decisions)):
        for choice in range(network.decisions[decision].n):
            owned = network.parameters_of(decision, choice)
            assert len(owned) == ([3] * 5 if decision % 2 == 0 else [12, 12, 12, 6, 3, 3, 0])[choice]
            assert all((part.grad is not None) == (choice in (0, 1)) for part in owned)


def test_dense_backward_gives_weights_of_0_a_gradient():
    gradients = []
    for dense_backward in (False, True):
        network = small(1).train()
        network.dense_backward = dense_backward
        weights = one_hot(torch.tensor([0, 1]), 7).requires_grad_()
        routed(network, torch.randn(2, *IMAGE), [weights] * 8).exits[0].logits.square().sum().backward()
        gradients.append(weights.grad != 0)
    assert gradients[0].equal(torch.eye(7, dtype=torch.bool)[:2]) and gradients[1].all()


def test_macs_by_hand():
    """Two cells on 8x8 pixels: 2 channels at 8x8, then 4 at 4x4; the stem has 6."""
    network = small(2)
    stem = 3 * 6 * 9 * 64
    joins = 2 * (6 * 2 * 64) + 6 * 4 * 16 + 2 * 4 * 16
    assert network.stem_macs == stem + joins + 4 * CLASSES
    for width, pixels, decisions in ((2, 64, network.decisions[:8]), (4, 16, network.decisions[8:])):
        separable = [2 * pixels * (width * size * size + width * width) for size in (3, 5, 7)]
        long, point = 2 * pixels * 7 * width * width, pixels * width * width
        assert all(decision.macs == (point,) * decision.n for decision in decisions[::2])
        assert all(decision.macs == (*separable, long, point, point, 0) for decision in decisions[1::2])
    # A mixture pays for what it mixes; what runs in any case is paid for once.
    actions = [torch.tensor([[0.25, 0.75] + [0.0] * 5]) for _ in network.decisions]
    state = routed(network, torch.randn(1, *IMAGE), actions)
    assert state.macs.item() == network.stem_macs + sum(sum(decision.macs[:2]) for decision in network.decisions)
    expected = sum(0.25 * decision.macs[0] + 0.75 * decision.macs[1] for decision in network.decisions)
    assert state.expected_macs.item() == network.stem_macs + expected


def test_no_more_waits_than_is_needed():
    network = small(3, shape=(3, 8, 8))
    state = network.start(torch.randn(2, *IMAGE), torch.zeros(2, dtype=torch.int64))
    waits = []
    for decision in range(24):
        waits.append(len(state.waiting[decision].activation))
        state = step(network, state, torch.zeros(2, dtype=torch.int64))
    # Inputs to choose from and, for the cell after, the cell before; after a cell's last input decision only the sum.
    cell = [3, 4, 4, 5, 5, 6, 6, 3]
    assert waits == cell * 2 + [number - 1 for number in cell]


# -------------------------------------------------------------------------------------------------- the papers' figures


@cache
def named(name, **options):
    """The network of a name, on small images: what it consists of does not depend on their size."""
    with torch.device("meta" if options == {"filters": 128} else "cpu"):
        return make_network(name, num_tasks=1, num_classes=10, input_shape=(3, 8, 8), **options)


@pytest.mark.long
@pytest.mark.parametrize(("name", "decisions"), [("cells-6x32", 48), ("cells-6x64", 48), ("cells-12x32", 96)])
def test_number_of_decisions(name, decisions):
    network = named(name)
    assert len(network.decisions) == decisions and network.in_order
    assert network.decisions[-1].name == f"cell {decisions // 8}, block 4: operations"


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options", "million"),
    [
        ("cells-6x32", {"filters": 16}, 1.3),
        ("cells-6x32", {}, 4.8),
        ("cells-6x64", {}, 18.5),
        ("cells-6x32", {"filters": 128}, 72.7),
    ],
)
def test_parameters_of_the_network_with_everything_on(name, options, million):
    """Table 4, "All-On"."""
    network = named(name, **options)
    assert round(parameters(network) / 1e6, 1) == million
    owned = [p.parameter for d in range(48) for c in range(network.decisions[d].n) for p in network.parameters_of(d, c)]
    assert len({id(parameter) for parameter in owned}) == len(owned)


@pytest.mark.parametrize(("name", "million"), [("cells-6x32", 2.5), ("cells-6x64", 9.6)])
def test_parameters_per_example(name, million):
    """Table 4, "Routing": the k of n experts that an example uses, each as often as any other, and linear routers."""
    network = named(name)
    total, blocks = float(parameters(network)), len(network.decisions) // 2
    for number, decision in enumerate(network.decisions):
        choices = range(decision.n)
        owned = sum(part.parameter.numel() for c in choices for part in network.parameters_of(number, c))
        highest = 5 if number % 2 == 0 else 7
        k = min(decision.n, round(highest + (2 - highest) * (number // 2) / (blocks - 1)))
        total += owned * (k / decision.n - 1)
        total += 2 * decision.width * decision.n  # scores and noise
    assert round(total / 1e6, 1) == million


# -------------------------------------------------------------------------------------------------------- environments


def data():
    return synthetic_mtl(num_tasks=1, num_classes=CLASSES, image_size=16, images_per_class=6)


@pytest.mark.long
@pytest.mark.parametrize("action_type", ["weights", "discrete"])
def test_the_environment_keeps_the_contract(action_type, monkeypatch):
    """Two cells are more decisions than the checker takes steps here: it goes on until all have left."""
    monkeypatch.setattr("routing_gym.testing.MIN_STEPS", 4)
    check_vector_env(RoutingVectorEnv(small(2, shape=(1, 16, 16)), data(), 5, action_type=action_type))


@pytest.mark.long
@pytest.mark.parametrize(
    ("agent", "options"),
    [
        ("wpl", {}),
        ("reinforce", {"representation": "mlp"}),
        ("gumbel", {}),
        ("top-k", {"k": 2}),
        ("random-fixed", {}),
    ],
)
def test_agents_train_on_it(agent, options):
    torch.manual_seed(0)
    network = make_network("cells-6x32", num_tasks=1, num_classes=CLASSES, input_shape=(1, 16, 16), cells=1, filters=2)
    env = RoutingVectorEnv(network, data(), 6, **needs(agent))
    learner = make_agent(agent, env, **options)
    before = copy.deepcopy(network.state_dict())
    for _ in range(3):
        train_batch(learner, env)
    assert not torch.equal(before["first.0.weight"], network.first[0].weight)
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
    result = routing_gym.evaluate(learner, env, split="test")
    assert 0 <= result.accuracy <= 1 and result.macs > network.stem_macs


def test_an_environment_by_id():
    env = gymnasium.make_vec("routing_gym/Cifar10Cells-v0", num_envs=2, cells=1, filters=1)
    assert env.unwrapped.network.widths == (1,) and env.unwrapped.dataset.num_tasks == 1
    with pytest.raises(ValueError, match="'cells-6x32' has no num_blocks to choose"):
        gymnasium.make_vec("routing_gym/Cifar10Cells-v0", num_envs=2, num_blocks=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": 0}, "cells must be an integer of at least 1, got 0"),
        ({"filters": 2.5}, "filters must be an integer of at least 1, got 2.5"),
        ({"input_shape": (3, 3, 8)}, r"at least 4x4 pixels, got \(3, 3, 8\)"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_network("cells-6x32", num_tasks=1, num_classes=2, **options)


def test_sizes_that_are_no_powers_of_two_and_single_rows():
    network = small(3, shape=(1, 5, 7)).train()
    state = routed(network, torch.randn(1, 1, 5, 7), [torch.zeros(1, dtype=torch.int64)] * 24)
    assert state.exits[0].logits.isfinite().all()


def test_every_choice_has_a_name():
    network = make_network("cells-6x32", num_tasks=1, num_classes=3, cells=2, filters=1)
    assert [len(names) for names in network.experts] == [decision.n for decision in network.decisions]
    assert network.experts[2] == ("two cells back", "one cell back", "block 1")
