"""Critics that run only the path they have drawn: targets row by row, and what they are in expectation."""

import pytest
import torch
from by_hand import (
    CHAIN,
    ByHand,
    close,
    double_precision,
    exit_env,
    macs_after,
    paths_of,
    router_macs,
    trained,
    undecided,
)
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from stepping import block_loss
from toys import TREE, ExitTree, small_env

from routing_gym.agents import PragmaticCritic, PragmaticCriticConfig, critics, make_agent
from routing_gym.envs import rollout

SAMPLED = ["pragmatic-critic-sampled", "optimistic-critic-sampled"]
PRICES = {"k_cpt": (0.0, 3e-4, 1e-3)}


def an_agent(name, tree, seed, rows=6, env_options=None, **options):
    torch.manual_seed(seed)
    env = exit_env(ExitTree(tree), name, rows, seed=seed, **{**PRICES, **(env_options or {})})
    options = {"temperature": 0.7, "regression": 0.3, "weight_decay": 0.01, **options}
    return undecided(make_agent(name, env, seed=seed, **options), seed).eval()


def path_of(hand, steps, row):
    """The path that was drawn for a row."""
    moves = tuple((int(step.decision[row]), int(step.action[row])) for step in steps if bool(step.active[row]))
    return next(path for path in hand.paths if path.moves == moves)


def target(hand, kind, row, path, number):
    """What the choice of a path's move number so and so is found to be worth."""
    if kind == "whole return" or number == len(path.moves) - 1:
        return -hand.cost_after(row, path, number)
    following = path.moves[number + 1][0]
    run = hand.network.heads[0].in_features ** 2 + router_macs(hand.network, following, hand.seen_price)
    return float(hand.score[following][row].detach().max()) - float(hand.price[row]) * run


def policy(hand, decision, row):
    """ε shared out among all choices, the rest by softmax(s / τ), or to the best."""
    config, scores = hand.config, hand.score[decision][row].detach()
    share = torch.zeros_like(scores)
    share[scores.argmax()] = 1
    if config.policy == "softmax":
        powers = (scores / hand.agent.temperature).exp()
        share = powers / powers.sum()
    return (1 - config.epsilon) * share + config.epsilon / len(scores)


def loss_of_rows(hand, steps, kind):
    total = torch.zeros(())
    for row in range(hand.rows):
        path = path_of(hand, steps, row)
        total = total + hand.error[path.columns[-1]][row] + hand.config.weight_decay * hand.squared_weights(path)
        for number, (decision, choice) in enumerate(path.moves):
            missed = hand.score[decision][row, choice] - target(hand, kind, row, path, number)
            total = total + hand.config.regression * missed**2 / policy(hand, decision, row)[choice]
    return total / hand.rows


KIND = {"pragmatic-critic-sampled": "whole return", "optimistic-critic-sampled": "bootstrapped"}


@pytest.mark.long
@settings(max_examples=25, deadline=None, derandomize=True)
@drawn(
    tree=st.sampled_from([TREE, CHAIN[2], CHAIN[4], [[1, 2, 3], [4], [], [5], [], []]]),
    name=st.sampled_from(SAMPLED),
    seed=st.integers(0, 99),
    how=st.sampled_from(["softmax", "greedy"]),
    epsilon=st.sampled_from([0.05, 0.5, 1.0]),
    error=st.sampled_from(["cross-entropy", "classification"]),
    priced=st.booleans(),
)
def test_loss_gradient_and_targets_are_those_of_the_rows_one_by_one(tree, name, seed, how, epsilon, error, priced):
    with double_precision():
        agent = an_agent(name, tree, seed, 6, {"price": priced}, policy=how, epsilon=epsilon, error=error)
        act, steps = agent.act, []

        def noted(observation, context):
            choice = act(observation, context)
            steps.append((observation["depth"], context.active, choice, context.record["probabilities"]))
            return choice

        agent.act = noted

        def by_hand(hand):
            class Step:
                def __init__(self, decision, active, action, probabilities):
                    self.decision, self.active, self.action = decision, active, action
                    self.probabilities = probabilities

            walked = [Step(*step) for step in steps]
            for step in walked:
                for row in step.active.nonzero().flatten().tolist():
                    decision = int(step.decision[row])
                    expected = policy(hand, decision, row).tolist()
                    assert step.probabilities[row, : len(expected)].tolist() == pytest.approx(expected)
            return loss_of_rows(hand, walked, KIND[name])

        ours, theirs = trained(agent, by_hand)
    close(ours, theirs)


