"""Early exit by confidence, against plain networks and loops over single instances."""

import math

import gymnasium
import pytest
import torch
from resuming import assert_goes_on
from toys import small_env

import routing_gym
from routing_gym.agents import Agent, make_agent, needs, train_batch
from routing_gym.blocks import count_macs
from routing_gym.envs import rollout
from routing_gym.networks import ways_out

MEASURES = ("max-softmax", "entropy", "patience")


def chain(columns=4, batch=16, **options):
    """A small pyramid, and images of 6 classes that it takes time to learn."""
    data = {"num_tasks": 1, "num_classes": 6, "image_size": 8, "noise": 80.0, "images_per_class": 30}
    made = {"network": "pyramid-chain", "columns": columns, "width": 2, "learning_rate": 0.01, **data, **options}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=batch, **{**needs("confidence"), **made})


def trained(measure, batches=12, columns=4, **options):
    env = chain(columns, k_cpt=1e-6)
    return make_agent("confidence", env, measure=measure, **options).learn(env, 16 * batches)


def leaves_at(logits, measure, threshold):
    """Exit at which one instance leaves, by its logits at every exit, lists of numbers."""
    agreed, named = 0, None
    for number, row in enumerate(logits[:-1]):
        total = sum(math.exp(x) for x in row)
        chances = [math.exp(x) / total for x in row]
        if measure == "max-softmax" and max(chances) >= threshold:
            return number
        if measure == "entropy" and -sum(p * math.log(p) for p in chances) <= threshold:
            return number
        agreed = agreed + 1 if row.index(max(row)) == named else 0
        named = row.index(max(row))
        if measure == "patience" and agreed >= threshold:
            return number
    return len(logits) - 1


def by_hand(agent, split):
    """Logits `(E, R, C)` of plain networks that end at each exit, labels, and what leaving there costs."""
    network, data = agent.env.network, agent.env.datasets[split]
    images = data.pixels(torch.arange(len(data)))
    plain = [network.static_prefix(*way).eval() for way in ways_out(network.decisions)]
    with torch.no_grad():
        logits = torch.stack([one(images) for one in plain])
    looks = [count_macs(one.classifier, torch.zeros(1, one.classifier.in_features)) for one in plain]
    costs = [count_macs(one, images[:1]) + sum(looks[:number]) for number, one in enumerate(plain)]
    return logits, data.label, costs


@pytest.mark.parametrize("measure", MEASURES)
def test_instances_leave_where_a_loop_over_them_says_and_pay_for_every_look_once(measure):
    agent = trained(measure, budget=0.5)
    logits, label, costs = by_hand(agent, "test")
    threshold = 1 if measure == "patience" else agent.threshold
    agent = make_agent("confidence", agent.env, measure=measure, threshold=threshold)
    assert agent.threshold == threshold
    out = [leaves_at(row, measure, threshold) for row in logits.transpose(0, 1).tolist()]
    assert len(set(out)) >= (3 if measure != "patience" else 2) and min(out) == (measure == "patience")
    judged = routing_gym.evaluate(agent, agent.env, batch_size=50)
    assert judged.macs == pytest.approx(sum(costs[exit] for exit in out) / len(out), rel=1e-6)
    left = torch.stack([logits[exit, row] for row, exit in enumerate(out)])
    assert judged.accuracy == pytest.approx(float((left.argmax(1) == label).float().mean()))
    data = agent.env.datasets["test"]
    torch.testing.assert_close(agent.classify(data.images[data.image]), left, rtol=1e-4, atol=1e-4)
    assert agent.answers("test").leaving(agent._least).tolist() == out


@pytest.mark.parametrize("measure", MEASURES)
def test_predicted_step_by_step_instances_leave_where_they_leave_at_once(measure):
    agent = trained(measure, budget=0.7)
    env = agent.env.sibling(len(agent.env.datasets["test"]), split="test", train=False)
    agent._least.fill_(1 if measure == "patience" else agent._least)
    (observation, _), state, left = env.reset(seed=0), None, {}
    instance = env.state.instance.tolist()
    while env.state.waiting:
        here = env.state.at.tolist()
        action, state = agent.predict(observation, state, deterministic=True)
        for row, decision in enumerate(here):
            if decision < 3:
                left[instance[row]] = decision if action[row].tolist() == [1, 0] else decision + 1
        observation = env.step(action)[0]
    out = agent.answers("test").leaving(agent._least).tolist()
    assert [left[row] for row in range(len(out))] == out and len(set(out)) > 1


