"""Whatever a batch has not used keeps its weights, moments and statistics, in every family of networks."""

import gymnasium
import pytest
import torch
from damage import same
from gymnasium.error import ResetNeeded
from torch import nn
from torch.nn import functional
from toys import small_env

import routing_gym  # noqa: F401
from routing_gym.blocks import OwnedParameter
from routing_gym.envs import RoutingVectorEnv
from routing_gym.networks import RoutedMLP

SMALL = {"num_tasks": 1, "image_size": 16}
FAMILIES = {
    "stacked linear": {"network": "mlp", "num_blocks": 4},
    "recurrent, with PASS": {"network": "mlp", "num_blocks": 4, "recurrent": True, "layers": 4},
    "modules": {"network": "mnist-experts", "num_experts": 4},
    "convolutions": {"network": "omniglot-diverse", "width": 8, "expert_mid": 8, "layers": 2},
    "skipped": {"network": "resnet32-skip", "stages": [1, 1, 1], "width": 4},
    "paths": {"network": "basecnn-3-cc", "width": 4},
    "predictions": {"network": "basecnn-3-cp", "width": 4},
    "columns": {"network": "mlp", "form": "columns", "num_blocks": 3},
    "exits": {"network": "pyramid-chain", "columns": 3, "width": 4},
    "cells": {"network": "cells-6x32", "cells": 2, "filters": 4},
    "feed-forward": {"network": "vit", "num_blocks": 3, "width": 8, "layers": 2},
    "skipped attention": {"network": "vit-skip", "width": 8, "layers": 2},
    "routed stages": {"network": "simple-convnet", "routed_stages": 2, "num_blocks": 3, "width": 8},
}


def make(family, **options):
    return gymnasium.make_vec(
        "routing_gym/SyntheticMTL-v0",
        num_envs=8,
        autoreset_mode="disabled",
        **{**SMALL, **FAMILIES[family], "optimizer": "adamw", "weight_decay": 0.1, "learning_rate": 0.01, **options},
    ).unwrapped


