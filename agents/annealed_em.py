"""Deterministic annealing EM over the tasks' routes (Ueda and Nakano 1998; over routes: Kirsch et al. 2018)."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import Agent, AgentConfig
from routing_gym.agents.parts.draws import running_sums
from routing_gym.agents.parts.losses import annealed_posterior
from routing_gym.agents.parts.scores import legal_rows, look_up, sample, uniform_policy
from routing_gym.blocks import eval_mode
from routing_gym.envs import Batch, Context, Observation, Trajectory, along
from routing_gym.options import count, not_negative, positive
from routing_gym.tasks.sampling import sent


@dataclasses.dataclass(frozen=True)
class AnnealedEMConfig(AgentConfig):
    """Options of annealed EM.

    Attributes:
        annealing: Batches until every task has settled on one route; the posterior's entropy falls to 0 in a line. It
            should end well before training does. A task that comes later has as many of its own.
        memory: Half-life of what is known of a choice's cost, in passes over the split.
        weight_decay: L2 penalty on the blocks while routes are open, times the share of the entropy that is left: what
            keeps blocks from learning by heart whatever is sent to them, which any block could do. With Adam it is
            part of the gradient that Adam scales. Where blocks need long to say more than which label is common
            (DIGITS-MTL) 0.1 holds them at that; 0.01 does not.
        towards: What the penalty pulls weights to: `"zero"`, or `"start"`, what they were when the agent was made
            (Kumar et al. 2023), from which no unit dies; it separates groups a little less well.
    """

    annealing: int = count(400)
    memory: float = positive(1.0)
    weight_decay: float = not_negative(0.1)
    towards: Literal["zero", "start"] = "zero"


class AnnealedEM(Agent):
    """A posterior over each task's choices, sharpened from uniform to certain while the blocks learn.

    The route z of a task is a latent variable, its posterior q a product over decisions. M-step: instances take routes
    drawn from q, and the blocks take their step. E-step, decision by decision: the batch goes through the network once
    more for each choice there, without a gradient, the other choices drawn from q; the mean
    cost of a task's instances, C(task, decision, choice), cross-entropy less what actions earn, is averaged over time.
    Then q(choice) ∝ exp(−n C / τ) for a task of n instances. Deterministic annealing lowers the temperature τ; here it
    is the one at which the mean entropy of q is the share of its maximum that the schedule asks for, so that no scale
    has to be known. At share 0 every task keeps its best choice for good, and E-steps cease. Tasks whose first instance
    comes after the first pass, or after the annealing, have a schedule of their own from then on, and a temperature.
    """

    Config = AnnealedEMConfig
    config: AnnealedEMConfig
    sees_price = False

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        self.in_one_process("tries every choice on batches of its own")
        legal = legal_rows(self.env.network.masks, single=True)
        self.legal = nn.Buffer(legal, persistent=False)
        self._choices = [row.nonzero().flatten().tolist() for row in legal.cpu()]
        self.q = nn.Buffer(uniform_policy(legal, self.num_tasks))
        # Sums over instances, of cost and of 1, in which what is older weighs less.
        self.cost = nn.Buffer(torch.zeros_like(self.q))
        self.weight = nn.Buffer(torch.zeros_like(self.q))
        instances = torch.bincount(self.env.dataset.task, minlength=self.num_tasks)
        self.instances = nn.Buffer(instances.to(self.q.dtype), persistent=False)
        # Batches that were behind when each task came, on the host, which asks whether to try choices; -1: it has not.
        self._came = [-1] * self.num_tasks
        owned = {id(part.parameter): part.parameter for parts in self.env.network.parts() for part in parts}
        self._penalised: list[Tensor] = [parameter for parameter in owned.values() if parameter.requires_grad]
        for number, parameter in enumerate(self._penalised if self.config.towards == "start" else []):
            self.register_buffer(f"start_{number}", parameter.detach().clone())
        self._judge = self.env.sibling(self.env.num_envs, train=False, autoreset_mode="disabled", render_mode=None)

    @property
    def open(self) -> float:
        """Share of the posterior's largest entropy that schedules ask for now, the mean over tasks."""
        return 1 - sum(self._behind()) / self.num_tasks / self.config.annealing

    def _behind(self) -> list[int]:
        """Batches of its annealing that are behind each task; whoever has not come is with the first."""
        now, whole = self.episodes // self.env.num_envs, self.config.annealing
        return [min(now - max(came, 0), whole) for came in self._came]

    def get_extra_state(self) -> Tensor:
        """When each task came, `(T,)`."""
        return torch.tensor(self._came, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the schedules of tasks that have come."""
        self._came = state.tolist()

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | None:
        """Routes `(B, N)` of tasks, unless the collaboration reward needs the probabilities on the way."""
        return None if self.shares_wanted else self._routes(task, deterministic)

    def _routes(self, task: Tensor, deterministic: bool) -> Tensor:
        """Routes `(B, N)`, drawn from the posterior of each instance's task; the likeliest when deterministic."""
        q = self.q[:, :-1]
        if deterministic:
            return q.argmax(-1).index_select(0, task)
        return sample(running_sums(q).index_select(0, task), self.generator)

    def act(self, observation: Observation, context: Context) -> Tensor:
        """Choices `(B,)`, as `plan` has them."""
        q = self.noted(look_up(self.q, observation["task"], observation["depth"]), context)
        return q.argmax(-1) if context.deterministic else sample(running_sums(q), self.generator)

    def policy(self) -> Tensor:
        """The posterior, `(T, N, A)`."""
        return self.q[:, :-1]

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Penalty on the blocks, 0-dimensional."""
        factor = self.config.weight_decay * self.open / 2
        if not factor or not self._penalised:
            return None
        moved = self._penalised
        if self.config.towards == "start":
            moved = [parameter - self.get_buffer(f"start_{number}") for number, parameter in enumerate(moved)]
        return factor * torch.stack([weights.square().sum() for weights in moved]).sum()

    @torch.no_grad()
    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Take the E-step."""
        self._let_in(trajectory.task)
        if self.open:
            self._fade(len(trajectory))
            with eval_mode(self.env.network):  # running averages of batch norms do not take in what is only tried
                batch = self._judge.begin(trajectory.instance)
                batch.state = dataclasses.replace(batch.state, price=trajectory.price)
                batch.keeps_exits = False
                for number in range(self.num_decisions):
                    self._observe(batch, trajectory.task, number)
            mean = self.cost / self.weight.clamp(min=torch.finfo(self.cost.dtype).tiny)
            evidence = (mean * self.instances.view(-1, 1, 1))[:, :-1]
            # A task that has not come yet stays as it is.
            known = self.weight[:, :-1].sum(-1, keepdim=True) > 0
            behind, whole = self._behind(), self.config.annealing
            for done in {*behind} - {whole}:
                # The schedule counts this batch as done: the last one settles everything.
                share = 1 - done / whole - 1 / whole if done + 1 < whole else 0.0
                of_these = torch.tensor([of_task == done for of_task in behind], device="cpu").nonzero().flatten()
                own = sent(of_these, self.q.device)
                q = annealed_posterior(evidence[own], self.legal[:-1], share)
                self.q[own, :-1] = q.where(known[own], self.q[own, :-1])
        q = self.q[:, :-1]
        return {"policy_entropy": torch.special.entr(q).sum(-1).mean()}

    def _let_in(self, task: Tensor) -> None:
        """Note of tasks of a batch, `(B,)`, when they came: of those that are late only now is not the beginning."""
        if -1 not in self._came or (self.passes < 1 and self.open):
            return
        seen = self.weight[:, 0].sum(-1) > 0
        seen, here = torch.stack([seen, torch.zeros_like(seen).index_fill_(0, task, True)]).tolist()  # in one copy
        for number in (number for number, came in enumerate(self._came) if came < 0):
            if seen[number] or here[number]:
                self._came[number] = 0 if seen[number] else self.episodes // self.env.num_envs

    def _fade(self, instances: int) -> None:
        """Let what is known weigh less, as more instances come."""
        kept = 0.5 ** (instances / self.env.trainer.optimization.epoch / self.config.memory)
        self.cost.mul_(kept)
        self.weight.mul_(kept)

    def _observe(self, batch: Batch, task: Tensor, number: int) -> None:
        """Send a batch that has just begun, of tasks `(B,)`, by every choice of a decision; add up what that costs."""
        routes = self._routes(task, deterministic=False)
        for choice in self._choices[number]:
            routes[:, number] = choice
            cell = task, torch.full_like(task, number), routes[:, number]
            self.cost.index_put_(cell, self._cost(copy.copy(batch), routes), accumulate=True)
            self.weight.index_put_(cell, self.cost.new_ones(()), accumulate=True)

    def _cost(self, batch: Batch, routes: Tensor) -> Tensor:
        """Cross-entropy less rewards of actions, `(B,)`, of a batch that has just begun, along routes `(B, N)`."""
        # The collaboration reward goes by what has been learned on, whatever was tried meanwhile.
        self._judge.rewards.share.total.copy_(self.env.rewards.share.total)
        turns = batch.follow(routes) if self.env.network.in_order else None
        turns = turns or list(batch.drive(along(routes.unsqueeze(2))))
        return batch.loss - sum((reward for _, rewards in turns for reward in rewards.values()), start=0.0)
