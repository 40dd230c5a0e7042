"""Small networks of every family, for tests: a tree with exits, run/skip blocks, and m x n gates."""

import dataclasses

import stepping
import torch
from torch import nn

from routing_gym.blocks import OwnedParameter, allow_small_groups
from routing_gym.envs import RoutingVectorEnv
from routing_gym.networks import (
    EXIT,
    NETWORKS,
    ColumnsMLP,
    Decision,
    RoutedMLP,
    RoutedNetwork,
    actions,
    is_weights,
    make_network,
)
from routing_gym.networks.state import legal_table
from routing_gym.registration import ENV_IDS
from routing_gym.tasks import MultiTaskDataset, synthetic_mtl

IMAGE = (1, 2, 3)
PIXELS = 6
CLASSES = 3
SHARE_OUTCOMES = {"actor", "pragmatic-critic", "optimistic-critic", "confidence"}
"""Agents for networks that share outcomes out; no other network takes them."""
SKIP_BLOCKS = {"codinet", "mixture-of-depths"}
"""Agents for networks whose blocks are skipped or run; no other network takes them."""
CROSS_PATHS = {"cross-connection", "cross-prediction"}
"""Agents for parallel paths; no other network takes them."""
OF_OTHER_NETWORKS = SHARE_OUTCOMES | SKIP_BLOCKS | CROSS_PATHS | {"oracle", "best-random"}
"""Agents that networks of layers do not take, or data without a known best routing or without a validation split."""
SMALLEST = {
    "columns": 2,
    "junctions": 1,
    "width": 2,
    "heads": 1,
    "layers": 2,
    "expert_mid": 2,
    "cells": 1,
    "filters": 2,
    "hidden": 4,
}
"""Options of networks that make them small."""
TREE = [[1, 2], [3], [4, 5], [], [], [6], []]


class ExitTree(RoutedNetwork):
    """`tree[j]` lists the children of column j; choice 0 classifies, choice c goes on to child c.

    A column without children has a single way on, so it is no decision: it classifies as the rows arrive there.
    """

    def __init__(self, tree, width=4, batch_norm=False):
        columns = [self._column(PIXELS if j == 0 else width, width, batch_norm) for j in range(len(tree))]
        self_macs = [float((PIXELS if j == 0 else width) * width) for j in range(len(tree))]
        head = float(width * CLASSES)
        inner = [j for j, children in enumerate(tree) if children]
        number = {column: i for i, column in enumerate(inner)}
        decisions = [
            Decision(
                name=f"column {j}",
                macs=(head, *(self_macs[c] + (0.0 if tree[c] else head) for c in tree[j])),
                next=(EXIT, *(number.get(c, EXIT) for c in tree[j])),
                mixing="outcome",
                width=width,
            )
            for j in inner
        ]
        super().__init__(decisions, num_classes=CLASSES, input_shape=IMAGE, stem_macs=self_macs[0])
        self.tree, self.inner = tree, inner
        self.columns = nn.ModuleList(columns)
        self.heads = nn.ModuleList(nn.Linear(width, CLASSES) for _ in tree)
        allow_small_groups(self)
        self.rows_run = [0] * len(tree)

    @staticmethod
    def _column(inputs, width, batch_norm):
        return nn.Sequential(
            nn.Linear(inputs, width), nn.BatchNorm1d(width) if batch_norm else nn.Identity(), nn.Tanh()
        )

    def run_column(self, column, x):
        self.rows_run[column] += len(x)
        return self.columns[column](x)

    def stem(self, images, task):
        return (images.flatten(1),)

    def enter(self, decision, activation):
        return (self.run_column(self.inner[decision], activation[0]),)

    def readout(self, decision, choice, activation, task):
        column = self.inner[decision]
        if choice == 0:
            return self.heads[column](activation[0])
        leaf = self.tree[column][choice - 1]
        return self.heads[leaf](self.run_column(leaf, activation[0]))

    def describe(self, decision, activation):
        return activation[0]

    def parameters_of(self, decision, choice):
        column = self.inner[decision]
        parts = [self.heads[column]]
        if choice:
            child = self.tree[column][choice - 1]
            parts = [self.columns[child], *([] if self.tree[child] else [self.heads[child]])]
        return [OwnedParameter(p) for part in parts for p in part.parameters()]


