"""Throughput-adjusted learning rates: every layer's factor against a loop over rows (Eqs. 11 to 16)."""

import copy

import gymnasium
import pytest
import torch
from by_hand import ByHand, exit_env, gradients, undecided
from stepping import block_loss
from toys import TREE, ExitTree, small_env

from routing_gym.agents import Agent, make_agent, train_batch
from routing_gym.blocks import OwnedParameter
from routing_gym.envs import TALR, rollout
from routing_gym.networks import RoutedMLP

EXACT = ["actor", "pragmatic-critic", "optimistic-critic"]


def factor(chances):
    """1 / √(mean of p²); 1 where nothing passes, for there is nothing to scale."""
    total = sum(float(torch.as_tensor(p).detach()) ** 2 for p in chances)
    return (total / len(chances)) ** -0.5 if total else 1.0


def twice(build):
    """Train one batch on two equal agents, without and with adjusted rates.

    Returns:
        Gradients of both, and the trajectory and agent of the first, before its step.
    """
    plain, adjusted = build(False), build(True)
    before, seen = copy.deepcopy((plain.state_dict(), plain.env.network.state_dict())), []
    auxiliary_loss = plain.auxiliary_loss
    plain.auxiliary_loss = lambda trajectory: (seen.append(trajectory), auxiliary_loss(trajectory))[1]
    for agent in (plain, adjusted):
        train_batch(agent, agent.env)
    found = gradients(plain), gradients(adjusted)
    plain.load_state_dict(before[0])
    plain.episodes = 0
    plain.env.network.load_state_dict(before[1])
    return *found, seen[0], plain


def scaled(plain, expected):
    """Hold gradients against plain ones times a factor; `expected` gives the factor by name."""
    for name, gradient in plain[0].items():
        torch.testing.assert_close(plain[1][name], gradient * expected(name), rtol=1e-4, atol=1e-8, msg=name)


# ---------------------------------------------------------------------------------------- where outcomes are shared


@pytest.mark.parametrize("name", EXACT)
def test_columns_classifiers_and_routers_of_exact_agents(name):
    def build(talr):
        torch.manual_seed(3)
        env = exit_env(ExitTree(TREE), name, 7, talr=talr, k_cpt=1e-3)
        return undecided(make_agent(name, env)).eval()

    *found, trajectory, agent = twice(build)
    hand = ByHand(agent, trajectory)
    rows = range(7)

    def expected(full_name):
        _, kind, number, *_ = full_name.replace("scores.of", "scores").split(".")
        place = int(number)
        if kind == "scores":
            return factor([hand.at(row, place) for row in rows])
        if kind == "columns":
            return factor([hand.through(row, lambda path: place in path.columns) for row in rows])
        return factor([hand.through(row, lambda path: path.columns[-1] == place) for row in rows])

    factors = {full_name: expected(full_name) for full_name in found[0]}
    assert factors["blocks.columns.0.0.weight"] == pytest.approx(1) == factors["agent.scores.of.0.0.weight"]
    assert max(factors.values()) > 3
    scaled(found, factors.get)


