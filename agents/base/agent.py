"""The base class of agents: two short methods to implement, and all that is inherited."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from routing_gym.agents.base.checkpoint import form_of, origin_of, read, warn_of_unsaved, write
from routing_gym.agents.base.learning import Report, learn
from routing_gym.agents.parts.draws import OfRanks
from routing_gym.agents.parts.scores import legal_rows
from routing_gym.agents.trained.classify import classify
from routing_gym.blocks import construction, eval_mode
from routing_gym.envs import PRICED_MACS, Context, Known, Observation, RoutingVectorEnv, Trajectory, core_of, is_price
from routing_gym.envs.turns import is_single
from routing_gym.forms import check_form, check_optimizer
from routing_gym.networks import Action
from routing_gym.networks.actions import of_one_tensor
from routing_gym.options import Options, check_types, plain_value, type_hints
from routing_gym.tasks.checking import integer_tensor, seed_number, to_tensor

ASK_NEEDS = "make_vec(id, num_envs=..., **needs({!r})) gives an agent all it needs"


@dataclasses.dataclass(frozen=True)
class AgentConfig(Options):
    """Options every agent has.

    Attributes:
        seed: Seed of the agent's own random choices.
    """

    seed: int = 0

    @classmethod
    def owner(cls) -> str:
        """Beginning of messages: whose options these are."""
        return f"{cls.__name__.removesuffix('Config')}: "


class Agent(nn.Module, ABC):
    """Decides the way of every instance, and learns from it.

    A subclass implements `act` and, if it learns, `update`; one `register_agent` call gives it a name, under which
    `make_agent`, checkpoints and, in a process that has made the call, every command know it. Buffers and parameters
    are moved to the environment's device by `make_agent`.

    Attributes:
        Config: The dataclass of its options, `config`.
        name: The name it was made by.
        action_type: `"discrete"`, choices, or `"weights"`.
        needs_gradients: Its parameters are trained by the backward pass of the blocks (Gumbel gates, mixtures); it
            must then have an `optimizer`.
        max_tensors: The most tensors per decision it can choose for: 1, without an axis M; or None for any number.
        by_task: Whether what it does with a task depends on instances of that task alone, so that several such agents
            can learn side by side (`Population`). Every class says so itself: it is not inherited.
        capturable: Whether a batch does the same on the device whatever has been learned, and nothing on the host that
            goes with time: then it can be captured as a CUDA graph (`capture=True`). Every class says so itself.
        uses_rewards: Whether `update` looks at rewards, so that all must be known; None: if it is overridden at all.
        exportable: Whether what it decides is computed of tensors alone, see `extract`.
        env_kwargs: Options the environment must have been made with, `{"differentiable": True}` say.
        env: The vector environment it was made for.
        generator: Random numbers on the environment's device.
        optimizer: Steps together with the blocks' where `needs_gradients`.
        episodes: Instances routed while learning.
        carried: Instances by which `passes` is ahead of `episodes`: where tasks are added the split grows, and those
            routed before amount to as many passes as they did (`add_task`).

    Raises:
        ValueError: The environment is not one this agent can route, said by name.
    """

    Config: ClassVar[type[AgentConfig]] = AgentConfig
    action_type: ClassVar[str] = "discrete"
    needs_gradients: bool = False
    max_tensors: ClassVar[int | None] = 1
    by_task: ClassVar[bool] = False
    capturable: ClassVar[bool] = False
    uses_rewards: ClassVar[bool | None] = None
    exportable: ClassVar[bool] = True
    env_kwargs: ClassVar[Mapping[str, Any]] = {}

    name: str = ""

    def __init__(self, env: Any, config: AgentConfig | None = None) -> None:
        super().__init__()
        self.env: RoutingVectorEnv = core_of(env)
        self.config = self.Config() if config is None else config
        if not isinstance(self.config, self.Config):
            raise ValueError(f"{type(self).__name__} takes a {self.Config.__name__}, got {self.config!r}")
        self._check_env()
        network = self.env.network
        self.num_tasks = self.env.dataset.num_tasks
        self.num_decisions = len(network.decisions)
        self.num_choices, self.num_tensors = network.num_choices, network.num_tensors
        shared = self.env.ranks.count > 1
        generator = OfRanks(self.env.device, self.env.ranks) if shared else torch.Generator(self.env.device)
        self.generator = generator.manual_seed(seed_number("seed", self.config.seed))
        self.optimizer: torch.optim.Optimizer | None = None
        self.episodes = self.carried = 0
        # Whether the collaboration reward needs the probabilities that only this agent knows.
        self.shares_wanted = self.env.rewards.of_probabilities

    def _check_env(self) -> None:
        name, network, config = self.name or type(self).__name__, self.env.network, self.env.config
        if config.action_type != self.action_type:
            raise ValueError(
                f"agent {name!r} acts by {self.action_type}; make the environment with action_type="
                f"{self.action_type!r}, got {config.action_type!r}: {ASK_NEEDS.format(name)}"
            )
        if self.max_tensors is not None and network.num_tensors > self.max_tensors:
            raise ValueError(
                f"agent {name!r} chooses for {self.max_tensors} tensor per decision, this network has up to "
                f"{network.num_tensors}"
            )
        made = {**({} if self.env.spec is None else self.env.spec.kwargs), **dataclasses.asdict(config)}
        for option, value in self.env_kwargs.items():
            got = made.get(option, getattr(network, option, None))
            if not self.fits(option, got):
                wanted = f"agent {name!r} needs an environment made with {option}={value!r}, got {got!r}"
                raise ValueError(f"{wanted}: {ASK_NEEDS.format(name)}")

    def in_one_process(self, why: str) -> None:
        """Refuse to share batches with other processes."""
        if self.env.ranks.count > 1:
            raise ValueError(f"agent {self.name!r} {why}: it trains in one process")

    def fits(self, option: str, value: Any) -> bool:
        """Whether an option of `env_kwargs` may have a value; by default only the one that is named there."""
        return value == self.env_kwargs[option]

    @abstractmethod
    def act(self, observation: Observation, context: Context) -> Action:
        """Choices `(B,)` int64, or weights `(B, A)`; where `max_tensors` is None `(B, M)` or `(B, M, A)`.

        The context says which rows are active, which choices are legal, whether to take the best action; what stands in
        `context.carry` and `context.record` is kept.
        """

    def plan(self, task: Tensor, deterministic: bool) -> Tensor | tuple[Tensor, Tensor] | None:
        """Routes `(B, N)` int64, `(B, N, M)` where `max_tensors` is None, if they depend on nothing but the task.

        Much faster than `act` at every decision, because no activation is observed. By default None: `act` is asked.
        Hard gates give a pair, routes and ones `(B, N)` with a graph, which every chosen block's output is weighed by.
        """
        return None

    def for_many(self, env: RoutingVectorEnv) -> Agent:
        """Agent like this one, for an environment that has the tasks of several one after the other (`Population`).

        All that it learns has the tasks, or so many entries for each, as its first axis.
        """
        return type(self)(env, self.config)

    def noted(self, probabilities: Tensor, context: Context) -> Tensor:
        """Probabilities of choices as they are, recorded where the collaboration reward needs them."""
        if self.shares_wanted:
            context.record["probabilities"] = probabilities.detach()
        return probabilities

    def update(self, trajectory: Trajectory) -> dict[str, Tensor] | None:
        """Learn from a batch of whole episodes; by default nothing. May return metrics, 0-dimensional tensors."""
        return None

    def auxiliary_loss(self, trajectory: Trajectory) -> Tensor | None:
        """Loss to be added to the blocks' before the one backward pass, 0-dimensional; by default None."""
        return None

    def before_step(self, trajectory: Trajectory) -> None:
        """Change gradients before the step of the joint optimiser, where `needs_gradients`; by default nothing."""
        return None

    def macs(self, decision: int) -> float:
        """Multiply-accumulates that the agent itself spends on one decision; 0 for tables."""
        return 0.0

    def policy(self) -> Tensor | None:
        """Probabilities `(T, N, A)` of choices by task and decision; None if they depend on more. Only to be shown."""
        return None

    @property
    def passes(self) -> float:
        """Passes over the split so far."""
        return (self.episodes + self.carried) / self.env.trainer.optimization.epoch

    def receive(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Learn by `update`, once it is certain that the probabilities its rewards need have been recorded."""
        looks = type(self).update is not Agent.update if self.uses_rewards is None else self.uses_rewards
        if self.shares_wanted and looks and not any("probabilities" in step.record for step in trajectory.steps):
            counted = "collaboration='frequency', or with " if self.action_type == "discrete" else ""
            raise ValueError(
                f"agent {self.name!r} records no context.record['probabilities'], which the collaboration reward "
                f"needs: make the environment with {counted}rho=0"
            )
        reported = self.update(trajectory)
        return {} if reported is None else reported

    def learn(self, env: Any, episodes: int, callback: Report | None = None) -> Self:
        """Train agent and blocks together; see `routing_gym.agents.base.learning.learn`."""
        learn(self, env, episodes, callback)
        return self

    def predict(
        self,
        observation: Mapping[str, Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        *,
        k_cpt: float | None = None,
    ) -> tuple[Any, Any]:
        """Action on an observation, and the state for the next call, as Stable-Baselines3's `predict` gives them.

        Args:
            observation: `activation`, `task`, `depth`; of one instance or of a batch, numpy or torch.
            state: What the last call returned: the carried state of each instance, None at the beginning.
            episode_start: `(B,)` bool: instances that begin anew; their carried state is zeroed.
            deterministic: Take the best action.
            k_cpt: What a multiply-accumulate costs now, instead of what the observation says: the higher, the less is
                computed. For agents that see the price (`price=True`).

        Raises:
            ValueError: A part of the observation is missing, has another size or is out of range; or a price for an
                agent that does not see it, or one that is negative.
        """
        if not isinstance(observation, Mapping) or not {"activation", "task", "depth"} <= observation.keys():
            got = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise ValueError(f"an observation has 'activation', 'task' and 'depth' by name, got {got}")
        single, device = np.ndim(observation["depth"]) == 0, self.env.device
        as_tensors = all(isinstance(value, Tensor) for value in observation.values())
        batch = {key: to_tensor(key, value).to(device) for key, value in observation.items()}
        if single:
            batch = {key: value.unsqueeze(0) for key, value in batch.items()}
        for key, value in batch.items():
            whole = key in ("task", "depth")
            batch[key] = integer_tensor(key, value) if whole else value.to(torch.get_default_dtype())
        size, shape = self.env.network.observation_size, batch["activation"].shape
        if len(shape) < 2 or shape[1:].numel() != size:
            raise ValueError(f"activation must hold {size} numbers for each instance, got shape {tuple(shape)}")
        batch["activation"] = batch["activation"].flatten(1)
        if k_cpt is None and self.sees_price:
            if (price := batch.get("price")) is None or price.numel() != shape[0]:
                given = "none" if price is None else f"shape {tuple(price.shape)}"
                raise ValueError(f"price must hold a number for each of {shape[0]} activations, got {given}")
            batch["price"] = price.view(-1, 1)
        if k_cpt is not None:
            batch["price"] = torch.full_like(batch["activation"][:, :1], PRICED_MACS * (self.price_seen(k_cpt) or 0.0))
        for key, most in (("task", self.num_tasks), ("depth", self.num_decisions + 1)):
            numbers, rows = batch[key], len(batch["activation"])
            if numbers.shape != (rows,) or not bool(((numbers >= 0) & (numbers < most)).all()):
                raise ValueError(
                    f"{key} must be one number in [0, {most}) for each of {rows} activations, got {numbers.tolist()}"
                )
        carry, begins = None if state is None else torch.as_tensor(state, device=device), None
        if carry is not None and episode_start is not None:
            begins = torch.as_tensor(episode_start, device=device, dtype=torch.bool).view(-1)
            carry = torch.where(begins.view(-1, *[1] * (carry.ndim - 1)), torch.zeros_like(carry), carry)
        known = Known(batch["depth"] < self.num_decisions, legal_rows(self.env.network.masks)[batch["depth"]])
        of_one = is_single(self, self.env.network)
        context = Context(known, single=of_one, deterministic=deterministic, carry=carry, begins=begins)
        # As while judging: what is predicted depends on no other row, and batch norms do not move.
        with torch.no_grad(), eval_mode(*([self] if self.training else [])):
            action = self.act(batch, context)
        if self.num_tensors == 1 and self.max_tensors is None:
            action = of_one_tensor(action)

        def back(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(back(part) for part in value)
            value = value[0] if single else value
            return value if as_tensors else value.cpu().numpy()

        return back(action), context.carry if context.carry is None or as_tensors else context.carry.cpu().numpy()

    def classify(self, images: Tensor, task: Tensor | None = None, *, k_cpt: float | None = None) -> Tensor:
        """Logits `(B, num_classes)` of images; see `routing_gym.agents.trained.classify.classify`."""
        return classify(self, images, task, k_cpt=k_cpt)

    @property
    def sees_price(self) -> bool:
        """Whether its decisions can depend on the price; by default they do where the environment shows it."""
        return self.env.config.price

    def price_seen(self, k_cpt: float | None) -> float | None:
        """Price that this agent is to act by, checked; None where it sees none."""
        if k_cpt is None and not self.sees_price:
            return None
        if k_cpt is None:
            raise ValueError(
                f"agent {self.name!r} decides by the price: say what a multiply-accumulate costs, k_cpt=..."
            )
        if not self.env.config.price:
            raise ValueError(
                f"agent {self.name!r} was made for an environment without price=True, so k_cpt={k_cpt!r} means nothing "
                "to it: train it with price=True and several k_cpt"
            )
        if not self.sees_price:
            raise ValueError(
                f"agent {self.name!r} decides without looking at the price, so k_cpt={k_cpt!r} means nothing to it: "
                "agents with a router do, and approximators (representation='mlp')"
            )
        k_cpt = plain_value(k_cpt)
        if not is_price(k_cpt):
            raise ValueError(f"agent {self.name!r}: k_cpt must be at least 0 and finite, got {k_cpt!r}")
        return k_cpt

    def save(self, path: str | Path, **extra: Any) -> None:
        """Write agent, blocks, optimisers and random states into one file, whole or not at all.

        `extra` are plain values and tensors to keep beside them; `read(path)["extra"]` gives them back.

        Raises:
            ValueError: The agent's class is not registered, so that no one could load it; or something to be kept is
                neither a tensor nor a plain value.
            WriteError: The file cannot be written; one that was there is still there, whole.
        """
        if AGENTS.get(self.name) is not type(self):
            raise ValueError(
                f"{type(self).__name__} cannot be saved: register_agent(name, {type(self).__name__}) first, so that it "
                "can be found when it is loaded"
            )
        warn_of_unsaved(self, content := self.content())
        write(path, {**content, "extra": extra})

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds, by name, see `save`."""
        return {
            "agent": self.name,
            "config": {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)},
            "episodes": self.episodes,
            "carried": self.carried,
            "agent_state": self.state_dict(),
            "agent_optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "agent_generator": (self.generator.device.type, self.generator.get_state()),
            "env": self.env.state_dict(),
            **origin_of(self.env),
        }

    @classmethod
    @construction()
    def load(cls, path: str | Path, env: Any) -> Self:
        """Read an agent and its blocks from a file; the blocks go into `env`'s network.

        Learning goes on bit for bit where it stopped, on the same kind of device; elsewhere the agent's random numbers
        start anew from its seed and its episodes. PyTorch's own generator, which dropout draws from, is left alone:
        `torch.set_rng_state(read(path)["torch_generator"])` puts it back. How the blocks are trained from here on
        (`learning_rate`, `schedule`, ...) is what `env` was asked for where that was given when it was made, else what
        it was before; a warning tells where the two differ.

        Raises:
            ValueError: Not a checkpoint, damaged, or of another network, agent or data set; `env` is unchanged then.
        """
        checkpoint = read(path)
        if (known := AGENTS.get(checkpoint["agent"])) is None:
            raise ValueError(
                f"{path} holds the agent {checkpoint['agent']!r}, which is not registered here: import the file that "
                "registers it, or name it with --plugin"
            )
        if not issubclass(known, cls):
            raise ValueError(f"{path} holds a {known.__name__}, expected a {cls.__name__}")
        core = core_of(env)
        try:
            agent = known._restored(checkpoint, core)
            core.load_state_dict(checkpoint["env"])
        except Exception as error:  # an agent of one's own may fail at a state of another form as it likes
            raise ValueError(f"{path} does not fit this environment: {error}") from error
        return agent

    @classmethod
    def _restored(cls, checkpoint: dict[str, Any], core: RoutingVectorEnv) -> Self:
        """Agent of a checkpoint; the environment it is made for stays as it is."""
        options = checkpoint["config"]
        check_form(options, {field.name: object for field in dataclasses.fields(cls.Config)}, "config")
        check_types(f"agent {checkpoint['agent']!r}", type_hints(cls.Config), options)
        agent = cls(core, cls.Config(**options)).to(core.device)
        agent.name = checkpoint["agent"]
        agent.episodes, agent.carried = checkpoint["episodes"], checkpoint["carried"]
        check_form(checkpoint["agent_state"], form_of(agent), "agent_state")
        agent.load_state_dict(checkpoint["agent_state"])
        if agent.optimizer is not None:
            check_optimizer(checkpoint["agent_optimizer"], agent.optimizer, "agent_optimizer")
            agent.optimizer.load_state_dict(checkpoint["agent_optimizer"])
        device, state = checkpoint["agent_generator"]
        if torch.device(device).type == agent.generator.device.type:
            check_form(state, agent.generator.get_state(), "agent_generator")
            agent.generator.set_state(state)
        else:
            agent.generator.manual_seed(agent.config.seed + agent.episodes)
        return agent


AGENTS: dict[str, type[Agent]] = {}
"""Agents by name; `register_agent` adds to it."""
