"""Networks of unlike experts, against their parts called one row at a time."""

import gymnasium
import pytest
import torch
from plain_paths import randomised
from stepping import changed_by, check_export, check_owners, check_what_is_left, routed, step
from torch import nn
from torch.nn import functional

import routing_gym
from routing_gym.agents import add_task, make_agent, needs
from routing_gym.networks import make_network
from routing_gym.networks.experts import CONVS, DIVERSE
from routing_gym.networks.resnets import DIVERSE_3X3 as IN_RESNET
from routing_gym.testing import check_vector_env

TASKS, CLASSES = 3, 4
ROUTED = 13  # bottlenecks of ResNet-50 that leave the size of the image as it is
SMALL = {
    "omniglot-diverse": ((1, 16, 16), {"layers": 2, "width": 8, "expert_mid": 4}),
    "mnist-experts": ((1, 4, 4), {"width": 8}),
    "resnet50-diverse": ((3, 32, 32), {"width": 2}),
}


def small(name, input_shape=None, **options):
    torch.manual_seed(0)
    shape, own = SMALL[name]
    shape = input_shape or shape
    return make_network(name, num_tasks=TASKS, num_classes=CLASSES, input_shape=shape, **{**own, **options})


def small_env(name, images_per_class=12, **options):
    shape, own = SMALL[name]
    data = {"num_tasks": TASKS, "num_classes": 3, "image_size": shape[-1], "images_per_class": images_per_class}
    return gymnasium.make_vec(
        "routing_gym/SyntheticMTL-v0", network=name, **{"num_envs": 6, "learning_rate": 0.01, **data, **own, **options}
    )


def some_actions(network, rows, form):
    """One action per decision."""
    actions = []
    for decision in network.decisions:
        k = decision.n
        indices = torch.rand(rows, k).topk(min(3, k)).indices
        share = torch.rand(rows, indices.shape[1])
        if form == "integers":
            actions.append(indices[:, 0])
        else:
            actions.append((indices, share) if form == "sparse" else torch.zeros(rows, k).scatter(1, indices, share))
    return actions


def weight_of(action, row, choice):
    """How much of an expert a row takes."""
    if isinstance(action, tuple):
        return float(((action[0][row] == choice) * action[1][row]).sum())
    return float(action[row, choice]) if action.is_floating_point() else float(action[row] == choice)


@pytest.mark.parametrize("form", ["integers", "sparse", "weights"])
@pytest.mark.parametrize("size", [(16, 16), (17, 20), (28, 28)])
def test_omniglot_networks_equal_one_row_at_a_time(form, size):
    network = small("omniglot-diverse", (1, *size), layers=8)
    for parameter in network.parameters():  # so that scales and shifts do something
        parameter.data += 0.1 * torch.randn_like(parameter)
    images, task = torch.randn(4, 1, *size), torch.tensor([2, 0, 1, 2])
    actions = some_actions(network, 4, form)
    with torch.no_grad():
        state = routed(network, images, actions, task)
        first = network.trunk[0].module
        for row in range(4):
            x = functional.conv2d(images[row : row + 1], first[0].weight, padding=1)
            x = functional.max_pool2d(functional.group_norm(x, 1, first[1].weight, first[1].bias).relu(), 2)
            macs = size[0] * size[1] * 9 * 8 + 8 * CLASSES
            for number, action in enumerate(actions, 1):
                y = torch.zeros(())
                for choice, expert in enumerate(network.bank(number - 1).blocks):
                    if share := weight_of(action, row, choice):
                        y = y + share * expert(x)
                        cost = {"conv3": 9, "conv5": 25, "conv7": 49}.get(DIVERSE[choice], 0)
                        cost = 2 * cost * 8 * 4 or (2 * 7 * 8 * 8 if choice == 3 else 0)
                        macs += cost * x.shape[2] * x.shape[3]
                norm = network.between[number - 1][0].module[0]
                x = functional.group_norm(y, 1, norm.weight, norm.bias).relu()
                if number in (2, 4, 6):
                    x = functional.max_pool2d(x, 2)
            own = int(task[row])
            logits = x.mean((2, 3)) @ network.readouts.weight[own] + network.readouts.bias[own]
            torch.testing.assert_close(state.exits[0].logits[row : row + 1], logits, rtol=1e-4, atol=1e-5)
            assert float(state.macs[row]) == macs


