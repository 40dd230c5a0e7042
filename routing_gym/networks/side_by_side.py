"""Networks of one form run side by side, as one network with the blocks of all."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from routing_gym.blocks import LinearBlocks, OwnedParameter, WithPass
from routing_gym.networks.actions import Action
from routing_gym.networks.fully_connected import RoutedMLP
from routing_gym.networks.network import RoutedNetwork
from routing_gym.networks.state import Activation


class SideBySide(RoutedNetwork):
    """S routed MLPs as one: task s · T + t is task t of network s, and only that network's blocks run for it.

    The choices are those of a single network; choice c of a task of network s runs block s · k + c of the S · k in
    `wide`. So a batch with rows for every network costs as many calls as a batch for one.

    Args:
        networks: The networks, whose weights are copied.
        num_tasks: T, the tasks of each.

    Raises:
        ValueError: A network that has more than stacked blocks, or is not of the form of the first.
    """

    _counts: Tensor
    """`(N,)` int64, blocks of one network at each decision, PASS not counted."""

    def __init__(self, networks: Sequence[RoutedMLP], num_tasks: int) -> None:
        for network in networks:
            if type(network) is not RoutedMLP or network.trunk is not None:
                what = f"{type(network).__name__}{'' if getattr(network, 'trunk', None) is None else ' with a trunk'}"
                raise ValueError(f"only routed layers that are fully connected run side by side ('mlp'), got {what}")
        first = networks[0]
        forms = [[parameter.shape for parameter in network.parameters()] for network in networks]
        if any(network.decisions != first.decisions for network in networks) or any(form != forms[0] for form in forms):
            raise ValueError("networks that run side by side have the same decisions, and blocks of the same shape")
        super().__init__(
            first.decisions,
            num_classes=first.num_classes,
            input_shape=first.input_shape,
            stem_macs=first.stem_macs,
            masks=first.masks,
        )
        self.num_tasks, self.num_networks = num_tasks, len(networks)
        self.wide = copy.deepcopy(first)
        for number, bank in enumerate(self.wide.banks):
            _widen(bank, [network.banks[number] for network in networks])
        self.wide.set_decisions(
            dataclasses.replace(decision, macs=bank.macs, next=decision.next[:1] * bank.num_blocks)
            for decision, bank in zip(first.decisions, map(self.wide.bank, range(len(first.decisions))), strict=True)
        )
        counts = [first.block_counts[number] for number in first.bank_of or ()]
        self.register_buffer("_counts", torch.tensor(counts, device=first.costs.device), persistent=False)

    def stem(self, images: Tensor, task: Tensor) -> Activation:
        """Features `(B, F)`, as of a single network, which may be told the task."""
        return self.wide.stem(images, task % self.num_tasks)

    def readout(self, decision: int, choice: int, activation: Activation, task: Tensor) -> Tensor:
        """Logits `(r, num_classes)`."""
        return self.wide.readout(decision, choice, activation, task)

    def describe(self, decision: int, activation: Activation) -> Tensor:
        """Observation `(r, width)`."""
        return self.wide.describe(decision, activation)

    def parameters_of(self, decision: int, choice: int) -> list[OwnedParameter]:
        """None: `wide` says whose they are."""
        return []

    def transition(self, decision: int, activation: Activation, action: Action, task: Tensor) -> Activation:
        """Output `(r, width)` of the blocks of each row's own network, or their mixture."""
        if isinstance(action, Tensor) and action.is_floating_point():
            action = torch.arange(action.shape[1], device=action.device).expand_as(action), action
        chosen = action[0] if isinstance(action, tuple) else action.unsqueeze(1)
        wide = self._in_wide(chosen, task, self._counts[decision])
        taken = wide if isinstance(action, Tensor) else wide[action[1].detach() != 0]
        self.wide.note_use(taken, decision * self.wide.num_choices)
        own = (wide, action[1]) if isinstance(action, tuple) else wide[:, 0]
        return self.wide.transition(decision, activation, own, task)

    def traverse(self, activation: Activation, plan: Tensor, task: Tensor, gates: Tensor | None = None) -> Activation:
        """Output of all layers at once, see `RoutedNetwork.traverse`."""
        wide = self._in_wide(plan, task, self._counts)
        first = torch.arange(0, self.wide.num_parts, self.wide.num_choices, device=plan.device)
        self.wide.note_use(wide + first)
        return self.wide.traverse(activation, wide, task, gates)

    def _in_wide(self, choice: Tensor, task: Tensor, counts: Tensor) -> Tensor:
        """Numbers in `wide` of choices `(r, K)` of tasks `(r,)`; PASS stays the last."""
        first = (task // self.num_tasks).unsqueeze(1) * counts
        return torch.where(choice < counts, choice + first, self.num_networks * counts)


def _widen(bank: nn.Module, banks: Sequence[nn.Module]) -> None:
    """Give a bank the blocks of all banks, one after the other."""
    if isinstance(bank, WithPass):
        inner = bank.blocks
        _widen(inner, [other.blocks for other in banks if isinstance(other, WithPass)])
        bank.num_blocks, bank.macs = inner.num_blocks + 1, (*inner.macs, 0.0)
    elif isinstance(bank, LinearBlocks):
        for name, stack in bank.named_parameters():
            stacks = [other.get_parameter(name).detach() for other in banks]
            setattr(bank, name, nn.Parameter(torch.cat(stacks), stack.requires_grad))
        bank.num_blocks, bank.macs = bank.num_blocks * len(banks), bank.macs * len(banks)
