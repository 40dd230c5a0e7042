"""Gradients of blocks as means over the rows that ran them, against loops over rows."""

import copy
import dataclasses

import pytest
import stepping
import torch
from damage import same
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import CLASSES, IMAGE, TREE, ExitTree, Gates, RunSkip, small_env, small_network

from routing_gym.agents import make_agent, train_batch
from routing_gym.blocks import OwnedParameter
from routing_gym.envs import EnvConfig, RoutingVectorEnv, rollout
from routing_gym.envs.throughput import OwnRows, Throughput
from routing_gym.networks import ColumnsMLP, RoutedMLP
from routing_gym.networks.experts import MnistExperts
from routing_gym.tasks import synthetic_mtl

ROWS = 8
FAMILIES = {
    "layers": lambda: RoutedMLP(IMAGE, CLASSES, 3, width=4, layers=2),
    "recurrent": lambda: RoutedMLP(IMAGE, CLASSES, [2, 3, 2], width=4, layers=4, recurrent=True),
    "exits": lambda: ExitTree(TREE),
    "skips": RunSkip,
    "gates": Gates,
    "columns": lambda: ColumnsMLP(IMAGE, CLASSES, 3, width=4, layers=2, num_tasks=3),
    "experts": lambda: MnistExperts(IMAGE, CLASSES, width=4, num_experts=3, num_tasks=3),
}


def gradients(network):
    return {n: None if p.grad is None else p.grad.clone() for n, p in network.named_parameters()}


def one_row(network, action, images, task, label):
    """Gradient of the loss of one row that takes actions, by name."""
    network.zero_grad(set_to_none=True)
    state = network.start(images, task)
    for own in action:
        if state.waiting:
            state = stepping.step(network, state, own)
    loss = sum(torch.dot(e.weight, torch.nn.functional.cross_entropy(e.logits, label, reduction="none"))
               for e in state.exits)  # fmt: skip
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in network.named_parameters()}


def places_of(network):
    """Decisions and choices, or the tasks, that each parameter or slice of a stack belongs to."""
    places = {}
    for number, decision in enumerate(network.decisions):
        for choice in range(decision.n):
            for owned in network.parameters_of(number, choice):
                places.setdefault((id(owned.parameter), owned.index), []).append((number, choice))
    for task, readout in enumerate(network.readouts_by_task()):
        places.update({(id(owned.parameter), owned.index): task for owned in readout})
    return places


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(list(FAMILIES)),
    seed=st.integers(0, 1000),
    weigh=st.sampled_from(["choices", "weights"]),
    importance=st.booleans(),
)
def test_the_gradient_is_that_of_the_mean_over_own_rows(family, seed, weigh, importance):
    """Row by row: what each ran, its gradient alone, and the weighted mean over those that ran."""
    torch.manual_seed(seed)
    network = FAMILIES[family]()
    if family == "recurrent" or (weigh == "weights" and network.rejoining):
        weigh = "choices"
    options = {"block_gradient": "rows", "optimizer": "sgd", "learning_rate": 1e-9, "differentiable": False}
    if importance:
        options |= {"task_weights": (1.0, 0.0, 3.0), "class_weights": (2.0, 0.5, 1.0)}
    env = small_env(network, ROWS, **options, action_type="discrete" if weigh == "choices" else "weights")
    alone = copy.deepcopy(network)
    observation, _ = env.reset(seed=seed)
    pixels, ran, actions = env.dataset.pixels(env.state.instance, None), [set() for _ in range(ROWS)], []
    task, label = env.state.task, env.batch.label
    reach = torch.ones(ROWS)
    while env.state.waiting:
        mask, at, choosing = env.network.action_mask(env.state), env.state.at, env.network.choosing(env.state)
        reach = env.state.reach
        gates = torch.rand(mask.shape) * mask
        chosen = gates.argmax(-1)
        if weigh == "weights":  # some are 0, and none of a row alone
            gates = gates * (torch.rand(mask.shape) < 0.6) + torch.nn.functional.one_hot(chosen, mask.shape[-1])
            gates = gates / gates.sum(-1, keepdim=True)
        action = gates if weigh == "weights" else chosen
        for row in range(ROWS):
            for tensor in range(mask.shape[1]):
                took = (
                    gates[row, tensor].nonzero().flatten().tolist()
                    if weigh == "weights"
                    else [int(chosen[row, tensor])]
                )
                if choosing[row, tensor] and reach[row] > 0:
                    ran[row] |= {(int(at[row]), choice) for choice in took}
        actions.append(action)
        env.step(action[:, 0] if env.network.num_tensors == 1 else action)
    env.train_blocks()
    found, weight = gradients(env.network), torch.ones(ROWS)
    if importance:
        weight = torch.tensor([(1.0, 0.0, 3.0)[t] * (2.0, 0.5, 1.0)[y] for t, y in zip(task, label, strict=True)])
    each = []
    for row in range(ROWS):
        own = [action[row : row + 1] for action in actions]
        each.append(one_row(alone, own, pixels[row : row + 1], task[row : row + 1], label[row : row + 1]))
    places = places_of(env.network)
    for name, parameter in env.network.named_parameters():
        pieces = range(len(parameter)) if (id(parameter), 0) in places else [None]
        for index in pieces:
            where = places.get((id(parameter), index))
            if isinstance(where, int):
                own = [row for row in range(ROWS) if int(task[row]) == where]
            else:
                own = [row for row in range(ROWS) if where is None or ran[row] & set(where)]
            total = sum(float(weight[row]) for row in own)
            rows = [weight[row] * each[row][name] for row in own]
            if found[name] is None or not total:
                assert found[name] is None or not found[name][... if index is None else index].any()
                continue
            expected = sum(rows) / total
            at = ... if index is None else index
            torch.testing.assert_close(
                found[name][at], expected[at], rtol=1e-4, atol=1e-6, msg=f"{family} {name} {index}"
            )