def test_costs_of_two_layers_by_hand():
    network = small("omniglot-diverse")
    assert network.stem_macs == 16 * 16 * 9 * 8 + 8 * CLASSES
    for decision in network.decisions:  # 8 x 8 pixels: made smaller behind the shared layer, and not behind the last
        assert decision.macs == tuple(64 * cost for cost in (576, 1600, 3136, 896, 0, 0, 0))
    flat = small("omniglot-diverse", readout="flat")
    assert flat.stem_macs - network.stem_macs == (64 - 1) * 8 * CLASSES
    # What is shared is paid for once, however many experts are mixed.
    network = small("resnet50-diverse")
    images, task = torch.randn(1, 3, 32, 32), torch.tensor([0])
    everything = [torch.full((1, decision.n), 0.2) for decision in network.decisions]
    state = routed(network.eval(), images, everything, task)
    assert float(state.macs) == network.stem_macs + sum(sum(decision.macs) for decision in network.decisions)


def test_what_a_router_sees_is_the_average_over_the_image():
    network = small("omniglot-diverse")
    state = network.start(torch.randn(3, 1, 16, 16), torch.tensor([0, 1, 2]))
    for _ in range(2):
        x = state.waiting[state.sole].activation[0]
        assert x.shape == (3, 8, 8, 8)
        torch.testing.assert_close(network.observe(state), x.mean((2, 3)))
        state = step(network, state, torch.tensor([0, 4, 6]))


@pytest.mark.parametrize(
    ("name", "mid", "millions", "exactly"),
    [
        ("omniglot-diverse", 48, 3.37, 3_371_260),
        ("omniglot-diverse", 24, 1.84, 1_840_252),  # the paper prints 1.8
        ("omniglot-convs", 48, 6.44, 6_435_580),
        ("omniglot-conv3", 48, 2.38, 2_380_540),
        ("omniglot-conv5", 48, 6.51, 6_509_308),
    ],
)
def test_parameters_of_the_omniglot_networks(name, mid, millions, exactly):
    """20 tasks; 47 classes of the largest, which the 20 alphabets decide: each more is 20 x 49 parameters."""
    network = make_network(name, num_tasks=20, num_classes=47, input_shape=(1, 16, 16), expert_mid=mid)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == exactly and round(count / 1e6, 2) == millions
    square = {"conv3": 9, "conv5": 25, "conv7": 49}
    experts = {"omniglot-diverse": DIVERSE, "omniglot-convs": CONVS}.get(name, (name[-5:],) * 7)
    by_hand = 9 * 48 + 2 * 48 + 20 * 49 * 47 + 8 * 2 * 48
    for expert in experts:
        if expert in square:
            by_hand += 8 * (2 * 48 * mid * square[expert] + 2 * (48 + mid))
        elif expert == "conv1x7":
            by_hand += 8 * (2 * 48 * 48 * 7 + 4 * 48)
    assert count == by_hand


def test_the_experts_of_the_ablations():
    assert sorted(CONVS) == sorted(["conv3", "conv5", "conv7"] * 2 + ["conv1x7"])
    for name, experts in (("omniglot-convs", CONVS), ("omniglot-conv3", ("conv3",) * 7)):
        network = make_network(name, num_tasks=1, num_classes=2, input_shape=(1, 16, 16), width=2, expert_mid=2)
        assert network.experts == (experts,) * 8 and [d.n for d in network.decisions] == [7] * 8


