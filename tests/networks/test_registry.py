"""What is known of a network by its name, and how one of a user's own is called."""

import pytest
from toys import IMAGE

from routing_gym.networks import NETWORKS, RoutedMLP, make_network, register_network


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr("routing_gym.networks.registry.NETWORKS", dict(NETWORKS))


def small(input_shape, num_classes, *, width: int = 4):
    """Build three blocks per layer.

    Args:
        input_shape: Of an image.
        num_classes: Width of the logits.
        width: Of the hidden layers.
    """
    return RoutedMLP(input_shape, num_classes, 3, width=width)


def test_every_record_is_whole():
    for name, spec in NETWORKS.items():
        assert spec.description and spec.source and len(spec.input_shape) == 3, name
        assert set(spec.options) <= set(spec.hints) and not {"num_tasks", "trunk"} & set(spec.options), name
    taking = {name for name, spec in NETWORKS.items() if spec.takes_num_blocks}
    assert taking == {"mlp", "simple-convnet", "lock", "vit"}


def test_a_builder_takes_num_blocks_and_num_tasks_only_if_it_wants_to():
    register_network("small", small)
    sizes = {"num_tasks": 2, "num_classes": 3, "input_shape": IMAGE}
    assert make_network("small", **sizes, width=5).block_counts == (3, 3, 3)
    with pytest.raises(ValueError, match=r"'small' has no num_blocks to choose: its own options \(width\) say how la"):
        make_network("small", **sizes, num_blocks=4)
    with pytest.raises(ValueError, match="network 'small': width must be an integer of at least 1, got 0"):
        make_network("small", **sizes, width=0)
    register_network("named", lambda shape, classes, k, num_tasks: RoutedMLP(shape, classes, k, num_tasks=num_tasks))
    assert make_network("named", **sizes).block_counts == (2, 2, 2)
    assert make_network("named", **sizes, num_blocks=4).num_tasks == 2
    with pytest.raises(ValueError, match="'mlp' belongs to routing_gym.networks.fully_connected.fully_connected"):
        register_network("mlp", small)
    with pytest.raises(ValueError, match="of no shape in particular: give input_shape"):
        make_network("small", num_tasks=2, num_classes=3)