@pytest.mark.parametrize(
    "name",
    [
        "cells-6x32",
        "basecnn-2-cp",
        "basecnn-2-cc",
        "resnet32-skip",
        "pyramid-tree",
        "resnet50-diverse",
        "vit",
        "vit-skip",
    ],
)
def test_the_papers_networks(name):
    """A batch of random choices: every block's gradient is the batch's, times the batch over the rows that ran it."""
    splits = synthetic_mtl(num_tasks=1, num_classes=CLASSES, image_size=32, images_per_class=8)
    colour = {"mean": torch.zeros(3), "std": torch.ones(3)}
    data = {
        split: dataclasses.replace(of, images=of.images.repeat(1, 3, 1, 1), **colour) for split, of in splits.items()
    }
    found = []
    for block_gradient in ("batch", "rows"):
        torch.manual_seed(0)
        network = small_network(name)
        options = {"optimizer": "sgd", "learning_rate": 1e-9, "autoreset_mode": "disabled"}
        env = RoutingVectorEnv(network, data, ROWS, block_gradient=block_gradient, **options)
        trajectory, *_ = train_batch(make_agent("random", env), env)
        found.append(gradients(env.network))
    ran = [set() for _ in range(ROWS)]
    for step in trajectory.steps:
        for row in step.active.nonzero().flatten().tolist():
            took = zip(step.choosing[row].tolist(), step.action[row].flatten().tolist(), strict=True)
            ran[row] |= {(int(step.decision[row]), choice) for chose, choice in took if chose}
    places, factors = places_of(env.network), set()
    for full_name, parameter in env.network.named_parameters():
        for index in range(len(parameter)) if (id(parameter), 0) in places else [None]:
            where, at = places.get((id(parameter), index)), ... if index is None else index
            count = sum(where is None or where == 0 or bool(ran[row] & set(where)) for row in range(ROWS))
            factor = ROWS / max(1, count)
            if found[0][full_name] is not None:
                torch.testing.assert_close(found[1][full_name][at], found[0][full_name][at] * factor, msg=full_name)
                factors.add(factor)
    assert 1.0 in factors and len(factors) > 2


def ten_tasks(network, num_envs, **options):
    data = synthetic_mtl(num_tasks=10, num_classes=CLASSES, image_size=6, images_per_class=20)
    options = {"optimizer": "sgd", "learning_rate": 1e-2, "autoreset_mode": "disabled", **options}
    return RoutingVectorEnv(network, data, num_envs, **options)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_private_blocks_learn_as_if_they_were_alone(precision):
    """10 tasks with a block each, SGD 1e-2, no trunk: a batch of all moves a block as one of its own rows does."""
    torch.manual_seed(0)
    network = RoutedMLP((1, 6, 6), CLASSES, 10, width=16)
    env = ten_tasks(copy.deepcopy(network), 64, block_gradient="rows", precision=precision)
    agent = make_agent("task-specific-all", env)
    instances = torch.randperm(len(env.dataset), generator=torch.Generator().manual_seed(0))[:64]
    rollout(agent.train(), env, instances=instances)
    env.train_blocks()
    for task in range(10):
        own = instances[env.dataset.task[instances] == task]
        alone = ten_tasks(copy.deepcopy(network), len(own), precision=precision)
        rollout(make_agent("task-specific-all", alone).train(), alone, instances=own)
        alone.train_blocks()
        for name, value in alone.network.named_parameters():
            moved, before = env.network.get_parameter(name)[task], network.get_parameter(name)[task]
            rtol, atol = (1e-4, 2e-7) if precision == "float32" else (5e-2, 5e-6)
            torch.testing.assert_close(moved - before, value[task] - before, rtol=rtol, atol=atol)
            assert float((moved - before).detach().abs().max()) > 1e-5


