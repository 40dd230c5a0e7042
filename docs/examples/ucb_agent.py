"""An agent: upper confidence bounds (Auer et al. 2002), one bandit for every task and decision.

routing-gym compare --plugin docs/examples/ucb_agent.py --agents ucb wpl random-fixed
"""

import torch

from routing_gym.agents import Agent, register_agent


class UCB(Agent):
    """Takes the choice that could be best, given how often it was tried."""

    def __init__(self, env, config=None):
        super().__init__(env, config)
        shape = self.num_tasks, self.num_decisions + 1, self.num_choices
        self.register_buffer("tried", torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))

    def act(self, observation, context):
        cell = observation["task"], observation["depth"]
        tried, bound = self.tried[cell], self.mean[cell]
        if not context.deterministic:
            bound = bound + (0.02 * tried.sum(-1, keepdim=True).clamp(min=1).log() / tried.clamp(min=1)).sqrt()
            bound = torch.where(tried > 0, bound, 10 + torch.rand(bound.shape, generator=self.generator))
        return bound.masked_fill(~context.mask, -torch.inf).argmax(-1)

    def update(self, trajectory):
        for step in trajectory.steps:
            cell = trajectory.task, step.decision, step.action
            self.tried.mul_(0.999).index_put_(cell, torch.ones(len(trajectory)), accumulate=True)
            gain = (trajectory.final_reward - self.mean[cell]) / self.tried[cell]
            self.mean.index_put_(cell, gain, accumulate=True)


register_agent("ucb", UCB)
