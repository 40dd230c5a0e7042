"""Agents that diverge, and rewards that are no numbers, are named; the blocks are not led astray by them."""

from contextlib import suppress

import gymnasium
import pytest
import torch

from routing_gym.agents import AGENTS, Agent, agent_class, make_agent, needs
from routing_gym.envs import TrainingDivergedError
from routing_gym.envs.rewards import REWARDS, RewardTerm

RATES = ("policy_rate", "learning_rate")
EXITS = {"network": "pyramid-chain", "columns": 2, "width": 4, "num_blocks": None}
SKIPS = {"network": "resnet32-skip", "stages": [1, 1, 1], "width": 4, "num_blocks": None}
NETWORK = {
    **dict.fromkeys(("actor", "pragmatic-critic", "optimistic-critic"), EXITS),
    "codinet": {**SKIPS, "shift": 1},
    "mixture-of-depths": SKIPS,
    **dict.fromkeys(("cross-connection", "cross-prediction"), {"network": "basecnn-2-cc", "width": 4}),
}


def make(name="random", **options):
    options = {"num_tasks": 2, "num_blocks": 2, **needs(name), **NETWORK.get(name, {}), **options}
    options["autoreset_mode"] = "disabled"
    return gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=64, **options).unwrapped


def diverging():
    for name, cls in AGENTS.items():
        options = cls.Config.__dataclass_fields__
        rate = next((option for option in RATES if option in options), None)
        if rate is not None and not name.startswith("sb3:"):
            for form in ("table", "mlp") if "representation" in options else (None,):
                with suppress(ValueError):  # some have but one
                    cls.Config(**({} if form is None else {"representation": form}))
                    yield name, rate, form


@pytest.mark.parametrize(("name", "rate", "representation"), list(diverging()))
def test_agents_with_a_rate_far_too_high_are_named_or_go_on(name, rate, representation):
    env = make(name)
    options = {} if representation is None else {"representation": representation}
    if name in ("q-learning", "sarsa") and representation == "table":
        with pytest.raises(ValueError, match="must lie in"):
            make_agent(name, env, **options, **{rate: 1e30})
        return
    agent = make_agent(name, env, **options, **{rate: 1e30})
    try:
        agent.learn(env, episodes=640)
    except TrainingDivergedError as error:
        assert repr(name) in str(error)
    assert all(parameter.isfinite().all() for parameter in env.network.parameters())


@pytest.mark.parametrize("name", ["reinforce", "q-learning", "wpl", "gumbel", "top-k", "random", "cross-stitch"])
@pytest.mark.parametrize("representation", ["table", "mlp"])
def test_blocks_with_a_rate_far_too_high_are_said_to_have_diverged(name, representation):
    env = make(name, learning_rate=1e30)
    options = (
        {"representation": representation} if "representation" in agent_class(name).Config.__dataclass_fields__ else {}
    )
    with pytest.raises(TrainingDivergedError, match=f"agent '{name}', batch [234]: "):
        make_agent(name, env, **options).learn(env, episodes=640)


def test_what_is_no_number_any_more_is_named():
    env = make("wpl")
    agent = make_agent("wpl", env)
    agent._average[0, 1, 0, 1] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"agent 'wpl'.*after 64 episodes _(average|table) is not finite"):
        agent.learn(env, episodes=640)


def test_infinity_may_stand_in_a_buffer():
    env = make("random")
    agent = make_agent("random", env)
    agent.register_buffer("best", torch.full((3,), -torch.inf))
    agent.learn(env, episodes=64)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_reward_that_is_no_number_is_found_before_anything_learns(monkeypatch, value):
    odd = RewardTerm("odd", lambda loss: torch.full_like(loss, value), "exit", ("loss",))
    monkeypatch.setitem(REWARDS, "odd", odd)  # forgotten afterwards
    env = make("reinforce", final_reward="odd")
    agent = make_agent("reinforce", env)
    before = [tensor.clone() for module in (agent, env.network) for tensor in module.state_dict().values()]
    with pytest.raises(TrainingDivergedError, match=r"agent 'reinforce', batch 1: reward 'odd' is not finite"):
        agent.learn(env, episodes=64)
    after = [tensor for module in (agent, env.network) for tensor in module.state_dict().values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_diverged_agent_of_ones_own_is_named_by_its_class():
    class Odd(Agent):
        def act(self, observation, context):
            return observation["task"] % 2

        def update(self, trajectory):
            self.value += trajectory.reward().mean() * torch.nan

    env = make()
    agent = Odd(env)
    agent.register_buffer("value", torch.zeros(2))
    with pytest.raises(TrainingDivergedError, match="agent 'Odd': after 64 episodes value is not finite"):
        agent.learn(env, episodes=640)
    assert agent_class("random") is AGENTS["random"]