class RunSkip(RoutedNetwork):
    """Residual blocks, each run (choice 1) or skipped (choice 0): `h + v F(h)`."""

    def __init__(self, depth=3, masks=None):
        decisions = [
            Decision(f"block {i}", (0.0, float(PIXELS * PIXELS)), (i + 1 if i < depth - 1 else EXIT,) * 2, width=PIXELS)
            for i in range(depth)
        ]
        super().__init__(decisions, num_classes=CLASSES, input_shape=IMAGE, masks=masks)
        self.residual = nn.ModuleList(nn.Sequential(nn.Linear(PIXELS, PIXELS), nn.Tanh()) for _ in range(depth))
        self.head = nn.Linear(PIXELS, CLASSES)
        self.rows_run = 0

    def stem(self, images, task):
        return (images.flatten(1),)

    def transition(self, decision, activation, action, task):
        (h,) = activation
        share = action[:, 1] if is_weights(action) else action.to(h.dtype)
        run = share.detach().nonzero().flatten()
        self.rows_run += len(run)
        return (h.index_add(0, run, self.residual[decision](h[run]) * share[run, None]),)

    def readout(self, decision, choice, activation, task):
        return self.head(activation[0])

    def describe(self, decision, activation):
        return activation[0]

    def parameters_of(self, decision, choice):
        return [OwnedParameter(p) for p in self.residual[decision].parameters()] if choice else []


class Gates(RoutedNetwork):
    """Parallel paths: each live tensor is sent to one of `paths` layers; the outputs of the live ones are averaged."""

    def __init__(self, paths=2, depth=3, width=4):
        decisions = [
            Decision(
                f"gate {i}",
                (float((PIXELS if i == 0 else width) * width),) * paths,
                (i + 1 if i < depth - 1 else EXIT,) * paths,
                m=1 if i == 0 else paths,
                width=PIXELS + 1 if i == 0 else paths * width + paths,
            )
            for i in range(depth)
        ]
        super().__init__(decisions, num_classes=CLASSES, input_shape=IMAGE)
        self.paths, self.width = paths, width
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(PIXELS if i == 0 else width, width) for _ in range(paths)) for i in range(depth)
        )
        self.heads = nn.ModuleList(nn.Linear(width, CLASSES) for _ in range(paths))

    def stem(self, images, task):
        return images.flatten(1).unsqueeze(1), torch.ones(len(images), 1, dtype=torch.bool)

    def alive(self, decision, activation):
        return activation[1]

    def transition(self, decision, activation, action, task):
        h, _ = activation
        gates = torch.nn.functional.one_hot(action, self.paths).to(h.dtype) if not is_weights(action) else action
        gates = gates if gates.ndim == 3 else gates.unsqueeze(1)
        reached = (gates.detach() != 0).any(1)
        mixed = torch.einsum("bij,bid->bjd", gates, h)
        outputs = [torch.tanh(self.layers[decision][j](mixed[:, j])) * reached[:, j, None] for j in range(self.paths)]
        return torch.stack(outputs, 1), reached

    def readout(self, decision, choice, activation, task):
        h, reached = activation
        logits = torch.stack([self.heads[j](h[:, j]) for j in range(self.paths)], 1)
        return (logits * reached.unsqueeze(-1)).sum(1) / reached.sum(1, keepdim=True)

    def describe(self, decision, activation):
        h, reached = activation
        return torch.cat([h.flatten(1), reached.to(h.dtype)], 1)

    def parameters_of(self, decision, choice):
        return [OwnedParameter(p) for p in self.layers[decision][choice].parameters()]


