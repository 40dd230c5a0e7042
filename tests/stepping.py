"""Parts of what environments do, for tests that look inside: one decision of every row, the loss of a batch."""

import dataclasses

import gymnasium
import torch

import routing_gym
from routing_gym.agents import Agent, extract, make_agent, prune
from routing_gym.networks import accept


def step(network, state, action):
    """Carry every row on by an action; exits pile up from step to step."""
    after = network.advance(state, accept(network, state, action).action)
    return dataclasses.replace(after, exits=state.exits + after.exits)


def started(network, images, task=None):
    """State at the first decision of images of some tasks, task 0 unless said."""
    return network.start(images, torch.zeros(len(images), dtype=torch.int64) if task is None else task)


def routed(network, images, actions, task=None):
    """State after an action at each decision in turn, or at the first of them; images as of `started`."""
    state = started(network, images, task)
    for action in actions:
        state = step(network, state, action)
    return state


def walked(network, state, choose):
    """State in which all rows have left; `choose(state)` gives the action."""
    while bool(state.active.any()):
        state = step(network, state, choose(state))
    return state


def outcome(network, state):
    """Logits `(B, classes)` of each row, weighted over its exits, and the sum of the weights `(B,)`."""
    logits, total = torch.zeros(len(state), network.num_classes), torch.zeros(len(state))
    for exit in state.exits:
        rows = torch.arange(len(state)) if exit.rows is None else exit.rows
        logits = logits.index_add(0, rows, exit.logits * exit.weight[:, None])
        total = total.index_add(0, rows, exit.weight)
    return logits, total


def check_owners(network, images, task, plan):
    """Parameters of a choice have a gradient where it was taken, `plan (B, N)`, and what belongs to none has one."""
    routed(network, images, plan.unbind(1), task).exits[0].logits.square().sum().backward()
    owned = set()
    for number, decision in enumerate(network.decisions):
        for choice in range(decision.n):
            parts = network.parameters_of(number, choice)
            owned |= {id(part.parameter) for part in parts}
            assert all((part.grad is not None) == bool((plan[:, number] == choice).any()) for part in parts)
    others = [parameter for parameter in network.parameters() if id(parameter) not in owned]
    assert others and all(parameter.grad is not None for parameter in others)


def changed_by(agent, env, episodes):
    """Names of the network's parameters that training an agent changes."""
    before = {key: value.clone() for key, value in env.unwrapped.network.named_parameters()}
    make_agent(agent, env).learn(env, episodes=episodes)
    return {key for key, value in env.unwrapped.network.named_parameters() if not torch.equal(value, before[key])}


def check_what_is_left(agent, env, folder):
    """An agent pruned, saved, and loaded into an environment made of the options that are kept; the pruned one."""
    pruned = prune(agent)
    pruned.save(folder / "small.pt")
    again = gymnasium.make_vec(pruned.env.spec)
    assert again.unwrapped.network.experts == pruned.env.network.experts
    loaded = Agent.load(folder / "small.pt", again)
    before, after = routing_gym.evaluate(agent, env), routing_gym.evaluate(loaded, again)
    assert (before.accuracy, before.macs) == (after.accuracy, after.macs)
    return pruned, loaded


def check_export(agent, env, task):
    """The plain network of a task's route, which a program exported from it equals."""
    images, static = env.unwrapped.datasets["test"].images[:3], extract(agent, task)
    program = torch.export.export(static, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images), static(images))
    return static


def block_loss(env):
    """The loss that `env.train_blocks` takes a step on, with graph."""
    return env.trainer.optimization.loss(env.batch.exits, env.batch.label, env.batch.state.task)


def small_env(num_envs=32, **options):
    """Vector environment of three tasks that call the same images by other names."""
    defaults = {"num_tasks": 3, "num_classes": 3, "image_size": 3, "images_per_class": 30, "width": 16, "noise": 10.0}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=num_envs, **{**defaults, **options})
