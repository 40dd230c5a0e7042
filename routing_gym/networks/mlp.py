"""The routed fully connected layers of Routing Networks (Rosenbaum et al. 2018), layered and recurrent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.blocks import FunctionBlocks, LinearBlocks, Link, ModuleBlocks, WithPass, run_chain, static_copy
from routing_gym.networks.actions import Action
from routing_gym.networks.banked import features_of, one_after_the_other
from routing_gym.networks.deployable import Deployable, blocks_per_bank
from routing_gym.networks.options import check_counts
from routing_gym.networks.state import Activation


class RoutedMLP(Deployable):
    """A multi-layer perceptron in which every layer offers k blocks (Rosenbaum et al. 2018, section 3).

    *Layered*: decision i offers the k blocks of layer i. *Recurrent* (Appendix 7.2): the same blocks, but every
    block whose input and output are `width` wide is offered at every decision where the activation is `width` wide,
    and so is PASS, the last choice there. The last decision always picks a classification block.

    Arguments are those of `fully_connected`. Layers that share their blocks count as one where `num_blocks` is a list;
    where PASS is offered it may be 0.
    """

    form = "paths"

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        num_blocks: int | Sequence[int],
        *,
        width: int = 48,
        layers: int = 3,
        recurrent: bool = False,
        trunk: nn.Module | None = None,
        task_input: bool = False,
        num_tasks: int = 1,
    ) -> None:
        check_counts(width=width, layers=layers, num_classes=num_classes)
        features, trunk_macs = features_of(trunk, input_shape)
        widths = [features + num_tasks * task_input, *[width] * (layers - 1), num_classes]
        repeatable = [i for i in range(layers - 1) if widths[i] == widths[i + 1] == width]
        if recurrent and not repeatable:
            raise ValueError(
                "a recurrent routed MLP needs a hidden layer that can be repeated, input and output both "
                f"{width} wide; the layers are {' -> '.join(map(str, widths))}"
            )
        shared = repeatable if recurrent else []
        own = [i for i in range(layers) if i not in shared[1:]]  # the layers that bring a bank
        counts = blocks_per_bank(num_blocks, [len(shared) if i in shared else 1 for i in own])
        banks: list[FunctionBlocks] = []
        for i, count in zip(own, counts, strict=True):
            if i in shared and count == 0:
                banks.append(ModuleBlocks([nn.Identity()], (width,)))  # PASS alone
                continue
            bank = LinearBlocks(count, widths[i], widths[i + 1], relu=i < layers - 1)
            banks.append(WithPass(bank) if i in shared else bank)
        bank_of = [own.index(shared[0] if i in shared else i) for i in range(layers)]
        super().__init__(
            one_after_the_other(
                [f"layer {i + 1}" for i in range(layers)], [banks[number].macs for number in bank_of], widths
            ),
            num_classes=num_classes,
            input_shape=input_shape,
            stem_macs=trunk_macs,
        )
        self.trunk, self.task_input, self.num_tasks = trunk, task_input, num_tasks
        self.banks = nn.ModuleList(banks)
        self.block_counts = tuple(counts)
        self._bank_of = bank_of

    def bank_number(self, decision: int) -> int:
        """Index into `banks`: layers that can be repeated share one."""
        return self._bank_of[decision]

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Features `(B, F)` of the images, with a one-hot task where the network is told it."""
        features = (images if self.trunk is None else self.trunk(images)).flatten(1)
        if self.task_input:
            features = torch.cat([features, functional.one_hot(task, self.num_tasks).to(features.dtype)], 1)
        return (features,)

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Output `(r, width)` of the chosen blocks; rows stay in the order of their blocks (see `plain`)."""
        link = self._link(decision)
        if link is not None and isinstance(action, Tensor) and not action.is_floating_point():
            return (run_chain([link], activation[0], action.unsqueeze(1)),)
        return super().transition(decision, activation, action, task)

    def _link(self, decision: int) -> Link | None:
        """Linear blocks of a layer; None where PASS is all there is, or a subclass runs them its own way."""
        bank = self.bank(decision)
        inner = bank.blocks if isinstance(bank, WithPass) else bank
        if isinstance(inner, LinearBlocks) and type(inner).run is LinearBlocks.run:
            return inner.link(passes=inner is not bank)
        return None

    def traverse(self, activation: Activation, plan: Tensor, task: Tensor) -> Activation:
        """Output of all layers at once; one by one where a subclass computes something else between them."""
        if type(self).transition is RoutedMLP.transition and type(self).enter is RoutedMLP.enter:
            links = list(filter(None, map(self._link, range(len(self.decisions)))))
            if len(links) == len(self.decisions):
                return (run_chain(links, activation[0], plan),)
        return super().traverse(activation, plan, task)

    def static_route(self, route: Sequence[int], task: int) -> list[nn.Module]:
        """Trunk, joined task where the network is told it, and the chosen layers."""
        parts: list[nn.Module] = [] if self.trunk is None else [static_copy(self.trunk)]
        parts.append(nn.Flatten())
        if self.task_input:
            parts.append(JoinTask(task, self.num_tasks).to(self.costs.device))
        for decision, choice in enumerate(route):
            parts += self.bank(decision).as_modules(choice)
        return parts


class JoinTask(nn.Module):
    """Joins a one-hot task, always the same, to features `(B, D)`."""

    one_hot: Tensor

    def __init__(self, task: int, num_tasks: int) -> None:
        super().__init__()
        self.register_buffer("one_hot", functional.one_hot(torch.tensor([task]), num_tasks).float())

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, D + num_tasks)`."""
        # shape[0], not len(): torch.export would take the latter for a constant.
        return torch.cat([features, self.one_hot.to(features.dtype).expand(features.shape[0], -1)], 1)
