"""What gates pay for computation: Σ_a π_a c_a, by loops over rows, whatever an output is weighed by."""

import dataclasses

import pytest
import torch
import weighing
from pretend_device import pretend_cuda
from skips import skip_env
from toys import MaskedColumns, of_family, small_env

from routing_gym.agents import make_agent
from routing_gym.envs import rollout
from routing_gym.networks import RoutedMLP

BLOCKS, PRICES = 4, (0.0, 1e-3, 3e-3)


def priced_env(network=None, *, alike=False, rows=8, **options):
    """Two decisions of four blocks each, which cost the same where they are `alike`."""
    torch.manual_seed(1)
    network = RoutedMLP((1, 2, 3), 3, BLOCKS, width=4, layers=2) if network is None else network
    if not alike:
        costs = [tuple(10.0 * (3 + number) ** (2 - choice) for choice in range(BLOCKS)) for number in range(2)]
        decisions = zip(network.decisions, costs, strict=True)
        network.set_decisions([dataclasses.replace(decision, macs=own) for decision, own in decisions])
    return weighing.weights_env(network, rows, k_cpt=options.pop("k_cpt", PRICES), **options)


def with_numbers(agent):
    """An agent whose choices are not equally likely."""
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in agent.scores.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=numbers).to(parameter.device))
    return agent


WEIGHED = [
    ("sinkhorn", {}),
    ("gumbel", {"estimator": "sparsemixer"}),
    ("top-k", {"softmax": "all", "k": 1}),
    ("top-k", {"softmax": "all", "k": 2}),
    ("top-k", {"softmax": "all", "k": 1, "shared": 1}),
    ("loss-free", {"softmax": "all", "k": 1}),
]
"""Gates that weigh what they choose by its probability."""
SILENT = {"noise": False, "balance": 0.0}


def made(name, options, env):
    return with_numbers(make_agent(name, env, **options, **(SILENT if name in ("top-k", "loss-free") else {})))


def slopes(agent, loss):
    """Gradient of the scores' numbers, as one row."""
    learned = [parameter for parameter in agent.scores.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, learned, retain_graph=True, materialize_grads=True)
    return torch.cat([slope.flatten() for slope in found])


@pytest.mark.parametrize(("name", "options"), WEIGHED)
def test_a_block_costs_its_chance_whatever_it_weighs(name, options):
    """Each row's softmax, entry by entry; shared blocks run for certain."""
    env = priced_env()
    agent, expected = made(name, options, env), 0.0
    trajectory = rollout(agent, env)
    always = options.get("shared", 0)
    for number, step in enumerate(trajectory.steps):
        for row in range(8):
            seen = {key: value[row : row + 1] for key, value in step.observation.items()}
            scores = agent.scores(seen, agent.arrangement.agent_of(seen["task"])).flatten()[always:]
            for choice, cost in enumerate(env.network.decisions[number].macs):
                chance = scores[choice - always].exp() / scores.exp().sum() if choice >= always else 1.0
                expected = expected + trajectory.price[row] * chance * cost / 8
    loss = agent.auxiliary_loss(trajectory)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(slopes(agent, loss), slopes(agent, expected), rtol=1e-4, atol=1e-7)


ALIKE = [
    *WEIGHED,
    *(("gumbel", {"estimator": of}) for of in ("straight-through", "reinmax", "soft", "dense")),
    ("top-k", {"k": 2}),
    ("top-k", {"k": 2, "shared": 1}),
    ("expert-choice", {"noise": False}),
    ("dselect-k", {"entropy": 0.0}),
    ("soft-mixture", {}),
]


@pytest.mark.parametrize(("name", "options"), ALIKE)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_price_does_not_tell_routes_of_one_cost_apart(name, options, device):
    with pretend_cuda():
        env = priced_env(alike=True, device=device)
        agent = made(name, options, env)
        loss = agent.auxiliary_loss(rollout(agent, env))
        found = slopes(agent, loss).cpu() if loss.requires_grad else torch.zeros(1)
    assert loss.item() > 0.01 and float(found.abs().max()) < 1e-7


