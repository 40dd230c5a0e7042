"""Multipath early exit run exactly: Eqs. 3 to 10 of McGill and Perona (2017), against numbers worked by hand."""

import math

import pytest
import torch
from by_hand import CHAIN, ByHand, close, double_precision, exit_env, given, paths_of, trained, undecided
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from toys import TREE, ExitTree

from routing_gym.agents import make_agent
from routing_gym.agents.parts.multipath import ExactMultipath
from routing_gym.envs import rollout

EXACT = ["actor", "pragmatic-critic", "optimistic-critic"]
LN3 = math.log(3)


def whole_loss(agent):
    return trained(agent)[0][0]


# ----------------------------------------------------------------------------------------------- numbers worked by hand


def test_an_actor_of_two_columns():
    """Eqs. 1 to 4 and 10. Scores (0, ln 3) at τ = 1 are chances of 1/4 and 3/4."""
    agent = given(CHAIN[2], [[0.0, LN3]], [1.2, 0.4], decisiveness=0.0, weight_decay=0.0)
    # First column 6·4 = 24, router 4·16 + 16·16 + 16·2 = 352, classifier 4·3 = 12: 388 operations to leave at once.
    # Second column 4·4 = 16 with its classifier: 24 + 352 + 16 + 12 = 404. A thousandth each: costs 0.388 and 0.404.
    # 1/4 · (1.2 + 0.388) + 3/4 · (0.4 + 0.404) = 0.397 + 0.603 = 1.
    (loss, found), _ = trained(agent)
    assert loss == pytest.approx(1.0, abs=1e-5)
    # d/ds_i = p_i (c_i − L): 1/4 · 0.588 = 0.147, 3/4 · (−0.196) = −0.147.
    assert found["agent.scores.of.0.6.bias"].tolist() == pytest.approx([0.147, -0.147], abs=1e-5)

    agent = given(CHAIN[2], [[0.0, LN3]], [1.2, 0.4], decisiveness=0.5, weight_decay=0.0)
    # Plus 0.5 · (0² + ln² 3) = 0.603474, whose gradient is 2 · 0.5 · s = (0, 1.098612).
    (loss, found), _ = trained(agent)
    assert loss == pytest.approx(1.603474, abs=1e-5)
    assert found["agent.scores.of.0.6.bias"].tolist() == pytest.approx([0.147, -0.147 + 1.098612], abs=1e-5)

    agent = given(CHAIN[2], [[0.0, LN3]], [1.2, 0.4], weight=1.0, decisiveness=0.0, weight_decay=0.1)
    # Weights of 1: 24 of the first column and 64 + 256 of the router are passed by all, 16 of the second column by 3/4;
    # the classifiers' and the last layer's are 0. 344 + 12 = 356 squared weights, a tenth of them 35.6.
    (loss, found), _ = trained(agent)
    assert loss == pytest.approx(36.6, abs=1e-4)
    # 2 · 0.1 · 3/4 = 0.15 for each of the 16, besides what the loss itself wants: nothing, the classifier being 0.
    torch.testing.assert_close(found["blocks.columns.1.0.weight"], torch.full((4, 4), 0.15), atol=1e-5, rtol=0)
    assert found["blocks.columns.1.0.bias"].tolist() == [0] * 4
    # The chances are constant in the penalty: the scores' gradient is what it was without one.
    assert found["agent.scores.of.0.6.bias"].tolist() == pytest.approx([0.147, -0.147], abs=1e-5)

    options = {"weight": 1.0, "decisiveness": 0.5, "weight_decay": 0.1, "regularized_policy": True}
    agent = given(CHAIN[2], [[0.0, LN3]], [1.2, 0.4], **options)
    # Through the policy the second column's 1.6 count: d/ds_0 = −1/4 · 3/4 · 1.6 = −0.3. All meet the only router.
    (loss, found), _ = trained(agent)
    assert loss == pytest.approx(37.203474, abs=1e-4)
    assert found["agent.scores.of.0.6.bias"].tolist() == pytest.approx([-0.153, 0.153 + 1.098612], abs=1e-5)


