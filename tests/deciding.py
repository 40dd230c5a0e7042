"""What agents decide and learn, worked out by hand row by row: references for their batches."""

from collections.abc import Mapping

import torch


def learned_from(agent, trajectory):
    """The trajectory an agent's algorithm is given: with the dispatcher's choice first, where there is one."""
    given, learn_from = [], agent.learn_from
    agent.learn_from = given.append
    agent.update(trajectory)
    agent.learn_from = learn_from
    return given[0]


def who_decides(agent, step, row):
    """The agent that decided for a row; the dispatcher is agent 0, of a table the one of the row's task."""
    kind = agent.config.arrangement
    if kind == "dispatched":
        return int(step.record["agent"][row])
    return int(step.observation["task"][row]) if kind == "per_task" else 0


def choosers(agent, steps, row):
    """The tensors of a row that chose, by hand, step by step: whoever was sent to at the step before."""
    alive, found = range(agent.env.network.decisions[0].m), []
    for step in steps:
        if not step.active[row]:
            found.append([])
        elif int(step.decision[row]) == agent.arrangement.dispatch_row:
            found.append([0])
        else:
            found.append(sorted(alive))
            alive = {choice_of(step, row, tensor) for tensor in alive} if agent.num_tensors > 1 else alive
    return found


def choice_of(step, row, tensor):
    """What a tensor of a row chose."""
    return int(step.action.view(len(step.action), -1)[row, tensor])


def legal_for(agent, step, row, tensor=0):
    """The legal choices of a tensor at a row's decision."""
    legal = agent.arrangement.legal[int(step.decision[row])]
    return legal.view(-1, legal.shape[-1])[tensor].nonzero().flatten().tolist()


def seen_by(agent, observation, row):
    """What an approximator of two layers sees of a row: concat(v, price, one-hot t), 1 for t where it has one task."""
    seen = [observation["activation"][row]]
    if agent.arrangement.price:
        seen.append(observation["price"][row])
    one_task = agent.config.arrangement == "per_task"
    return torch.cat([*seen, torch.ones(1) if one_task else torch.eye(agent.num_tasks)[int(observation["task"][row])]])


def scores_of(agent, step, row, scores=None, tensor=0):
    """The scores of one tensor of a row, by hand; of what is legal."""
    observation, depth = step.observation, int(step.decision[row])
    scores = agent.scores if scores is None else scores
    who = who_decides(agent, step, row)
    if agent.config.representation == "table":
        numbers = scores.table[who, depth].flatten()
    else:
        which = who * agent.arrangement.num_rows + depth
        x = seen_by(agent, observation, row)
        h = (x @ scores.hidden.weight[which] + scores.hidden.bias[which]).clamp(min=0)
        numbers = h @ scores.output.weight[which] + scores.output.bias[which]
    if scores is not agent.scores:
        return numbers
    return numbers[[tensor * agent.arrangement.num_choices + choice for choice in legal_for(agent, step, row, tensor)]]


def policies_of(agent, steps, row):
    """For each step the policies of the tensors of a row that chose, by hand.

    Each as the log-probabilities of what is legal, with graph, and the place among them of what was chosen.
    """
    return [
        [
            (
                scores_of(agent, step, row, tensor=tensor).log_softmax(-1),
                legal_for(agent, step, row, tensor).index(choice_of(step, row, tensor)),
            )
            for tensor in tensors
        ]
        for step, tensors in zip(steps, choosers(agent, steps, row), strict=True)
    ]


def assert_descends_by(agent, loss_by_hand, learn):
    """Hold the gradient of every step that `learn` takes against that of a loss worked by hand; gives their number."""
    descend, taken = agent.descend, []
    parameters = [parameter for group in agent.optimizer.param_groups for parameter in group["params"]]
    networks = [part.hidden for part in agent.modules() if getattr(part, "hidden", None) is not None]
    hidden = {id(parameter) for network in networks for parameter in network.parameters()}

    def watching(loss):
        gradients = torch.autograd.grad(loss_by_hand(), parameters, allow_unused=True)
        descend(loss)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            expected = torch.zeros_like(parameter) if gradient is None else gradient
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            wrong = ~torch.isclose(found, expected, rtol=1e-3, atol=2e-6)
            # A hidden unit may lie at the kink of its ReLU in some row: a few seeds in ten thousand.
            assert len(wrong.nonzero()[:, -1].unique()) <= (id(parameter) in hidden)
        taken.append(loss)

    agent.descend = watching
    learn()
    agent.descend = descend
    return len(taken)


def rows_of(trajectory, rows):
    """Episodes of some rows, `(r,)` int64, of a trajectory without a graph."""

    def own(value):
        if isinstance(value, torch.Tensor):
            return value[rows]
        return {key: own(part) for key, part in value.items()} if isinstance(value, Mapping) else value

    steps = [type(step)(**{key: own(value) for key, value in vars(step).items()}) for step in trajectory.steps]
    parts = {key: own(value) for key, value in vars(trajectory).items() if key not in ("steps", "exits")}
    return type(trajectory)(steps=steps, exits=[], **parts)


def watched_trials(agent):
    """All that an agent will try, batch by batch: episodes of the first route of every instance, of the second, ..."""
    batches, of = [], agent._trials.of

    def watching(*arguments):
        tried, times = of(*arguments), agent._trials.times
        batches.append([rows_of(tried, torch.arange(number, len(tried), times)) for number in range(times)])
        return tried

    agent._trials.of = watching
    return batches
