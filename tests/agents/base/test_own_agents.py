"""Agents of one's own: how they are trained, what is said of what they lack or do wrong, whom they belong to."""

import dataclasses

import gymnasium
import pytest
import torch
from damage import reseal
from stepping import block_loss, small_env
from toys import SHARE_OUTCOMES, ExitTree

import routing_gym
from routing_gym.agents import AGENTS, Agent, make_agent, needs, register_agent
from routing_gym.envs import RoutingVectorEnv, TrainingDivergedError, rollout
from routing_gym.networks import RoutedMLP
from routing_gym.tasks import synthetic_mtl


class Gate(Agent):
    """A softmax gate per task, trained by the backward pass of the blocks."""

    action_type = "weights"
    needs_gradients = True

    def __init__(self, env, config=None):
        super().__init__(env, config)
        self.logits = torch.nn.Parameter(torch.zeros(self.num_tasks, self.num_decisions + 1, self.num_choices))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.05)

    def act(self, observation, context):
        return self.logits[observation["task"], observation["depth"]].softmax(-1)


@pytest.fixture
def registered():
    """Forget afterwards what a test registers."""
    known = dict(AGENTS)
    yield
    AGENTS.clear()
    AGENTS.update(known)


def test_an_agent_trained_by_the_blocks_backward_pass(registered, tmp_path):
    register_agent("gate", Gate)
    env = small_env(seed=2, action_type="weights", autoreset_mode="disabled")
    agent = make_agent("gate", env)
    trajectory = rollout(agent, env.unwrapped)
    loss = block_loss(env.unwrapped)
    (expected,) = torch.autograd.grad(loss, agent.logits, retain_graph=True)
    assert bool((expected.abs().sum(-1)[:, :3] > 0).all()) and len(trajectory.exits) == 1
    agent.learn(env, 64)
    agent.save(tmp_path / "gate.pt")
    losses = []
    agent.learn(env, 96, lambda metrics: losses.append(metrics["loss"].item()))
    again = small_env(seed=5, action_type="weights", autoreset_mode="disabled")
    resumed = []
    Agent.load(tmp_path / "gate.pt", again).learn(again, 96, lambda metrics: resumed.append(metrics["loss"].item()))
    assert resumed == losses
    agent.learn(env, 20 * 270)
    assert routing_gym.evaluate(agent, env).accuracy > 0.9


def test_weights_that_are_no_numbers_stop_training_by_name(registered):
    register_agent("gate", Gate)
    env = small_env(action_type="weights")
    agent = make_agent("gate", env).learn(env, 64)
    with torch.no_grad():
        agent.logits[0] = float("nan")
    with pytest.raises(TrainingDivergedError, match=r"agent 'gate': after 64 episodes logits is not finite"):
        agent.learn(env, 64)


def test_gradients_of_the_agent_that_are_no_numbers_stop_training_before_any_step(registered):
    class Rooted(Gate):
        def auxiliary_loss(self, trajectory):
            return (self.logits - self.logits.detach()).square().sum().sqrt()

    register_agent("rooted", Rooted)
    env = small_env(action_type="weights")
    agent = make_agent("rooted", env)
    before = [p.detach().clone() for p in (*agent.parameters(), *env.unwrapped.network.parameters())]
    with pytest.raises(TrainingDivergedError, match="agent 'rooted', batch 1: .* the agent's gradients are not finite"):
        agent.learn(env, 32)
    after = [*agent.parameters(), *env.unwrapped.network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Mixing(Agent):
    """Mixes all blocks and looks at rewards, whatever for."""

    action_type = "weights"

    def act(self, observation, context):
        return torch.full((len(observation["task"]), self.num_choices), 1 / self.num_choices)

    def update(self, trajectory):
        return {"rewarded": trajectory.reward().mean()}


CHAIN = {"network": "pyramid-chain", "columns": 3, "width": 2, "image_size": 16}
LAYERS = {"network": "mlp", "num_blocks": 3, "width": 4}


@pytest.mark.parametrize(
    ("name", "options"),
    [("best-random", {"draws": 2, "passes": 1}), ("one-shot", {"draws": 2, "passes": 1}), ("actor", {}),
     ("optimistic-critic", {}), ("pragmatic-critic", {}), ("random-fixed", {})],
)  # fmt: skip
def test_who_looks_at_no_rewards_learns_with_rho_what_it_learns_without(name, options):
    losses = []
    for rho in (0.0, 0.5):
        torch.manual_seed(0)
        network = CHAIN if name in SHARE_OUTCOMES else LAYERS
        made = {"num_tasks": 3, "images_per_class": 10, **network, **needs(name), "rho": rho}
        env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=30, **made)
        make_agent(name, env, **options).learn(env, 30 * 8, lambda metrics: losses.append(float(metrics["loss"])))
    assert losses[:8] == losses[8:]