@pytest.mark.parametrize(("name", "options"), [("soft-mixture", {"action_type": "weights"}), ("shared", {})])
def test_what_every_row_runs_is_left_as_it_is(name, options):
    found = []
    for block_gradient in ("batch", "rows"):
        torch.manual_seed(0)
        env = small_env(RoutedMLP(IMAGE, CLASSES, 3, width=4, layers=2), 24, block_gradient=block_gradient, **options)
        train_batch(make_agent(name, env), env)
        found.append([p.detach().clone() for p in env.network.parameters()])
    assert same(*map(list, found))


def test_columns_read_by_one_task_are_its_own_in_the_last_layer_alone():
    """Cross-stitch, four columns, three tasks: all columns run, and what they give in the end is read by one task."""
    found = []
    for block_gradient in ("batch", "rows"):
        torch.manual_seed(0)
        network = ColumnsMLP(IMAGE, CLASSES, 4, width=4, layers=2, num_tasks=3)
        options = {"action_type": "weights", "optimizer": "sgd", "block_gradient": block_gradient}
        env = small_env(network, 24, **options)
        trajectory, *_ = train_batch(make_agent("cross-stitch", env), env)
        found.append(gradients(env.network))
    assert torch.equal(found[0]["banks.0.weight"], found[1]["banks.0.weight"])
    count = torch.bincount(trajectory.task, minlength=4)
    for task in range(4):
        times = 24 / int(count[task]) if count[task] else 1.0
        torch.testing.assert_close(found[1]["banks.1.weight"][task], found[0]["banks.1.weight"][task] * times)


def test_replayed_and_clipped():
    """Gradients of finished routes that are run again are divided too, and scaled down to a norm after that."""
    norms = []
    for limit in (None, 0.5, 0.05):
        torch.manual_seed(0)
        options = {"autoreset_mode": "same_step", "replay_batch": 24, "block_gradient": "rows", "differentiable": False}
        env = small_env(RoutedMLP(IMAGE, CLASSES, 3, width=4, layers=2), 4, max_grad_norm=limit, **options)
        seen, choices = [], torch.Generator().manual_seed(0)
        env.trainer.optimizer.step = lambda env=env, seen=seen: seen.append(gradients(env.network))
        env.reset(seed=0)
        while not seen:
            env.step(torch.randint(3, (4,), generator=choices))
        norms.append(float(torch.nn.utils.get_total_norm([g for g in seen[0].values() if g is not None])))
    assert norms[0] > 0.5 and norms[1:] == pytest.approx([0.5, 0.05], rel=1e-4)


def test_by_hand():
    """Four rows: rows 0 and 1 run a, 1 and 2 run b, which share c; nobody runs d. Gradients of all begin at 1."""
    a, b, d = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    c, stack = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3, 2))
    for parameter in (a, b, c, d, stack):
        parameter.grad = torch.ones_like(parameter)
    first, second = OwnedParameter(c), OwnedParameter(stack, 2)
    rows = OwnRows([[OwnedParameter(a), first, second], [OwnedParameter(b), first], [OwnedParameter(d)]])
    ran = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    rows.scale(ran, None)
    assert [float(p.grad[0]) for p in (a, b, d)] == [2, 2, 1] and float(c.grad[0]) == pytest.approx(4 / 3)
    assert stack.grad.tolist() == [[1, 1], [1, 1], [2, 2]]
    rows.scale(ran, torch.tensor([1.0, 3.0, 0.0, 4.0]))  # a has 4 of 8, b 3 of 8, c 4 of 8
    assert [float(p.grad[0]) for p in (a, b, d)] == pytest.approx([4, 2 * 8 / 3, 1])
    assert float(c.grad[0]) == pytest.approx(8 / 3)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_value_is_asked_for(family, rows):
    """On PyTorch's meta device there are no values: whoever reads one, as waiting for a GPU does, fails."""
    network = FAMILIES[family]().to("meta")
    throughput = Throughput(network, rows=rows)
    throughput._passed = torch.zeros(ROWS, *throughput._form, device="meta")
    throughput.weigh(torch.ones(ROWS, device="meta"), torch.zeros(ROWS, dtype=torch.int64, device="meta"))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    throughput.scale()


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="talr=True and block_gradient='rows' both make up"):
        EnvConfig(talr=True, block_gradient="rows")
    with pytest.raises(ValueError, match="block_gradient must be"):
        EnvConfig(block_gradient="row")


def test_a_saved_environment_goes_on_by_rows():
    torch.manual_seed(0)
    asked: tuple[dict, ...] = {"block_gradient": "rows"}, {}
    envs = [small_env(RoutedMLP(IMAGE, CLASSES, 3, width=4), 24, **options) for options in asked]
    with pytest.warns(UserWarning, match="block_gradient='rows', as saved"):
        envs[1].load_state_dict(envs[0].state_dict())
    for env in envs:
        torch.manual_seed(0)
        train_batch(make_agent("task-specific-all", env), env)
    assert same(*([*env.network.parameters()] for env in envs))
