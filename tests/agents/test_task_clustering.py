"""Task clustering: signatures against a loop, groups that are found, and clusters that are not believed."""

import math

import gymnasium
import pytest
import torch
from resuming import assert_goes_on
from toys import CLASSES, IMAGE, PIXELS, ExitTree, RunSkip, small_env, toy_env

import routing_gym
from routing_gym.agents import make_agent, needs
from routing_gym.agents.task_clustering import likeness, matched
from routing_gym.envs import core_of, rollout
from routing_gym.experiments.engine.metrics import _rand_index
from routing_gym.networks import EXIT, Decision, RoutedNetwork


def groups_env(env_id="routing_gym/HiddenGroups-v0", num_envs=144, **options):
    return core_of(gymnasium.make_vec(env_id, num_envs=num_envs, **options))


def planted(env):
    data = env.dataset
    return torch.stack([data.planted[data.task == task][0] for task in range(data.num_tasks)])


def test_signatures_are_those_of_a_loop_over_images():
    env = groups_env(num_envs=50)
    agent = make_agent("task-clustering", env, memory=3.0)
    total, count, rows, sums = 0.0, 0.0, {}, {}
    kept = math.exp(-50 / (len(env.dataset) * 3.0))
    for _ in range(3):
        trajectory = rollout(agent, env)
        seen = trajectory.steps[0].observation["activation"]
        agent.receive(trajectory)
        agent.episodes += 50
        total, count = kept * total + seen.sum(0), kept * count + 50
        rows = {key: kept * value for key, value in rows.items()}
        sums = {key: kept * value for key, value in sums.items()}
        for i in range(50):
            key = int(trajectory.task[i]), int(trajectory.instance[i]) % 2
            x = seen[i] - total / count
            error = torch.full((env.dataset.num_classes,), -1 / env.dataset.num_classes)
            error[trajectory.label[i]] += 1
            sums[key] = sums.get(key, 0) + torch.outer(x / x.norm(), error)
            rows[key] = rows.get(key, 0) + 1
    for (task, half), value in sums.items():
        torch.testing.assert_close(agent._labelled[2 * task + half].view_as(value), value, atol=1e-5, rtol=1e-4)
        assert float(agent._rows[2 * task + half]) == pytest.approx(float(rows[task, half]), rel=1e-5)


def test_a_signature_is_the_gradient_of_a_classifier_that_knows_nothing():
    """Minus the gradient of the summed cross-entropy in the weights of a linear layer that are 0."""
    env = groups_env(num_envs=64)
    agent = make_agent("task-clustering", env)
    trajectory = rollout(agent, env)
    agent.receive(trajectory)
    seen = trajectory.steps[0].observation["activation"]
    x = torch.nn.functional.normalize(seen - seen.mean(0), dim=1)
    for task in trajectory.task.unique().tolist():
        of = trajectory.task == task
        weights = torch.zeros(x.shape[1], env.dataset.num_classes, requires_grad=True)
        torch.nn.functional.cross_entropy(x[of] @ weights, trajectory.label[of], reduction="sum").backward()
        found = agent._labelled[2 * task : 2 * task + 2].sum(0).view_as(weights)
        torch.testing.assert_close(found, -weights.grad, atol=1e-5, rtol=1e-4)


def test_hidden_groups_are_found_and_kept():
    env = groups_env()
    agent = make_agent("task-clustering", env).learn(env, 2 * 288)
    groups = planted(env)[:, 0]
    assert _rand_index(agent.found[:, 0], groups) == 1 and bool((agent.found[:, :-1] == agent.found[:, :1]).all())
    before = agent.found.clone()
    agent.learn(env, 5 * 288)
    assert torch.equal(agent.found, before)  # under the numbers they had
    routes = routing_gym.evaluate(agent, env).routes.argmax(-1)
    assert torch.equal(routes, agent.found[:, :-1])
    assert torch.equal(agent.policy().argmax(-1), agent.found[:, :-1])
    assert torch.equal(agent.policy().amax(-1), torch.ones(24, 2))


def test_what_has_to_be_right_for_more_than_one_reason_is_left_to_rewards():
    """Words of two letters: who scrambles is seen in the inputs, who permutes labels is not seen by itself."""
    env = groups_env("routing_gym/Compositions-v0", recurrence=0.0)
    agent = make_agent("task-clustering", env).learn(env, 3 * 432)
    assert _rand_index(agent.found[:, 0], planted(env)[:, 0]) == 1
    assert bool((agent.found[:, 1] == -1).all())
    lock = groups_env("routing_gym/Credit-v0")
    assert bool((make_agent("task-clustering", lock).learn(lock, 3 * 400).found == -1).all())


def test_approximators_decide_by_the_instance_where_there_are_no_clusters():
    env = groups_env("routing_gym/Clusters-v0", num_envs=150)
    agent = make_agent("task-clustering", env, representation="mlp").learn(env, 15 * len(env.dataset))
    routes = routing_gym.evaluate(agent, env).routes[0]
    assert int((routes > 0).sum(-1).min()) > 1  # instances of the one task part
    groups = groups_env()
    agent = make_agent("task-clustering", groups, representation="mlp").learn(groups, 2 * 288)
    assert torch.equal(routing_gym.evaluate(agent, groups).routes.argmax(-1), agent.found[:, :-1])


