"""What evaluation says of exits, choices and live paths, against a count row by row."""

import dataclasses

import gymnasium
import pytest
import torch
from toys import TREE, ExitTree, Gates, RunSkip, small_env, toy_env

import routing_gym
from routing_gym.agents import make_agent
from routing_gym.envs import EnvConfig, core_of, rollout
from routing_gym.networks import ColumnsMLP, ways_out


class Fixed:
    """Decides as a table says: by the instance's first pixel, so that it does not matter who is in the batch."""

    def __init__(self, network, soft):
        self.network, self.soft = network, soft
        self.scores = torch.randn(7, network.num_choices, generator=torch.Generator().manual_seed(3))

    def act(self, observation, context):
        mark = (observation["activation"].abs().sum(1) * 1000).long() % 7
        scores = self.scores[mark].masked_fill(~context.mask, -torch.inf)
        return scores.softmax(1) if self.soft else scores.argmax(1)


def by_hand(router, env, network):
    """Route one instance after the other and write down where it left."""
    dataset = env.datasets["test"]
    table = torch.zeros(len(network.decisions), network.num_choices, dataset.num_classes, 2, dtype=torch.int64)
    single = env.sibling(1, split="test", train=False)
    for number in range(len(dataset)):
        trajectory = rollout(router, single, instances=torch.tensor([number]), deterministic=True)
        exit = max(trajectory.exits, key=lambda exit: float(exit.weight))
        label = int(dataset.label[number])
        table[exit.decision, exit.choice, label, int(int(exit.logits[0].argmax()) == label)] += 1
    return table


def choices_by_hand(router, env, network):
    """Route one instance after the other and write down what it took, by task and by label, and with what weight."""
    dataset = env.datasets["test"]
    places = len(network.decisions), network.num_choices
    by_task = torch.zeros(dataset.num_tasks, *places, dtype=torch.int64)
    by_label = torch.zeros(dataset.num_classes, *places, dtype=torch.int64)
    weights = torch.zeros(dataset.num_tasks, *places, dtype=torch.float64)
    single = env.sibling(1, split="test", train=False)
    for number in range(len(dataset)):
        task, label = int(dataset.task[number]), int(dataset.label[number])
        for step in rollout(router, single, instances=torch.tensor([number]), deterministic=True).steps:
            if not bool(step.active):
                continue
            decision = int(step.decision)
            given = step.action[0].tolist() if step.action.is_floating_point() else {int(step.action): 1.0}
            for choice, weight in given.items() if isinstance(given, dict) else enumerate(given):
                if weight:
                    by_task[task, decision, choice] += 1
                    by_label[label, decision, choice] += 1
                    weights[task, decision, choice] += abs(weight) * float(step.reach)
    return by_task, by_label, weights


def live_paths_by_hand(router, env, network):
    """Route one instance after the other and follow its tensors: those that choose the same go on as one."""
    live = [[] for _ in network.decisions]
    single = env.sibling(1, split="test", train=False)
    for number in range(len(env.datasets["test"])):
        tensors = None
        for step in rollout(router, single, instances=torch.tensor([number]), deterministic=True).steps:
            if not bool(step.active):
                continue
            decision, action = int(step.decision), step.action[0]
            m = network.decisions[decision].m
            tensors = set(range(m)) if tensors is None else tensors
            if action.is_floating_point():
                rows = action.view(-1, network.num_choices)
                tensors = {c for i in tensors for c in range(network.num_choices) if rows[i, c] != 0}
            else:
                tensors = {int(action.view(-1)[i]) for i in tensors}
            live[decision].append(len(tensors))
            tensors = tensors if network.num_tensors > 1 else {0}
    return torch.tensor([sum(counts) / len(counts) if counts else 0.0 for counts in live], dtype=torch.float64)


class Scripted:
    """Every tensor does as a table `[task][decision]` says."""

    def __init__(self, table):
        self.table = torch.tensor(table)

    def act(self, observation, context):
        return self.table[observation["task"], observation["depth"].clamp(max=self.table.shape[1] - 1)]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_exits_are_those_of_every_single_row(soft):
    torch.manual_seed(1)
    network = ExitTree(TREE)
    env = toy_env(network, autoreset_mode="disabled", action_type="weights" if soft else "discrete")
    network.eval()
    router = Fixed(network, soft)
    result = routing_gym.evaluate(router, env, batch_size=7)  # 7 does not divide the split
    assert torch.equal(result.exits, by_hand(router, env, network))
    by_task, by_label, weights = choices_by_hand(router, env, network)
    assert torch.equal(result.routes, by_task) and torch.equal(result.routes_by_label, by_label)
    assert torch.allclose(result.weights, weights, atol=1e-4)
    share = weights.sum(0)
    assert torch.allclose(result.use, share / share.sum(1, keepdim=True), atol=1e-4)
    assert torch.allclose(result.live_paths, live_paths_by_hand(router, env, network))
    assert int(result.exits.sum()) == len(env.datasets["test"])
    used = {(i, c) for i, c in result.exits.sum((2, 3)).nonzero().tolist()}
    assert used <= set(ways_out(network.decisions)) and len(used) > 2
    if not soft:
        assert float(result.exits[..., 1].sum() / result.exits.sum()) == pytest.approx(result.accuracy)