@pytest.mark.parametrize("name", ["pragmatic-critic-sampled", "reinforce"])
def test_choices_on_a_tree_are_passed_or_not(name):
    def build(talr):
        torch.manual_seed(3)
        env = exit_env(ExitTree(TREE), "sampled", 40, talr=talr)
        agent = make_agent(name, env)
        return undecided(agent).eval() if "critic" in name else agent

    plain, adjusted, trajectory, agent = twice(build)
    took = {}
    for step in trajectory.steps:
        for row in step.active.nonzero().flatten().tolist():
            took.setdefault((int(step.decision[row]), int(step.action[row])), []).append(row)
            took.setdefault(int(step.decision[row]), []).append(row)
    network = agent.env.network
    for decision, column in enumerate(network.inner):
        for choice in range(network.decisions[decision].n):
            share = (40 / len(took[decision, choice])) ** 0.5 if (decision, choice) in took else 1
            into = column if choice == 0 else network.tree[column][choice - 1]
            layers = ["heads"] if choice == 0 else ["columns"] + ["heads"] * (not network.tree[into])
            for layer in layers:
                full_name = f"blocks.{layer}.{into}" + (".0" if layer == "columns" else "") + ".weight"
                torch.testing.assert_close(adjusted[full_name], plain[full_name] * share, rtol=1e-4, atol=1e-8)
        if "critic" in name:
            full_name = f"agent.scores.of.{decision}.6.weight"
            share = (40 / len(took[decision])) ** 0.5 if decision in took else 1
            torch.testing.assert_close(adjusted[full_name], plain[full_name] * share, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(adjusted["blocks.columns.0.0.weight"], plain["blocks.columns.0.0.weight"])


# ------------------------------------------------------------------------------------------- stacked, shared, mixed


def blocks_env(talr, **options):
    torch.manual_seed(0)
    network = options.pop("network", None) or RoutedMLP((1, 2, 3), 3, 3, width=4, layers=2)
    return small_env(network, 24, **{"talr": talr, "optimizer": "sgd", **options})


@pytest.mark.parametrize("name", ["wpl", "reinforce", "task-specific-last"])
def test_slices_of_stacked_blocks(name):
    plain, adjusted, trajectory, agent = twice(lambda talr: make_agent(name, blocks_env(talr)))
    for layer in range(2):
        for block in range(3):
            used = [float(int(trajectory.steps[layer].action[row]) == block) for row in range(24)]
            for part in ("weight", "bias"):
                full_name = f"blocks.banks.{layer}.{part}"
                expected = plain[full_name][block] * factor(used)
                torch.testing.assert_close(adjusted[full_name][block], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["gumbel", "soft-mixture"])
def test_weights_of_mixtures_are_taken_for_chances(name):
    options = {"action_type": "weights"} | ({"dense_backward": True} if name == "gumbel" else {})
    plain, adjusted, trajectory, agent = twice(lambda talr: make_agent(name, blocks_env(talr, **options)))
    for layer in range(2):
        for block in range(3):
            used = trajectory.steps[layer].action.view(-1, 3)[:, block].detach().tolist()
            full_name = f"blocks.banks.{layer}.weight"
            expected = plain[full_name][block] * factor(used)
            torch.testing.assert_close(adjusted[full_name][block], expected, rtol=1e-4, atol=1e-8)


def test_blocks_that_are_used_at_several_depths_count_every_passage():
    def build(talr):
        torch.manual_seed(0)
        network = RoutedMLP((1, 2, 3), 3, [2, 3, 2], width=4, layers=4, recurrent=True)
        return make_agent("random", blocks_env(talr, network=network))

    plain, adjusted, trajectory, agent = twice(build)
    network = agent.env.network
    assert network.block_counts == (2, 3, 2) and len(trajectory.steps) == 4
    for block in range(3):  # of the bank in the middle, which the decisions 1 and 2 both offer
        passages = [[float(int(trajectory.steps[depth].action[row]) == block) for row in range(24)] for depth in (1, 2)]
        share = sum(sum(p**2 for p in once) / 24 for once in passages) ** -0.5
        (full_name,) = [n for n in plain if n.startswith("blocks.banks.1") and n.endswith("weight")]
        expected = plain[full_name][block] * share
        torch.testing.assert_close(adjusted[full_name][block], expected, rtol=1e-4, atol=1e-8)


# ------------------------------------------------------------------------------------------ other ways to train blocks


def test_replayed_routes_are_adjusted_too():
    found, taken = [], []
    for talr in (False, True):
        torch.manual_seed(0)
        options = {"autoreset_mode": "same_step", "replay_batch": 40, "optimizer": "sgd", "differentiable": False}
        env = exit_env(ExitTree(TREE), "sampled", 4, talr=talr, **options)
        step = env.trainer.step

        def keep(loss, *rest, step=step, env=env):
            step(loss, *rest)
            found.append({name: p.grad.clone() for name, p in env.network.named_parameters() if p.grad is not None})

        env.trainer.step = keep
        choices, routes = torch.Generator().manual_seed(1), [[] for _ in range(4)]
        env.reset(seed=0)
        taken.clear()
        while env.trainer.instances < 1:
            legal = env.network.masks[env.state.at, 0].long()
            choice = (torch.rand(4, 3, generator=choices) * legal).argmax(1)
            at = env.state.at.tolist()
            for row in range(4):
                routes[row].append((at[row], int(choice[row])))
            left = env.step(choice)[2]
            for row in left.nonzero().flatten().tolist():
                taken.append(routes[row])
                routes[row] = []
    plain, adjusted = found
    replayed = taken[:40]  # the first that finished
    for column, (decision, choice) in {1: (0, 1), 2: (0, 2), 5: (2, 2)}.items():
        share = factor([float((decision, choice) in route) for route in replayed])
        assert share > 1
        full_name = f"columns.{column}.0.weight"
        torch.testing.assert_close(adjusted[full_name], plain[full_name] * share, rtol=1e-4, atol=1e-8)


def routed(env, choices):
    for choice in choices:
        env.step(torch.tensor(choice))


def test_rows_that_begin_anew_count_for_their_new_way_alone():
    """Four rows of two columns. Rows 0 and 1 leave, 2 and 3 go on; then row 0 begins anew and goes on, too."""
    found = []
    for talr in (False, True):
        torch.manual_seed(0)
        env = exit_env(ExitTree([[1], []]), "sampled", 4, talr=talr, differentiable=False, learning_rate=1e-9)
        env.reset(options={"instances": [0, 1, 2, 3]})
        routed(env, [[0, 0, 1, 1]])
        env.reset(options={"reset_mask": torch.tensor([True, False, False, False]), "instances": [5]})
        routed(env, [[1, 0, 0, 0]])
        env.train_blocks()
        grads = {name: p.grad for name, p in env.network.named_parameters()}
        found.append({name: torch.zeros(1) if g is None else g.clone() for name, g in grads.items()})
    # Of four rows three run the second column and one leaves.
    shares = {"columns.1.0.weight": (3 / 4) ** -0.5, "heads.0.weight": (1 / 4) ** -0.5}
    for full_name, share in shares.items():
        torch.testing.assert_close(found[1][full_name], found[0][full_name] * share)
        assert float(found[0][full_name].abs().max()) > 0


# ------------------------------------------------------------------------------------------------ what it is good for


@pytest.mark.parametrize("kind", ["half of the rows", "a tenth of each", "all over the place"])
def test_updates_vary_as_if_all_passed(kind):
    """Eq. 12: 20 000 elements with gradients drawn independently for each of 32 instances, of variance 4."""
    generator = torch.Generator().manual_seed(0)
    gradient = 2 * torch.randn(32, 20_000, generator=generator)
    chances = {
        "half of the rows": (torch.arange(32) % 2).float(),
        "a tenth of each": torch.full((32,), 0.1),
        "all over the place": torch.rand(32, generator=generator) ** 4,
    }[kind]
    layer = torch.nn.Parameter(torch.zeros(20_000))
    layer.grad = (chances.unsqueeze(1) * gradient).mean(0)
    assert float(layer.grad.var()) < 0.6 * 4 / 32
    TALR([[OwnedParameter(layer)]]).scale((chances**2).mean().view(1))
    assert float(layer.grad.var()) == pytest.approx(4 / 32, rel=0.03)  # as for the mean of 32 that pass for certain


def test_what_no_one_passes_is_left_alone_and_forms_are_checked():
    layer = torch.nn.Parameter(torch.ones(2))
    talr = TALR([[OwnedParameter(layer)], []])
    talr.scale(torch.tensor([0.25, 0.0]))  # without a gradient there is nothing to scale
    layer.grad = torch.ones(2)
    talr.scale(torch.tensor([0.0, 1.0]))
    assert layer.grad.tolist() == [1, 1]
    talr.scale(torch.tensor([0.25, 0.0]))
    assert layer.grad.tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"expected the throughput of 2 layers, got \(3,\)"):
        talr.scale(torch.zeros(3))


