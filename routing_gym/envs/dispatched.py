"""A game of two moves: a PettingZoo dispatcher picks the agent that routes an instance through the network."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from routing_gym.envs.make import make_routing_vector_env
from routing_gym.envs.parallel import ENDED, TOLD, ManyAgents, outside_core, plain
from routing_gym.envs.spaces import for_sampling, to_numpy, with_mask
from routing_gym.envs.vector import RoutingVectorEnv, core_of
from routing_gym.tasks.checking import whole_number

try:
    from pettingzoo import AECEnv
except ImportError as error:
    raise ImportError("PettingZoo is not installed: pip install 'routing_gym[pettingzoo]'") from error

DISPATCHER = "dispatcher"


class RoutingAECEnv(ManyAgents, AECEnv[str, dict[str, Any], Any]):
    """One instance: the dispatcher looks at it and picks an agent, which then routes it to its exit.

    ## Description
    The dispatched arrangement of Rosenbaum et al. (2018) as a game of agents that take turns. The agents are
    `dispatcher` and `agent_0`, `agent_1`, …; those that were not picked have no turn. All else is as in
    `RoutingVectorEnv`.

    ## Action Space
    Of the dispatcher `Discrete(num_agents)`: who routes the instance. Of the others as in `RoutingVectorEnv`.

    ## Observation Space
    As in `RoutingParallelEnv`. To the dispatcher every agent is legal.

    ## Rewards
    The agent that routes gets the reward of each of its actions and the final one; the dispatcher gets their sum at the
    end.

    ## Starting State
    One instance, drawn as in `RoutingVectorEnv`.

    ## Episode End
    All agents are `terminated` when the instance has left the network.

    ## Arguments
    `env`, as of `RoutingParallelEnv`; `num_agents`, the agents the dispatcher picks from, one per task by default.
    `pettingzoo.make("aec", id)` builds both.

    ## Version History
    * v0: first version.

    Attributes:
        core: The vector environment, of one row.

    Raises:
        ValueError: An environment whose actions are weights, or `num_agents` below 1.
    """

    metadata: dict[str, Any] = {**RoutingVectorEnv.metadata, "name": "routing_gym_dispatched_v0"}

    def __init__(self, env: Any, num_agents: int | None = None) -> None:
        super().__init__()
        count = core_of(env).dataset.num_tasks if num_agents is None else whole_number("num_agents", num_agents)
        self.core = outside_core(env, 1)
        self.render_mode = self.core.render_mode
        self.possible_agents = [DISPATCHER, *(f"agent_{number}" for number in range(count))]
        self.agents: list[str] = []
        observed, acted = self.core.single_observation_space, self.core.single_action_space
        picking = spaces.Discrete(count)
        routing = with_mask(observed, acted, self.core.network.num_choices)
        # To every agent its own, so that each can be seeded.
        self.action_spaces = {agent: copy.deepcopy(acted) for agent in self.possible_agents} | {DISPATCHER: picking}
        self.observation_spaces = {agent: copy.deepcopy(routing) for agent in self.possible_agents}
        self.observation_spaces[DISPATCHER] = with_mask(observed, picking, count)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Draw an instance, the order started over from `seed`, for the dispatcher; there are no options."""
        observation, infos = self.core.reset(seed=seed)
        self.agents = list(self.possible_agents)
        self.agent_selection = DISPATCHER
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0.0) for _ in range(2))
        self._sum = 0.0
        self._note(observation, infos)

    def _note(self, observation: dict[str, Any], infos: dict[str, Any]) -> None:
        """Keep observation and infos."""
        ended = ENDED if "loss" in infos else ()
        known = {key: value[0] for key, value in to_numpy(infos).items() if key in (*TOLD, *ended)}
        self._seen = {key: value[0] for key, value in to_numpy(observation).items()}
        self._mask = for_sampling(known.pop("action_mask"))
        told = {key: plain(value) for key, value in known.items()}
        self.infos = {agent: {"action_mask": self._mask_of(agent), **told} for agent in self.agents}

    def _mask_of(self, agent: str) -> Any:
        return self._mask if agent != DISPATCHER else np.ones(len(self.possible_agents) - 1, dtype=np.int8)

    def observe(self, agent: str) -> dict[str, Any]:
        """Observation of an agent: the instance as it is now."""
        return {"observation": dict(self._seen), "action_mask": self._mask_of(agent)}

    def step(self, action: Any) -> None:
        """Carry out the action of `agent_selection`.

        Raises:
            ValueError: The action is not allowed. Nothing has changed then.
            ResetNeeded: Before the first reset, or when all agents have left.
        """
        if not self.agents:
            raise ResetNeeded("no agent is in the game: call reset()")
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        if agent == DISPATCHER:
            number, count = np.asarray(action), len(self.possible_agents) - 1
            if number.shape != () or not np.issubdtype(number.dtype, np.integer) or not 0 <= number < count:
                raise ValueError(f"the dispatcher picks an integer in [0, {count}), got {action!r}")
            self._begin_turn(agent)
            self.agent_selection = f"agent_{number}"
            return
        observation, reward, left, _, infos = self.core.step(np.asarray(action)[None])
        self._begin_turn(agent)
        self.rewards[agent] = float(reward[0])
        self._sum += self.rewards[agent]
        if bool(left[0]):
            self.rewards[DISPATCHER] = self._sum
            self.terminations = dict.fromkeys(self.agents, True)
        self._note(observation, infos)
        self._accumulate_rewards()

    def _begin_turn(self, agent: str) -> None:
        """Forget the agent's rewards so far, and those of the last turn."""
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()


def make_routing_aec_env(*, num_agents: int | None = None, **options: Any) -> RoutingAECEnv:
    """Build the dispatched game; options as in `make_routing_vector_env`."""
    return RoutingAECEnv(make_routing_vector_env(num_envs=1, **options), num_agents)