class Residual(nn.Module):
    """A small convolutional net with a shortcut around a routed layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.middle = nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.body(x)
        x = torch.relu(self.middle(x.mean((2, 3))))
        return self.head(x)


class MaskedColumns(ColumnsMLP):
    """Three columns of two layers; what is legal differs from column to column and from layer to layer."""

    def __init__(self):
        super().__init__(IMAGE, CLASSES, 3, width=4, layers=2, num_tasks=3)
        legal = [[[1, 0, 1], [1, 1, 1], [0, 1, 1]], [[1, 1, 0], [0, 1, 1], [1, 1, 1]]]
        self._masks = legal_table(self.decisions, torch.tensor(legal).bool())
        self.nothing_masked = False


def of_family(family):
    """A small network for agents: `mlp`, `tree`; or `gates`, `columns`, in which several tensors choose."""
    torch.manual_seed(0)
    return {
        "mlp": lambda: RoutedMLP(IMAGE, CLASSES, 3, width=4, layers=2),
        "tree": lambda: ExitTree([[1, 2], [], [3], []]),
        "gates": lambda: Gates(3),
        "columns": MaskedColumns,
    }[family]()


LAYERS = ["body", "head", "middle"]
"""Layers of `Residual` to route, not in the order of their calls."""


class Planted(RoutedNetwork):
    """Blocks that are what they are: block c of layer i passes on the signal of task t only if c is `ROUTES[t][i]`.

    An image of task t holds its label in the task's own slot. The only parameter scales all logits, so there is nothing
    to be learned but the routes.
    """

    ROUTES = [[1, 2], [3, 0], [2, 3]]
    BLOCKS = 4

    def __init__(self):
        tasks, layers = len(self.ROUTES), len(self.ROUTES[0])
        decisions = [
            Decision(f"layer {i}", (1.0,) * self.BLOCKS, (i + 1 if i < layers - 1 else EXIT,) * self.BLOCKS,
                     width=tasks * CLASSES)
            for i in range(layers)
        ]  # fmt: skip
        super().__init__(decisions, num_classes=CLASSES, input_shape=(1, tasks, CLASSES))
        self.scale = nn.Parameter(torch.ones(()))
        routes = torch.tensor(self.ROUTES).T
        self.register_buffer("passes", (routes.unsqueeze(-1) == torch.arange(self.BLOCKS)).float())

    def stem(self, images, task):
        return ((images > 0).float().flatten(1),)

    def transition(self, decision, activation, action, task):
        (x,) = activation
        kept = actions.dense(action, self.BLOCKS) @ self.passes[decision].T
        return ((x.view(len(x), -1, CLASSES) * kept.unsqueeze(-1)).flatten(1),)

    def readout(self, decision, choice, activation, task):
        return self.scale * 4 * activation[0].view(len(task), -1, CLASSES).sum(1)

    def describe(self, decision, activation):
        return activation[0]

    def parameters_of(self, decision, choice):
        return []


class PlantedGate(RoutedNetwork):
    """Two tensors, each of which must be sent to the place that is right for it and the task, `ROUTES[t][tensor]`.

    The first says whether the label is 0, the second whether it is 2; where neither does, the answer is 1. As with
    `Planted` there is nothing to be learned but the routes; images are the same.
    """

    ROUTES = [[1, 2], [3, 0], [2, 3]]
    PLACES = 4

    def __init__(self):
        tasks = len(self.ROUTES)
        decision = Decision("gate", (1.0,) * self.PLACES, (EXIT,) * self.PLACES, m=2, width=tasks * CLASSES)
        super().__init__([decision], num_classes=CLASSES, input_shape=(1, tasks, CLASSES))
        self.scale = nn.Parameter(torch.ones(()))
        routes = torch.tensor(self.ROUTES)
        self.register_buffer("passes", (routes.unsqueeze(-1) == torch.arange(self.PLACES)).float())

    def stem(self, images, task):
        return ((images > 0).float().flatten(1),)

    def transition(self, decision, activation, action, task):
        (x,) = activation
        gates = action if is_weights(action) else torch.nn.functional.one_hot(action, self.PLACES).float()
        said = x.view(len(x), -1, CLASSES).sum(1)[:, [0, 2]] * (gates * self.passes[task]).sum(-1)
        return (torch.stack([said[:, 0], torch.full_like(said[:, 0], 0.5), said[:, 1]], 1),)

    def readout(self, decision, choice, activation, task):
        return self.scale * 4 * activation[0]

    def describe(self, decision, activation):
        return activation[0]

    def parameters_of(self, decision, choice):
        return []


def planted_env(num_envs=64, network=None, **options):
    """Three tasks, three labels each, and `Planted` blocks, unless another network is given."""
    tasks = len(Planted.ROUTES)
    task, label = torch.arange(tasks).repeat_interleave(CLASSES), torch.arange(CLASSES).repeat(tasks)
    images = torch.zeros(len(task), 1, tasks, CLASSES, dtype=torch.uint8)
    images[torch.arange(len(task)), 0, task, label] = 255
    data = {
        split: MultiTaskDataset(
            "planted",
            split,
            images,
            torch.arange(len(task)),
            task,
            label,
            tasks,
            CLASSES,
            torch.zeros(1),
            torch.ones(1),
        )
        for split in ("train", "test")
    }
    network = Planted() if network is None else network
    return RoutingVectorEnv(network, data, num_envs, autoreset_mode="disabled", **options)


def quick(env_id):
    """Options that make an id's network small, and its tasks few, where they would keep a test waiting."""
    small = {
        "simple-convnet": {"num_tasks": 3},
        "pyramid-chain": {"columns": 3, "width": 2},
        "omniglot-diverse": {"alphabets": 3, "size": 16, "layers": 2, "width": 4, "expert_mid": 2},
        "cells-6x32": {"cells": 1, "filters": 1},
        "resnet110-skip": {"stages": [1, 1, 1], "width": 2},
        "basecnn-2-cc": {"width": 2, "hidden": 4},
    }
    return small.get(ENV_IDS[env_id]["network"], {})