def train(env, choose, batches):
    """Route whole batches, all rows alike, and train the blocks.

    Args:
        env: The environment.
        choose: Given `(B,)` decisions returns the choice wanted at each; the first legal one is taken instead.
        batches: How many.

    Returns:
        All `(decision, choice)` that were taken.
    """
    taken = set()
    network = env.network
    for _ in range(batches):
        env.reset()
        while env.state.waiting:
            state, mask = env.state, network.action_mask(env.state)
            wanted = choose(state.at).view(8, *[1] * (mask.ndim - 2)).expand(mask.shape[:-1])
            legal = mask.gather(-1, wanted.clamp(max=mask.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
            action = torch.where(legal, wanted, mask.int().argmax(-1))
            choosing = network.choosing(state)
            for at, row, chose in zip(state.at.tolist(), action.view(8, -1).tolist(), choosing.tolist(), strict=True):
                taken |= {(at, choice) for choice, chosen in zip(row, chose, strict=True) if chosen}
            weights = functional.one_hot(action, network.num_choices).float()
            env.step(weights.requires_grad_() if env.config.action_type == "weights" else action)
        env.train_blocks()
    return taken


def values(env):
    """Return every piece of parameter that belongs to choices: where it lies, its owners, weights and moments."""
    pieces = {}
    for number, decision in enumerate(env.network.decisions):
        for choice in range(decision.n):
            for owned in env.network.parameters_of(number, choice):
                key = id(owned.parameter), owned.index
                moments = env.trainer.optimizer.state.get(owned.parameter, {})
                state = [owned.value, *(m if owned.index is None else m[owned.index] for m in moments.values())]
                owners = pieces.setdefault(key, ([tensor.detach().clone() for tensor in state], set()))[1]
                owners.add((number, choice))
    return pieces


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_what_no_row_takes_any_more_stays_as_it_is(family):
    env = make(family)
    train(env, torch.ones_like, 2)
    train(env, torch.zeros_like, 2)
    before, statistics = values(env), {id(buffer): buffer.clone() for buffer in env.network.buffers()}
    taken = train(env, lambda decision: decision % 2, 2)
    after = values(env)
    moved, kept = 0, 0
    for key, (state, owners) in before.items():
        same = all(torch.equal(old, new) for old, new in zip(state, after[key][0], strict=True))
        assert same or owners & taken, owners
        moved, kept = moved + (not same), kept + (not owners & taken)
    assert moved and kept
    # Running statistics lie beside the weight that they normalise for: a slice of a stack, or a module's.
    for module in env.network.modules():
        for (owner, index), (_, owners) in before.items():
            if owner in map(id, module.parameters(recurse=False)) and not owners & taken:
                for name, buffer in module.named_buffers(recurse=False):
                    old, new = statistics[id(buffer)], buffer
                    assert torch.equal(*(whole if index is None else whole[index] for whole in (old, new))), name


@pytest.mark.parametrize("family", ["modules", "convolutions", "skipped", "exits", "cells"])
def test_what_runs_only_for_the_weights_sake_stays_as_it_is_too(family):
    """With `dense_backward` every choice runs in training, so that weights of what was not taken have a gradient."""
    env = make(family, dense_backward=True, action_type="weights")
    train(env, torch.ones_like, 2)
    train(env, torch.zeros_like, 1)
    before = {name: value.clone() for name, value in env.network.state_dict().items()}
    taken = train(env, torch.zeros_like, 1)
    after = env.network.state_dict()
    owner = {}
    for number, decision in enumerate(env.network.decisions):
        for choice in range(decision.n):
            owner |= {id(owned.parameter): (number, choice) for owned in env.network.parameters_of(number, choice)}
    untaken = 0
    for name, module in env.network.named_modules():
        own = {owner.get(id(parameter)) for parameter in module.parameters(recurse=False)}
        if own and not own & {None, *taken}:
            untaken += 1
            for key in (*module._parameters, *module._buffers):
                if f"{name}.{key}" in before:
                    assert torch.equal(before[f"{name}.{key}"], after[f"{name}.{key}"]), (name, key)
    assert untaken


def test_predictions_that_nobody_asked_for_stay_as_they_are():
    """Tensor 1 goes to path 0: what tensors predict for path 0 is not what tensor 0 would have predicted for it."""
    env = make("predictions")
    predicting = env.network.predicting(1)
    train(env, torch.ones_like, 1)
    train(env, torch.zeros_like, 1)
    weight, before = next(iter(predicting.parameters())), next(iter(predicting.parameters())).detach().clone()
    train(
        env, lambda decision: torch.where(decision == 0, 1, 0), 1
    )  # all tensors are one from decision 0 on, in path 1
    paths = env.network.paths
    moved = [pair for pair in range(len(weight)) if not torch.equal(weight[pair], before[pair])]
    assert moved == [1 * paths + 0]


class Skipping(RoutedMLP):
    """Layers that are run, whoever runs them, on those rows that have chosen to: of none, gradients are zeros."""

    def __init__(self):
        super().__init__((1, 2, 3), 3, 2, width=4, layers=2)
        self.layers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(4, 3)])

    def transition(self, decision, activation, action, task):
        chosen = action.bool().unsqueeze(1)
        plainly = activation[0].sum(1, keepdim=True).expand(-1, 4 - decision)
        return (torch.where(chosen, self.layers[decision](activation[0]), plainly),)

    def parameters_of(self, decision, choice):
        return [OwnedParameter(parameter) for parameter in self.layers[decision].parameters()] if choice else []


@pytest.mark.parametrize(
    "options", [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}]
)
def test_gradients_of_zero_do_not_move_a_network_of_ones_own(options):
    env = small_env(Skipping(), 8, weight_decay=0.1, learning_rate=0.1, **options)
    train(env, torch.ones_like, 2)
    before = [parameter.detach().clone() for parameter in env.network.layers.parameters()]
    train(env, torch.zeros_like, 2)
    assert same(before, [*env.network.layers.parameters()])
    train(env, torch.ones_like, 1)
    assert not any(torch.equal(one, other) for one, other in zip(before, env.network.layers.parameters(), strict=True))


def test_a_batch_that_another_environment_has_cut_short_is_not_trained_on():
    """Which blocks it has used nobody knows any more: those that it has not would move."""
    one = small_env(num_envs=8, autoreset_mode="disabled")
    other = RoutingVectorEnv(one.network, one.datasets, one.num_envs, autoreset_mode="disabled")
    one.reset(seed=0)
    while one.state.waiting:
        one.step(torch.zeros(one.num_envs, dtype=torch.int64))
    other.reset(seed=1)
    with pytest.raises(ResetNeeded, match="another environment over this network has begun a batch since"):
        one.train_blocks()
    one.reset(seed=0)
    while one.state.waiting:
        one.step(torch.zeros(one.num_envs, dtype=torch.int64))
    assert one.train_blocks() > 0
