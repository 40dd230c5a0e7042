"""Tables `[agent, decision, ...]` and scores: learned numbers for every choice, for one agent or several."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from routing_gym.agents.parts.draws import drawn
from routing_gym.blocks import (
    LinearBlocks,
    PartlyUsed,
    allow_small_groups,
    count_macs,
    first_weights,
    plain,
    run_chain,
    some_of,
)
from routing_gym.envs import Context, Observation, RoutingVectorEnv
from routing_gym.networks import RoutedNetwork

HIDDEN = 64
LARGE = 2**20
"""Weights of stacked networks from which on gradients are of those alone that a batch has asked."""


def uniform_policy(legal: Tensor, num_agents: int) -> Tensor:
    """Probabilities `(agents, ..., A)`: every legal choice, `(..., A)` bool, equally likely."""
    chances = legal.to(torch.get_default_dtype())
    return (chances / chances.sum(-1, keepdim=True)).repeat(num_agents, *[1] * legal.ndim)


def legal_rows(masks: Tensor, single: bool = False) -> Tensor:
    """Legal choices `(N + 1, M, A)` bool: masks, and all for rows that have left; without the axis M if `single`."""
    legal = torch.cat([masks, torch.ones_like(masks[:1])])
    return legal[:, 0] if single else legal


def look_up(table: Tensor, agent: Tensor, depth: Tensor) -> Tensor:
    """Entries `(B, ...)` of a table `(agents, rows, ...)`, by agent and row, `(B,)` int64 each."""
    return table.flatten(0, 1).index_select(0, agent * table.shape[1] + depth)


def sample(cumulative: Tensor, generator: torch.Generator) -> Tensor:
    """Choices `(...)` int64, drawn by running sums of probabilities, `(..., A)`, not necessarily to 1.

    Inverting the cumulative distribution is many times faster than `multinomial`.
    """
    total = cumulative[..., -1]
    height = drawn(torch.empty_like(total), "uniform_", generator) * total
    # How many running sums are at most the height drawn: the number of choices below the one it falls into.
    return torch.searchsorted(cumulative.contiguous(), height.unsqueeze(-1), right=True).squeeze(-1)


def visits_and_means(cells: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Visits of each cell, of cells `(...)` int64, and mean of the values `(...)` there, or 0; `(size,)` each."""
    # index_put, because index_add is not the same twice on a GPU
    nothing, place = values.new_zeros(size), (cells.flatten(),)
    visits = nothing.index_put(place, values.new_ones(()), accumulate=True)
    return visits, nothing.index_put_(place, values.flatten(), accumulate=True).div_(visits.clamp(min=1))


def visited(cells: Tensor, size: int, times: int = 4) -> tuple[Tensor | None, Tensor]:
    """Cells that a batch has been to, `(V,)` of `size`, and the number of each of `cells (...)` among them.

    None and the cells as they are where there are not so many `times` as many, so that going over all of them costs
    less; or on a GPU, which would wait for it.
    """
    if cells.device.type != "cpu" or size <= times * cells.numel():
        return None, cells
    return cells.unique(return_inverse=True)


