"""Multipath early exit worked out slowly: every path of every row of an `ExitTree`, one after the other."""

import contextlib
import dataclasses
import functools
import math

import pytest
import torch
from toys import CLASSES, IMAGE, ExitTree, toy_data

from routing_gym.agents import make_agent, train_batch
from routing_gym.envs import RoutingVectorEnv
from routing_gym.tasks import MultiTaskDataset

CHAIN = {depth: [[j + 1] for j in range(depth - 1)] + [[]] for depth in (2, 3, 4, 8)}


@dataclasses.dataclass(frozen=True)
class Path:
    """A way from the first decision out: which choice at which decision, and all that runs on it.

    Attributes:
        moves: `(decision, choice)` pairs.
        columns: Columns passed, in order; the last one classifies.
    """

    moves: tuple[tuple[int, int], ...]
    columns: tuple[int, ...]


def paths_of(network):
    """Every path of a tree, depth first."""

    def onward(column, moves, columns):
        columns = (*columns, column)
        if not network.tree[column]:
            return [Path(moves, columns)]
        decision = network.inner.index(column)
        found = [Path((*moves, (decision, 0)), columns)]
        for choice, child in enumerate(network.tree[column], start=1):
            found += onward(child, (*moves, (decision, choice)), columns)
        return found

    return onward(0, (), ())


def router_macs(network, decision, price=False):
    inputs = network.decisions[decision].width + price
    return inputs * 16 + 16 * 16 + 16 * network.decisions[decision].n


def macs_after(network, path, start, price=False):
    """What runs on a path from its move number `start` on: not the router that makes this move, but all later ones."""
    width = network.heads[0].in_features
    passed = len(path.columns) - 1 - start
    routers = sum(router_macs(network, decision, price) for decision, _ in path.moves[start + 1 :])
    return passed * width * width + width * CLASSES + routers


def ops(network, path, price=False):
    """Every column passed, every router passed, and the classifier used."""
    first = network.columns[0][0].in_features * network.columns[0][0].out_features
    return first + router_macs(network, 0, price) + macs_after(network, path, 0, price)


def router_scores(router, x):
    """Three linear layers, batch norm and ReLU after the first two, written out."""
    for number in (0, 3):
        x = x @ router[number].weight.T + router[number].bias
        norm = router[number + 1]
        mean, variance = norm.running_mean, norm.running_var
        if norm.training and len(x) > 1:
            mean, variance = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
        x = (x - mean) / (variance + 1e-6).sqrt() * norm.weight + norm.bias
        x = x.clamp(min=0)
    return x @ router[6].weight.T + router[6].bias


