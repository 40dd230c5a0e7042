"""Tasks' losses joined by gradient surgery and by learned uncertainty, against loops written from the papers."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from damage import same
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from toys import CLASSES, IMAGE, TREE, ExitTree, Gates, RunSkip, small_env

from routing_gym.agents import Agent, make_agent, needs
from routing_gym.envs import EnvConfig, RoutingVectorEnv, rollout
from routing_gym.envs.balance import surgery_weights
from routing_gym.networks import ColumnsMLP, RoutedMLP, make_network
from routing_gym.networks.experts import MnistExperts
from routing_gym.tasks import synthetic_mtl

ROWS, TASKS = 12, 3


class SparseMLP(RoutedMLP):
    """Layers whose gradients are sparse."""

    def _link(self, decision):
        return self.bank(decision).link(torch.arange(3))


FAMILIES = {
    "sparse": lambda: SparseMLP(IMAGE, CLASSES, 3, width=4, layers=2),
    "layers": lambda: RoutedMLP(IMAGE, CLASSES, 3, width=4, layers=2),
    "recurrent": lambda: RoutedMLP(IMAGE, CLASSES, [2, 3, 2], width=4, layers=4, recurrent=True),
    "exits": lambda: ExitTree(TREE),
    "skips": RunSkip,
    "gates": Gates,
    "columns": lambda: ColumnsMLP(IMAGE, CLASSES, 3, width=4, layers=2, num_tasks=TASKS),
    "experts": lambda: MnistExperts(IMAGE, CLASSES, width=4, num_experts=3, num_tasks=TASKS),
}


def convolutions():
    return make_network("simple-convnet", num_tasks=TASKS, num_classes=CLASSES, num_blocks=3, input_shape=(1, 16, 16))


def made(name, network=None, rows=ROWS, **options):
    """An agent and an environment of three tasks over a network of the same first weights every time."""
    torch.manual_seed(0)
    network = RoutedMLP(IMAGE, CLASSES, 3, width=4, layers=3) if network is None else network()
    given = {**needs(name), "seed": 5, **options}
    given.pop("task_input", None)  # of a network by name
    env = small_env(network, rows, **given)
    return make_agent(name, env, seed=1), env


def pieces_of(network):
    """Slices of stacks and whole parameters, by name and number."""
    owned = [of for module in network.modules() if hasattr(module, "parts") for part in module.parts() for of in part]
    stacks = {id(of.parameter) for of in owned if of.index is not None}
    for name, parameter in network.named_parameters():
        for index in range(len(parameter)) if id(parameter) in stacks else [None]:
            yield name, index, parameter


def gradient(network, loss):
    """Gradient of a loss by piece, in double precision, zeros where there is none."""
    network.zero_grad(set_to_none=True)
    if loss is not None:
        loss.backward(retain_graph=True)
    return current(network)


def current(network):
    found = {}
    for name, index, parameter in pieces_of(network):
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        grad = grad.to_dense() if grad.is_sparse else grad
        found[name, index] = (grad if index is None else grad[index]).double().clone()
    return found


def product(one, other, pieces):
    return sum(float((one[piece] * other[piece]).sum()) for piece in pieces)


def of_tasks(env, label, task):
    """Gradient of the part of each task in the batch in the mean over it, by loops over exits and rows."""
    found = {}
    for number in sorted(set(task.tolist())):
        loss = 0.0
        for exit in env.batch.exits:
            rows = range(len(label)) if exit.rows is None else exit.rows.tolist()
            for place, row in enumerate(rows):
                if task[row] == number:
                    logits = exit.logits[place : place + 1]
                    loss = loss + exit.weight[place] * functional.cross_entropy(logits, label[row : row + 1])
        found[number] = gradient(env.network, loss / len(label))
    return found


def by_the_paper(grads, order):
    """Yu et al. 2020, Algorithm 1, over shared pieces: sum by piece, and how often gradients conflicted."""
    tasks, pieces = list(grads), list(next(iter(grads.values())))
    shared = [piece for piece in pieces if sum(bool(grads[task][piece].any()) for task in tasks) >= 2]
    total = {piece: sum(grads[task][piece] for task in tasks) for piece in pieces}
    conflicts = 0
    projected = []
    for i, task in enumerate(tasks):
        own = dict(grads[task])
        for j in order[i]:
            if j == i:
                continue
            other = grads[tasks[j]]
            if (along := product(own, other, shared)) < 0:
                conflicts += 1
                for piece in shared:
                    own[piece] = own[piece] - along / product(other, other, shared) * other[piece]
        projected.append(own)
    return total | {piece: sum(own[piece] for own in projected) for piece in shared}, conflicts


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *(("random", family) for family in FAMILIES),
        ("actor", "exits"),
        *((name, "layers") for name in ("shared", "task-specific-last", "soft-mixture", "top-k", "wpl")),
    ],
)
def test_surgery_is_the_papers_loop(name, family):
    """With auxiliary losses, sparse gradients, weights, several exits and shared normalisations, in any network."""
    agent, env = made(name, FAMILIES[family], task_balance="pcgrad")
    found = 0
    for _ in range(6):
        trajectory = rollout(agent, env)
        extra, task = agent.auxiliary_loss(trajectory), trajectory.task
        more = gradient(env.network, extra)
        grads = of_tasks(env, trajectory.label, task)
        draws = copy.deepcopy(env.trainer.balance.generator)
        there = sorted(set(task.tolist()))
        order = torch.rand(TASKS, TASKS, generator=draws)[there][:, there].argsort(1).tolist()
        expected, conflicts = by_the_paper(grads, order)
        found += conflicts
        assert family != "sparse" or all(p.grad.is_sparse for p in env.network.parameters())
        seen = {}
        for parameter in agent.parameters():
            parameter.grad = None
        env.train_blocks(extra, lambda seen=seen: seen.update(current(env.network)))
        for piece, grad in seen.items():
            torch.testing.assert_close(grad, expected[piece] + more[piece], rtol=1e-4, atol=1e-7)
    assert found


def test_convolutions_and_their_normalisation_in_the_trunk():
    torch.manual_seed(0)
    data = synthetic_mtl(num_tasks=TASKS, num_classes=CLASSES, image_size=16, images_per_class=8)
    env = RoutingVectorEnv(convolutions(), data, ROWS, autoreset_mode="disabled", task_balance="pcgrad")
    agent = make_agent("task-specific-last", env)
    trajectory = rollout(agent, env)
    grads = of_tasks(env, trajectory.label, trajectory.task)
    draws = copy.deepcopy(env.trainer.balance.generator)
    order = torch.rand(TASKS, TASKS, generator=draws).argsort(1).tolist()
    expected, conflicts = by_the_paper(grads, order)
    seen = {}
    env.train_blocks(None, lambda: seen.update(current(env.network)))
    assert conflicts and len(grads) == TASKS
    for piece, grad in seen.items():
        torch.testing.assert_close(grad, expected[piece], rtol=1e-3, atol=1e-6)


def test_two_conflicting_gradients_by_hand():
    # g_1 = (1, 0), g_2 = (-1, 1): g_1 becomes (1/2, 1/2), g_2 becomes (0, 1), their sum is 2 g_1 + 3/2 g_2.
    gram = torch.tensor([[1.0, -1.0], [-1.0, 2.0]])
    assert surgery_weights(gram, torch.tensor([[0, 1], [1, 0]])).tolist() == [2.0, 1.5]
    assert surgery_weights(gram.abs(), torch.tensor([[0, 1], [1, 0]])).tolist() == [1.0, 1.0]
    assert surgery_weights(torch.zeros(2, 2), torch.tensor([[0, 1], [1, 0]])).tolist() == [1.0, 1.0]


@given(st.integers(2, 5), st.integers(0, 10_000))
def test_weights_of_tasks_are_projections_of_vectors(tasks, seed):
    draws = torch.Generator().manual_seed(seed)
    grads = torch.randn(tasks, 4, dtype=torch.float64, generator=draws)
    order = torch.rand(tasks, tasks, generator=draws).argsort(1)
    expected = torch.zeros(4, dtype=torch.float64)
    for i in range(tasks):
        own = grads[i]
        for j in order[i].tolist():
            if j != i and float(own @ grads[j]) < 0:
                own = own - (own @ grads[j]) / (grads[j] @ grads[j]) * grads[j]
        expected += own
    weights = surgery_weights(grads @ grads.t(), order)
    torch.testing.assert_close(weights @ grads, expected)
    assert bool((weights >= 1).all())


def test_what_one_task_uses_alone_is_trained_as_without():
    moved = {}
    for balance in (None, "pcgrad"):
        for name in ("task-specific-all", "task-specific-last"):
            agent, env = made(name, task_balance=balance, optimizer="sgd", learning_rate=1.0)
            agent.learn(env, ROWS)
            moved[name, balance] = [p.detach().clone() for p in env.network.banks.parameters()]
    assert same(moved["task-specific-all", None], moved["task-specific-all", "pcgrad"])
    alike = [
        torch.equal(plain, other)
        for plain, other in zip(moved["task-specific-last", None], moved["task-specific-last", "pcgrad"], strict=True)
    ]
    assert alike == [False] * 4 + [True] * 2  # weights and biases of three layers, the last one of the task's own


@pytest.mark.parametrize("balance", ["pcgrad", "uncertainty"])
def test_what_a_batch_has_not_used_stays(balance):
    agent, env = made("task-specific-all", task_balance=balance, optimizer="adamw", weight_decay=0.1, learning_rate=0.1)
    agent.learn(env, 2 * ROWS)
    before = [p.detach().clone() for p in env.network.banks.parameters()]
    kept = copy.deepcopy(env.trainer.balance.state_dict())
    rows = env.dataset.task.ne(2).nonzero().flatten()[::4]
    rollout(agent, env, instances=rows)
    env.train_blocks()
    for old, new in zip(before, env.network.banks.parameters(), strict=True):
        assert torch.equal(old[2], new[2]) and not any(
            torch.equal(one, other) for one, other in zip(old[:2], new[:2], strict=True)
        )
    if balance == "uncertainty":
        s, old = env.trainer.balance.log_variance.weight, kept["log_variance"]
        assert s[2] == old[2] and s[0] != old[0] and s[1] != old[1]


def test_surgery_changes_neither_instances_nor_a_batch_of_one_task():
    drawn, moved = {}, {}
    for balance in (None, "pcgrad"):
        agent, env = made("shared", task_balance=balance)
        drawn[balance] = []
        for _ in range(12):  # more than a pass
            drawn[balance].append(rollout(agent, env).instance)
            env.train_blocks()
        agent, env = made("shared", task_balance=balance, draw_tasks=(1,))
        agent.learn(env, ROWS)
        moved[balance] = [p.detach().clone() for p in env.network.parameters()]
    assert same(drawn[None], drawn["pcgrad"]) and same(*map(list, moved.values()))


@pytest.mark.parametrize("balance", ["pcgrad", "uncertainty"])
def test_replayed_routes_are_trained_alike(balance):
    moved = []
    for replay in (False, True):
        agent, env = made("task-specific-last", task_balance=balance, replay=replay, replay_batch=ROWS, optimizer="sgd")
        agent.learn(env, 3 * ROWS)
        moved.append([p.detach().clone() for p in env.network.parameters()])
    torch.testing.assert_close(*moved)


def test_uncertainty_by_hand():
    agent, env = made("shared", task_balance="uncertainty", optimizer="sgd", learning_rate=0.5, task_weights=(1, 2, 4))
    s = env.trainer.balance.log_variance.weight
    with torch.no_grad():
        s.copy_(torch.tensor([0.3, -1.0, 2.0]))
    trajectory = rollout(agent, env)
    total, weights, moved = 0.0, 0.0, [0.0, 0.0, 0.0]
    for loss, task in zip(trajectory.loss.tolist(), trajectory.task.tolist(), strict=True):
        weight, own = (1, 2, 4)[task], [0.3, -1.0, 2.0][task]
        total += weight * (math.exp(-own) * loss + own / 2)
        moved[task] += weight * (0.5 - math.exp(-own) * loss)
        weights += weight
    assert float(env.train_blocks()) == pytest.approx(total / weights, rel=1e-5)
    expected = [old - 0.5 * grad / weights for old, grad in zip([0.3, -1.0, 2.0], moved, strict=True)]
    assert s.tolist() == pytest.approx(expected, rel=1e-5)


def test_blocks_have_the_gradient_of_weighted_tasks():
    """A block's gradient is that of its task, divided by the task's variance."""
    grads = {}
    for balance in (None, "uncertainty"):
        agent, env = made("task-specific-all", task_balance=balance)
        if balance == "uncertainty":
            with torch.no_grad():
                env.trainer.balance.log_variance.weight.copy_(torch.tensor([0.0, 1.0, -0.5]))
        rollout(agent, env)
        seen = grads[balance] = {}
        env.train_blocks(None, lambda seen=seen, env=env: seen.update(current(env.network)))
    for (name, task), grad in grads["uncertainty"].items():
        torch.testing.assert_close(grad, grads[None][name, task] * math.exp(-[0.0, 1.0, -0.5][task]))


@pytest.mark.parametrize("options", [{"optimizer": "sgd", "learning_rate": 2.0}, {"learning_rate": 0.03}])
def test_variances_go_where_they_are_best(options):
    """Of frozen blocks: to log 2 L_t, where (exp(-s) L + s / 2)' = 0; weight decay does not pull at them."""
    agent, env = made("shared", rows=72, task_balance="uncertainty", weight_decay=0.1, **options)
    env.network.requires_grad_(False)
    every = torch.arange(len(env.dataset))
    for _ in range(200):
        trajectory = rollout(agent, env, instances=every)
        env.train_blocks()
    losses = [float(trajectory.loss[trajectory.task == task].mean()) for task in range(TASKS)]
    s = env.trainer.balance.log_variance.weight
    assert s.tolist() == pytest.approx([math.log(2 * loss) for loss in losses], abs=1e-3)
    assert min(s.tolist()) > 0.1