class Arrangement:
    """Which agent decides for which row, and so the shape of tables and approximators (Rosenbaum et al. 2018, Fig. 3).

    Tables are `[agent, row, choice]`. Rows 0 to N − 1 are the network's decisions and row N is for instances that have
    left: what stands there does not matter, but can be looked up and written to like the others. Dispatching is one
    more decision, made before the first: row N + 1, whose choices are the agents.

    Args:
        kind: `"per_task"`, `"single"` or `"dispatched"`.
        representation: What the scores are: `"table"`, `"mlp"` or `"linear"`.
        team: How many agents a dispatcher picks from; one per task by default.
        single: Whether they choose for one tensor, so that there is no axis M.

    Attributes:
        num_agents: First axis of tables; `num_rows` is the second, `num_choices` the last.
        legal: `(rows, M, A)` bool, `(rows, A)` without the axis M.
        price: Whether the price of computation is seen.
        left_row: The row for instances that have left, N.
        dispatch_row: The row of the dispatcher, None without one.
    """

    def __init__(
        self,
        env: RoutingVectorEnv,
        kind: str,
        representation: str = "table",
        team: int | None = None,
        *,
        single: bool = True,
    ) -> None:
        network, self.num_tasks = env.network, env.dataset.num_tasks
        self.kind, self.representation = kind, representation
        self.left_row, self.num_choices = len(network.decisions), network.num_choices
        self.num_agents = 1 if kind == "single" else self.num_tasks
        self.legal, self.price = legal_rows(network.masks, single), env.config.price
        self.observation_size = network.observation_size
        self.dispatch_row: int | None = None
        if kind == "dispatched":
            team = team or self.num_tasks
            self.dispatch_row = self.left_row + 1
            self.num_agents = max(team, self.num_tasks) if representation == "table" else team
            self.num_choices = max(self.num_choices, team)
            legal = self.legal.new_zeros(self.left_row + 2, *self.legal.shape[1:-1], self.num_choices)
            legal[:-1, ..., : network.num_choices] = self.legal
            legal[-1, ..., :team] = True
            self.legal = legal
        self.num_rows = len(self.legal)

    def agent_of(self, task: Tensor) -> Tensor:
        """Agents `(B,)` that decide for instances of tasks, where no dispatcher has to be asked."""
        return task if self.kind == "per_task" else torch.zeros_like(task)

    def dispatcher_of(self, task: Tensor) -> Tensor:
        """First indices `(B,)` of the dispatcher's entries: by task in a table, an approximator is told the task."""
        return task if self.representation == "table" else torch.zeros_like(task)


class Scores(nn.Module):
    """Scores of every choice.

    `forward(observation, who)` gives them for every row: `who` is the agent of each row, `(B,)`, in an arrangement; the
    context of the decision where every decision has a module of its own. What rows that have left get is finite.
    `sees_price` says whether they depend on the price of computation.
    """

    sees_price: bool

    def macs(self, decision: int) -> float:
        """Multiply-accumulates of one row's scores; 0 for tables."""
        return 0.0


class ArrangedScores(Scores):
    """Scores for every (agent, row) of an arrangement, −inf where a choice is not legal.

    The `shape` of a row's numbers is `(A,)`, `(M, A)` where agents choose for M tensors, or `(outputs,)` where they are
    not scores of choices: nothing is masked then.
    """

    _legal: Tensor | None

    def __init__(self, arrangement: Arrangement, outputs: int | None) -> None:
        super().__init__()
        legal, self.num_agents, self.num_rows = arrangement.legal, arrangement.num_agents, arrangement.num_rows
        self.shape = tuple(legal.shape[1:]) if outputs is None else (outputs,)
        self.register_buffer("_legal", legal if outputs is None else None, persistent=False)
        left = torch.arange(self.num_agents, device=legal.device) * self.num_rows + arrangement.left_row
        self._left = nn.Buffer(left, persistent=False)

    def masked(self, scores: Tensor, row: Tensor) -> Tensor:
        """Scores `(B, *shape)`, −inf where a choice is not legal at a row, `(B,)`."""
        return scores if self._legal is None else scores.masked_fill(~self._legal.index_select(0, row), -torch.inf)


class TableScores(PartlyUsed, ArrangedScores):
    """A table, 0 at first. An agent that a batch does not ask keeps its part."""

    sees_price = False

    def __init__(self, arrangement: Arrangement, outputs: int | None) -> None:
        super().__init__(arrangement, outputs)
        self.table = nn.Parameter(torch.zeros(self.num_agents, self.num_rows, *self.shape))

    def forward(self, observation: Observation, agent: Tensor) -> Tensor:
        """Entries `(B, *shape)` of agents, `(B,)`, at the observation's `depth`."""
        table, place = self._asked(agent)
        return self.masked(look_up(table, place, observation["depth"]), observation["depth"])

    def _asked(self, agent: Tensor) -> tuple[Tensor, Tensor]:
        """Table of the agents that are asked, or of all, and where in it each of `agent (B,)` stands."""
        self.note_use(agent)
        large = not self.runs_all and torch.is_grad_enabled() and self.table.numel() >= LARGE
        been, place = visited(agent, self.num_agents, 1) if large else (None, agent)
        return (self.table, agent) if been is None else (some_of(self.table, been), place)

    def of_all_rows(self, agent: Tensor | None = None) -> Tensor:
        """The table `(agents, rows, *shape)`, of all or of some agents, −inf where a choice is not legal."""
        table: Tensor = self.table
        if agent is not None:
            table, place = self._asked(agent)
            table = table.index_select(0, place)
        return table if self._legal is None else table.masked_fill(~self._legal, -torch.inf)