def test_tensors_that_choose_the_same_are_one_live_path():
    env = small_env(ColumnsMLP((1, 2, 3), 3, 3, width=4, layers=3, num_tasks=3))
    apart, together = [[0, 1, 2], [1, 2, 0], [2, 1, 0]], [[1, 1, 1], [0, 1, 2], [2, 2, 1]]
    # The last: three columns become two, these change places, then go on as one. Nothing is left in column 2 by then.
    router = Scripted([apart, together, [[0, 1, 1], [1, 0, 2], [2, 2, 0]]])
    result = routing_gym.evaluate(router, env, batch_size=7)
    assert torch.bincount(env.datasets["test"].task).unique().numel() == 1  # as many of each task
    assert result.live_paths.tolist() == pytest.approx([(3 + 1 + 2) / 3, (3 + 1 + 2) / 3, (3 + 1 + 1) / 3])
    assert torch.equal(result.live_paths, live_paths_by_hand(router, env, env.network))


@pytest.mark.parametrize("columns", [True, False], ids=["columns", "gates"])
def test_live_paths_are_those_of_every_single_row(columns):
    class Marked:
        """Decides by what it sees, by weights many of which are 0."""

        def act(self, observation, context):
            return table[(observation["activation"].abs().sum(1) * 1000).long() % 7]

    table = torch.rand(7, 3, 3, generator=torch.Generator().manual_seed(1)) - 0.7
    table = table.clamp(min=0) - 0.1 * torch.eye(3)[1]  # nobody is sent nowhere, and some weights are negative
    torch.manual_seed(1)
    network = ColumnsMLP((1, 2, 3), 3, 3, width=4, num_tasks=3) if columns else Gates(3)
    env = small_env(network, action_type="weights")
    result = routing_gym.evaluate(Marked(), env, batch_size=7)
    assert torch.allclose(result.live_paths, live_paths_by_hand(Marked(), env, network))
    assert bool(((result.live_paths > 1) & (result.live_paths < 3)).all())


def test_the_route_of_every_row_is_known():
    env = core_of(gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=8))
    result = routing_gym.evaluate(make_agent("random-fixed", env), env, batch_size=77)
    split, routes = env.datasets["test"], make_agent("random-fixed", env).routes
    assert result.route.shape == split.task.shape and len(result.taken) == result.paths == len(routes.unique(dim=0))
    taken = result.taken[result.route]
    assert torch.equal(taken.sum(-1), torch.ones_like(taken[..., 0], dtype=torch.int64))  # one choice everywhere
    assert torch.equal(taken.long().argmax(-1), routes[split.task])


def test_one_tensor_is_one_live_path_where_anybody_arrives():
    env = toy_env(autoreset_mode="disabled")
    # Everyone but task 0, who leaves at once, goes to column 1, and leaves there.
    result = routing_gym.evaluate(Scripted([[0] * 4, [1, 0, 0, 0], [1, 0, 0, 0]]), env, batch_size=7)
    assert result.live_paths.tolist() == [1, 1, 0, 0]


def test_a_common_exit_is_the_last_decision_choice_0():
    for network in (RunSkip(), None):
        env = small_env(network)
        agent = make_agent("wpl", env)
        result = routing_gym.evaluate(agent, env)
        last = len(env.network.decisions) - 1
        assert ways_out(env.network.decisions) == [(last, 0)]
        assert int(result.exits[last, 0].sum()) == int(result.exits.sum()) == len(env.datasets["test"])
        assert int(result.exits[..., 1].sum()) == round(result.accuracy * len(env.datasets["test"]))
        counts = env.datasets["test"].label.bincount(minlength=3)
        assert torch.equal(result.exits.sum((0, 1, 3)), counts)


def test_mixtures_have_exits_too():
    env = small_env(action_type="weights", differentiable=True)
    result = routing_gym.evaluate(make_agent("gumbel", env), env)
    assert int(result.exits.sum()) == len(env.datasets["test"])


def test_judging_keeps_exits_but_training_without_a_graph_does_not():
    env = toy_env(autoreset_mode="disabled", train=False)
    env.reset(seed=0)
    env.step(torch.zeros(env.num_envs, dtype=torch.int64))
    assert env.batch.exits == []


@pytest.mark.skipif("price" not in {field.name for field in dataclasses.fields(EnvConfig)}, reason="no prices to see")
def test_judging_at_a_price_shows_it():
    class Reads:
        def act(self, observation, context):
            seen.append(observation["price"])
            return torch.zeros(len(observation["task"]), dtype=torch.int64)

    env = toy_env(autoreset_mode="disabled", price=True, k_cpt=(0.0, 2e-9))
    for price in (3e-9, 0.0):
        seen: list[torch.Tensor] = []
        judged = routing_gym.evaluate(Reads(), env, k_cpt=price)
        assert torch.cat(seen).unique().tolist() == pytest.approx([1e7 * price])
        assert judged.loss == routing_gym.evaluate(Reads(), env).loss


def test_cost_is_loss_and_priced_operations():
    env = toy_env(autoreset_mode="disabled")
    agent = make_agent("reinforce", env, representation="mlp")
    result = routing_gym.evaluate(agent, env)
    assert result.router_macs > 0
    assert result.cost(0.0) == result.loss and result.cost(1e-3) == pytest.approx(result.loss + 1e-3 * result.macs)


@pytest.mark.parametrize(
    ("router", "options", "message"),
    [
        (None, {}, r"router must be an agent, or anything with act\(observation, context\), got None"),
        ("agent", {"split": []}, r"split must be one of \[.*'validation'\], got \[\]"),
        ("agent", {"split": "dev"}, "split must be one of .*, got 'dev'"),
        ("agent", {"batch_size": None}, "batch_size must be an integer of at least 1, got None"),
        ("agent", {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
    ],
)
def test_what_cannot_be_judged_is_refused(router, options, message):
    env = small_env()
    with pytest.raises(ValueError, match=message):
        routing_gym.evaluate(make_agent("random", env) if router else None, env, **options)