def test_at_every_exit_stop_all_that_a_loop_stops_there():
    agent = trained("entropy", budget=0.5)
    logits, label, costs = by_hand(agent, "test")
    answers = agent.answers("test")
    for number, (row, cost) in enumerate(zip(logits, costs, strict=True)):
        accuracy, loss, macs = answers.judged(torch.full_like(label, number))
        right = [max(range(6), key=one.__getitem__) == y for one, y in zip(row.tolist(), label.tolist(), strict=True)]
        assert accuracy == pytest.approx(sum(right) / len(right)) and macs == cost
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(row, label)), rel=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_threshold_found_meets_the_budget_and_no_larger_bill_would(measure):
    for budget in (0.3, 0.5, 0.8):
        agent = trained(measure, budget=budget)
        most = budget * count_macs(agent.env.network.static_prefix(2, 1), torch.zeros(1, 1, 8, 8))
        assert routing_gym.evaluate(agent, agent.env, split="validation").macs <= most
        logits, _, costs = by_hand(agent, "validation")
        rows, bills = logits.transpose(0, 1).tolist(), set()
        chances = logits[:-1].softmax(-1)
        tried = {
            "max-softmax": chances.amax(-1).flatten().tolist(),
            "entropy": torch.special.entr(chances).sum(-1).flatten().tolist(),
            "patience": [0, 1, 2],
        }[measure]
        for threshold in tried[:: 1 + len(tried) // 60]:
            out = [leaves_at(row, measure, threshold * (1 + 1e-5)) for row in rows]
            bills.add(sum(costs[exit] for exit in out) / len(out))
        found = routing_gym.evaluate(agent, agent.env, split="validation").macs
        assert found >= max((bill for bill in bills if bill <= most), default=0) - max(costs) / len(rows) - 1


def test_without_a_budget_the_cost_of_inference_is_the_lowest():
    agent = trained("max-softmax")
    logits, label, costs = by_hand(agent, "validation")
    rows, values = logits.transpose(0, 1).tolist(), logits[:-1].softmax(-1).amax(-1).flatten().sort().values
    between = [0.0, *((values[1:] + values[:-1]) / 2).tolist(), 2.0]
    loss = -logits.log_softmax(-1)[:, range(len(label)), label]
    lowest = math.inf
    for threshold in between:
        out = [leaves_at(row, "max-softmax", threshold) for row in rows]
        paid = [float(loss[exit, row]) + 1e-6 * costs[exit] for row, exit in enumerate(out)]
        lowest = min(lowest, sum(paid) / len(paid))
    assert routing_gym.evaluate(agent, agent.env, split="validation").cost(1e-6) == pytest.approx(lowest, rel=1e-4)


def test_all_exits_are_trained_by_the_mean_of_their_losses():
    env = chain()
    agent, core = make_agent("confidence", env, threshold=0.5), env.unwrapped
    batch = rollout(agent, core)
    of_exits = [torch.nn.functional.cross_entropy(exit.logits, batch.label) for exit in batch.exits]
    assert len(of_exits) == 4 and float(batch.loss.mean()) == pytest.approx(float(sum(of_exits).detach()) / 4, rel=1e-5)
    _, loss, _ = train_batch(agent, core)
    assert all(bool(parameter.grad.ne(0).any()) for parameter in core.network.classifiers.parameters())
    assert loss.ndim == 0 and float(rollout(agent, core).expected_macs.detach().mean()) < agent.whole


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_saved_judges_predicts_and_learns_on_as_before(measure, tmp_path):
    options = {"measure": measure, "budget": 0.5, "seed": 4}
    agent, *_ = assert_goes_on(
        lambda: make_agent("confidence", chain(), **options), (4, 5), tmp_path, lambda: chain(seed=9)
    )
    resumed = Agent.load(tmp_path / "half.pt", chain(seed=9))
    assert resumed.threshold == agent.threshold
    observation = chain().reset(seed=1)[0]
    (action, state), (same, carried) = (one.predict(observation, deterministic=True) for one in (agent, resumed))
    assert torch.equal(action, same) and (state is None) == (carried is None) == (measure != "patience")
    assert torch.equal(*(routing_gym.evaluate(one, one.env).routes for one in (agent, resumed)))


def test_what_it_cannot_route_is_refused_by_name():
    chained = "'confidence' asks the classifier at every exit whether to go on: it needs a chain of early exits"
    tree = {"network": "pyramid-tree", "junctions": 1}
    for env in (small_env(action_type="weights"), chain(**tree)):
        with pytest.raises(ValueError, match=chained):
            make_agent("confidence", env)
    hybrid = gymnasium.make_vec("routing_gym/HybridEarlyExit-v0", num_envs=4, width=2, **needs("confidence"))
    several = chain(k_cpt=(0.0, 1e-6), price=True)
    for env, options, reason in (
        (hybrid, {}, "on a validation split, Hybrid MNIST/CIFAR-10 has only train, test: hold data out"),
        (several, {}, r"finds its threshold at one price, this environment has k_cpt=\(0.0, 1e-06\)"),
        (several, {"budget": 0.01}, "leaving at once costs 0.1.* of the whole network, budget must be at least that"),
        (several, {"budget": 0.5, "threshold": 0.5}, "a budget is for finding a threshold: give one of the two"),
        (several, {"threshold": 1.5}, "threshold is a probability here, at most 1, got 1.5"),
        (several, {"measure": "patience", "threshold": 1.5}, "threshold counts exits here, an integer, got 1.5"),
    ):
        with pytest.raises(ValueError, match=reason):
            make_agent("confidence", env, **options)