class StackedScores(ArrangedScores):
    """A network for every (agent, row): all are stacked and run as one grouped call, like blocks.

    Two layers, on concat(v, one-hot t) (Rosenbaum et al. 2018, Appendix 7.3); or one without bias, on v alone. The
    price stands behind v where it is seen. Where agents choose for several tensors, v describes them all. `inputs` is
    the width of v, `hidden` that of the hidden layer, 0 for a linear network. An agent for one task alone has weights
    for that task's input only: the others would never be used.
    """

    def __init__(self, arrangement: Arrangement, inputs: int, outputs: int | None, hidden: int) -> None:
        super().__init__(arrangement, outputs)
        self.sees_price, self.num_tasks = arrangement.price, arrangement.num_tasks if hidden else 0
        networks, inputs = self.num_agents * self.num_rows, inputs + self.sees_price
        self.own_task = hidden > 0 and arrangement.kind == "per_task"
        if self.own_task:
            self.hidden: LinearBlocks | None = self._of_own_tasks(networks, inputs, hidden)
        else:
            inputs += self.num_tasks
            self.hidden = LinearBlocks(networks, inputs, hidden, relu=True) if hidden else None
        self.output = LinearBlocks(networks, hidden or inputs, math.prod(self.shape))
        if not hidden:
            nn.init.zeros_(self.output.bias).requires_grad_(False)
        self._layers = [self.output] if self.hidden is None else [self.hidden, self.output]

    def _of_own_tasks(self, networks: int, inputs: int, hidden: int) -> LinearBlocks:
        """Hidden layers on concat(v, 1), drawn as those on concat(v, one-hot t), of which the other tasks are left."""
        with torch.random.fork_rng(devices=[]):
            layer = LinearBlocks(networks, inputs + 1, hidden, relu=True)
        bound = 1 / math.sqrt(inputs + self.num_tasks)
        with torch.no_grad():
            for number, weight in enumerate(layer.weight):
                whole = torch.empty(inputs + self.num_tasks, hidden).uniform_(-bound, bound)
                weight[:-1], weight[-1] = whole[:inputs], whole[inputs + number // self.num_rows]
            layer.bias.uniform_(-bound, bound)
        return layer

    def forward(self, observation: Observation, agent: Tensor) -> Tensor:
        """Outputs `(B, *shape)` of the networks of agents, `(B,)`, at the observation's `depth`."""
        x = observation["activation"]
        seen = [x, observation["price"].to(x.dtype)] if self.sees_price else [x]
        if self.num_tasks and not self.own_task:
            seen.append(functional.one_hot(observation["task"], self.num_tasks).to(x.dtype))
        which = agent * self.num_rows + observation["depth"]
        for layer in self._layers:
            # Networks for rows that have left never learn, so that they may count as used: else no batch used all of
            # them, which is the fastest to learn from.
            if layer.used is None:
                layer.note_use(self._left)
            layer.note_use(which)
        x = torch.cat(seen, 1) if len(seen) > 1 else x
        if self.output.runs_all:
            x = torch.cat([x, torch.ones_like(x[:, :1])], 1) if self.own_task else x
            for layer in self._layers:
                x = layer.run_own(x, which)
            return self.masked(x.view(-1, *self.shape), observation["depth"])
        large = self._layers[0].weight.numel() >= LARGE
        few = large and torch.is_grad_enabled()
        asked, which = visited(which, self._layers[0].num_blocks, 1) if few else (None, which)
        one = asked is None and len(which) > 0 and which.device.type == "cpu" and bool(which.min() == which.max())
        if self.own_task and (one or large):
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        if one:
            for layer in self._layers:  # one network for all rows: nothing to be sorted
                x = layer.run_block(x, int(which[0]))
        else:
            links = [layer.link(asked) for layer in self._layers]
            if self.own_task and not large:  # what is always 1 is a bias; other widths are easier to compute with
                weight, bias = links[0].weight, links[0].bias
                links[0] = links[0]._replace(weight=weight[:, :-1], bias=bias + weight[:, -1])
            x = plain(run_chain(links, x, which.unsqueeze(1).expand(-1, len(links))))
        return self.masked(x.view(-1, *self.shape), observation["depth"])

    def macs(self, decision: int) -> float:
        """Multiply-accumulates of one network."""
        return sum(layer.macs[0] for layer in self._layers)


def make_scores(
    arrangement: Arrangement, seed: int, *, inputs: int | None = None, outputs: int | None = None
) -> ArrangedScores:
    """Scores in an arrangement's representation, on its device; they see numbers `(B, inputs)`, or the activation."""
    with first_weights(seed):
        if arrangement.representation == "table":
            scores: ArrangedScores = TableScores(arrangement, outputs)
        else:
            hidden = HIDDEN if arrangement.representation == "mlp" else 0
            scores = StackedScores(arrangement, inputs or arrangement.observation_size, outputs, hidden)
    return scores.to(arrangement.legal.device)


def at_each_decision(
    run: Callable[[int, Tensor], Tensor], seen: Tensor, depth: Tensor, context: Context, outputs: int
) -> Tensor:
    """Numbers `(B, outputs)` that something else computes at each decision, given its number and rows `(r, D)` there.

    0 for rows that are not active; `depth` are decisions, `(B,)` int64.
    """
    if context.sole is not None:
        return run(context.sole, seen)
    active, numbers = context.active, seen.new_zeros(len(seen), outputs)
    here = depth[active]
    if not len(here):
        return numbers
    first, last = torch.stack(here.aminmax()).tolist()
    if first == last and len(here) == len(depth):
        return run(first, seen)
    for number in range(first, last + 1):
        rows = (active & (depth == number)).nonzero().flatten()
        if len(rows):
            numbers = numbers.index_copy(0, rows, run(number, seen.index_select(0, rows)))
    return numbers


class ModuleScores(Scores):
    """A module for every decision, in which batch norms, convolutions and the like have a place.

    `make` builds it, given the decision's number and the width of its input, with first weights drawn from a seed; `of`
    holds them. The price stands in front of the activation where `price` is set. There are `outputs` numbers for a row,
    by default one for each choice.
    """

    def __init__(
        self,
        network: RoutedNetwork,
        make: Callable[[int, int], nn.Module],
        *,
        price: bool,
        seed: int,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.sees_price, self.outputs = price, outputs or network.num_choices
        self.widths = [decision.width + price for decision in network.decisions]
        with first_weights(seed):
            self.of = nn.ModuleList(make(number, width) for number, width in enumerate(self.widths))
        allow_small_groups(self)
        self._macs = [count_macs(part, torch.zeros(1, width)) for part, width in zip(self.of, self.widths, strict=True)]

    def forward(self, observation: Observation, context: Context) -> Tensor:
        """Scores `(B, outputs)`; 0 for choices that a decision does not have, and for rows that are not active."""
        seen, depth = observation["activation"], observation["depth"]
        if self.sees_price:
            seen = torch.cat([observation["price"].to(seen.dtype), seen], 1)
        return at_each_decision(self._scores, seen, depth, context, self.outputs)

    def _scores(self, number: int, seen: Tensor) -> Tensor:
        scores = self.of[number](seen[:, : self.widths[number]])
        return functional.pad(scores, (0, self.outputs - scores.shape[1]))

    def macs(self, decision: int) -> float:
        """Multiply-accumulates of a decision's module."""
        return self._macs[decision]