@pytest.mark.parametrize("name", SAMPLED)
def test_targets_are_what_was_earned_from_there_on(name):
    with double_precision():
        agent = an_agent(name, TREE, 5, 20)
        trajectory = rollout(agent, agent.env)
        hand, found = ByHand(agent, trajectory), agent.utilities(trajectory)
    for row in range(20):
        path = path_of(hand, trajectory.steps, row)
        for number in range(len(path.moves)):
            assert float(found[number][row]) == pytest.approx(target(hand, KIND[name], row, path, number))


# ------------------------------------------------------------------------------------------------------ in expectation


class SamePolicy(PragmaticCritic):
    """An exact critic with the policy of a sampled one: ε for all choices, and no floor under paths."""

    EPSILON = 0.0

    def chances(self, scores, depth, reach):
        legal = scores.isfinite().to(scores.dtype)
        return (1 - 0.2) * self.softened(scores) + 0.2 * legal / legal.sum(-1, keepdim=True)


def pulled(agent, instance):
    """Loss and gradients of one instance, without a step."""
    trajectory = rollout(agent, agent.env, instances=torch.tensor([instance]))
    loss = block_loss(agent.env) + agent.auxiliary_loss(trajectory)
    parameters = [*agent.env.network.parameters(), *agent.parameters()]
    return (
        trajectory,
        loss.item(),
        torch.autograd.grad(loss, parameters, materialize_grads=True),
    )


def expectation(agent, instance, monkeypatch):
    """Probability, loss and gradients of every path a sampled critic can draw."""
    hand, drawn_paths = None, []
    for path in paths_of(agent.env.network):
        choices = dict(path.moves)
        places = iter(path.moves)
        monkeypatch.setattr(
            critics, "sample", lambda cumulative, generator, places=places: torch.tensor([next(places)[1]])
        )
        trajectory, loss, found = pulled(agent, instance)
        chance = 1.0
        for step in trajectory.steps:
            chance *= float(step.record["probabilities"][0, choices[int(step.decision[0])]])
        hand = ByHand(agent, trajectory) if hand is None else hand
        drawn_paths.append((path, chance, loss, found))
    monkeypatch.undo()
    return hand, drawn_paths


def mean_of(drawn_paths):
    loss = sum(chance * loss for _, chance, loss, _ in drawn_paths)
    gradients = [sum(chance * one for chance, one in zip([p[1] for p in drawn_paths], parts, strict=True))
                 for parts in zip(*(p[3] for p in drawn_paths), strict=True)]  # fmt: skip
    return loss, gradients


