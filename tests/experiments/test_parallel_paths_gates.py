"""Looking into gates between paths: what is measured, ranked, made and drawn, against slow ways to find it out."""

import gymnasium
import pytest
import torch

from routing_gym.agents import make_agent, needs
from routing_gym.envs import Context, Known, core_of
from routing_gym.experiments.papers.parallel_paths.gates import (
    Crossing,
    Gate,
    Gates,
    chosen_gates,
    extremes,
    gates_of,
    path_weights,
    score,
    synthesised,
    tell_apart,
)
from routing_gym.networks.parallel_paths import mix


@pytest.fixture(scope="module")
def agent():
    """An agent that has learned a little from small images."""
    small = {"num_tasks": 1, "num_classes": 5, "image_size": 8, "images_per_class": 40, "width": 4, "hidden": 6}
    options = {**needs("cross-connection"), **small, "network": "basecnn-3-cc", "learning_rate": 0.02}
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=20, **options)
    return make_agent("cross-connection", env, seed=3, learning_rate=0.1).learn(core_of(env), 200)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("routing_gym.experiments.papers.parallel_paths.gates.STEPS", 30)


@pytest.fixture(scope="module")
def gates(agent):
    return gates_of(agent)


def by_hand(agent, row):
    """Carry one test image through the network; yield decision, gates, tensors and what is fed to the paths."""
    network, test = agent.env.network.eval(), agent.env.datasets["test"]
    agent.eval()
    with torch.no_grad():
        state = network.start(test.pixels(torch.tensor([row])), test.task[[row]])
        for number, decision in enumerate(network.decisions):
            columns, _ = state.waiting[number].activation
            seen = {"activation": network.observe(state), "task": state.task, "depth": state.at}
            action = agent.act(seen, Context(Known(state.active, network.action_mask(state)), deterministic=True))
            chosen = action[:, : decision.m, : decision.n]
            yield decision, chosen[0], columns[0], mix(columns, chosen)[0]
            state = network.advance(state, action)
    yield None, state.exits[0].logits[0], None, None


@pytest.mark.parametrize("row", [0, 7])
def test_gates_and_strengths_are_those_of_every_image(agent, gates, row):
    *crossings, (_, logits, _, _) = by_hand(agent, row)
    assert len(crossings) == len(gates.crossings) == 5
    assert gates.predicted[row] == logits.argmax()
    for (decision, chosen, columns, fed), found in zip(crossings, gates.crossings, strict=True):
        assert found.name == decision.name
        torch.testing.assert_close(found.gates[row], chosen)
        for values, tensors in ((found.arriving, columns), (found.leaving, fed)):
            strength = tensors.flatten(1).mean(1)
            expected = strength / strength.sum() if len(strength) > 1 else torch.ones(1)
            torch.testing.assert_close(values[row], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(gates.label, agent.env.datasets["test"].label)


def test_the_gate_that_is_ranked_is_the_extreme_one(agent, gates):
    gate = chosen_gates(agent.env.network)[1]
    strength = gates.crossings[gate.decision].gates[:, gate.tensor, gate.path]
    highest, lowest = extremes(strength, 5)
    one_by_one = torch.stack(
        [list(by_hand(agent, row))[gate.decision][1][gate.tensor, gate.path] for row in range(len(strength))]
    )
    assert one_by_one.std() > 1e-4, "images differ"
    torch.testing.assert_close(one_by_one[highest], one_by_one.sort(descending=True).values[:5])
    torch.testing.assert_close(one_by_one[lowest], one_by_one.sort().values[:5])


def test_extremes_come_first():
    highest, lowest = extremes(torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7]), 2)
    assert highest.tolist() == [1, 4] and lowest.tolist() == [2, 0]


def test_chosen_gates_are_early_and_deep(agent):
    assert chosen_gates(agent.env.network) == [Gate(1, 1, 0), Gate(3, 0, 0), Gate(3, 1, 0), Gate(4, 0, 0)]
    assert Gate(1, 1, 0).name(agent.env.network) == "after conv 2, $g_{21}$"


def test_a_score_is_what_softmax_makes_the_gate_of(agent):
    test = agent.env.datasets["test"]
    agent.eval()
    agent.env.network.eval()
    images = test.pixels(torch.tensor([5]))
    for number, tensor in ((0, 0), (1, 2), (4, 1)):
        scores = torch.cat([score(agent, images, Gate(number, tensor, path)) for path in range(3)])
        torch.testing.assert_close(scores.detach().softmax(0), list(by_hand(agent, 5))[number][1][tensor])


@pytest.mark.long
def test_an_image_made_for_a_gate_raises_its_score(agent):
    for gate in chosen_gates(agent.env.network):
        before = [parameter.clone() for parameter in agent.env.network.parameters()]
        image, scores = synthesised(agent, gate, seed=1)
        assert max(scores) > scores[0] and max(scores) - scores[-1] < 0.1 * (max(scores) - scores[0]), gate
        assert image.dtype == torch.uint8 and image.shape == agent.env.dataset.input_shape
        dataset = agent.env.dataset
        again = (image.float() - dataset.mean.view(-1, 1, 1)) / dataset.std.view(-1, 1, 1)
        seen = float(score(agent, again.unsqueeze(0), gate).detach())
        assert seen == pytest.approx(scores[-1], abs=0.05 * (scores[-1] - scores[0]) + 0.01), (
            "the picture says the same"
        )
        assert torch.equal(synthesised(agent, gate, seed=1)[0], image)
        after = list(agent.env.network.parameters())
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True)), "the network is frozen"


def test_three_images_that_tell_depths_apart():
    """Image 1 is gated as 2, of another class, early, and as 0, of its own, late; the others are like nobody."""
    early = torch.tensor([0.1, 0.9, 0.9, 0.5, 0.1])
    late = torch.tensor([0.8, 0.8, 0.2, 0.5, 0.4])

    def crossing(values):
        return Crossing("", values.view(-1, 1, 1).expand(-1, 2, 2), torch.ones(5, 2) / 2, torch.ones(5, 2) / 2)

    connector = Crossing("input", torch.ones(5, 1, 2) / 2, torch.ones(5, 1), torch.ones(5, 2) / 2)
    label = torch.tensor([3, 3, 1, 2, 0])
    gates = Gates(None, (connector, crossing(early), crossing(1 - early), crossing(late)), label, label)
    assert tell_apart(gates) == (0, 1, 2)


def test_weights_by_path(agent):
    weights = path_weights(agent.env.network)
    assert list(weights) == [*(f"conv {n}" for n in range(1, 7)), *(f"dense {n}" for n in range(1, 4))]
    assert weights["conv 3"].shape == (3, 8, 4, 3, 3)
    assert weights["dense 1"].shape == (3, 16 * 2 * 2, 6) and weights["dense 3"].shape == (3, 6, 5)
    first = agent.env.network.banks[0].layers[0].weight
    assert torch.equal(weights["conv 1"], first)
