"""The networks of Tissera et al. by name: their sizes, their decisions, and what they refuse."""

import pytest
import torch
from stepping import step

from routing_gym.networks import NETWORKS, make_network

PRINTED = {
    "basecnn": 0.55,
    "widecnn": 1.67,
    "deepcnn": 2.0,
    "basecnn-3": 1.5,
    "sebasecnn": 0.58,
    "sedeepcnn": 2.06,
    "crstitch2": 1.11,
    "basecnn-2-cp": 1.3,
    "basecnn-3-cp": 2.23,
    "basecnn-4-cp": 3.34,
    "basecnn-2-cc": 1.11,
    "basecnn-3-cc": 1.67,
    "basecnn-4-cc": 2.22,
    "resnet20-2-cp": 0.59,
    "resnet20-3-cp": 0.92,
    "resnet20-4-cp": 1.29,
    "resnet20-2-cc": 0.55,
    "resnet20-3-cc": 0.82,
    "resnet20-4-cc": 1.1,
    "resnet32-2-cc": 0.94,
    "resnet32-3-cc": 1.41,
    "resnet32-4-cc": 1.88,
    "resnet18-2-cc": 23.4,
    "resnet50-2-cc": 47.5,
}
"""Million parameters, Tables 2 to 4."""
NOT_TO_THE_DIGIT = {"basecnn-3", "crstitch2", "basecnn-3-cp", "resnet20-3-cp", "resnet20-4-cp"}
CLASSES_OF = {"resnet18-2-cc": 1000, "resnet50-2-cc": 100}


def parameters(name):
    """Of a network and, where tensors are crossed, of gates with 16 hidden units and biases."""
    gated = name.endswith(("cp", "cc"))
    form = "gated-columns" if gated else "columns"
    network = make_network(name, num_tasks=1, num_classes=CLASSES_OF.get(name, 10), form=form)
    gates = 0
    for decision in network.decisions if gated else ():
        channels = decision.width // decision.m
        gates += decision.m * ((channels + 1) * 16 + 17 * decision.n)
    return (sum(parameter.numel() for parameter in network.parameters()) + gates) / 1e6


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(PRINTED))
def test_parameters_are_the_papers(name):
    printed, ours = PRINTED[name], parameters(name)
    if name not in NOT_TO_THE_DIGIT:
        assert round(ours, len(str(printed).split(".")[1])) == printed
    elif name == "basecnn-3":
        assert ours == pytest.approx(1.654, abs=1e-3)  # three times BaseCNN; the paper prints 1.5
    else:
        assert ours == pytest.approx(printed, rel=0.015)


def test_a_resnet_50_alone():
    network = make_network("resnet50-2-cc", num_tasks=1, num_classes=100, paths=1)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(23.71e6, abs=5e3)


def test_parameters_of_ensembles():
    base, wide, deep = (parameters(name) for name in ("basecnn", "widecnn", "deepcnn"))
    assert 3 * base == pytest.approx(1.66, rel=0.015)
    assert base + wide + deep == pytest.approx(4.27, abs=0.005)


def test_names_and_what_is_refused():
    assert {"basecnn-4-cc", "resnet32-4-cc", "vgg13-2-cc", "crstitch2"} <= set(NETWORKS)
    assert len(make_network("basecnn-2-cc", num_tasks=1, num_classes=3, form="gated-columns").decisions) == 5
    vgg = make_network("vgg13-2-cc", num_tasks=1, num_classes=100, form="gated-columns", width=2, hidden=4)
    assert [d.name for d in vgg.decisions] == ["input", *(f"after conv {n}" for n in (2, 4, 6, 8, 10)), "after dense 1"]
    for name, options, message in (
        ("basecnn", {"num_blocks": 3}, "no num_blocks to choose: its own options .paths, "),
        ("basecnn-2-cc", {"paths": 0}, "paths must be an integer of at least 1, got 0"),
        ("basecnn-2-cc", {"form": "rows"}, "form must be 'columns' or 'gated-columns', got 'rows'"),
        ("basecnn-2-cc", {"cross": "x"}, "cross must be 'connections' or 'predictions', got 'x'"),
        ("sebasecnn", {"cross": "predictions"}, "no form of it with cross='predictions'"),
        ("basecnn-2-cc", {"input_shape": (3, 3, 8)}, "at least 4x4 pixels, got \\(3, 3, 8\\)"),
        ("resnet18-2-cc", {"input_shape": (3, 16, 16)}, "at least 32x32 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            make_network(name, **{"num_tasks": 1, "num_classes": 3, **options})


def test_a_network_without_routing_keeps_its_paths_apart():
    network = make_network("basecnn-3", num_tasks=1, num_classes=3, input_shape=(3, 8, 8), width=2, hidden=3)
    assert torch.equal(network.masks, torch.eye(3, dtype=torch.bool).expand(len(network.decisions), -1, -1))
    state = network.start(torch.randn(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="may choose from"):
        step(network, state, torch.tensor([[0, 1, 1]]))
    step(network, state, torch.tensor([[0, 1, 2]]))