def test_the_temperature_divides_the_scores_and_halves():
    agent = given(CHAIN[2], [[0.0, 2 * LN3]], [1.2, 0.4], temperature=4.0, decisiveness=0.0, weight_decay=0.0)
    agent.episodes = 30 * agent.env.trainer.optimization.epoch  # halved once, so that s / τ = (0, ln 3)
    (loss, found), _ = trained(agent)
    # Two of four instances are half a pass.
    assert agent.temperature == 4 * 0.5 ** (30.5 / 30) and loss == pytest.approx(1.0, abs=1e-5)
    assert found["agent.scores.of.0.6.bias"].tolist() == pytest.approx([0.0735, -0.0735], abs=1e-5)


def test_an_actor_of_three_columns():
    """Chances (1/2, 1/2), then (3/4, 1/4): the paths have 1/2, 3/8 and 1/8."""
    agent = given(CHAIN[3], [[0.0, 0.0], [LN3, 0.0]], [1.0, 0.5, 0.1], decisiveness=0.5, weight_decay=0.0)
    # Operations: 24 + 352 + 12 = 388; 24 + 352 + 16 + 352 + 12 = 756; 24 + 352 + 16 + 352 + 16 + 12 = 772.
    # 1/2 · 1.388 + 3/8 · 1.256 + 1/8 · 0.872 = 0.694 + 0.471 + 0.109 = 1.274.
    # Half of the instances meet the second router: 0.5 · 1/2 · ln² 3 = 0.301737.
    (loss, found), _ = trained(agent)
    assert loss == pytest.approx(1.274 + 0.301737, abs=1e-5)
    # d/ds of the first: 1/2 · (1.388 − 1.274) = 0.057. Of the second, whose mean is 3/4 · 1.256 + 1/4 · 0.872 = 1.16:
    # 1/2 · 3/4 · 0.096 = 0.036, and of the penalty 0.5 · 1/2 · 2 · ln 3 = 0.549306.
    assert found["agent.scores.of.0.6.bias"].tolist() == pytest.approx([0.057, -0.057], abs=1e-5)
    assert found["agent.scores.of.1.6.bias"].tolist() == pytest.approx([0.036 + 0.549306, -0.036], abs=1e-5)

    options = {"decisiveness": 0.5, "weight_decay": 0.0, "regularized_policy": True}
    agent = given(CHAIN[3], [[0.0, 0.0], [LN3, 0.0]], [1.0, 0.5, 0.1], **options)
    # Meeting the second router costs 0.603474: d/ds_1 of the first = 1/4 · 0.603474 = 0.150869.
    _, found = trained(agent)[0]
    assert found["agent.scores.of.0.6.bias"].tolist() == pytest.approx([0.057 - 0.150869, -0.057 + 0.150869], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "onward"),
    [
        # The utilities of the second decision: leave −(0.9 + 0.012) = −0.912; go on −(0.1 + 0.028) = −0.128.
        # Going on from the first one costs a column and a router, 0.016 + 0.352, and then 0.128 at best,
        ("optimistic-critic", {}, -0.496),
        # or 0.912 when the higher score is followed,
        ("pragmatic-critic", {}, -1.28),
        # or 3/4 · 0.912 + 1/4 · 0.128 = 0.716 under the training policy.
        ("pragmatic-critic", {"target": "training"}, -1.084),
    ],
)
def test_critics_of_three_columns(name, options, onward):
    """Eqs. 5 to 8 with τ = 0.1: scores (0, 0), then (0.1 ln 3, 0), are chances (1/2, 1/2), then (3/4, 1/4)."""
    options = {"regression": 0.01, "weight_decay": 0.0, **options}
    agent = given(CHAIN[3], [[0.0, 0.0], [0.1 * LN3, 0.0]], [1.0, 0.9, 0.1], name, **options)
    # E[c_err] = 1/2 · 1 + 3/8 · 0.9 + 1/8 · 0.1 = 0.85. Misses at the first: 0 + 1.012 and 0 − onward;
    # at the second, met by half: 0.109861 + 0.912 = 1.021861 and 0.128.
    first, second = 1.012**2 + onward**2, 1.021861**2 + 0.128**2
    (loss, found), _ = trained(agent)
    assert loss == pytest.approx(0.85 + 0.01 * (first + second / 2), abs=1e-5)
    # 2 · 0.01 · miss; half of that at the second. No gradient comes through the chances.
    assert found["agent.scores.of.0.6.bias"].tolist() == pytest.approx([0.02024, -0.02 * onward], abs=1e-5)
    assert found["agent.scores.of.1.6.bias"].tolist() == pytest.approx([0.0102186, 0.00128], abs=1e-6)