class ByHand:
    """All that the equations speak of, for a batch that an agent has routed.

    Attributes:
        paths: Every path.
        score: For each decision `(B, n)`.
        error: For each column `(B,)`, the cross-entropy if its classifier answers.
        right: For each column `(B,)`, 1 where that answer is right.
    """

    def __init__(self, agent, trajectory, epsilon=1e-6):
        self.agent, self.network, self.config = agent, agent.env.network, agent.config
        self.price, self.rows, self.epsilon = trajectory.price, len(trajectory), epsilon
        self.paths = paths_of(self.network)
        dataset = agent.env.dataset
        images, label = dataset.pixels(trajectory.instance), dataset.label[trajectory.instance]
        seen = {0: self.network.columns[0](images.flatten(1))}
        for column, children in enumerate(self.network.tree):
            for child in children:
                seen[child] = self.network.columns[child](seen[column])
        self.seen_price = agent.env.config.price
        self.score = []
        for decision, column in enumerate(self.network.inner):
            x = seen[column]
            if self.seen_price:
                x = torch.cat([1e7 * self.price.unsqueeze(1), x], 1)
            self.score.append(router_scores(agent.scores.of[decision], x))
        self.error, self.right = {}, {}
        for column, x in seen.items():
            logits = x @ self.network.heads[column].weight.T + self.network.heads[column].bias
            self.error[column] = -torch.stack([row.log_softmax(0)[y] for row, y in zip(logits, label, strict=True)])
            self.right[column] = torch.tensor([float(row.argmax() == y) for row, y in zip(logits, label, strict=True)])

    # ------------------------------------------------------------------------------------------------ chances

    @functools.cached_property
    def chance(self):
        """`chance[row][path]`: (1 - ε) Π softmax(s / τ) + ε / leaves (Eq. 4 and the authors' floor), with graph."""
        table = []
        for row in range(self.rows):
            chances = []
            for path in self.paths:
                product = torch.ones(())
                for decision, choice in path.moves:
                    scores = self.score[decision][row]
                    powers = ((scores - scores.max()) / self.agent.temperature).exp()
                    product = product * powers[choice] / powers.sum()
                chances.append((1 - self.epsilon) * product + self.epsilon / len(self.paths))
            table.append(chances)
        return table

    def through(self, row, wanted):
        """The chance of passing a place: the sum over the paths for which `wanted` holds."""
        return sum(chance for chance, path in zip(self.chance[row], self.paths, strict=True) if wanted(path))

    def at(self, row, decision):
        return self.through(row, lambda path: any(d == decision for d, _ in path.moves))

    def mean_over_paths(self, quantity, constant):
        """The mean over rows of Σ_paths chance · quantity(row, path), without gradient through chances if constant."""
        total = torch.zeros(())
        for row in range(self.rows):
            for chance, path in zip(self.chance[row], self.paths, strict=True):
                total = total + (chance.detach() if constant else chance) * quantity(row, path)
        return total / self.rows

    # --------------------------------------------------------------------------------------------------- losses

    def weights_of(self, path):
        """The weights, neither biases nor batch norms, of all that runs on a path."""
        layers = [self.network.columns[column][0] for column in path.columns]
        layers.append(self.network.heads[path.columns[-1]])
        for decision, _ in path.moves:
            layers += [self.agent.scores.of[decision][number] for number in (0, 3, 6)]
        return [layer.weight for layer in layers]

    def squared_weights(self, path):
        return sum((weight**2).sum() for weight in self.weights_of(path))

    def actor_loss(self):
        """Eqs. 3 and 10."""

        def cost(row, path):
            n_ops = ops(self.network, path, self.seen_price)
            return self.error[path.columns[-1]][row] + self.price[row] * n_ops

        def model_cost(row, path):
            decisive = sum((self.score[decision][row] ** 2).sum() for decision, _ in path.moves)
            return self.config.weight_decay * self.squared_weights(path) + self.config.decisiveness * decisive

        constant = not self.config.regularized_policy
        return self.mean_over_paths(cost, False) + self.mean_over_paths(model_cost, constant)

    def cost_after(self, row, path, start, error=None):
        """What a path costs from its move number `start` on."""
        column = path.columns[-1]
        wrong = 1 - self.right[column][row] if self.config.error == "classification" else self.error[column][row]
        return float(wrong.detach()) + float(self.price[row]) * macs_after(self.network, path, start, self.seen_price)

    def onward(self, decision, choice):
        """The paths that take a choice, and the number of that move."""
        return [(path, path.moves.index((decision, choice))) for path in self.paths if (decision, choice) in path.moves]

    def utility(self, kind, row, decision, choice):
        """Eq. 7 (`"inference"`, `"training"`) or Eq. 8 (`"best"`), by looking at all paths that go on from there."""
        onward = self.onward(decision, choice)
        if kind == "best":
            return -min(self.cost_after(row, path, start) for path, start in onward)
        if kind == "training":
            chances = [float(self.chance[row][self.paths.index(path)].detach()) for path, _ in onward]
            costs = [self.cost_after(row, path, start) for path, start in onward]
            return -sum(p * c for p, c in zip(chances, costs, strict=True)) / sum(chances)
        for path, start in onward:
            if all(int(self.score[d][row].argmax()) == c for d, c in path.moves[start + 1 :]):
                return -self.cost_after(row, path, start)
        raise AssertionError("some path is the one the router follows")

    def critic_loss(self, kind):
        """Eqs. 5, 6 and 9."""
        missed = [
            [
                sum(
                    (self.score[decision][row, choice] - self.utility(kind, row, decision, choice)) ** 2
                    for choice in range(place.n)
                )
                for decision, place in enumerate(self.network.decisions)
            ]
            for row in range(self.rows)
        ]

        def cost(row, path):
            regression = self.config.regression * sum(missed[row][decision] for decision, _ in path.moves)
            return self.error[path.columns[-1]][row] + regression

        def model_cost(row, path):
            return self.config.weight_decay * self.squared_weights(path)

        return self.mean_over_paths(cost, True) + self.mean_over_paths(model_cost, True)


# --------------------------------------------------------------------------------------------------------- environments