def test_a_task_each_where_there_are_blocks_enough_and_nothing_for_one_task():
    env = groups_env("routing_gym/DigitsMTL-v0")
    agent = make_agent("task-clustering", env).learn(env, 3 * len(env.dataset))
    assert len(agent.found[:, 0].unique()) == env.dataset.num_tasks
    alone = groups_env("routing_gym/Clusters-v0")
    assert bool((make_agent("task-clustering", alone).learn(alone, 3 * len(alone.dataset)).found == -1).all())


def of_kinds():
    """Three layers: of unlike costs, of two ways on, and of three blocks alike; PASS is the last choice of all."""
    costs = (3.0, 4.0, 3.0, 0.0), (3.0, 3.0, 3.0, 0.0), (3.0, 3.0, 3.0, 0.0)
    ways = (1, 1, 1, 1), (2, 2, EXIT, 2), (EXIT, EXIT, EXIT, EXIT)
    mixing = "activation", "outcome", "activation"
    of_each = zip(costs, ways, mixing, strict=True)
    return [Decision("", cost, way, mixing=mixed) for cost, way, mixed in of_each]


class Kinds(RoutedNetwork):
    """Nothing but decisions: whatever is chosen, a row stays as it is."""

    def __init__(self, decisions):
        super().__init__(decisions, num_classes=CLASSES, input_shape=IMAGE)
        self.head = torch.nn.Linear(PIXELS, CLASSES)

    def stem(self, images, task):
        return (images.flatten(1),)

    def transition(self, decision, activation, action, task):
        return activation

    def readout(self, decision, choice, activation, task):
        return self.head(activation[0])

    def describe(self, decision, activation):
        return activation[0]

    def parameters_of(self, decision, choice):
        return []


def test_clusters_are_dealt_where_choices_are_alike_alone():
    env = small_env(Kinds(of_kinds()))
    agent = make_agent("task-clustering", env)
    agent._clusters = lambda halves, alike, clusters: torch.arange(3) % clusters  # whatever is seen, they are real
    agent.learn(env, 4 * len(env.dataset))
    assert (agent.found[:, [0, 1, 3]] == -1).all() and sorted(agent.found[:, 2].tolist()) == [0, 1, 2]


UNLIKE = [
    lambda: ExitTree([[1], [2], []]),
    RunSkip,
    lambda: Kinds([Decision("", (3.0, 4.0, 3.0), (EXIT,) * 3)]),
]


@pytest.mark.parametrize("network", UNLIKE)
def test_networks_whose_choices_are_not_alike_are_refused_and_one_task_is_not(network):
    with pytest.raises(
        ValueError, match="'task-clustering' deals clusters .* at no decision of this network do all cost"
    ):
        make_agent("task-clustering", small_env(network()))
    agent = make_agent("task-clustering", toy_env(network(), 12, 1, autoreset_mode="disabled"), passes=1)
    agent.learn(agent.env, 4 * len(agent.env.dataset))
    assert bool((agent.found == -1).all())


def test_probabilities_that_are_rewarded_are_those_of_what_it_does():
    """The running shares of collaboration against a loop: 1 for the choice of a cluster, else REINFORCE's."""
    env = groups_env(rho=0.5, **needs("task-clustering"))
    agent = make_agent("task-clustering", env)
    agent.found[:, 0] = torch.arange(24) % 3
    policy, before = agent.policy(), env.rewards.share.total.clone()
    assert torch.equal(policy[:, 0].argmax(-1), agent.found[:, 0]) and (policy[:, 1] < 1).all()
    for deterministic in (False, True):
        trajectory = rollout(agent, env, deterministic=deterministic)
        for number, step in enumerate(trajectory.steps):
            for task, chances, action in zip(trajectory.task, step.record["probabilities"], step.action, strict=True):
                torch.testing.assert_close(chances, policy[task, number].unsqueeze(0))
                before[number] += chances[0].double()
                assert number or int(action) == agent.found[task, 0] == chances.argmax()
    torch.testing.assert_close(env.rewards.share.total, before)


def test_it_goes_on_bit_for_bit(tmp_path):
    env = groups_env()
    batches = 3 * 288 // env.unwrapped.num_envs
    assert_goes_on(lambda: make_agent("task-clustering", groups_env()), (batches, batches), tmp_path)


def test_clusters_keep_their_numbers():
    column, was = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([2, 2, 0, 1, 1, -1])
    names = matched(column, was, 3)
    assert names.tolist() == [2, 0, 1]
    assert sorted(matched(column, torch.full((6,), -1), 3).tolist()) == [0, 1, 2]


def test_likeness_of_halves():
    one, other = torch.tensor([[1.0, 0], [0, 2.0]]), torch.tensor([[3.0, 0], [1.0, 1.0]])
    own, error, similar = likeness(one, other)
    root = 2**-0.5
    torch.testing.assert_close(similar, torch.tensor([[1.0, root], [0.0, root]]))
    assert float(own) == pytest.approx((1 + root) / 2)
    assert float(error) == pytest.approx(torch.tensor([1.0, root]).std() / 2**0.5)


@pytest.mark.parametrize(
    "options",
    [{"arrangement": "single"}, {"passes": 0}, {"memory": 0.0}, {"relatedness": 1.5}],
)
def test_what_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}"):
        make_agent("task-clustering", groups_env(), **options)
