"""The multiscale pyramid against SPEC's costs and, row by row, against plain networks written out here."""

import copy

import gymnasium
import pytest
import torch
from plain_paths import randomised
from stepping import outcome, started, walked
from torch import nn
from torch.nn import functional

from routing_gym.agents import make_agent, train_batch
from routing_gym.envs import RoutingVectorEnv
from routing_gym.experiments.benchmarks.steps import stand_in_images
from routing_gym.networks import EXIT, RoutedPyramid, make_network, static_pyramid, ways_out
from routing_gym.networks.pyramid import image_pyramid
from routing_gym.tasks import synthetic_mtl
from routing_gym.testing import check_vector_env

CUMULATIVE = [1.364, 5.272, 7.560, 11.394, 13.463, 17.002, 18.192, 20.551]
"""Million multiply-accumulates of the first n columns and a classifier (Fig. 5's axis)."""
IMAGE, CLASSES = (3, 16, 16), 5
FORMS = {
    "chain of 8": {"columns": 8},
    "chain of 3": {"columns": 3},
    "tree of 3, 2 junctions": {"columns": 3, "junctions": 2},
    "tree of 5, 1 junction": {"columns": 5, "junctions": 1},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(form="chain of 8", width=2, shape=IMAGE):
    """A small network in eval mode whose batch norms and biases do something."""
    torch.manual_seed(0)
    network = randomised(RoutedPyramid(shape, CLASSES, width=width, **FORMS[form]))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.data.normal_(0, 0.1)
    return network.eval()


def path_to(network, decision, choice):
    """The decisions and choices of a way out, from the first decision on."""
    way = [(decision, choice)]
    while way[0][0] > 0:
        way.insert(
            0,
            next(
                (number, c)
                for number, before in enumerate(network.decisions)
                for c, target in enumerate(before.next)
                if target == way[0][0]
            ),
        )
    return way


def by_hand(network, nodes, image):
    """The logits of one image `(1, C, H, W)` after some columns, written out with functional calls alone."""
    scales = [image, *(functional.avg_pool2d(image, 2**i) for i in (1, 2, 3))]
    for j in nodes:
        column = network.columns[j]
        scales, raw = scales[-len(column.across) :], []
        for i, x in enumerate(scales):
            y = functional.conv2d(x, column.across[i].weight, column.across[i].bias, padding=1)
            if i:
                y = y + functional.conv2d(functional.max_pool2d(raw[-1], 2), column.down[i - 1].weight, padding=1)
            raw.append(y)
        kept = raw[-len(column.norms) :]
        scales = []
        for y, norm in zip(kept, column.norms, strict=True):
            mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
            y = (y - mean) / (var + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
            scales.append(y.clamp(min=0))
    head = network.classifiers[nodes[-1]]
    return scales[-1].reshape(1, -1) @ head.weight.T + head.bias


# ---------------------------------------------------------------------------------------------------------------- cost


def test_cumulative_macs_of_the_chain():
    network = make_network("pyramid-chain", num_tasks=1, num_classes=10)
    spent, cumulative = network.stem_macs, []
    for decision in network.decisions:
        assert decision.n == 2 and decision.mixing == "outcome" and decision.next[0] == EXIT
        cumulative.append(spent + decision.macs[0])
        spent += decision.macs[1]
    cumulative.append(spent)
    assert [round(macs / 1e6, 3) for macs in cumulative] == CUMULATIVE
    assert [decision.width for decision in network.decisions] == [256, 256, 512, 512, 1024, 1024, 2048]
    # The paper's routers read these and have two layers of 16, which is what SPEC lists for them.
    routers = sorted({decision.width * 16 + 16 * 16 + 16 * 2 for decision in network.decisions})
    assert routers == [4384, 8480, 16672, 33056]


def test_cumulative_macs_of_the_static_networks():
    for columns, expected in enumerate(CUMULATIVE, 1):
        network = make_network(f"pyramid-static-{columns}", num_tasks=1, num_classes=10)
        (decision,) = network.decisions
        assert decision.n == 1 and round((network.stem_macs + decision.macs[0]) / 1e6, 3) == expected


def test_the_tree_has_47_columns_and_its_leaves_cost_as_much_as_the_chain():
    network = make_network("pyramid-tree", num_tasks=1, num_classes=10)
    assert len(network.columns) == len(network.classifiers) == len(ways_out(network.decisions)) == 47
    assert [decision.n for decision in network.decisions] == [3] * 7 + [2] * 32
    names = [decision.name for decision in network.decisions]
    assert names[:5] == ["column 1", "column 2 L", "column 2 R", "column 3 LL", "column 3 LR"]
    assert names[-1] == "column 7 RRR" and len(set(names)) == 39
    spent = []
    for decision, choice in ways_out(network.decisions):
        way = path_to(network, decision, choice)
        spent.append(network.stem_macs + sum(network.decisions[number].macs[c] for number, c in way))
    found = [round(macs / 1e6, 3) for macs in spent]
    assert [found.count(macs) for macs in CUMULATIVE] == [1, 2, 4, 8, 8, 8, 8, 8]


def test_width_multiplies_channels():
    """Fig. 10: twice the channels, about four times the cost."""
    narrow, wide = (make_network("pyramid-chain", num_tasks=1, num_classes=10, width=width) for width in (16, 32))
    channels = [[conv.out_channels for conv in column.across] for column in wide.columns]
    assert channels == [[32] * 4, [32] * 4, [64] * 3, [64] * 3, [128] * 2, [128] * 2, [256], [256]]
    ratio = sum(d.macs[1] for d in wide.decisions) / sum(d.macs[1] for d in narrow.decisions)
    assert 3.9 < ratio <= 4


# ------------------------------------------------------------------------------------------------------------- routing


@pytest.mark.parametrize("form", FORMS)
def test_hard_routing_equals_static_prefixes_row_by_row(form):
    """Every exit is taken by some row of one batch."""
    network = small(form)
    ways = ways_out(network.decisions)
    images = torch.randn(2 * len(ways), *IMAGE)
    table = torch.zeros(len(images), len(network.decisions), dtype=torch.int64)
    for row in range(len(images)):
        for number, choice in path_to(network, *ways[row % len(ways)]):
            table[row, number] = choice
    last = len(network.decisions) - 1

    def choose(state):
        return table[torch.arange(len(images)), state.at.clamp(max=last)]

    with torch.no_grad():
        state = walked(network, started(network, images), choose)
        assert sorted((exit.decision, exit.choice) for exit in state.exits) == sorted(ways)
        logits, total = outcome(network, state)
        assert bool((total == 1).all())
        for row in range(len(images)):
            way = path_to(network, *ways[row % len(ways)])
            nodes = [network.inner[number] for number, _ in way]
            if way[-1][1] > 0:
                nodes.append(network.tree[nodes[-1]][way[-1][1] - 1])
            image = images[row : row + 1]
            prefix = network.static_prefix(*way[-1])
            torch.testing.assert_close(logits[row : row + 1], prefix(image), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(prefix(image), by_hand(network, nodes, image), rtol=1e-4, atol=1e-5)
            macs = network.stem_macs + sum(network.decisions[number].macs[choice] for number, choice in way)
            assert float(state.macs[row]) == float(state.expected_macs[row]) == macs


@pytest.mark.parametrize("form", FORMS)
def test_soft_routing_is_the_weighted_sum_of_prefixes(form):
    network = small(form)
    images = torch.randn(3, *IMAGE)
    sizes = [decision.n for decision in network.decisions]
    scores = [torch.randn(3, n, requires_grad=True) for n in sizes]
    weights = [functional.pad(score.softmax(1), (0, max(sizes) - n)) for score, n in zip(scores, sizes, strict=True)]
    state = walked(network, started(network, images), lambda state: weights[int(state.at[0])])
    logits, total = outcome(network, state)
    torch.testing.assert_close(total, torch.ones(3))
    expected, macs = torch.zeros(3, CLASSES), torch.full((3,), network.stem_macs)
    for way_out in ways_out(network.decisions):
        share, spent = torch.ones(3), 0.0
        for number, choice in path_to(network, *way_out):
            share = share * weights[number][:, choice]
            spent += network.decisions[number].macs[choice]
        expected = expected + share[:, None] * network.static_prefix(*way_out)(images)
        macs = macs + share * spent
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.expected_macs, macs, rtol=1e-5, atol=1.0)
    state.expected_macs.sum().backward()
    assert all(bool((score.grad != 0).all()) for score in scores)


def test_rows_that_left_are_not_run_on():
    network = small()
    seen = []
    for column in network.columns:
        column.register_forward_hook(lambda module, inputs, output: seen.append(len(output[-1])))
    leave_after = torch.tensor([0, 0, 1, 3, 6, 7])
    images = torch.randn(6, *IMAGE)
    walked(network, started(network, images), lambda state: (state.at < leave_after).long())
    assert seen == [6, 4, 3, 3, 2, 2, 2, 1]


@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_only_what_ran(training):
    network = small("tree of 5, 1 junction").train(training)
    images = torch.randn(4, *IMAGE)
    route = {0: 2, 2: 1, 4: 0}  # to the right, on, and out of column 3 of the right chain
    state = walked(network, started(network, images), lambda state: torch.full((4,), route[int(state.at[0])]))
    outcome(network, state)[0].square().sum().backward()
    ran = {0, 2, 4}
    for j, column in enumerate(network.columns):
        coarsest = {id(p) for part in (column.across[-1], column.norms[-1]) for p in part.parameters()}
        for parameter in column.parameters():
            assert j in ran or parameter.grad is None
            if j in ran and id(parameter) in coarsest:
                assert bool((parameter.grad != 0).any())
    for j, head in enumerate(network.classifiers):
        assert all((parameter.grad is not None) == (j == 4) for parameter in head.parameters())


def test_every_parameter_is_used_and_belongs_to_one_choice():
    network = small("tree of 3, 2 junctions")
    state = walked(network, started(network, torch.randn(4, *IMAGE)), lambda state: torch.full((4, 3), 1 / 3))
    outcome(network, state)[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    owned = [
        id(own.parameter)
        for number, decision in enumerate(network.decisions)
        for choice in range(decision.n)
        for own in network.parameters_of(number, choice)
    ]
    shared = [id(parameter) for parameter in network.columns[0].parameters()]
    assert sorted(owned + shared) == sorted(map(id, network.parameters()))


def test_observations_are_the_coarsest_scale_padded():
    network = small()
    images = torch.randn(3, *IMAGE)
    state = network.start(images, torch.zeros(3, dtype=torch.int64))
    coarsest = network.columns[0](*image_pyramid(images))[-1]
    assert network.observation_size == 16 * 2 * 2
    assert torch.equal(network.observe(state)[:, : 2 * 2 * 2], coarsest.flatten(1))
    assert not network.observe(state)[:, 2 * 2 * 2 :].any()


# ---------------------------------------------------------------------------------------------------- static networks


def test_static_networks_share_nothing():
    network = small()
    prefix = network.static_prefix(3)
    pointers = {parameter.data_ptr() for parameter in network.parameters()}
    assert not pointers & {tensor.data_ptr() for tensor in prefix.parameters()}
    images = torch.randn(2, *IMAGE)
    before = prefix(images)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(prefix(images), before)
    assert len(network.columns[3].norms) == 2 and len(prefix.columns[3].norms) == 1


@pytest.mark.parametrize("columns", [1, 2, 5, 8])
def test_static_networks_train_every_parameter(columns):
    torch.manual_seed(0)
    module = static_pyramid(IMAGE, CLASSES, columns=columns, width=2)
    module(torch.randn(4, *IMAGE)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert len(module.columns) == columns


def test_first_weights():
    """Section 4.7: Xavier's, biases of 0; batch norm with epsilon 1e-6 and decay 0.9."""
    torch.manual_seed(0)
    network = make_network("pyramid-chain", num_tasks=1, num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            field = 9 if isinstance(module, nn.Conv2d) else 1
            bound = (6 / (field * (module.weight.shape[0] + module.weight.shape[1]))) ** 0.5
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.eps, round(module.momentum, 6)) == (1e-6, 0.1)


# ------------------------------------------------------------------------------------------------- names and refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pyramid-chain", {"columns": 1}, "columns must be an integer from 2 to 8, got 1"),
        ("pyramid-chain", {"columns": 9}, "columns must be an integer from 2 to 8, got 9"),
        ("pyramid-chain", {"width": 0}, "width must be an integer of at least 1, got 0"),
        ("pyramid-chain", {"width": 1.5}, "width must be an integer"),
        ("pyramid-chain", {"junctions": 2}, "'pyramid-chain' got an unexpected keyword argument 'junctions'"),
        ("pyramid-chain", {"input_shape": (3, 7, 32)}, "of at least 8x8 pixels, got"),
        ("pyramid-chain", {"input_shape": (32, 32)}, r"input_shape=\(C, H, W\)"),
        ("pyramid-chain", {"num_blocks": 3}, "'pyramid-chain' has no num_blocks to choose: .* num_blocks=3"),
        ("pyramid-tree", {"junctions": -1}, "junctions must be an integer from 0 to 7, got -1"),
        ("pyramid-tree", {"columns": 3}, "junctions must be an integer from 0 to 2, got 3"),
        ("pyramid-tree", {"columns": True}, "columns must be an integer"),
        ("pyramid-static-3", {"num_blocks": [2]}, "'pyramid-static-3' has no num_blocks"),
        ("pyramid-static-3", {"columns": 3}, "'pyramid-static-3' got an unexpected keyword argument 'columns'"),
        ("pyramid-static-9", {}, "unknown network 'pyramid-static-9'"),
    ],
)
def test_bad_options_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_network(name, num_tasks=2, num_classes=4, **options)


def test_no_static_prefix_where_no_way_leads_out():
    network = small("tree of 5, 1 junction")
    for way in [(0, 1), (99, 0), (0, 3)]:
        with pytest.raises(ValueError, match="one of .* got"):
            network.static_prefix(*way)


def test_deepcopy():
    network = small("tree of 3, 2 junctions")
    images = torch.randn(3, *IMAGE)
    copied = copy.deepcopy(network)
    both = [walked(part, started(part, images), lambda state: torch.full((3, 3), 1 / 3)) for part in (network, copied)]
    assert torch.equal(outcome(network, both[0])[0], outcome(copied, both[1])[0])
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in copied.parameters()}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 19, 13)])
def test_sizes_that_are_no_powers_of_two(shape):
    """8x8 pixels leave one value per channel at the coarsest scale: a single row then has no variance."""
    network = small("tree of 3, 2 junctions", shape=shape).train()
    walked(network, started(network, torch.randn(1, *shape)), lambda state: torch.full((1, 3), 1 / 3))
    network.eval()
    images = torch.randn(2, *shape)
    state = walked(network, started(network, images), lambda state: torch.full((2,), 2))
    way = [w for w in ways_out(network.decisions) if w[1] == 2][-1]
    torch.testing.assert_close(outcome(network, state)[0], network.static_prefix(*way)(images), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- environments


@pytest.mark.long
@pytest.mark.parametrize("action_type", ["discrete", "weights"])
@pytest.mark.parametrize("form", ["chain of 8", "tree of 3, 2 junctions"])
def test_the_environment_keeps_the_contract(form, action_type):
    data = synthetic_mtl(num_tasks=2, num_classes=CLASSES, image_size=16, images_per_class=6)
    network = small(form, shape=(1, 16, 16))
    check_vector_env(RoutingVectorEnv(network, data, 5, action_type=action_type))


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        ("pyramid-chain", "reinforce"),
        ("pyramid-chain", "gumbel"),
        ("pyramid-tree", "wpl"),
        ("pyramid-tree", "soft-mixture"),
        ("pyramid-static-2", "reinforce"),
    ],
)
def test_agents_train_on_it(name, agent):
    data = {"train": stand_in_images(1, 10, per_class=2)}
    network = make_network(name, num_tasks=1, num_classes=10, width=2)
    action_type = "weights" if agent in ("gumbel", "soft-mixture") else "discrete"
    env = RoutingVectorEnv(network, data, 6, autoreset_mode="disabled", action_type=action_type)
    learner = make_agent(agent, env)
    before = copy.deepcopy(network.state_dict())
    for _ in range(2):
        train_batch(learner, env)
    first = next(iter(network.state_dict()))  # a weight of the first column, which all rows run
    assert not torch.equal(before[first], network.state_dict()[first])


@pytest.mark.long
def test_an_environment_by_name_keeps_the_contract():
    """All 39 decisions of the tree, and the options by name."""
    options = {"image_size": 8, "num_tasks": 1, "images_per_class": 6, "width": 1}
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=4, network="pyramid-tree", **options)
    assert len(env.unwrapped.network.decisions) == 39
    check_vector_env(env)
