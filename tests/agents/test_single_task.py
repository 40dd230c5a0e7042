"""Networks of single tasks against plain networks, trained one by one; and that agents get the blocks they need."""

import gymnasium
import pytest
import torch
from torch import nn
from torch.nn import functional

from routing_gym.agents import make_agent, needs, train_batch
from routing_gym.experiments.cli import main
from routing_gym.networks import make_network

TASKS, RATE = 3, 0.01


def env_of(network, agent="single-task", **options):
    options = {"num_tasks": TASKS, "num_classes": 4, "image_size": 16, "learning_rate": RATE, "width": 6, **options}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=36, network=network, **needs(agent), **options)


def plain_network(network, task):
    """One task's network of plain modules, with the weights it has in the routed one."""
    parts = []
    for decision, at in enumerate(network.decisions):
        bank = network.bank(decision)
        if at.name.startswith("stage"):
            own = bank.blocks[task]
            conv, norm = nn.Conv2d(own[0].in_channels, own[0].out_channels, 3, padding=1), nn.BatchNorm2d(32)
            conv.load_state_dict(own[0].state_dict())
            norm.load_state_dict(own[1].state_dict())
            parts += [conv, norm, nn.MaxPool2d(2), nn.ReLU()]
        else:
            linear = nn.Linear(*bank.weight.shape[1:])
            linear.weight.data, linear.bias.data = (
                bank.weight[task].t().clone().detach(),
                bank.bias[task].clone().detach(),
            )
            parts += [linear, nn.ReLU()]
    first = next(number for number, part in enumerate(parts) if isinstance(part, nn.Linear))
    return nn.Sequential(*parts[:first], nn.Flatten(), *parts[first:-1])


# Not of convolutions with Adam: batch norm makes the gradient of their biases mere rounding, which it makes large.
@pytest.mark.parametrize(
    ("network", "optimizer"),
    [("mlp", torch.optim.Adam), ("mlp", torch.optim.SGD), ("simple-convnet", torch.optim.SGD)],
)
def test_every_task_is_trained_as_if_alone(network, optimizer):
    more = {"optimizer": "sgd", "momentum": 0.9} if optimizer is torch.optim.SGD else {}
    env = env_of(network, num_blocks=2, **more)
    agent, data = make_agent("single-task", env), env.unwrapped.dataset
    networks = [plain_network(env.unwrapped.network, task) for task in range(TASKS)]
    momentum = {"momentum": 0.9} if more else {}
    optimizers = [optimizer(own.parameters(), lr=RATE, **momentum) for own in networks]
    for _ in range(4):
        batch, loss, _ = train_batch(agent, agent.env)
        images, total = data.pixels(batch.instance), 0.0
        for task, (own, steps) in enumerate(zip(networks, optimizers, strict=True)):
            rows = (batch.task == task).nonzero().flatten()
            logits = own.train()(images[rows])
            alone = functional.cross_entropy(logits, batch.label[rows], reduction="sum") / len(batch)
            steps.zero_grad()
            alone.backward()
            steps.step()
            total += alone.item()
        assert loss.item() == pytest.approx(total, rel=1e-4)
    with torch.no_grad():
        images = data.pixels(torch.arange(24))
        for task, own in enumerate(networks):
            found = agent.classify(images, torch.full((24,), task))
            torch.testing.assert_close(found, own.eval()(images), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(
                [*plain_network(agent.env.network, task).parameters()], [*own.parameters()], rtol=1e-3, atol=1e-4
            )


def test_a_trunk_per_task_costs_an_instance_nothing():
    plain, own = (make_network("simple-convnet", num_tasks=4, num_classes=5, trunk_per_task=on) for on in (False, True))
    costs = [network.stem_macs + sum(decision.macs[0] for decision in network.decisions) for network in (plain, own)]
    assert costs[0] == costs[1]
    few = make_network("simple-convnet", num_tasks=4, num_classes=5, num_blocks=[1, 2, 3], trunk_per_task=True)
    assert few.block_counts == (4, 4, 4, 4, 1, 2, 3)


@pytest.mark.parametrize("name", ["DigitsMTL", "MnistMTL", "Cifar100MTL", "HiddenGroups", "Compositions", "Clusters"])
def test_a_batch_of_one_task_moves_its_own_network_alone(name):
    env = gymnasium.make_vec(
        f"routing_gym/{name}-v0", num_envs=8, num_blocks=2, draw_tasks=(0,), **needs("single-task")
    )
    agent, network = make_agent("single-task", env), env.unwrapped.network
    before = {key: value.clone() for key, value in network.named_parameters()}
    agent.learn(env, 16)
    moved = {
        key: (value != before[key]).flatten(1).any(1) for key, value in network.named_parameters() if value.ndim > 1
    }
    for key, rows in moved.items():
        if ".blocks." in key:  # of modules: banks.DECISION.blocks.TASK
            assert bool(rows.any()) == (key.split(".")[3] == "0"), key
        else:
            assert rows.tolist() == [True] + [False] * (len(rows) - 1), key
    assert agent.num_tasks == env.unwrapped.dataset.num_tasks


def test_agents_that_need_a_block_per_task_are_given_them():
    for agent in ("single-task", "task-specific-all", "task-specific-last"):
        for given, got in ((2, (3, 3, 3)), (5, (5, 5, 5)), ([3, 4, 3], (3, 4, 3)), (None, (3, 3, 3))):
            env = env_of("mlp", agent, num_blocks=given)
            assert env.unwrapped.network.block_counts == got
            assert len(make_agent(agent, env).routes.unique(dim=0)) == TASKS
    assert env_of("mlp", "task-specific-last", num_blocks=[1, 1, 3]).unwrapped.network.block_counts == (1, 1, 3)
    assert env_of("mlp", "shared", num_blocks=2).unwrapped.network.block_counts == (2, 2, 2)
    assert env_of("mlp", "shared", num_blocks=2, block_per_task=True).unwrapped.network.block_counts == (3, 3, 3)


def test_what_tasks_would_share_is_refused():
    shared = r"tasks would share what belongs to no block \(trunk.0.0.weight and 15 more\): .*network_per_task=True"
    with pytest.raises(ValueError, match=shared):
        make_agent("single-task", env_of("simple-convnet", "task-specific-all"))
    with pytest.raises(ValueError, match="needs a block for each of the 3 tasks, .* offers 2: .*block_per_task=True"):
        make_agent("single-task", env_of("mlp", "shared", num_blocks=2))
    with pytest.raises(ValueError, match="'single-task' routes one tensor: columns hand each other"):
        make_agent("single-task", env_of("mlp", form="columns"))
    for option in ("block_per_task", "network_per_task"):
        with pytest.raises(ValueError, match=f"{option} must be of type bool, got 3"):
            env_of("mlp", "shared", **{option: 3})
    with pytest.raises(TypeError, match="unexpected keyword argument 'trunk_per_task'"):
        env_of("simple-convnet", "shared", trunk_per_task=True)
    with pytest.raises(ValueError, match="a trunk per task goes with neither recurrent=True"):
        env_of("simple-convnet", recurrent=True)
    # A task's own blocks at several depths are nobody else's.
    assert len(make_agent("single-task", env_of("mlp", recurrent=True)).routes.unique(dim=0)) == TASKS


def test_a_command_says_where_it_cannot_be(capsys, tmp_path):
    arguments = ["compare", "--env", "routing_gym/Budget-v0", "--agents", "single-task", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'single-task': tasks would share what belongs to no block" in said
