"""Two games for PettingZoo: agents that route side by side through shared blocks, and a dispatcher that picks one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.seeding import np_random
from gymnasium.vector.utils import batch_space

from routing_gym.envs.make import make_routing_vector_env
from routing_gym.envs.single import for_sampling, to_numpy
from routing_gym.envs.vector import RoutingVectorEnv, core_of
from routing_gym.tasks import ShuffledStream
from routing_gym.tasks.checking import seed_number, whole_number

try:
    from pettingzoo import AECEnv, ParallelEnv
except ImportError as error:
    raise ImportError("PettingZoo is not installed: pip install 'routing_gym[pettingzoo]'") from error

DISPATCHER = "dispatcher"
TOLD = ("illegal_action", "loss", "correct", "macs", "label", "final_reward")
"""Infos besides the mask; all but the first are of instances that have left."""


def with_mask(observed: spaces.Space, acted: spaces.Space, num_choices: int) -> spaces.Dict:
    """`Dict(observation, action_mask)`, PettingZoo's form of a masked observation."""
    mask: spaces.Space = spaces.Box(0, 1, (num_choices,), np.int8)
    for size in reversed(acted.shape or ()):
        mask = spaces.Tuple([mask] * size)
    return spaces.Dict(observation=observed, action_mask=mask)


def plain(value: np.ndarray | np.generic) -> Any:
    """A number as a Python number, and an array as it is."""
    return value if value.ndim else value.item()