def test_what_an_agent_lacks_is_said(registered):
    class NoOptimizer(Gate):
        def __init__(self, env, config=None):
            super().__init__(env, config)
            self.optimizer = None

    class Silent(AGENTS["shared"]):
        def update(self, trajectory):
            return None

    class Wants(AGENTS["shared"]):
        env_kwargs = {"num_blocks": 4}

    register_agent("no-optimizer", NoOptimizer)
    register_agent("silent", Silent)
    register_agent("wants", Wants)
    env = small_env(action_type="weights")
    with pytest.raises(ValueError, match=r"agent 'no-optimizer' needs gradients, so it must set self\.optimizer"):
        make_agent("no-optimizer", env).learn(env, 32)
    env = small_env()
    make_agent("silent", env).learn(env, 32)
    env = small_env(rho=0.5, autoreset_mode="disabled")
    unknown = r"'silent' records no context.record\['probabilities'\], .* with collaboration='frequency', or with rho=0"
    with pytest.raises(ValueError, match=unknown):
        make_agent("silent", env).learn(env, 32)
    by_weights = small_env(rho=0.5, action_type="weights", autoreset_mode="disabled")
    with pytest.raises(ValueError, match="needs: make the environment with rho=0$"):  # there is no other form
        Mixing(by_weights).learn(by_weights, 32)
    with pytest.raises(ValueError, match="with rho > 0, autoreset_mode='same_step' is refused: take rho=0"):
        small_env(rho=0.5, action_type="weights")
    make_agent("shared", env).learn(env, 32)  # it does not learn: no reward can be missing
    with pytest.raises(ValueError, match="needs an environment made with num_blocks=4, got None"):
        make_agent("wants", env)
    make_agent("wants", small_env(num_blocks=4))
    with pytest.raises(ValueError, match="agent 'wpl': policy_rate must be of type float or None, got 'fast'"):
        make_agent("wpl", env, policy_rate="fast")

    class Odd(Agent):
        Config = dict

    with pytest.raises(ValueError, match="must be a dataclass derived from AgentConfig"):
        register_agent("odd", Odd)


def test_names_and_classes_do_not_get_mixed_up(registered, tmp_path):
    class Mine(AGENTS["wpl"]):
        pass

    env = small_env()
    with pytest.raises(ValueError, match=r"Mine cannot be saved: register_agent\(name, Mine\) first"):
        Mine(env).save(tmp_path / "mine.pt")
    register_agent("mine", Mine)
    register_agent("again", AGENTS["wpl"])
    assert [make_agent(name, env).name for name in ("wpl", "mine", "again")] == ["wpl", "mine", "again"]
    make_agent("mine", env).save(tmp_path / "mine.pt")
    assert type(Agent.load(tmp_path / "mine.pt", env)) is Mine
    del AGENTS["mine"]
    with pytest.raises(ValueError, match="holds the agent 'mine', which is not registered here"):
        Agent.load(tmp_path / "mine.pt", env)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    env = small_env()
    make_agent("wpl", env).learn(env, 64).save(tmp_path / "agent.pt")
    other = small_env(images_per_class=5)
    before = other.unwrapped.state_dict()
    with pytest.raises(ValueError, match="a stream of 270 numbers, here there are 45"):
        Agent.load(tmp_path / "agent.pt", other)
    after = other.unwrapped.state_dict()
    assert all(torch.equal(before["blocks"]["network"][k], v) for k, v in after["blocks"]["network"].items())


def test_a_checkpoint_of_another_kind_of_device_starts_its_random_numbers_anew(tmp_path):
    env = small_env()
    make_agent("random", env, seed=3).learn(env, 64).save(tmp_path / "agent.pt")
    generator = ("cuda", torch.zeros(16, dtype=torch.uint8))
    reseal(tmp_path / "agent.pt", lambda checkpoint: checkpoint.update(agent_generator=generator))
    drawn = [Agent.load(tmp_path / "agent.pt", env).generator.initial_seed() for _ in range(2)]
    assert drawn == [67, 67]