def test_a_classification_error_is_0_or_1_in_the_targets_alone():
    # A loss of 0.9 is a chance of 0.407 for the label and 0.297 for the others: right. One of 1.2 is wrong.
    options = {"regression": 0.01, "weight_decay": 0.0, "error": "classification"}
    agent = given(CHAIN[3], [[0.0, 0.0], [0.0, 0.0]], [1.2, 0.9, 1.5], "optimistic-critic", **options)
    # Second: −(0 + 0.012), −(1 + 0.028). First: −(1 + 0.012), −(0.368 + 0.012). E[c_err] = 0.6 + 0.225 + 0.375 = 1.2.
    first, second = 1.012**2 + 0.38**2, 0.012**2 + 1.028**2
    assert whole_loss(agent) == pytest.approx(1.2 + 0.01 * (first + second / 2), abs=1e-5)


def test_every_leaf_has_its_share_of_the_floor(monkeypatch):
    """With ε = 0.7 the seven leaves have 0.1 each, and what is left, 0.3, goes where the scores say."""
    monkeypatch.setattr(ExactMultipath, "EPSILON", 0.7)
    scores = [[0.0, 50.0, 0.0], [0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0]]
    agent = given(TREE, scores, [1.0] * 7)
    steps = rollout(agent, agent.env).steps
    # First: 0.1, and of 0.3 all besides the 0.2 of two leaves, and the 0.4 of four.
    assert steps[0].action[0].tolist() == pytest.approx([0.1, 0.5, 0.4])
    assert [float(step.reach[0]) for step in steps] == pytest.approx([1, 0.5, 0.4, 0.2])
    assert steps[1].action[0].tolist() == pytest.approx([0.5, 0.5, 0])  # 0.25 of 0.5
    assert steps[2].action[0].tolist() == pytest.approx([0.25, 0.25, 0.5])  # nothing but the floor: 0.1, 0.1, 0.2
    assert steps[3].action[0].tolist() == pytest.approx([0.5, 0.5, 0])


# ------------------------------------------------------------------------------------------- against the slow loops


@st.composite
def trees(draw):
    """Any tree of two to eight columns, each with at most three children."""
    tree = [[]]
    for column in range(1, draw(st.integers(2, 8))):
        free = [j for j in range(column) if len(tree[j]) < 3]
        tree[draw(st.sampled_from(free))].append(column)
        tree.append([])
    return tree


KINDS = {
    ("pragmatic-critic", "inference"): "inference",
    ("pragmatic-critic", "training"): "training",
    ("optimistic-critic", None): "best",
}


def an_agent(name, tree, seed, *, rows=3, priced=True, options=None, **env_options):
    torch.manual_seed(seed)
    prices = {"k_cpt": (0.0, 3e-4, 1e-3), "price": priced}
    env = exit_env(ExitTree(tree), name, rows, seed=seed, **prices, **env_options)
    return undecided(make_agent(name, env, seed=seed, **(options or {})), seed)


