"""Network and agent as one plain computation, in which everything runs and decisions weigh: to be exported."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from routing_gym.blocks import PartlyUsed
from routing_gym.envs import Asked, Manner, Seen, drive
from routing_gym.networks import Normalize
from routing_gym.networks.actions import dense

if TYPE_CHECKING:
    from routing_gym.agents.base.agent import Agent

CHECKED_ROWS = 8
"""Instances on which another form of a network must give its logits."""
TOLERANCE = 1e-3
"""How far the two may differ, as a share of the largest logit."""


class Dense(nn.Module):
    """Network and agent in one, in eval mode, copies of both: `Agent.classify` without a look at any value.

    It maps images `(B, C, H, W)`, and tasks `(B,)` int64 where there are several, to logits `(B, num_classes)`. All
    rows go all ways, and actions, choices too, weigh what comes of them: with 0 what was not chosen.

    Attributes:
        inputs: How many tensors `forward` takes, 2 where there are several tasks.
    """

    def __init__(self, agent: Agent, *, normalize: bool, price: float | None) -> None:
        super().__init__()
        env = agent.env
        as_they_are = {id(part): part for part in (env, agent.generator, agent.optimizer)}
        self.network, self.agent = copy.deepcopy((env.network, agent), as_they_are)
        self.normalize = Normalize(env.dataset.mean, env.dataset.std) if normalize else nn.Identity()
        self.price, self.inputs = price, 1 + (agent.num_tasks > 1)
        for part in self.modules():
            if isinstance(part, PartlyUsed):
                part.runs_all = True
        self.eval()

    def forward(self, images: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits `(B, num_classes)`."""
        x = self.normalize(images)
        if task is None:
            if self.inputs > 1:
                raise ValueError(f"there are {self.agent.num_tasks} tasks: give that of every image, (B,) int64")
            task = x.new_zeros(x.shape[:1], dtype=torch.int64)
        price = None if self.price is None else x.new_full(task.shape, self.price)
        graph = torch.is_grad_enabled()  # as outside: a change would become part of the exported program
        merge = self.agent.env.config.merge_blocks
        manner = Manner(graph=graph, differentiable=graph, price=price is not None, validate=None, merge_blocks=merge)
        asked = Asked(self.agent, self.network, deterministic=True)

        def weigh(seen: Seen) -> Tensor:
            weights = dense(asked(seen), self.network.num_choices)
            if asked.before is not None and asked.carry is not None and not self.network.in_order:
                arrived = (seen.reach > 0).view(-1, *[1] * (asked.carry.ndim - 1))
                asked.carry = torch.where(arrived, asked.carry, asked.before)  # others come by another way
            return weights

        turns = drive(self.network, self.network.start(x, task, price=price), weigh, manner)
        return torch.stack([exit.weight.unsqueeze(1) * exit.logits for turn in turns for exit in turn.exits]).sum(0)


def dense_form(agent: Agent, *, normalize: bool, k_cpt: float | None) -> Dense:
    """`Dense` of an agent, once it is certain that it can be exported and gives the logits of `Agent.classify`.

    Raises:
        ValueError: It cannot, or does not, by the agent's name; or see `Agent.price_seen`.
    """
    price, dataset = agent.price_seen(k_cpt), agent.env.dataset
    if not agent.exportable:
        raise ValueError(f"agent {agent.name!r} cannot be exported: another library's code decides for it")
    rows = torch.arange(min(CHECKED_ROWS, len(dataset)), device=agent.env.device) * max(len(dataset) // CHECKED_ROWS, 1)
    rows = rows if len(rows) > 1 else rows.repeat(2)  # of one row a trace would make a constant
    images, task = dataset.images[dataset.image[rows]] if normalize else dataset.pixels(rows), dataset.task[rows]
    numbers = agent.generator.get_state()
    try:
        form = Dense(agent, normalize=normalize, price=price)
        given = (images, task)[: form.inputs]
        exported(form, *(part[:2] for part in given))
        with torch.no_grad():
            got, again = form(*given), form(*given)
    except Exception as error:  # networks and agents of one's own may fail as they like
        reason, network = str(error).strip().split("\n")[0], type(agent.env.network).__name__
        raise ValueError(
            f"agent {agent.name!r} with this {network} cannot be exported ({reason}): all that it computes must be "
            "tensors of tensors, without a look at values on the host, len(x) of a batch, NumPy, or chance when "
            "deterministic"
        ) from error
    finally:
        agent.generator.set_state(numbers)
    expected = agent.classify(images, task, k_cpt=k_cpt)
    for logits, of in ((again, "when called again: it remembers, or draws"), (expected, "than classify()")):
        if bool((got - logits).abs().max() > TOLERANCE * logits.abs().max()):
            raise ValueError(f"agent {agent.name!r} cannot be exported: the exported form gives other logits {of}")
    return form


def exported(module: nn.Module, *rows: Tensor) -> torch.export.ExportedProgram:
    """Program of a module for any number of rows, given two of every input: of one row torch would make a constant."""
    with torch.no_grad():  # else switching gradients off on the way becomes part of the program
        return torch.export.export(module, rows, dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in rows))