def test_judging_does_not_change_how_training_goes_on():
    curves = []
    for judged in (False, True):
        env, losses = small_env(), []
        agent = make_agent("random", env)
        for _ in range(3):
            agent.learn(env, 64, losses.append)
            if judged:
                routing_gym.evaluate(agent, env)
        curves.append([metrics["loss"].item() for metrics in losses])
    assert curves[0] == curves[1]


def test_an_agent_of_another_environment_is_not_judged():
    with pytest.raises(ValueError, match="the agent has num_decisions 3, this environment 2"):
        routing_gym.evaluate(make_agent("wpl", small_env()), small_env(layers=2))
    with pytest.raises(ValueError, match="agent 'wpl' is of another environment, whose blocks it was trained with"):
        routing_gym.evaluate(make_agent("wpl", small_env()), small_env())  # the same form, other blocks
    env = small_env()
    routing_gym.evaluate(make_agent("wpl", env), env.sibling(5))


class Asked:
    """Mixed into a planning agent: makes it answer decision by decision, along the route it would have planned."""

    def plan(self, task, deterministic):
        return None

    def act(self, observation, context):
        if context.carry is None:
            context.carry = super().plan(observation["task"], context.deterministic)
        return context.carry[torch.arange(len(context.carry)), observation["depth"].clamp(max=self.num_decisions - 1)]


@pytest.mark.parametrize("name", ["wpl", "task-specific-all", "random-fixed", "random"])
@pytest.mark.parametrize("family", ["mlp", "tree"])
def test_planning_ahead_gives_what_asking_at_every_decision_gives(name, family):
    data = {"num_tasks": 2, "num_classes": 3, "image_size": 3, "images_per_class": 10}
    results = []
    for cls in (AGENTS[name], type("Asking", (Asked, AGENTS[name]), {})):
        torch.manual_seed(0)
        network = RoutedMLP((1, 3, 3), 3, 2, width=4) if family == "mlp" else ExitTree([[1, 2], [], [3], []])
        network.input_shape = None
        splits = synthetic_mtl(**data)
        if family == "tree":
            splits = {k: dataclasses.replace(v, images=v.images[:, :, :2]) for k, v in splits.items()}
        env = RoutingVectorEnv(
            network, splits, 16, autoreset_mode="disabled", k_cpt=1e-3, rho=0.1, collaboration="frequency"
        )
        agent, losses = cls(env), []
        agent.learn(env, 96, losses.append)
        judged = routing_gym.evaluate(agent, env, deterministic=False)
        trajectory = rollout(agent, env)
        results.append({
            "losses": losses,
            "judged": torch.tensor([judged.accuracy, judged.macs, judged.paths]),
            "routes": judged.routes,
            "steps": [{"reward": s.reward, "decision": s.decision, "choosing": s.choosing} for s in trajectory.steps],
            "returns": trajectory.returns(0.5),
        })  # fmt: skip
    # Close, not equal: rows are added up in the order they stand in.
    torch.testing.assert_close(results[0], results[1])


def test_a_plan_of_the_wrong_form_is_refused(registered):
    class Short(AGENTS["shared"]):
        def plan(self, task, deterministic):
            return torch.zeros(len(task), 2, dtype=torch.int64)

    class Wild(AGENTS["shared"]):
        def plan(self, task, deterministic):
            return torch.full((len(task), 3), 7)

    env = small_env(8, autoreset_mode="disabled")
    with pytest.raises(ValueError, match=r"a plan has shape \(8, 3\) here, got \(8, 2\)"):
        rollout(Short(env), env.unwrapped)
    with pytest.raises(ValueError, match=r"choices must lie in \[0, 3\), got 7"):
        rollout(Wild(env), env.unwrapped)


def test_what_an_agent_does_wrong_is_said_with_its_name(registered):
    class Wild(AGENTS["shared"]):
        def plan(self, task, deterministic):
            return torch.full((len(task), 3), 7)

    register_agent("wild", Wild)
    env = small_env()
    with pytest.raises(ValueError, match=r"agent 'wild', batch 1: choices must lie in \[0, 3\), got 7"):
        make_agent("wild", env).learn(env, 32)
    with pytest.raises(TypeError, match="abstract method"):
        Agent(env)


def test_an_agent_that_lacks_a_method_is_named():
    class Halfway(Agent):
        pass

    register_agent("halfway", Halfway)
    try:
        with pytest.raises(ValueError, match="agent 'halfway' .*Halfway.* lacks act"):
            make_agent("halfway", gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=2))
    finally:
        del AGENTS["halfway"]