@pytest.mark.long
@settings(max_examples=25, deadline=None, derandomize=True)
@drawn(
    tree=trees(),
    name=st.sampled_from(EXACT),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    training=st.booleans(),
    priced=st.booleans(),
    through=st.booleans(),
    target=st.sampled_from(["inference", "training"]),
    error=st.sampled_from(["cross-entropy", "classification"]),
    epsilon=st.sampled_from([1e-6, 0.2]),
)
def test_losses_and_gradients_are_those_of_the_slow_loops(
    tree, name, seed, temperature, training, priced, through, target, error, epsilon
):
    options = {"temperature": temperature, "weight_decay": 0.01}
    if name == "actor":
        options |= {"decisiveness": 0.1, "regularized_policy": through}
    else:
        options |= {"regression": 0.3, "error": error} | ({"target": target} if name == "pragmatic-critic" else {})
    kind = "best" if name == "optimistic-critic" else target
    with double_precision() as patch:
        patch.setattr(ExactMultipath, "EPSILON", epsilon)
        agent = an_agent(name, tree, seed, priced=priced, options=options)
        agent.train(training)  # of batch norm: statistics of the batch, or running ones
        before = {n: p.detach().clone() for n, p in agent.env.network.named_parameters()}
        routers = {n: p.detach().clone() for n, p in agent.named_parameters()}
        by_hand = ByHand.actor_loss if name == "actor" else lambda hand: hand.critic_loss(kind)
        ours, theirs = trained(agent, by_hand, epsilon)
    close(ours, theirs)
    # SGD without momentum goes half a gradient, the routers' as far as the blocks'.
    for start, there, prefix in ((before, agent.env.network, "blocks"), (routers, agent, "agent")):
        for n, p in there.named_parameters():
            torch.testing.assert_close(p.detach(), start[n] - 0.5 * theirs[1][f"{prefix}.{n}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("through", [False, True])
def test_penalties_move_the_policy_only_if_told_to(through):
    """The gradient of the scores' last bias, with and without penalties."""
    found = []
    for penalty in (0.0, 0.05):
        options = {"weight_decay": penalty, "decisiveness": 0.0, "regularized_policy": through}
        agent = an_agent("actor", TREE, 3, options=options)
        found.append(trained(agent)[0][1]["agent.scores.of.0.6.bias"])
    assert torch.allclose(*found, atol=1e-6) is not through


# ------------------------------------------------------------------------------------------------------- chances


@pytest.mark.parametrize("tree", [TREE, CHAIN[8], CHAIN[2]], ids=["tree", "chain of 8", "chain of 2"])
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("temperature", [1.0, 1e-4, 1e-12, 1e-37])
def test_chances_sum_to_one_and_no_leaf_is_given_up(tree, name, temperature):
    agent = an_agent(name, tree, 1, rows=6, options={"temperature": temperature})
    trajectory = rollout(agent, agent.env)
    weights = torch.stack([exit.weight.detach() for exit in trajectory.exits])
    leaves = len(paths_of(agent.env.network))
    assert len(weights) == leaves and bool((weights >= 1e-6 / leaves * (1 - 1e-4)).all())
    torch.testing.assert_close(weights.sum(0), torch.ones(6))
    for step in trajectory.steps:
        torch.testing.assert_close(step.action.sum(1), torch.ones(6))
        torch.testing.assert_close(step.record["reach"].detach(), step.reach)
        assert bool((step.reach > 0).all())


@pytest.mark.parametrize("name", [*EXACT, "pragmatic-critic-sampled", "optimistic-critic-sampled"])
@pytest.mark.parametrize("halvings", [50, 130, 1100, 5000])
def test_training_goes_on_however_often_the_temperature_has_halved(name, halvings):
    agent = an_agent(name, TREE, 2, rows=6, options={"temperature_epochs": 1.0})
    agent.episodes = halvings * agent.env.trainer.optimization.epoch
    assert math.isfinite(whole_loss(agent))
    assert all(bool(value.isfinite().all()) for value in agent.state_dict().values())
    assert all(bool(value.isfinite().all()) for value in agent.env.network.state_dict().values())


# ------------------------------------------------------------------------------------------------ dynamic programming


@settings(max_examples=25, deadline=None, derandomize=True)
@drawn(
    tree=trees(),
    seed=st.integers(0, 99),
    name=st.sampled_from(EXACT[1:]),
    target=st.sampled_from(["inference", "training"]),
)
def test_utilities_are_those_of_all_paths(tree, seed, name, target):
    options = {"temperature": 0.5} | ({"target": target} if name == "pragmatic-critic" else {})
    with double_precision():
        agent = an_agent(name, tree, seed, rows=4, options=options).eval()
        trajectory = rollout(agent, agent.env)
        hand, found = ByHand(agent, trajectory), agent.utilities(trajectory)
    kind = "best" if name == "optimistic-critic" else target
    for decision, place in enumerate(agent.env.network.decisions):
        for row in range(4):
            expected = [hand.utility(kind, row, decision, choice) for choice in range(place.n)]
            assert found[decision][row, : place.n].tolist() == pytest.approx(expected, rel=1e-9)
            if kind == "best" and decision == 0:
                # The best policy: what is best at the first decision, router and column included, is the best path.
                costs = [float(hand.error[path.columns[-1]][row].detach())
                         + float(hand.price[row]) * sum_of_macs(agent, path) for path in hand.paths]  # fmt: skip
                first = float(hand.price[row]) * (24 + agent.macs(0))
                assert float(found[0][row].max()) - first == pytest.approx(-min(costs), rel=1e-9)


def sum_of_macs(agent, path):
    """Columns, routers and classifier, one after the other: 24 or 16 each, what `macs` says, and 12."""
    columns = 24 + 16 * (len(path.columns) - 1)
    return columns + sum(agent.macs(decision) for decision, _ in path.moves) + 12