@pytest.mark.parametrize("balance", ["pcgrad", "uncertainty"])
@pytest.mark.parametrize("optimizer", [{"optimizer": "sgd", "momentum": 0.9}, {"schedule": "cosine"}])
def test_learning_goes_on_bit_for_bit(balance, optimizer, tmp_path):
    options = {"task_balance": balance, "learning_rate": 0.05, **optimizer}
    agent, env = made("shared-with-task", task_network, **options)
    agent.learn(env, 4 * ROWS).save(tmp_path / "agent.pt")
    agent.learn(env, 4 * ROWS)
    for asked in (options, {"learning_rate": 0.05, **optimizer}):  # the second takes the balance of the checkpoint
        there = made("shared-with-task", task_network, **asked)[1]
        with nullcontext() if asked is options else pytest.warns(UserWarning, match=f"task_balance='{balance}', as"):
            loaded = Agent.load(tmp_path / "agent.pt", there)
        loaded.learn(there, 4 * ROWS)
        assert same(env.network.state_dict(), there.network.state_dict())
        assert same(plain(env.trainer.balance.state_dict()), plain(there.trainer.balance.state_dict()))


def task_network():
    return RoutedMLP(IMAGE, CLASSES, 1, width=4, layers=3, task_input=True, num_tasks=TASKS)