class ManyAgents:
    """Common part of PettingZoo's two kinds of games."""

    def _take(self, env: Any, num_envs: int, agents: list[str]) -> None:
        """Make a core for agents that choose; it waits with finished rows until it is reset."""
        core = core_of(env)
        if core.config.action_type != "discrete":
            raise ValueError(f"this face is for action_type='discrete', got {core.config.action_type!r}")
        self.core = core.sibling(num_envs, autoreset_mode="disabled", replay=True)
        self.render_mode = self.core.render_mode
        self.possible_agents, self.agents = agents, list[str]()

    def _set_spaces(self, observed: Space, acted: Space) -> None:
        """Give every agent spaces of its own, so that each can be seeded."""
        seen = with_mask(observed, acted, self.core.network.num_choices)
        self.observation_spaces: dict[str, Space] = {agent: copy.deepcopy(seen) for agent in self.possible_agents}
        self.action_spaces: dict[str, Space] = {agent: copy.deepcopy(acted) for agent in self.possible_agents}

    def _told(self, infos: dict[str, Any], ended: bool) -> dict[str, Any]:
        """Infos of an agent: the mask in the form `sample` takes, numbers as Python's."""
        told = {name: plain(infos[name]) for name in (TOLD if ended else TOLD[:1]) if name in infos}
        return {"action_mask": for_sampling(infos["action_mask"]), **told}

    def observation_space(self, agent: str) -> Space:
        """Observation space of an agent."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Space:
        """Action space of an agent."""
        return self.action_spaces[agent]

    def render(self) -> Any:
        """Routes, a line for each instance (`"ansi"`), or the routing map so far (`"rgb_array"`)."""
        frames = self.core.render()
        return frames if frames is None else frames[0] if self.core.render_mode == "rgb_array" else "\n".join(frames)

    def close(self) -> None:
        """Nothing is left open."""


class RoutingParallelEnv(ManyAgents, ParallelEnv[str, dict[str, Any], Any]):
    """A stochastic game: the agents are the tasks, and each routes instances of its own through the same blocks.

    ## Description
    A round begins with an instance of its task for every agent. All agents decide at once; an agent leaves the game
    when its instance has left the network, and `reset` begins the next round. Finished routes are replayed to train the
    blocks, so that every agent changes the game of the others. All else is as in `RoutingVectorEnv`.

    ## Action Space
    Of every agent `Discrete(A)`, `MultiDiscrete` where M > 1 tensors choose; of n instances `MultiDiscrete([A] * n)`.

    ## Observation Space
    Of every agent `Dict(observation=Dict(activation, task, depth), action_mask=Box(0, 1, (A,), int8))`. The mask is in
    the info as well, in the form `action_space(agent).sample` takes: where many choices are one action, a tuple of
    masks.

    ## Rewards
    As in `RoutingVectorEnv`; of n instances an `(n,)` array.

    ## Starting State
    Each agent draws instances of its task, without repetition until all have been drawn.

    ## Episode End
    An agent is `terminated` when its instance, or the last of its n, has left the network. Its info then holds what
    `RoutingVectorEnv` tells of instances that have left.

    ## Arguments
    `env`, an environment of routing_gym or a face of one, whose network, data and options are taken (the blocks'
    optimiser is this face's own); `instances_per_agent`, n: observations, actions and rewards then have a leading axis,
    even for n = 1. `pettingzoo.make("parallel", id)` builds both.

    ## Version History
    * v0: first version.

    Attributes:
        core: The vector environment: one row per instance, those of the first agent first.

    Raises:
        ValueError: An environment whose actions are weights, `instances_per_agent` below 1, or data of which some may
            be drawn during a part of training only.
    """

    metadata: dict[str, Any] = {**RoutingVectorEnv.metadata, "name": "routing_gym_parallel_v0"}

    def __init__(self, env: Any, instances_per_agent: int | None = None) -> None:
        self._count: tuple[int, ...] = ()
        if instances_per_agent is not None:
            self._count = (whole_number("instances_per_agent", instances_per_agent),)
        config, dataset = core_of(env).config, core_of(env).dataset
        tasks = range(dataset.num_tasks) if config.draw_tasks is None else sorted(set(config.draw_tasks))
        self._take(env, len(tasks) * (instances_per_agent or 1), [f"task_{task}" for task in tasks])
        if dataset.during is not None:
            raise ValueError(f"instances of {dataset.name} come and go, here every task always has one of its own")
        task_of = dataset.task.cpu()
        self._streams = [ShuffledStream((task_of == task).nonzero().flatten()) for task in tasks]
        self._seed(config.seed)
        observed, acted = self.core.single_observation_space, self.core.single_action_space
        for count in self._count:
            # Gymnasium's batch_space would make a Box of a MultiDiscrete, whose `sample` takes no mask.
            acted = spaces.MultiDiscrete(np.full((count, *(acted.shape or ())), self.core.network.num_choices))
            observed = batch_space(observed, count)
        self._set_spaces(observed, acted)

    def _seed(self, seed: int) -> None:
        """Give every task an order of its own: with equal ones, the same images would always meet."""
        generator = torch.Generator().manual_seed(seed_number("seed", seed))
        for stream in self._streams:
            stream.seed(int(torch.randint(2**31, (), generator=generator, device="cpu")))

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Begin a round with new instances, their order started over from `seed`; there are no options."""
        if seed is not None:
            np_random(seed)  # refuses what the environment would, before anything has changed
            self._seed(seed)
        instances = torch.cat([stream.draw(self.core.num_envs // len(self._streams)) for stream in self._streams])
        observation, infos = self.core.reset(seed=seed, options={"instances": instances})
        self.agents = list(self.possible_agents)
        return self._shared_out(observation, infos, dict.fromkeys(self.agents, False))

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Take one decision for every agent in the game; actions of agents that have left are ignored.

        Raises:
            ValueError: An agent is missing or unknown, or an action is not allowed. Nothing has changed then.
            ResetNeeded: Before the first reset, or when all agents have left.
        """
        if not self.agents:
            raise ResetNeeded("no agent is in the game: call reset()")
        playing = self.agents
        if not isinstance(actions, Mapping):
            raise ValueError(f"expected a mapping from agents to actions, got {actions!r}")
        if set(playing) - set(actions) or set(actions) - set(self.possible_agents):
            raise ValueError(f"expected an action of each of {playing}, got {sorted(actions, key=str)}")
        observation, reward, left, _, infos = self.core.step(self._joined(actions))
        outcome = self._by_agent({"reward": reward, "left": left})
        terminations = {agent: bool(outcome[agent]["left"].all()) for agent in playing}
        observations, told = self._shared_out(observation, infos, terminations)
        self.agents = [agent for agent in playing if not terminations[agent]]
        rewards = {agent: plain(outcome[agent]["reward"]) for agent in playing}
        return observations, rewards, terminations, dict.fromkeys(playing, False), told

    def _joined(self, actions: Mapping[str, Any]) -> np.ndarray:
        """Actions of all agents as one of the core; for those that have left any choice will do."""
        form = self.core.single_action_space.shape or ()
        joint = np.zeros((len(self.possible_agents), *self._count, *form), dtype=np.int64)
        for number, agent in enumerate(self.possible_agents):
            if agent in self.agents:
                action = np.asarray(actions[agent])
                if action.shape != joint.shape[1:] or not np.issubdtype(action.dtype, np.integer):
                    raise ValueError(f"{agent}: expected integers of shape {joint.shape[1:]}, got {actions[agent]!r}")
                joint[number] = action
        return joint.reshape(-1, *form)

    def _by_agent(self, batch: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Share the rows of a batch out among the agents in the game."""
        form = (len(self.possible_agents), *self._count)
        rows = {key: value.reshape(*form, *value.shape[1:]) for key, value in to_numpy(dict(batch)).items()}
        return {
            agent: {key: value[number] for key, value in rows.items()}
            for number, agent in enumerate(self.possible_agents)
            if agent in self.agents
        }

    def _shared_out(
        self, observation: Mapping[str, Any], infos: Mapping[str, Any], terminations: Mapping[str, bool]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Observations and infos of each agent in the game."""
        known = self._by_agent({key: value for key, value in infos.items() if key in ("action_mask", *TOLD)})
        seen = self._by_agent(observation)
        told = {agent: self._told(known[agent], terminations[agent]) for agent in self.agents}
        masks = {agent: told[agent]["action_mask"] for agent in self.agents}
        return {agent: {"observation": seen[agent], "action_mask": masks[agent]} for agent in self.agents}, told


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

    ## Episode End
    All agents are `terminated` when the instance has left the network.

    ## Arguments
    `env`, as of `RoutingParallelEnv`; `num_agents`, whom the dispatcher picks from, 1 or more, by default one per task.
    `pettingzoo.make("aec", id)` builds both.

    ## Version History
    * v0: first version.

    Attributes:
        core: The vector environment, of one row.
    """

    metadata: dict[str, Any] = {**RoutingVectorEnv.metadata, "name": "routing_gym_dispatched_v0"}

    def __init__(self, env: Any, num_agents: int | None = None) -> None:
        super().__init__()
        count = core_of(env).dataset.num_tasks if num_agents is None else whole_number("num_agents", num_agents)
        self._take(env, 1, [DISPATCHER, *(f"agent_{number}" for number in range(count))])
        observed = self.core.single_observation_space
        self._set_spaces(observed, self.core.single_action_space)
        self.action_spaces[DISPATCHER] = spaces.Discrete(count)
        self.observation_spaces[DISPATCHER] = with_mask(observed, self.action_spaces[DISPATCHER], count)

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
        self._seen = {key: value[0] for key, value in to_numpy(observation).items()}
        told = self._told({key: value[0] for key, value in to_numpy(infos).items()}, ended=True)
        self._masks = dict.fromkeys(self.possible_agents, told["action_mask"])
        self._masks[DISPATCHER] = np.ones(len(self.possible_agents) - 1, dtype=np.int8)
        self.infos = {agent: {**told, "action_mask": self._masks[agent]} for agent in self.agents}

    def observe(self, agent: str) -> dict[str, Any]:
        """Observation of an agent: the instance as it is now."""
        return {"observation": dict(self._seen), "action_mask": self._masks[agent]}

    def step(self, action: Any) -> None:
        """Carry out the action of `agent_selection`; where one is refused nothing has changed."""
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


def make_routing_parallel_env(*, instances_per_agent: int | None = None, **options: Any) -> RoutingParallelEnv:
    """Build the stochastic game; options as in `make_routing_vector_env`."""
    return RoutingParallelEnv(
        _vector_env("instances_per_agent=n gives every agent n instances", options), instances_per_agent
    )


def make_routing_aec_env(*, num_agents: int | None = None, **options: Any) -> RoutingAECEnv:
    """Build the dispatched game; options as in `make_routing_vector_env`."""
    return RoutingAECEnv(
        _vector_env("one instance is routed at a time; num_agents=n says among how many", options), num_agents
    )


def _vector_env(instead: str, options: dict[str, Any]) -> RoutingVectorEnv:
    """Environment whose network, data and options a game takes; how many instances it routes is the game's affair."""
    if "num_envs" in options:
        raise TypeError(f"a game of PettingZoo got an unexpected keyword argument 'num_envs': {instead}")
    return make_routing_vector_env(num_envs=1, **options)