@pytest.mark.parametrize("tree", [TREE, CHAIN[4]], ids=["tree", "chain"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sampled_pragmatic_critic_is_the_exact_one_in_expectation(tree, seed, monkeypatch):
    """Under the same policy, `target="training"`, the gradients agree; the loss is larger by the returns' variance."""
    with double_precision():
        sampled = an_agent(SAMPLED[0], tree, seed, 1, {"k_cpt": 3e-4}, epsilon=0.2)
        hand, drawn_paths = expectation(sampled, 7, monkeypatch)
        assert sum(chance for _, chance, _, _ in drawn_paths) == pytest.approx(1)
        loss, gradients = mean_of(drawn_paths)

        env = exit_env(sampled.env.network, "exact", 1, seed=seed, k_cpt=3e-4)
        options = {"temperature": 0.7, "regression": 0.3, "weight_decay": 0.01, "target": "training"}
        exact = SamePolicy(env, PragmaticCriticConfig(**options)).eval()
        exact.load_state_dict(sampled.state_dict())
        _, exact_loss, exact_gradients = pulled(exact, 7)
    torch.testing.assert_close(gradients, exact_gradients, rtol=1e-6, atol=1e-9)

    # Σ_j Pr(j) Σ_c Var(R | j, c): of each choice the chance has gone into the weight of its visit.
    variance = 0.0
    for decision, place in enumerate(sampled.env.network.decisions):
        reach = sum(chance for path, chance, _, _ in drawn_paths if any(d == decision for d, _ in path.moves))
        for choice in range(place.n):
            onward = [(path, chance, path.moves.index((decision, choice))) for path, chance, _, _ in drawn_paths
                      if (decision, choice) in path.moves]  # fmt: skip
            total = sum(chance for _, chance, _ in onward)
            returns = [-hand.cost_after(0, path, number) for path, _, number in onward]
            mean = sum(chance * r for (_, chance, _), r in zip(onward, returns, strict=True)) / total
            variance += reach * sum(c * (r - mean) ** 2 for (_, c, _), r in zip(onward, returns, strict=True)) / total
    assert variance > 1e-4 and loss == pytest.approx(exact_loss + 0.3 * variance, rel=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_sampled_optimistic_critic_regresses_every_choice_on_the_next_best_score(seed, monkeypatch):
    """Its targets do not depend on what is drawn further on, so the loss itself is the weighted sum over choices."""
    with double_precision():
        agent = an_agent(SAMPLED[1], TREE, seed, 1, {"k_cpt": 3e-4}, epsilon=0.2)
        hand, drawn_paths = expectation(agent, 3, monkeypatch)
        loss, _ = mean_of(drawn_paths)
        expected = 0.0
        for path, chance, _, _ in drawn_paths:
            expected += chance * (hand.error[path.columns[-1]][0] + 0.01 * hand.squared_weights(path)).item()
        for decision, place in enumerate(agent.env.network.decisions):
            reach = sum(chance for path, chance, _, _ in drawn_paths if any(d == decision for d, _ in path.moves))
            for choice in range(place.n):
                path, number = hand.onward(decision, choice)[0]
                miss = hand.score[decision][0, choice].item() - target(hand, "bootstrapped", 0, path, number)
                expected += reach * 0.3 * miss**2
    assert loss == pytest.approx(expected, rel=1e-9)


def test_macs_of_a_sampled_route_are_what_ran():
    agent = an_agent(SAMPLED[0], TREE, 1, 20)
    trajectory = rollout(agent, agent.env)
    hand = ByHand(agent, trajectory)
    for row in range(20):
        path = path_of(hand, trajectory.steps, row)
        routers = sum(router_macs(hand.network, decision) for decision, _ in path.moves[1:])
        assert float(trajectory.macs[row]) == 24 + macs_after(hand.network, path, 0) - routers


def test_weights_of_stacked_blocks_are_penalised_slice_by_slice():
    """Eq. 9 on a network of fully connected blocks: of each row the blocks it took, without their biases."""
    env = small_env(num_envs=5, differentiable=True)
    agent = make_agent(SAMPLED[0], env, weight_decay=0.5)
    trajectory = rollout(agent, env)
    expected = 0.0
    for row in range(5):
        for layer, step in enumerate(trajectory.steps):
            expected += float((env.network.bank(layer).weight[int(step.action[row])].detach() ** 2).sum()) / 5
            expected += sum(float((agent.scores.of[layer][n].weight.detach() ** 2).sum()) / 5 for n in (0, 3, 6))
    assert float(agent.weight_penalty(trajectory).detach()) == pytest.approx(0.5 * expected, rel=1e-5)
