"""What the decay of weights is on: all parameters, or neither biases nor normalisations."""

import copy

import pytest
import torch
from torch import nn
from toys import CLASSES, IMAGE, small_env

from routing_gym.agents import make_agent, train_batch
from routing_gym.blocks import SGD, Adam, AdamW, LinearBlocks
from routing_gym.envs import RoutingVectorEnv
from routing_gym.networks import RoutedMLP
from routing_gym.networks.pyramid import pyramid_static
from routing_gym.tasks import synthetic_mtl

KINDS = {"sgd": (SGD, torch.optim.SGD), "adam": (Adam, torch.optim.Adam), "adamw": (AdamW, torch.optim.AdamW)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decayed", ["all", "weights"])
def test_groups_by_name(kind, decayed):
    """Two steps of ours against PyTorch's, whose groups are written down by name."""
    torch.manual_seed(0)
    ours = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3), "norm": nn.BatchNorm2d(3), "bank": LinearBlocks(4, 3, 5)})
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs = copy.deepcopy(ours)
    weights = [theirs["conv"].weight, theirs["bank"].weight]
    others = [theirs["conv"].bias, theirs["norm"].weight, theirs["norm"].bias, theirs["bank"].bias]
    groups = [{"params": weights}, {"params": others, **({"weight_decay": 0.0} if decayed == "weights" else {})}]
    optimizers = [
        KINDS[kind][0](ours, lr=0.1, weight_decay=0.5, decayed=decayed),
        KINDS[kind][1](groups, lr=0.1, weight_decay=0.5),
    ]
    for _ in range(2):
        for (name, parameter), twin in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter) if name != "norm.bias" else torch.zeros_like(parameter)
            twin.grad = parameter.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close([*ours.parameters()], [*theirs.parameters()])


def test_a_static_pyramid_is_decayed_as_a_routed_one():
    """One step of SGD from the gradient of the loss + 1e-2 Σ w², w neither biases nor batch norms, k_L2 of Eq. 9."""
    torch.manual_seed(0)
    network = pyramid_static(2, (1, 8, 8), CLASSES, width=2)
    data = synthetic_mtl(num_tasks=1, num_classes=CLASSES, image_size=8, images_per_class=20)
    options = {"optimizer": "sgd", "learning_rate": 0.1, "autoreset_mode": "disabled"}
    env = RoutingVectorEnv(network, data, 16, weight_decay=2e-2, decayed="weights", **options)
    before = copy.deepcopy(dict(env.network.named_parameters()))
    train_batch(make_agent("shared", env), env)
    for name, parameter in env.network.named_parameters():
        is_weight = "weight" in name and "norms" not in name
        penalty = 1e-2 * before[name].square().sum() * is_weight
        gradient = parameter.grad + (torch.autograd.grad(penalty, before[name])[0] if is_weight else 0)
        torch.testing.assert_close(parameter.detach(), (before[name] - 0.1 * gradient).detach())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_saved_groups_go_on_and_others_are_refused(optimizer):
    def env(**options):
        torch.manual_seed(0)
        return small_env(RoutedMLP(IMAGE, CLASSES, 3, width=4), 24, optimizer=optimizer, **options)

    first = env(weight_decay=0.1, decayed="weights")
    train_batch(make_agent("task-specific-all", first), first)
    again = env(weight_decay=0.3, decayed="weights")
    with pytest.warns(UserWarning, match=r"weight_decay=0.3, as asked for here"):
        again.load_state_dict(first.state_dict())
    assert [group["weight_decay"] for group in again.trainer.optimizer.param_groups] == [0.3, 0.0]
    with pytest.raises(ValueError, match="trained with decayed='weights', here it is 'all': make the environment with"):
        env(weight_decay=0.1).load_state_dict(first.state_dict())
