"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from routing_gym.networks import resnet_experts
from routing_gym.networks.block_skip import FORMS, resnet_skip
from routing_gym.networks.cells import cells_network
from routing_gym.networks.diverse import EXPERTS, mnist_experts, omniglot_network
from routing_gym.networks.fully_connected import fully_connected
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.parallel_nets import FORMS as PARALLEL
from routing_gym.networks.parallel_nets import LARGE, parallel_network
from routing_gym.networks.pyramid import pyramid_chain, pyramid_static, pyramid_tree
from routing_gym.networks.pyramid_columns import CHANNELS
from routing_gym.networks.resnet_experts import resnet50_network
from routing_gym.networks.simple_convnet import simple_convnet
from routing_gym.tasks.checking import image_shape, whole_number

Builder = Callable[..., RoutedNetwork]
"""`(input_shape, num_classes, num_blocks, num_tasks=..., **options) -> RoutedNetwork`."""

NETWORKS: dict[str, Builder] = {
    "mlp": fully_connected,
    "simple-convnet": simple_convnet,
    "pyramid-chain": pyramid_chain,
    "pyramid-tree": pyramid_tree,
    **{name: omniglot_network(name) for name in EXPERTS},
    "mnist-experts": mnist_experts,
    **{name: resnet50_network(name) for name in resnet_experts.EXPERTS},
    **{name: resnet_skip(name) for name in FORMS},
    **{name: parallel_network(name) for name in PARALLEL},
    **{f"pyramid-static-{columns}": pyramid_static(columns) for columns in range(1, len(CHANNELS) + 1)},
    **{f"cells-{cells}x{filters}": cells_network(cells, filters) for cells, filters in ((6, 32), (6, 64), (12, 32))},
}
DEFAULT_INPUT_SHAPE = {
    **dict.fromkeys(NETWORKS, (3, 32, 32)),
    **dict.fromkeys(EXPERTS, (1, 105, 105)),
    **dict.fromkeys([*resnet_experts.EXPERTS, "resnet50-skip", *LARGE], (3, 224, 224)),
    "mlp": (1, 8, 8),
    "mnist-experts": (1, 28, 28),
}


def claim(known: dict[str, Any], kind: str, name: str, thing: Any) -> None:
    """Enter a thing under a name; one that was defined again, as in a notebook, replaces itself.

    Raises:
        ValueError: The name belongs to something else, or what is entered cannot be called.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a {kind} is text, got {name!r}")
    if not callable(thing):
        raise ValueError(f"a {kind} is something that can be called, got {thing!r}")
    other = known.get(name)
    if other is not None and _origin(other) != _origin(thing):
        raise ValueError(f"the name {name!r} belongs to {'.'.join(_origin(other))} already")
    known[name] = thing


def _origin(thing: Any) -> tuple[str, str]:
    return thing.__module__, getattr(thing, "__qualname__", type(thing).__qualname__)


def register_network(name: str, builder: Builder) -> None:
    """Make a network known under a name, to `make_network`, to environments (`network=name`) and to every command.

    Args:
        name: Its name.
        builder: Called as `builder(input_shape, num_classes, num_blocks, num_tasks=..., **options)`; its keyword-only
            parameters are options of the environments that use it.

    Raises:
        ValueError: The name belongs to another network.
    """
    claim(NETWORKS, "network", name, builder)


def make_network(
    name: str,
    *,
    num_tasks: int,
    num_classes: int,
    input_shape: Sequence[int] | None = None,
    num_blocks: int | Sequence[int] | None = None,
    **options: Any,
) -> RoutedNetwork:
    """Build a network by name.

    Args:
        name: One of `NETWORKS`.
        num_tasks: Number of tasks.
        num_classes: Width of the logits.
        input_shape: `(C, H, W)` of an image; the shape the network was made for by default.
        num_blocks: Blocks per decision, or a number for each layer; one per task by default.
        options: The network's own options.

    Raises:
        ValueError: An unknown name or option, or a value the network refuses.
    """
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(sorted(NETWORKS))}")
    if input_shape is None and name not in DEFAULT_INPUT_SHAPE:
        raise ValueError(f"network {name!r} is made for images of no shape in particular: give input_shape=(C, H, W)")
    num_tasks, num_classes = whole_number("num_tasks", num_tasks), whole_number("num_classes", num_classes)
    try:
        return NETWORKS[name](
            DEFAULT_INPUT_SHAPE[name] if input_shape is None else image_shape(input_shape),
            num_classes,
            num_tasks if num_blocks is None else num_blocks,
            num_tasks=num_tasks,
            **options,
        )
    except TypeError as error:
        raise ValueError(f"network {name!r}: {error}") from error