def test_mnist_experts_by_hand():
    network = make_network("mnist-experts", num_tasks=1, num_classes=10)
    assert sum(parameter.numel() for parameter in network.parameters()) == (
        785 * 64 + 2 * 65 * 64 + 5 * 65 * 64 + (3 + 5) * 128 + 65 * 10
    )
    assert network.stem_macs == 784 * 64 + 2 * 64 * 64 + 640 and network.decisions[0].macs == (64.0 * 64,) * 5
    images, task = torch.randn(3, 1, 28, 28), torch.zeros(3, dtype=torch.int64)
    pair = torch.tensor([[0, 4], [1, 2], [4, 3]]), torch.rand(3, 2)
    state = routed(network, images, [pair], task)

    def layer(x, linear):
        return functional.layer_norm(x @ linear.weight.t() + linear.bias, (64,)).relu()

    x = images.flatten(1)
    for part in network.trunk[0].module[1:]:
        x = layer(x, part[0])
    for row in range(3):
        y = sum(pair[1][row, j] * layer(x[row], network.bank(0).blocks[int(pair[0][row, j])][0]) for j in range(2))
        logits = y @ network.readouts.weight[0] + network.readouts.bias[0]
        torch.testing.assert_close(state.exits[0].logits[row], logits)


@pytest.mark.parametrize(
    ("experts", "classes", "exactly"),
    [
        (("conv3",), 1000, 25_557_032),  # ResNet-50 itself
        (("conv3",) * 5, 196, 56_792_324),  # the paper prints 50 million
        (IN_RESNET, 196, 59_655_544),  # and 52
    ],
)
def test_parameters_of_resnet50(experts, classes, exactly):
    with torch.device("meta"):
        network = make_network("resnet50-diverse", num_tasks=1, num_classes=classes, experts=experts)
    assert len(network.banks) == ROUTED and network.readouts.weight.shape == (1, 2048, classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == exactly
    assert [bank.output_shape[1] for bank in network.banks] == [56] * 3 + [28] * 3 + [14] * 5 + [7] * 2


def test_resnet50_equals_one_row_at_a_time():
    """Bottleneck by bottleneck, from the convolutions in the order in which they run."""
    network = randomised(small("resnet50-diverse", (3, 36, 41))).eval()
    images, task = torch.randn(3, 3, 36, 41), torch.tensor([1, 0, 2])
    actions = some_actions(network, 3, "sparse")
    shared = [module for part in (network.trunk, *network.between) for module in part.modules()
              if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]  # fmt: skip
    with torch.no_grad():
        state = routed(network, images, actions, task)
        for row in range(3):
            parts, routes = iter(shared), iter(range(ROUTED))

            def run(x, count, parts=parts):
                for _ in range(count):
                    x = next(parts)(x)
                return x

            x = functional.max_pool2d(run(images[row : row + 1], 2).relu(), 3, stride=2, padding=1)
            for stage, bottlenecks in enumerate((3, 4, 6, 3)):
                for number in range(bottlenecks):
                    h, shortcut = run(x, 2).relu(), x
                    if number == 0:
                        shortcut = run(x, 2)
                    if number == 0 and stage:
                        h = run(h, 1)
                    else:
                        i = next(routes)
                        h = sum(weight_of(actions[i], row, c) * e(h) for c, e in enumerate(network.bank(i).blocks))
                    x = (run(run(h, 1).relu(), 2) + shortcut).relu()
            own = int(task[row])
            logits = x.mean((2, 3)) @ network.readouts.weight[own] + network.readouts.bias[own]
            torch.testing.assert_close(state.exits[0].logits[row : row + 1], logits, rtol=1e-3, atol=1e-4)
            assert next(parts, None) is None and next(routes, None) is None


@pytest.mark.parametrize("name", SMALL)
def test_a_choice_owns_its_expert_and_an_expert_nobody_chose_has_no_gradient(name):
    network = small(name)
    plan = torch.tensor([[0], [0], [1], [1]]).expand(-1, len(network.decisions))
    check_owners(network, torch.randn(4, *SMALL[name][0]), torch.tensor([0, 1, 2, 0]), plan)
    for number, decision in enumerate(network.decisions):
        for choice in range(decision.n):
            owned = {id(part.parameter) for part in network.parameters_of(number, choice)}
            assert owned == {id(p) for p in network.bank(number).blocks[choice].parameters()}


@pytest.mark.long
@pytest.mark.parametrize("action_type", ["discrete", "weights"])
@pytest.mark.parametrize("name", ["omniglot-diverse", "mnist-experts"])
def test_networks_of_experts_pass_the_checker(name, action_type):
    check_vector_env(small_env(name, action_type=action_type))


@pytest.mark.long
def test_resnet50_passes_the_checker():
    check_vector_env(small_env("resnet50-diverse", num_envs=4, autoreset_mode="disabled"))


@pytest.mark.long
@pytest.mark.parametrize("agent", ["top-k", "gumbel", "wpl", "task-specific-all", "soft-mixture"])
@pytest.mark.parametrize("name", ["omniglot-diverse", "mnist-experts"])
def test_agents_learn_something(name, agent):
    options = {"readout": "flat"} if name == "omniglot-diverse" else {}
    env = small_env(name, num_envs=36, **options, **needs(agent))
    learned = make_agent(agent, env).learn(env, episodes=36 * 30)
    assert routing_gym.evaluate(learned, env).accuracy > 0.6  # by chance 0.33


@pytest.mark.parametrize("agent", ["top-k", "task-specific-all"])
def test_agents_train_resnet50(agent):
    changed = changed_by(agent, small_env("resnet50-diverse", num_envs=12, **needs(agent)), 24)
    if agent == "task-specific-all":  # task t takes expert t
        assert not any(f".blocks.{choice}." in key for key in changed for choice in (3, 4))
    assert {key.split(".")[0] for key in changed} == {"trunk", "banks", "between", "readouts"}


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_what_is_left_after_training(name, tmp_path):
    env = small_env(name, num_envs=4, **needs("random-fixed"))
    agent = make_agent("random-fixed", env).learn(env, episodes=8)
    pruned, _ = check_what_is_left(agent, env, tmp_path)
    network, whole = pruned.env.network, agent.env.network
    assert network.block_counts == tuple(len(column.unique()) for column in agent.routes.T)
    kinds = [[whole.experts[i][c] for c in column.unique().tolist()] for i, column in enumerate(agent.routes.T)]
    assert [list(layer) for layer in network.experts] == kinds
    check_export(agent, env, 1)


def test_a_task_that_comes_later_has_no_readout():
    agent = make_agent("random-fixed", small_env("mnist-experts"))
    with pytest.raises(ValueError, match="no place for another one"):
        add_task(agent, agent.env.datasets)


def test_each_layer_may_have_experts_of_its_own():
    network = small("omniglot-diverse", experts=[["identity", "conv3"], ["conv5"]])
    assert [d.n for d in network.decisions] == [2, 1] and network.decisions[0].macs == (0.0, 64 * 576.0)
    network = small("omniglot-diverse", experts=["conv3"] * 3)
    assert network.block_counts == (3, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("omniglot-diverse", {"input_shape": (1, 15, 16)}, r"at least 16x16 pixels, got \(1, 15, 16\)"),
        ("omniglot-diverse", {"width": 0}, "'omniglot-diverse': width must be an integer of at least 1, got 0"),
        ("omniglot-diverse", {"expert_mid": 0}, "expert_mid must be an integer of at least 1, got 0"),
        ("omniglot-diverse", {"readout": "all"}, "readout must be 'pooled' or 'flat', got 'all'"),
        ("omniglot-diverse", {"num_blocks": 5}, "has no num_blocks to choose: .*experts.* got num_blocks=5"),
        ("omniglot-diverse", {"experts": ["conv4"]}, "unknown expert 'conv4'"),
        ("omniglot-diverse", {"experts": [["conv3"]]}, r"one for each of the 2 layers, got \[\['conv3'\]\]"),
        ("omniglot-diverse", {"experts": [["conv3"], []]}, "one for each of the 2 layers"),
        ("omniglot-diverse", {"experts": []}, r"must be a list of names, or one for each of the 2 layers, got \[\]"),
        ("omniglot-diverse", {"experts": "conv3"}, "must be a list of names, .* got 'conv3'"),
        ("mnist-experts", {"num_experts": 0}, "num_experts must be an integer of at least 1, got 0"),
        ("mnist-experts", {"num_blocks": 5}, "own options .*num_experts.* say how large it is, got num_blocks=5"),
        ("resnet50-diverse", {"input_shape": (3, 31, 40)}, r"at least 32x32 pixels, got \(3, 31, 40\)"),
        ("resnet50-diverse", {"width": 0}, "width must be an integer of at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        small(name, **options)
