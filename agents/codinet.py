"""CoDiNet: run or skip every block, by paths that are alike for alike images and unlike for others (Wang et al.)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from routing_gym.agents.base.agent import AgentConfig
from routing_gym.agents.parts.bases import RouterAgent, RouterConfig
from routing_gym.agents.parts.demands import RUN, SKIP, takes_skips
from routing_gym.agents.parts.draws import drawn
from routing_gym.agents.parts.losses import consistency, diversity
from routing_gym.agents.parts.scores import ModuleScores, Scores
from routing_gym.blocks import first_weights
from routing_gym.envs import Context, Observation, Trajectory
from routing_gym.networks import Action, RoutedNetwork
from routing_gym.options import count, divisor, not_negative, positive, rate

RECURRENT_WIDTH = 10
"""Width of the recurrent router, and of what it sees of a block (SkipNet, Wang et al. 2018)."""
LEAST_WEIGHT = 1e-3
"""Weight of all other instances that a baseline is divided by at least, where instances weigh 1 on average."""


@dataclasses.dataclass(frozen=True)
class CoDiNetConfig(RouterConfig):
    """Options of CoDiNet.

    Attributes:
        alpha: Weight of the consistency loss (Eq. 8).
        beta: Weight of the diversity loss (Eq. 9).
        consistency_margin: How far paths of one image may lie apart at no cost, m_c.
        diversity_margin: How far paths of different images are to lie apart, m_d.
        gamma: Weight of the cost Σ_k c_k v_k (Eq. 11), where c_k is the share of block k in the multiply-accumulates
            of the plain network, times the number of blocks. None: what the environment charges, `k_cpt`.
        cost_target: Share of the blocks' cost that gamma is to bring about: gamma, which counts from 0 where it is
            None, rises after every batch that cost more and falls after every one that cost less. None: it stays.
        cost_step: How much gamma changes per batch, for each unit that the share is off its target.
        relaxation: What a block weighs while training: `"gumbel"`, the Gumbel-softmax of the two scores (Eq. 6);
            `"softmax"`, without the noise; or `"sampling"`, 0 or 1, drawn, with the score function's gradient.
        temperature: T of the Gumbel-softmax.
        router: What scores: `"linear"`, two layers on the averaged channels, for every block its own; `"rnn"`, one LSTM
            that goes from block to block; or `"cnn"`, a convolution for every block, which wants a network with
            `observes="map"` (both as in SkipNet, Wang et al. 2018).
        hidden: Width of the first layer of linear routers, d.
        freeze_after: Passes over the split after which routers stay and decisions are hard (section 3.4), if any.
    """

    alpha: float = not_negative(0.2)
    beta: float = not_negative(0.2)
    consistency_margin: float = not_negative(0.2)
    diversity_margin: float = not_negative(0.5)
    gamma: float | None = not_negative(None)
    cost_target: float | None = rate(None)
    cost_step: float = positive(0.01)
    relaxation: Literal["gumbel", "softmax", "sampling"] = "gumbel"
    temperature: float = divisor(1.0)
    router: Literal["linear", "rnn", "cnn"] = "linear"
    hidden: int = count(48)
    freeze_after: float | None = not_negative(None)


class CoDiNet(RouterAgent):
    """Scores of every block, by which an instance runs or skips it, trained with the blocks by gradient.

    Source: Wang et al., "CoDiNet: Path Distribution Modeling with Consistency and Diversity for Dynamic Routing". The
    loss is L_cls + α L_con + β L_div + γ L_cost (Eq. 12), the paths r being the weights v of running, noise included;
    `gamma` is γ now, in the paper's measure. In Eq. 6 log(U) is read as the log-softmax of the scores U. A block is run
    for certain where v, without noise, is at least 0.5 (Eq. 13).

    With `relaxation="sampling"` the losses on paths are of the probabilities; the gradient of classification and cost
    is that of the score function, of a loss that is smoothed and weighed as the blocks' is. Its baseline is the mean
    over the other instances of the batch: with an instance's own part in it, the gradient would be too small by one
    part in the size of the batch.

    Needs an environment made with `augmentations`: how many versions of an image come together, M, 4 in the paper and
    by `needs`; at least 2 unless α is 0.

    Raises:
        ValueError: A network whose decisions are not to skip (0) or run (1); α > 0 with one augmentation; a router
            that the network does not show enough.
    """

    Config = CoDiNetConfig
    config: CoDiNetConfig
    action_type = "weights"
    env_kwargs = {"differentiable": True, "augmentations": 4}
    scores: Scores

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__(env, config)
        network, options = self.env.network, self.config
        if options.alpha and self.env.config.augmentations < 2:
            raise ValueError(
                f"agent {self.name!r} compares paths of one image: make the environment with augmentations of at least "
                f"2, or give alpha=0, got augmentations={self.env.config.augmentations}"
            )
        self.train_scores(self._make_scores())
        costs = network.costs
        self._least_macs = nn.Buffer(network.stem_macs + costs[:, SKIP].sum(), persistent=False)
        self._block_macs = nn.Buffer((costs[:, RUN] - costs[:, SKIP]).sum(), persistent=False)
        self.gamma = nn.Buffer(torch.tensor(float(options.gamma or 0.0), device=self.env.device))

    def _check_env(self) -> None:
        super()._check_env()
        takes_skips(self)

    def fits(self, option: str, value: Any) -> bool:
        """Any number of augmentations will do."""
        return option == "augmentations" or super().fits(option, value)

    def _make_scores(self) -> Scores:
        network, options, price = self.env.network, self.config, self.env.config.price
        if options.router == "cnn":
            if getattr(network, "observes", None) != "map":
                raise ValueError(
                    f"agent {self.name!r}: router='cnn' convolves what comes into a block: make the environment with "
                    "observes='map'"
                )
            return convolutional_routers(network, seed=options.seed)
        if options.router == "rnn":
            return RecurrentScores(network, price=price, seed=options.seed)
        return linear_routers(network, options.hidden, price=price, seed=options.seed)

    @property
    def frozen(self) -> bool:
        """Whether the second stage has begun, in which routers stay as they are and decisions are hard."""
        return self.config.freeze_after is not None and self.passes >= self.config.freeze_after

    def act(self, observation: Observation, context: Context) -> Action:
        """Weights `(B, 2)` of skipping and running; a pair `(B, 1)` of one choice alone where it is hard."""
        if self.frozen and self.scores.training:
            self.scores.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            scores = self.scores(observation, context)
            chances = scores.softmax(-1)
        context.record["probabilities"] = chances.detach()
        if context.deterministic or self.frozen:
            return _hard(scores[:, RUN] >= scores[:, SKIP])
        if self.config.relaxation == "sampling":
            heights = drawn(torch.empty_like(chances[:, RUN], requires_grad=False), "uniform_", self.generator)
            action = _hard(heights < chances[:, RUN])
            context.record["log_probability"] = scores.log_softmax(-1).gather(1, action[0]).squeeze(1)
            context.record["path"] = chances[:, RUN]
            return action
        if self.config.relaxation == "gumbel":
            noise = drawn(torch.empty_like(scores, requires_grad=False), "exponential_", self.generator).log().neg()
            chances = ((scores.log_softmax(-1) + noise) / self.config.temperature).softmax(-1)
        context.record["path"] = chances[:, RUN]
        return chances

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """α L_con + β L_div + γ L_cost, 0-dimensional, with the score function's part where decisions were drawn."""
        if "path" not in trajectory.steps[0].record:
            return None
        options = self.config
        paths = torch.stack([step.record["path"] for step in trajectory.steps], 1)
        paths = paths.unflatten(0, (-1, self.env.config.augmentations))
        loss = options.alpha * consistency(paths, options.consistency_margin)
        loss = loss + options.beta * diversity(self.env.ranks.joined(paths), options.diversity_margin)
        cost = trajectory.price * trajectory.expected_macs
        if options.gamma is not None or options.cost_target is not None:
            spent = trajectory.expected_macs - self._least_macs  # beyond all that is run anyway
            cost = self.gamma * self.num_decisions * spent / (self._least_macs + self._block_macs)
        if options.relaxation != "sampling":
            return loss + cost.mean()
        blocks, importance = self._trained_on(trajectory)
        advantage = self._advantage(blocks, importance) + self._advantage(cost.detach(), torch.ones_like(cost))
        likelihood = torch.stack([step.record["log_probability"] for step in trajectory.steps]).sum(0)
        return loss + (advantage * likelihood).mean()

    def _trained_on(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Loss `(B,)` of the blocks by instance, smoothed where theirs is, and what each weighs there, 1 on average."""
        training, balance, label = self.env.trainer.optimization, self.env.trainer.balance, trajectory.label
        loss = torch.zeros_like(trajectory.loss)
        for weight, own, rows in training.terms(trajectory.exits, label, None):
            part = (weight * own).detach()
            loss = loss + part if rows is None else loss.index_add(0, rows, part)
        if balance is not None:
            loss = loss * balance.factors(trajectory.task)
        importance = training.importance(label, trajectory.task)
        if importance is None:
            return loss, torch.ones_like(loss)
        return loss, importance / importance.mean().clamp(min=torch.finfo(loss.dtype).tiny)  # all may weigh nothing

    def _advantage(self, objective: Tensor, weight: Tensor) -> Tensor:
        """What instances lose more than the mean of the others, weighed; all `(B,)`."""
        own = torch.stack([weight * objective, weight])
        others = self.env.ranks.total(own.sum(1, keepdim=True)) - own
        # Of one instance there are no others, and of what others weigh next to it only roundings would be left.
        return weight * (objective - others[0] / others[1].clamp(min=LEAST_WEIGHT))

    def update(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Steer gamma towards its target, where there is one, and report how much of the blocks' cost is spent."""
        share = ((trajectory.expected_macs - self._least_macs) / self._block_macs).detach().mean()
        target = self.config.cost_target
        if target is not None and not self.frozen:
            self.gamma.add_(self.config.cost_step * (share - target)).clamp_(min=0)
        return {"cost_share": share, "gamma": self.gamma.clone()}


def _hard(run: Tensor) -> tuple[Tensor, Tensor]:
    """Sparse action of decisions, `(B,)` bool."""
    indices = run.long().unsqueeze(1)
    return indices, torch.ones_like(indices, dtype=torch.get_default_dtype())


def linear_routers(network: RoutedNetwork, hidden: int, *, price: bool, seed: int) -> ModuleScores:
    """Scores W₂ relu(W₁ z) of every block, z being the averaged channels (Eqs. 3 and 4).

    With 48 hidden units, biases and the blocks' batch norm counted, ResNets have the parameters printed in Table 6.
    """

    def make(_: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    return ModuleScores(network, make, price=price, seed=seed)


def convolutional_routers(network: RoutedNetwork, *, seed: int) -> ModuleScores:
    """Scores of every block by 2x2 max-pooling, a 3x3 convolution, batch norm, ReLU, averaging and a linear layer.

    After the feed-forward gates of SkipNet (Wang et al. 2018), which have one convolution more, or a stride; so it
    costs an eighth of a block, the 12.5 % of Table 10.
    """
    shapes: list[tuple[int, ...]] = network.observed_shapes  # type: ignore[assignment]

    def make(decision: int, width: int) -> nn.Module:
        channels = shapes[decision][0]
        return nn.Sequential(
            nn.Unflatten(1, shapes[decision]),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, 2),
        )

    return ModuleScores(network, make, price=False, seed=seed)


class RecurrentScores(Scores):
    """One LSTM that goes from block to block, each with a linear layer of its own in front (SkipNet)."""

    def __init__(self, network: RoutedNetwork, *, price: bool, seed: int) -> None:
        super().__init__()
        self.sees_price, width = price, RECURRENT_WIDTH
        self.inputs = ModuleScores(
            network, lambda _, seen: nn.Linear(seen, width), price=price, seed=seed, outputs=width
        )
        with first_weights(seed + 1):
            self.cell, self.output = nn.LSTMCell(width, width), nn.Linear(width, 2)

    def forward(self, observation: Observation, context: Context) -> Tensor:
        """Scores `(B, 2)`; the LSTM's output and cell, `(B, 2 x 10)`, are carried to the next block."""
        seen, carry = self.inputs(observation, context), context.carry
        before = seen.new_zeros(*seen.shape[:1], 2 * RECURRENT_WIDTH) if carry is None else carry
        output, cell = self.cell(seen, before.chunk(2, 1))
        context.carry = torch.cat([output, cell], 1)
        return self.output(output)

    def macs(self, decision: int) -> float:
        """Multiply-accumulates at a decision."""
        gates = self.cell.weight_ih.numel() + self.cell.weight_hh.numel()
        return self.inputs.macs(decision) + gates + self.output.weight.numel()