def toy_data(num_tasks=3, **options):
    splits = synthetic_mtl(num_tasks=num_tasks, num_classes=3, image_size=3, images_per_class=8, **options)
    return {name: dataclasses.replace(split, images=split.images[:, :, :2]) for name, split in splits.items()}


def toy_env(network=None, num_envs=6, num_tasks=3, **options):
    torch.manual_seed(0)
    return RoutingVectorEnv(ExitTree(TREE) if network is None else network, toy_data(num_tasks), num_envs, **options)


def small_env(network=None, num_envs=12, block_per_task=True, network_per_task=True, **options):
    """A batch environment of two routed layers for agents to learn in, with as many blocks as tasks and no trunk."""
    torch.manual_seed(0)
    network = RoutedMLP((1, 2, 3), 3, 3, width=4, layers=2) if network is None else network
    return toy_env(network, num_envs, **{"autoreset_mode": "disabled", **options})


def small_network(name):
    """A registered network as small as its options allow, with few channels: numbers that no vector unit likes."""
    takes = NETWORKS[name].options
    options = {option: small for option, small in SMALLEST.items() if option in takes}
    if "stages" in takes:
        options["stages"] = [1] * len(takes["stages"].default)
    if "50" in name:
        options["width"] = 1  # a bottleneck has four times as many channels
    if name == "vit":
        options["num_blocks"] = 3
    return make_network(name, num_tasks=1, num_classes=CLASSES, input_shape=(3, 32, 32), **options)


def to_the_end(network, images):
    """The logits of images that take random choices through a network."""
    state = network.start(images, torch.zeros(len(images), dtype=torch.int64))
    logits = []
    while state.waiting:
        mask = network.action_mask(state)
        action = mask.flatten(0, -2).float().multinomial(1).view(mask.shape[:-1])
        state = stepping.step(network, state, action)
        logits += [exit.logits for exit in state.exits]
    return torch.cat(logits)