@pytest.mark.parametrize(
    ("family", "estimator"),
    [*(("mlp", of) for of in ("straight-through", "reinmax", "sparsemixer")), ("tree", "reinmax"),
     ("tree", "straight-through")],
)  # fmt: skip
def test_on_a_gpu_hard_gates_pay_as_on_the_cpu(family, estimator):
    """There they act by pairs, which have no gradient for what others would have cost."""
    found = []
    for device in ("cpu", "cuda"):
        with pretend_cuda():
            env = priced_env(device=device) if family == "mlp" else None
            env = env or small_env(of_family("tree"), 8, action_type="weights", device=device, k_cpt=PRICES)
            agent = with_numbers(make_agent("gumbel", env, estimator=estimator))
            trajectory = rollout(agent, env)
            assert isinstance(trajectory.steps[0].action, tuple) is (device == "cuda")
            loss = agent.auxiliary_loss(trajectory)
            found.append((loss.detach().cpu(), slopes(agent, loss).cpu()))
    assert float(found[0][1].abs().max()) > 1e-3
    torch.testing.assert_close(found[1], found[0])


def test_many_tensors_pay_for_the_union_of_what_they_may_reach():
    """Σ_j c_j (1 − Π_i (1 − π_ij)), by loops; SparseMixer weighs by a third of π, or by π."""
    env = small_env(MaskedColumns(), 6, action_type="weights", k_cpt=1e-3)
    agent = with_numbers(make_agent("gumbel", env, estimator="sparsemixer"))
    trajectory, expected = rollout(agent, env), 0.0
    for number, decision in enumerate(env.network.decisions):
        for row, task in enumerate(trajectory.task.tolist()):
            policy = agent.scores.of_all_rows()[task, number].softmax(-1)
            for choice, cost in enumerate(decision.macs):
                none = 1.0
                for tensor in range(decision.m):
                    if trajectory.steps[number].choosing[row, tensor]:  # nothing has come to the others
                        none = none * (1 - policy[tensor, choice])
                expected = expected + 1e-3 * cost * (1 - none) / 6
    loss = agent.auxiliary_loss(trajectory)
    expected = expected + 1e-3 * env.network.stem_macs
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(slopes(agent, loss), slopes(agent, expected), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("alike", [False, True])
def test_a_block_that_relu_routing_takes_for_want_of_others_is_paid_for_by_the_softmax(alike):
    """One block runs whatever the scores: only which of them can make a difference."""
    env = priced_env(alike=alike, k_cpt=1e-3)
    agent, numbers = make_agent("remoe", env, penalty=1e-30, arrangement="single"), [-0.5, -0.3, -0.9, -0.4]
    with torch.no_grad():
        agent.scores.table[0, :2] = torch.tensor([numbers, [1.0, 0.0, -0.5, -0.5]])
    loss = agent.auxiliary_loss(rollout(agent, env))
    costs = env.network.costs
    policy = agent.scores.table[0, 0].softmax(-1)
    second = agent.scores.table[0, 1, :2] + 0.25  # those that are on
    expected = 1e-3 * ((policy * costs[0]).sum() + (second * costs[1, :2]).sum())
    torch.testing.assert_close(slopes(agent, loss), slopes(agent, expected), rtol=1e-4, atol=1e-7)
    assert bool(slopes(agent, loss)[:BLOCKS].abs().max() < 1e-7) is alike
    on = 1e-3 * (costs[0, 1] + (second * costs[1, :2]).sum())
    torch.testing.assert_close(loss, on)


def test_what_a_codinet_pays_for_are_its_weights():
    """Shares of a mixture, or what was drawn: nothing else is recorded."""
    env = skip_env(8, k_cpt=1e-4)
    for relaxation in ("gumbel", "softmax", "sampling"):
        agent = make_agent("codinet", env, relaxation=relaxation, alpha=0.0, beta=0.0)
        trajectory = rollout(agent, env)
        spent = env.network.stem_macs + sum(
            cost * (step.action[:, 1] if relaxation != "sampling" else step.action[0][:, 0])
            for cost, step in zip((d.macs[1] for d in env.network.decisions), trajectory.steps, strict=True)
        )
        torch.testing.assert_close(trajectory.expected_macs, spent)