@pytest.mark.parametrize("name", ["actor", "pragmatic-critic-sampled", "reinforce", "wpl"])
def test_without_it_nothing_is_scaled(name, monkeypatch):
    """The step is that of the plain gradient: a loss of rows added up, differentiated, and taken off by hand."""
    monkeypatch.setattr(TALR, "scale", None)
    torch.manual_seed(0)
    kind = name if name == "actor" else "sampled"
    env = exit_env(ExitTree(TREE), kind, 12, learning_rate=0.25)
    agent = make_agent(name, env)
    before, seen = {n: p.detach().clone() for n, p in env.network.named_parameters()}, {}
    step = env.trainer.step

    def look(loss, *rest):
        found = torch.autograd.grad(loss, list(env.network.parameters()), retain_graph=True, materialize_grads=True)
        seen.update(zip(before, found, strict=True))
        step(loss, *rest)

    env.trainer.step = look
    train_batch(agent, env)
    for full_name, parameter in env.network.named_parameters():
        expected = before[full_name] - 0.25 * seen[full_name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-7)


def test_judging_does_not_disturb_what_was_noted():
    torch.manual_seed(0)
    env = exit_env(ExitTree(TREE), "actor", 12, talr=True)
    agent = undecided(make_agent("actor", env))
    found = []
    for judge in (False, True):
        torch.manual_seed(0)
        env.reset(seed=0)
        trajectory = rollout(agent.eval(), env, instances=torch.arange(12))
        if judge:
            with torch.no_grad():
                rollout(agent, env.sibling(12, train=False), instances=torch.arange(12, 24))
        loss = block_loss(env)
        loss.backward()
        env.trainer.throughput.scale()
        found.append([p.grad.clone() for p in env.network.parameters() if p.grad is not None])
        env.network.zero_grad()
    assert len(trajectory) == 12 and isinstance(agent, Agent)
    torch.testing.assert_close(*found)


def test_tensors_that_are_not_there_pass_nothing():
    """In half of the rows both tensors go to path 0, where they are one: what the other chooses then counts nothing."""
    options = {"network": "basecnn-2-cc", "width": 4, "num_tasks": 1, "image_size": 8, "talr": True}
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=4, autoreset_mode="disabled", **options).unwrapped
    env.reset()
    env.step(torch.tensor([[0, 0], [0, 0], [0, 1], [0, 1]]))
    env.step(torch.tensor([[0, 1]] * 4))
    passed = env.trainer.throughput._passed
    assert passed[:, 1].tolist() == [[1, 0], [1, 0], [1, 1], [1, 1]]
