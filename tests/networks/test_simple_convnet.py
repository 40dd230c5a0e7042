"""SimpleConvNet with convolutional stages that are routed too."""

import pytest
import torch
from stepping import step
from torch.nn import functional

from routing_gym.networks import make_network


def test_every_row_takes_its_own_stages():
    """Against the blocks themselves, row by row, in eval mode."""
    torch.manual_seed(0)
    network = make_network("simple-convnet", num_tasks=3, num_classes=5, num_blocks=3, routed_stages=2).eval()
    names = [decision.name for decision in network.decisions]
    assert names == ["stage 3", "stage 4", "layer 1", "layer 2", "layer 3"]
    for module in network.modules():  # so that batch norm does something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.uniform_(0.5, 1.5)
    images, route = torch.randn(6, 3, 32, 32), torch.randint(3, (6, 5))
    with torch.no_grad():
        state = network.start(images, torch.zeros(6, dtype=torch.int64))
        first = state.waiting[0].activation[0]
        for decision in range(5):
            state = step(network, state, route[:, decision])
        for row in range(6):
            x = first[row : row + 1]
            for decision in range(5):
                blocks, choice = network.bank(decision), int(route[row, decision])
                if decision < 2:
                    x = blocks.blocks[choice](x)
                else:
                    x = x.flatten(1) @ blocks.weight[choice] + blocks.bias[choice]
                    x = functional.relu(x) if decision < 4 else x
            torch.testing.assert_close(state.exits[0].logits[row : row + 1], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("routed_stages", [1, 2, 3, 4])
def test_an_instance_costs_the_same(routed_stages):
    plain = make_network("simple-convnet", num_tasks=4, num_classes=5)
    routed = make_network("simple-convnet", num_tasks=4, num_classes=5, routed_stages=routed_stages)
    costs = [network.stem_macs + sum(decision.macs[0] for decision in network.decisions) for network in (plain, routed)]
    assert costs[0] == costs[1] and len(routed.decisions) == 3 + routed_stages
    weights = [sum(p.numel() for p in network.parameters()) for network in (plain, routed)]
    stages = [3 * 32 * 9 + 96, *[32 * 32 * 9 + 96] * 3]  # weights, bias, scale and shift
    assert weights[1] - weights[0] == 3 * sum(stages[4 - routed_stages :])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routed_stages": 5}, "routed_stages must be an integer from 0 to 4, got 5"),
        ({"routed_stages": 1, "recurrent": True}, "routed_stages goes with neither recurrent=True"),
        ({"routed_stages": 1, "form": "columns"}, "nor form='columns'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_network("simple-convnet", num_tasks=4, num_classes=5, **options)