def exit_env(network, agent="actor", num_envs=5, *, data=None, **options):
    """A batch environment in which an agent can route a tree; blocks take plain steps of SGD."""
    exact = "sampled" not in agent
    defaults = {"autoreset_mode": "disabled", "differentiable": True, "optimizer": "sgd", "learning_rate": 0.5}
    defaults["action_type"] = "weights" if exact else "discrete"
    return RoutingVectorEnv(network, toy_data() if data is None else data, num_envs, **{**defaults, **options})


def undecided(agent, seed=0, scale=1.0):
    """Give the routers something to say: their last layers begin at 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for router in agent.scores.of:
            for number in (1, 4):
                router[number].running_mean.normal_(generator=generator)
                router[number].running_var.uniform_(0.5, 2, generator=generator)
            router[6].weight.normal_(std=scale / 4, generator=generator)
            router[6].bias.normal_(std=scale, generator=generator)
            if agent.scores.sees_price:
                router[0].weight[:, 0] *= 1e-4  # prices that matter in so small a network are seen as thousands
    return agent


def given(tree, scores, losses, agent="actor", k_cpt=1e-3, num_envs=2, weight=None, **options):
    """An agent and a tree in which scores and losses are what they are said to be, for every instance.

    Args:
        tree: As of `ExitTree`.
        scores: For each decision the scores of its choices.
        losses: For each column the cross-entropy of its classifier, above 0.
        weight: What every weight of columns and routers is; the last layers of routers and the classifiers are 0.
    """
    images = torch.zeros(4, *IMAGE, dtype=torch.uint8)
    label = torch.zeros(4, dtype=torch.int64)
    data = {
        split: MultiTaskDataset(
            "given", split, images, torch.arange(4), label, label, 1, CLASSES, torch.zeros(1), torch.ones(1)
        )
        for split in ("train", "test")
    }
    network = ExitTree(tree)
    env = exit_env(network, agent, num_envs, data=data, k_cpt=k_cpt)
    made = make_agent(agent, env, **options)
    with torch.no_grad():
        if weight is not None:
            for layer in (*network.columns.modules(), *made.scores.modules()):
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.fill_(weight)
        for router, numbers in zip(made.scores.of, scores, strict=True):
            router[6].weight.zero_()
            router[6].bias.copy_(torch.tensor(numbers))
        for head, loss in zip(network.heads, losses, strict=True):
            # Classes 1 and 2 share what class 0, the label, leaves.
            head.weight.zero_()
            head.bias.copy_(torch.tensor([-loss, *[math.log((1 - math.exp(-loss)) / 2)] * 2]))
    return made


def trained(agent, loss_by_hand=lambda hand: torch.zeros((), requires_grad=True), epsilon=1e-6):
    """Train on one batch.

    Args:
        loss_by_hand: Given a `ByHand` of this batch before the step, returns the loss with graph.

    Returns:
        The whole loss and the gradients that the library stepped by, and the same by hand.
    """
    trainer, seen = agent.env.trainer, {}
    step, auxiliary_loss = trainer.step, agent.auxiliary_loss

    def look_on(trajectory):
        loss = loss_by_hand(ByHand(agent, trajectory, epsilon))
        seen["by hand"] = loss.item(), gradients_of(agent, loss)
        return auxiliary_loss(trajectory)

    trainer.step = lambda loss, *rest: (seen.update(loss=loss.item()), step(loss, *rest))
    agent.auxiliary_loss = look_on
    try:
        train_batch(agent, agent.env)
    finally:
        trainer.step, agent.auxiliary_loss = step, auxiliary_loss
    return (seen["loss"], gradients(agent)), seen["by hand"]


def gradients(agent):
    """Copies of what `train_batch` has left in `.grad`, 0 where there is none, by name."""
    named = {f"blocks.{name}": p for name, p in agent.env.network.named_parameters()}
    named |= {f"agent.{name}": p for name, p in agent.named_parameters()}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named.items()}


def gradients_of(agent, loss):
    """The same of a loss worked out by hand."""
    named = {f"blocks.{name}": p for name, p in agent.env.network.named_parameters()}
    named |= {f"agent.{name}": p for name, p in agent.named_parameters()}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), materialize_grads=True), strict=True))


@contextlib.contextmanager
def double_precision():
    """Slow loops and fast ones add up in other orders; with that much precision it cannot be seen."""
    pixels = MultiTaskDataset.pixels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiTaskDataset, "pixels", lambda *arguments: pixels(*arguments).double())
        torch.set_default_dtype(torch.float64)
        try:
            yield patch
        finally:
            torch.set_default_dtype(torch.float32)


def close(ours, theirs):
    """Hold loss and gradients against each other; the first biases of routers have none besides noise."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-9)
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)
