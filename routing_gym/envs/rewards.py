"""Rewards: a sum of named terms, each of one action or of leaving the network."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from routing_gym.envs.turns import Turn, version_of
from routing_gym.networks import NotFiniteError, claim
from routing_gym.networks.actions import dense, of_one_tensor
from routing_gym.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from routing_gym.envs.batch import Step
    from routing_gym.envs.config import EnvConfig

At = Literal["exit", "action"]

RESERVED = ("price", "collaboration", "reward")
"""Names of terms that no one else may give."""

VALUES: dict[str, tuple[str, ...]] = {
    "exit": ("loss", "correct", "label", "macs", "task", "depth", "price"),
    "action": ("macs", "action", "task", "depth", "price", "reach"),
}
"""Parameters a term may have, see `register_reward`."""


@dataclasses.dataclass(frozen=True)
class RewardTerm:
    """A named term of the reward: `function(**values)`, of the values named in `wants`; `ours` need no checking."""

    name: str
    function: Callable[..., Tensor]
    at: At
    wants: tuple[str, ...]
    ours: bool = False

    def __call__(
        self, values: Mapping[str, Any], rows: int, check: bool | None, active: Tensor | None = None
    ) -> Tensor:
        """Reward `(r,)` of r rows by their values, `(r, ...)` each, 0 where they are not `active`.

        Raises:
            ValueError: Not a number for each row, one that is not finite (`check`), or a value has been written into.
        """
        given = {name: values[name] for name in self.wants}
        if self.ours:
            return self.function(**given)
        versions = {name: version_of(value) for name, value in given.items() if isinstance(value, Tensor)}
        reward = self.function(**given)
        if changed := [name for name, version in versions.items() if version_of(given[name]) != version]:
            raise ValueError(
                f"reward {self.name!r} has written into {changed[0]!r}, which others need: write into a copy"
            )
        if not isinstance(reward, Tensor) or reward.shape != (rows,) or reward.is_complex():
            got = f"{tuple(reward.shape)}, {reward.dtype}" if isinstance(reward, Tensor) else f"{reward!r:.60}"
            raise ValueError(f"reward {self.name!r} must return a tensor ({rows},), a number for each row, got {got}")
        reward = reward.detach().to(torch.get_default_dtype())
        if active is not None:
            reward = reward.where(active, 0)
        if check and not bool(reward.isfinite().all()):
            raise NotFiniteError(f"reward {self.name!r} is not finite, got {reward.tolist()[:8]}")
        return reward


def _plus_or_minus_one(correct: Tensor) -> Tensor:  # not a lambda: environments are pickled
    return 2 * correct - 1


def _minus_loss(loss: Tensor) -> Tensor:
    return -loss


REWARDS: dict[str, RewardTerm] = {
    "correctness": RewardTerm("correctness", _plus_or_minus_one, "exit", ("correct",), ours=True),
    "negative-loss": RewardTerm("negative-loss", _minus_loss, "exit", ("loss",), ours=True),
}


def register_reward(name: str, function: Callable[..., Tensor], *, at: At = "exit") -> None:
    """Make a term of the reward known by a name, for `final_reward=name` or `rewards=(name, ...)`.

    A term of `at="exit"` is given once for every instance, when it leaves; where an instance is shared out among exits,
    for each, weighed by its share. Its parameters are some of `loss`, `correct` (1 or 0), `label`, `macs` (all that the
    instance has cost), `task`, `depth` (the decision it left from) and `price`. One of `at="action"` is given for every
    decision of a row; its parameters are some of `macs` (of this action), `action`, `task`, `depth`, `price` and
    `reach` (the share of the instance that is there). Each is a tensor with a row `(r, ...)` for each instance, and so
    is the reward, `(r,)`. Of rows that have left it is ignored.

    Args:
        name: The name.
        function: `f(correct, macs)`, say: called by the names of its parameters.
        at: `"exit"` or `"action"`.

    Raises:
        ValueError: A parameter that there is not, or a name that belongs to another term.
    """
    if not isinstance(at, str) or at not in VALUES:
        raise ValueError(f"reward {name!r}: at must be 'exit' or 'action', got {at!r}")
    if name in RESERVED:
        raise ValueError(f"the environment has a term {name!r} of its own: name yours otherwise")
    known = REWARDS.get(name) if isinstance(name, str) else None
    claim({} if known is None else {name: known.function}, "reward", name, function)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {name!r}: its parameters cannot be seen ({error}): wrap it in a function") from error
    unnamed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty]
    if unknown := [str(p) for p in needed if p.name not in VALUES[at] or p.kind in unnamed]:
        raise ValueError(
            f"reward {name!r} is called by the names of its parameters, which at={at!r} may be "
            f"{', '.join(VALUES[at])}, got {unknown[0]!r}"
        )
    wants = tuple(p.name for p in parameters if p.name in VALUES[at])
    REWARDS[name] = RewardTerm(name, function, at, wants)


class RunningShare:
    """Share of each choice in all choices, or probabilities, of a row, a decision say; those of M tensors together."""

    def __init__(self, rows: int, num_choices: int, device: torch.device, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self.total = torch.zeros(rows, num_choices, dtype=torch.float64, device=device)

    def of(self, decision: Tensor, choice: Tensor, choosing: Tensor) -> Tensor:
        """Share `(B,)` of choices `(B, M)` at decisions `(B,)`, the mean over the tensors that chose, `(B, M)` bool."""
        share = (self.total / self.total.sum(-1, keepdim=True).clamp(min=1e-12)).to(torch.get_default_dtype())
        shares = share[decision].gather(1, choice) * choosing
        return shares.sum(1) / choosing.sum(1).clamp(min=1)

    def count(self, decision: Tensor, weights: Tensor, choosing: Tensor) -> None:
        """Add probabilities, `(B, A)` or `(B, M, A)`, or ones for what was chosen, of the tensors that chose."""
        decision, weights, choosing = map(self._ranks.gathered, (decision, weights, choosing))
        each = weights.detach().to(self.total.dtype).view(*choosing.shape, self.total.shape[1])
        # index_put, because index_add is not the same twice on a GPU
        self.total.index_put_((decision,), (each * choosing.unsqueeze(-1)).sum(1), accumulate=True)


class Rewards:
    """Terms of the reward of an environment: `final_reward`, those of `rewards`, and two more.

    - `price`: minus the price of the multiply-accumulates of an action.
    - `collaboration` (Rosenbaum et al. 2018, section 3.1.1): ρ times how often the block has been taken before the
      batch, as its historical frequency or its average historical probability under the agents' policies.

    Attributes:
        share: Of all choices so far.
        priced: Whether multiply-accumulates cost anything.
        at_exit: The terms for leaving, the final reward first.
        of_actions: Whether actions have a reward of their own, as far as that is known when they are done.
        of_probabilities: Whether the collaboration reward needs the probabilities that agents record.
    """

    def __init__(self, config: EnvConfig, share: RunningShare) -> None:
        terms = [REWARDS[name] for name in (config.final_reward, *config.rewards)]
        self.at_exit = [term for term in terms if term.at == "exit"]
        self._at_action = [term for term in terms if term.at == "action"]
        self.priced, self._rho, self.share = any(config.prices), config.rho, share
        self._frequency = bool(config.rho) and config.collaboration != "probability"
        self._by_task = config.collaboration == "task-frequency"
        self.of_probabilities = bool(config.rho) and config.collaboration == "probability"
        self.of_actions = self.priced or self._frequency or bool(self._at_action)

    def of_turn(self, turn: Turn, check: bool | None = True) -> dict[str, Tensor]:
        """Reward of every action, `(B,)` for each term, 0 for rows that had left; choices are counted."""
        seen, action = turn.seen, of_one_tensor(turn.action) if turn.seen.network.num_tensors == 1 else turn.action
        values = {"macs": turn.macs, "action": action, "task": seen.task, "price": seen.cost, "depth": seen.decision}
        values["reach"] = seen.reach
        # Before anything is counted: they may be refused.
        own = {term.name: term(values, len(seen.task), check, seen.active) for term in self._at_action}
        rewards = {"price": -seen.cost * turn.macs} if self.priced else {}
        if self._frequency:
            assert isinstance(turn.action, Tensor)
            row = seen.decision + (len(seen.network.decisions) + 1) * seen.task if self._by_task else seen.decision
            rewards["collaboration"] = self._rho * self.share.of(row, turn.action, seen.choosing)
            self.share.count(row, dense(turn.action, self.share.total.shape[1]), seen.choosing)
        return rewards | own

    def give_for_probabilities(self, steps: Sequence[Step]) -> None:
        """Add the probability form of the collaboration reward to the steps of a batch that have recorded theirs."""
        known = [step for step in steps if "probabilities" in step.record]
        for step in known:
            chances, shape = step.record["probabilities"], (*step.choosing.shape, self.share.total.shape[1])
            if tuple(chances.shape) not in (shape, (shape[0], shape[2]) if shape[1] == 1 else shape):
                raise ValueError(f"record['probabilities'] must have shape {shape}, got {tuple(chances.shape)}")
            if isinstance(step.action, Tensor) and not step.action.is_floating_point():
                bonus = self.share.of(step.decision, step.action.view(step.choosing.shape), step.choosing)
                step.rewards["collaboration"] = self._rho * bonus
        for step in known:
            self.share.count(step.decision, step.record["probabilities"], step.choosing)
