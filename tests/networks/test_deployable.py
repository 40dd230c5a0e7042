"""What is left after training, network by network: routes as plain modules, and networks without unused blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import routed
from torch import nn
from toys import CLASSES, IMAGE, LAYERS, Residual

from routing_gym.networks import RoutedMLP, make_network, route

TASKS = 3


def logits_of(network, images, task, choices):
    """Logits of images that take one route through the routed network, one row at a time."""
    actions = [torch.tensor([choice]) for choice in choices]
    alone = [routed(network, image[None], actions, torch.tensor([task])) for image in images]
    return torch.cat([state.exits[0].logits for state in alone])


def by_hand(network, image, task, choices, trunk):
    """Logits of one image, from the parameters alone."""
    x = image.flatten() if trunk is None else trunk(image[None]).flatten()
    x = torch.cat([x, torch.eye(TASKS)[task]]) if network.task_input else x
    for depth, choice in enumerate(choices):
        blocks = network.bank(depth)
        if not isinstance(getattr(blocks, "weight", None), nn.Parameter):
            if choice == blocks.num_blocks - 1:
                continue
            blocks = blocks.blocks
        x = x @ blocks.weight[choice] + blocks.bias[choice]
        x = x.clamp(min=0) if depth < len(choices) - 1 else x
    return x


def mlp(blocks, layers, recurrent, task_input, with_trunk):
    trunk = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh()) if with_trunk else None
    network = RoutedMLP(
        IMAGE, CLASSES, blocks, width=6, layers=layers, recurrent=recurrent, task_input=task_input, num_tasks=TASKS,
        trunk=trunk,
    )  # fmt: skip
    if trunk is not None:
        trunk(torch.randn(9, *IMAGE))  # statistics of its own
    return network.eval(), trunk


def draw_routes(network):
    return torch.stack([torch.randint(decision.n, (TASKS,)) for decision in network.decisions], 1)


shapes = {
    "blocks": st.integers(1, 4),
    "layers": st.integers(3, 5),
    "recurrent": st.booleans(),
    "task_input": st.booleans(),
    "with_trunk": st.booleans(),
    "seed": st.integers(0, 10**6),
}


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(**shapes)
def test_a_static_route_equals_each_row_worked_out_by_hand(seed, **shape):
    torch.manual_seed(seed)
    network, trunk = mlp(**shape)
    images = torch.randn(4, *IMAGE)
    for task, choices in enumerate(draw_routes(network).tolist()):
        modules = network.static_route(choices, task)
        with torch.no_grad():
            logits = nn.Sequential(*modules).eval()(images)
            expected = torch.stack([by_hand(network, image, task, choices, trunk) for image in images])
            torch.testing.assert_close(logits, expected)
            torch.testing.assert_close(logits, logits_of(network, images, task, choices))
        passed = sum(not network.parameters_of(depth, choice) for depth, choice in enumerate(choices))
        assert sum(isinstance(part, nn.Linear) for part in modules) == len(choices) - passed
        with torch.no_grad():
            for part in modules:
                for parameter in part.parameters():
                    parameter.zero_()
            torch.testing.assert_close(logits_of(network, images, task, choices), expected)


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(**shapes)
def test_a_pruned_network_gives_the_same_logits_with_the_blocks_in_use(seed, **shape):
    torch.manual_seed(seed)
    network, _ = mlp(**shape)
    routes, images = draw_routes(network), torch.randn(3, *IMAGE)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    drawn = torch.get_rng_state()
    smaller, renumbered = network.pruned(routes)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    smaller.eval()
    for task in range(TASKS):
        expected = logits_of(network, images, task, routes[task].tolist())
        torch.testing.assert_close(logits_of(smaller, images, task, renumbered[task].tolist()), expected)
    used = {}  # of each set of blocks
    for depth in range(shape["layers"]):
        blocks = network.bank(depth)
        used.setdefault(id(blocks), set()).update(
            int(choice) for choice in routes[:, depth] if network.parameters_of(depth, int(choice))
        )
    assert list(smaller.block_counts) == [len(blocks) for blocks in used.values()]
    assert [d.name for d in smaller.decisions] == [d.name for d in network.decisions]
    for before, after in zip(network.decisions, smaller.decisions, strict=True):
        assert set(after.macs) <= set(before.macs) and after.width == before.width

    # The numbers of blocks are all it takes to build the like, and there is nothing more to drop.
    like, _ = mlp(**{**shape, "blocks": list(smaller.block_counts)})
    like.load_state_dict(smaller.state_dict())
    again, same = smaller.pruned(renumbered)
    assert again.block_counts == smaller.block_counts and torch.equal(same, renumbered)


def test_where_every_task_passes_no_block_is_left():
    network = RoutedMLP(IMAGE, CLASSES, 2, width=5, layers=4, recurrent=True)
    images = torch.randn(3, *IMAGE)
    smaller, routes = network.pruned(torch.tensor([[1, 4, 4, 0], [1, 4, 4, 1]]))
    assert smaller.block_counts == (1, 0, 2) and routes.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
    assert [decision.n for decision in smaller.decisions] == [1, 1, 1, 2] and smaller.decisions[1].macs == (0.0,)
    for before, after in (([1, 4, 4, 0], [0, 0, 0, 0]), ([1, 4, 4, 1], [0, 0, 0, 1])):
        torch.testing.assert_close(logits_of(smaller, images, 0, after), logits_of(network, images, 0, before))
    assert len(smaller.static_route([0, 0, 0, 1], 0)) == 4  # flatten, linear, ReLU, linear
    assert smaller.pruned(routes)[0].block_counts == (1, 0, 2)


def test_simple_convnet_keeps_its_convolutions():
    torch.manual_seed(0)
    network = make_network("simple-convnet", num_tasks=TASKS, num_classes=4, input_shape=(3, 16, 16))
    network.train()
    network.start(torch.randn(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64))  # statistics of batch norm
    network.eval()
    images, routes = torch.randn(2, 3, 16, 16), torch.tensor([[0, 2, 1], [0, 1, 1], [0, 2, 0]])
    smaller, renumbered = network.pruned(routes)
    smaller.eval()
    assert smaller.block_counts == (1, 2, 2)
    for task in range(TASKS):
        expected = logits_of(network, images, task, routes[task].tolist())
        torch.testing.assert_close(logits_of(smaller, images, task, renumbered[task].tolist()), expected)
        static = nn.Sequential(*network.static_route(routes[task].tolist(), task)).eval()
        torch.testing.assert_close(static(images), expected, rtol=1e-4, atol=1e-5)
    like = make_network("simple-convnet", num_tasks=TASKS, num_classes=4, input_shape=(3, 16, 16), num_blocks=[1, 2, 2])
    like.load_state_dict(smaller.state_dict())


def test_a_routed_module_becomes_a_module_again():
    torch.manual_seed(0)
    network = route(Residual(), LAYERS, [3, 2, 4], input_shape=(1, 4, 4))  # as LAYERS are named: body, head, middle
    assert network.block_counts == (3, 4, 2)  # as they are called
    network.train()
    for _ in range(2):
        network.start(torch.randn(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64))
    network.eval()
    images, routes = torch.randn(3, 1, 4, 4), torch.tensor([[0, 3, 1], [2, 3, 1], [2, 1, 1]])
    drawn = torch.get_rng_state()
    smaller, renumbered = network.pruned(routes)
    assert torch.equal(torch.get_rng_state(), drawn)
    smaller.eval()
    assert smaller.block_counts == (2, 2, 1) and renumbered.tolist() == [[0, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert [d.macs for d in smaller.decisions] == [
        tuple(d.macs[:n]) for d, n in zip(network.decisions, (2, 2, 1), strict=True)
    ]
    for task in range(TASKS):
        expected = logits_of(network, images, task, routes[task].tolist())
        torch.testing.assert_close(logits_of(smaller, images, task, renumbered[task].tolist()), expected)
        (module,) = network.static_route(routes[task].tolist(), task)
        torch.testing.assert_close(module.eval()(images), expected)
    plain = Residual().eval()
    plain.load_state_dict(module.state_dict())  # the very module that was routed, under the same names
    torch.testing.assert_close(plain(images), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": [2, 2]}, r"one for each of the 3 sets of blocks, got \[2, 2\]"),
        ({"num_blocks": (2, 2, 2), "recurrent": True, "layers": 4}, None),
        ({"num_blocks": (2, 2, 2, 2), "recurrent": True, "layers": 4}, r"each of the 3 sets of blocks"),
        ({"num_blocks": [2, 0, 2]}, "num_blocks must be an integer of at least 1, got 0"),
        ({"num_blocks": [2, 0, 2], "recurrent": True}, None),
        ({"num_blocks": [0, 2, 2], "recurrent": True}, "at least 1, got 0"),
        ({"num_blocks": 0, "recurrent": True}, "at least 1, got 0"),
        ({"num_blocks": [2, 2.0, 2]}, "at least 1, got 2.0"),
        ({"num_blocks": "222"}, "at least 1, got '222'"),
    ],
)
def test_numbers_of_blocks_are_checked(options, message):
    if message is None:
        assert RoutedMLP(IMAGE, CLASSES, **options).block_counts == tuple(options["num_blocks"])
        return
    with pytest.raises(ValueError, match=message):
        RoutedMLP(IMAGE, CLASSES, **options)
    with pytest.raises(ValueError, match="each of the 3 sets"):
        route(Residual(), LAYERS, [2, 2], input_shape=(1, 4, 4))