def plain(state):
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def test_the_same_seed_begins_the_same_order():
    agent, env = made("shared", task_balance="pcgrad")
    state, moved = copy.deepcopy(env.state_dict()), []
    for _ in range(2):
        env.load_state_dict(copy.deepcopy(state))
        env.trainer.balance.seed(9)
        env.reset(seed=3)
        agent.learn(env, 3 * ROWS)
        moved.append([p.detach().clone() for p in env.network.parameters()])
    assert same(*map(list, moved))


def test_checkpoints_of_other_balances_are_taken_and_damaged_ones_refused(tmp_path):
    agent, env = made("shared", task_balance="uncertainty")
    agent.learn(env, 2 * ROWS).save(tmp_path / "agent.pt")
    state = env.state_dict()
    with pytest.warns(
        UserWarning, match="task_balance='pcgrad', as asked for here, instead of 'uncertainty', as saved"
    ):
        other = made("shared", task_balance="pcgrad")[1]
        other.load_state_dict(copy.deepcopy(state))
    assert other.trainer.balance.state_dict().keys() == {"generator"}
    older = copy.deepcopy(state)  # of a time that knew neither
    del older["blocks"]["balance"], older["blocks"]["optimization"]["task_balance"]
    made("shared")[1].load_state_dict(older)
    before = copy.deepcopy(env.trainer.state_dict())
    for wrong in ({}, {"log_variance": torch.zeros(2), "optimizer": {}}):
        damaged = copy.deepcopy(state)
        damaged["blocks"]["balance"] = wrong
        with pytest.raises(ValueError, match=r"blocks\.balance"):
            env.load_state_dict(damaged)
    assert str(env.trainer.state_dict()) == str(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_balance": "gradnorm"}, "task_balance must be one of|task_balance must be"),
        ({"task_balance": "pcgrad", "talr": True}, "task_balance='pcgrad' does not go with talr=True"),
        (
            {"task_balance": "uncertainty", "block_gradient": "rows"},
            "task_balance='uncertainty' does not go with block_gradient='rows'",
        ),
        (
            {"task_balance": "pcgrad", "distributed": True, "autoreset_mode": "disabled"},
            "distributed=True does not go with task_balance='pcgrad' so far",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EnvConfig(**options)
