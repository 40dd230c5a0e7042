"""What every agent does: routes, learning loop, saving, predicting."""

import dataclasses
import math
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from resuming import assert_goes_on
from scipy import stats
from stepping import small_env
from toys import OF_OTHER_NETWORKS, ExitTree

import routing_gym
from routing_gym.agents import AGENTS, Agent, make_agent, register_agent
from routing_gym.agents.parts.scores import sample
from routing_gym.envs import Context, Known, RoutingVectorEnv, TrainingDivergedError, rollout
from routing_gym.networks import RoutedMLP
from routing_gym.networks.state import legal_table
from routing_gym.tasks import synthetic_mtl


def routes_of(agent, env):
    """Return `(task, route)` of a batch."""
    core = env.unwrapped
    trajectory = rollout(agent, core, deterministic=True)
    return trajectory.task, torch.stack([step.action.view(len(trajectory)) for step in trajectory.steps], 1)


def test_fixed_agents_take_the_routes_their_names_say():
    env = small_env()
    task, route = routes_of(make_agent("shared", env), env)
    assert bool((route == 0).all())
    task, route = routes_of(make_agent("task-specific-all", env), env)
    assert torch.equal(route, task.unsqueeze(1).expand(-1, 3))
    task, route = routes_of(make_agent("task-specific-last", env), env)
    assert bool((route[:, :2] == 0).all()) and torch.equal(route[:, 2], task)
    agent = make_agent("random-fixed", env, seed=1)
    task, route = routes_of(agent, env)
    for one in range(3):
        assert len(route[task == one].unique(dim=0)) == 1
    assert len({tuple(make_agent("random-fixed", env, seed=s).routes.flatten().tolist()) for s in range(8)}) > 4
    assert torch.equal(make_agent("random-fixed", env, seed=1).routes, agent.routes)


def test_random_draws_anew_each_time_in_evaluation_too():
    env = small_env(300)
    agent = make_agent("random", env)
    _, route = routes_of(agent, env)
    assert stats.chisquare(torch.bincount(route.flatten(), minlength=3).numpy()).pvalue > 1e-4
    assert len(route.unique(dim=0)) > 15


def test_own_blocks_respect_masks():
    masks = torch.ones(2, 1, 4, dtype=torch.bool)
    masks[0, 0, 1] = False

    class Masked(RoutedMLP):
        def __init__(self):
            super().__init__((1, 3, 3), 3, 4, width=4, layers=2)
            self._masks = legal_table(self.decisions, masks)
            self.nothing_masked = False

    data = synthetic_mtl(num_tasks=3, num_classes=3, image_size=3)
    env = RoutingVectorEnv(Masked(), data, 8)
    assert make_agent("task-specific-all", env).routes.tolist() == [[0, 0], [2, 1], [3, 2]]
    drawn = {int(make_agent("random-fixed", env, seed=s).routes[0, 0]) for s in range(40)}
    assert drawn == {0, 2, 3}


def test_too_few_blocks_are_refused():
    env = small_env(num_blocks=2)
    with pytest.raises(ValueError, match=r"needs a block for each of the 3 tasks, decision 0 \('layer 1'\) offers 2"):
        make_agent("task-specific-all", env)
    make_agent("shared", env)


def test_sampling_follows_the_distribution_and_skips_zeros():
    probabilities = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    drawn = sample(probabilities.cumsum(-1).expand(20000, -1), torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=6)
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    assert stats.chisquare(counts[[1, 3, 4]].numpy(), np.array([0.2, 0.5, 0.3]) * 20000).pvalue > 1e-4


CONFLICTING = {"num_envs": 96, "learning_rate": 0.01, "seed": 2}
"""Larger batches than elsewhere, of three tasks that call the same images by other names."""


@pytest.mark.long
@pytest.mark.parametrize("name", ["wpl", "task-specific-all", "random-fixed"])
def test_agents_that_should_learn_conflicting_labels(name):
    """A path per task can tell them apart, one shared path cannot."""
    env = small_env(**CONFLICTING)
    agent = make_agent(name, env, seed=2, **({"policy_rate": 0.02} if name == "wpl" else {}))
    if name == "random-fixed":
        assert len({tuple(route) for route in agent.routes.tolist()}) == 3
    agent.learn(env, 40 * len(env.unwrapped.dataset))
    assert routing_gym.evaluate(agent, env).accuracy > 0.95


@pytest.mark.long
def test_one_path_told_the_task_learns_conflicting_labels_too():
    env = small_env(**CONFLICTING, task_input=True)
    agent = make_agent("shared-with-task", env).learn(env, 40 * len(env.unwrapped.dataset))
    result = routing_gym.evaluate(agent, env)
    assert result.accuracy > 0.95 and result.paths == 1
    assert result.macs == (9 + 3) * 16 + 16 * 16 + 16 * 3
    with pytest.raises(
        ValueError, match="'shared-with-task' needs an environment made with task_input=True, got False"
    ):
        make_agent("shared-with-task", small_env())


@pytest.mark.long
@pytest.mark.parametrize("name", ["shared", "random"])
def test_agents_that_cannot(name):
    env = small_env(**CONFLICTING)
    agent = make_agent(name, env).learn(env, 40 * len(env.unwrapped.dataset))
    assert routing_gym.evaluate(agent, env).accuracy < 0.45


# Those of Stable-Baselines3 begin anew with every call of `learn`: see test_sb3.py; those left out: test_multipath.py,
# test_codinet_runs.py and test_crossing.py.
LAYERED = sorted(name for name in set(AGENTS) - OF_OTHER_NETWORKS if not name.startswith("sb3:"))


FORMS = [
    *(("ppo", {"representation": "mlp"}), ("grpo", {"representation": "mlp", "advantage": "rloo", "epochs": 2})),
    *(("relax", {"control": "rebar"}), ("relax", {"representation": "mlp"}), ("em", {"representation": "mlp"})),
    ("thompson", {"arrangement": "dispatched", "memory": 50.0}),
]
"""Forms that have more to keep than those by default."""


@pytest.mark.long
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in LAYERED), *FORMS], ids=str)
def test_same_seed_same_curves_bit_for_bit_also_after_a_resume(name, options, tmp_path):
    needed = {**AGENTS[name].env_kwargs, "action_type": AGENTS[name].action_type}

    def env(seed=0):
        return small_env(rho=0.2, autoreset_mode="disabled", shift=1, seed=seed, **needed)

    _, again, course = assert_goes_on(
        lambda: make_agent(name, env(), seed=4, **options), (5, 7), tmp_path, lambda: env(9)
    )
    assert type(again) is AGENTS[name] and len({metrics["loss"] for metrics in course}) == 12


def test_a_loaded_agent_judges_and_predicts_as_the_saved_one(tmp_path):
    env = small_env()
    agent = make_agent("wpl", env).learn(env, 640)
    agent.save(tmp_path / "agent.pt")
    other = small_env(seed=5)
    loaded = Agent.load(tmp_path / "agent.pt", other)
    ours, theirs = routing_gym.evaluate(agent, env), routing_gym.evaluate(loaded, other)
    assert ours.accuracy == theirs.accuracy and torch.equal(ours.routes, theirs.routes)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.pt"]


def test_bad_checkpoints_are_refused_and_change_nothing(tmp_path):
    env = small_env()
    make_agent("wpl", env).save(tmp_path / "agent.pt")
    other = small_env(width=8)
    before = {key: value.clone() for key, value in other.unwrapped.network.state_dict().items()}
    with pytest.raises(ValueError, match="blocks.network.banks.0.weight: expected float32 of shape"):
        Agent.load(tmp_path / "agent.pt", other)
    assert all(torch.equal(before[k], v) for k, v in other.unwrapped.network.state_dict().items())
    with pytest.raises(ValueError, match="trained with optimizer='adam', here it is 'sgd'"):
        Agent.load(tmp_path / "agent.pt", small_env(optimizer="sgd"))
    whole = (tmp_path / "agent.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "code.pt").write_bytes(pickle.dumps(print))
    torch.save({"a": 1}, tmp_path / "other.pt")
    for file in ("cut.pt", "code.pt", "other.pt"):
        with pytest.raises(ValueError, match="is not a checkpoint of routing_gym"):
            Agent.load(tmp_path / file, env)
    with pytest.raises(FileNotFoundError):
        Agent.load(tmp_path / "none.pt", env)
    from routing_gym.agents import WPL, FixedAgent

    assert isinstance(WPL.load(tmp_path / "agent.pt", env), WPL)
    with pytest.raises(ValueError, match="holds a WPL, expected a FixedAgent"):
        FixedAgent.load(tmp_path / "agent.pt", env)


def test_learning_works_on_every_face():
    for env in (small_env(8), gymnasium.make("routing_gym/DigitsMTL-v0", width=4)):
        agent = make_agent("wpl", env)
        seen = []
        assert agent.learn(env, 20, seen.append) is agent
        assert len(seen) == math.ceil(20 / getattr(env, "num_envs", 1))
        assert set(seen[0]) >= {"loss", "accuracy", "reward", "macs", "policy_entropy"}
        assert agent.episodes == len(seen) * getattr(env, "num_envs", 1)


def test_what_cannot_be_learned_is_refused():
    env = small_env(8)
    agent = make_agent("wpl", env)
    for episodes in (0, -5, 1.5, True):
        with pytest.raises(ValueError, match="episodes must be an integer of at least 1"):
            agent.learn(env, episodes)
    with pytest.raises(ValueError, match="made for another environment"):
        agent.learn(small_env(8), 10)
    still = small_env(8, train=False)
    with pytest.raises(ValueError, match="train=False"):
        make_agent("wpl", still).learn(still, 10)
    with pytest.raises(ValueError, match=r"unknown agent 'wlp' \(did you mean 'wpl'\?\); known are"):
        make_agent("wlp", env)
    with pytest.raises(ValueError, match="agent 'wpl' acts by discrete"):
        make_agent("wpl", small_env(8, action_type="weights"))
    with pytest.raises(ValueError, match="expected an environment of routing_gym, got CartPole"):
        make_agent("wpl", gymnasium.make("CartPole-v1"))


def test_divergence_names_the_agent_and_the_step_and_keeps_everything():
    env = small_env(32)
    agent = make_agent("shared", env).learn(env, 64)
    with torch.no_grad():
        env.unwrapped.network.banks[1].bias[0] = float("inf")
    with pytest.raises(
        TrainingDivergedError, match=r"agent 'shared', batch 3: training of the blocks stopped after 64"
    ):
        agent.learn(env, 64)
    assert agent.episodes == 64


def test_predict_takes_numpy_and_torch_single_and_batched():
    env = small_env(5)
    agent = make_agent("task-specific-all", env)
    observation, _ = env.reset(seed=0)
    action, state = agent.predict(observation, deterministic=True)
    assert isinstance(action, torch.Tensor) and torch.equal(action, observation["task"]) and state is None
    as_numpy = {key: value.numpy() for key, value in observation.items()}
    action, _ = agent.predict(as_numpy)
    assert isinstance(action, np.ndarray) and action.tolist() == observation["task"].tolist()
    one = {key: value[2] for key, value in as_numpy.items()}
    action, _ = agent.predict(one)
    assert action == one["task"] and np.ndim(action) == 0


def test_a_carried_state_comes_back_and_is_reset():
    class Counter(Agent):
        """Chooses by how many decisions it has made."""

        def act(self, observation, context):
            before = torch.zeros_like(observation["depth"]) if context.carry is None else context.carry
            context.carry = before + 1
            return before

    register_agent("counter", Counter)
    try:
        env = small_env(4)
        agent = make_agent("counter", env)
        _, route = routes_of(agent, env)
        assert route.tolist() == [[0, 1, 2]] * 4
        observation, _ = env.reset()
        action, state = agent.predict(observation)
        action, state = agent.predict(observation, state, torch.tensor([True, False, False, True]))
        assert action.tolist() == [0, 1, 1, 0] and state.tolist() == [1, 2, 2, 1]
    finally:
        del AGENTS["counter"]


def test_a_name_belongs_to_one_class():
    class Other(Agent):
        pass

    with pytest.raises(ValueError, match="'wpl' belongs to routing_gym.agents.wpl.WPL already"):
        register_agent("wpl", Other)
    with pytest.raises(ValueError, match="subclass of routing_gym.agents.Agent"):
        register_agent("mine", object)
    register_agent("wpl", AGENTS["wpl"])


def test_evaluate_counts_what_the_routes_say():
    env = small_env(7)
    agent = make_agent("task-specific-last", env)
    core = env.unwrapped
    observation, _ = env.reset(seed=0)
    core.network.train()
    result = routing_gym.evaluate(agent, env, split="test", batch_size=11)
    assert core.network.training and torch.equal(core.state.task, observation["task"])  # nothing disturbed
    dataset = core.datasets["test"]
    right = []
    for row in range(len(dataset)):
        h = dataset.pixels(torch.tensor([row])).flatten(1)
        for depth, bank in enumerate(core.network.banks):
            c = int(dataset.task[row]) if depth == 2 else 0
            h = h @ bank.weight[c] + bank.bias[c]
            h = h.clamp(min=0) if bank.relu else h
        right.append(float(h.argmax() == dataset.label[row]))
    assert result.accuracy == pytest.approx(sum(right) / len(right))
    assert result.blocks_used == 5 and result.paths == 3
    assert result.macs == 9 * 16 + 16 * 16 + 16 * 3 and result.router_macs == 0
    assert int(result.routes.sum()) == 3 * len(dataset)
    assert result.routes[1, 2].tolist() == [0, len(dataset) // 3, 0]


def test_evaluate_adds_the_routers_own_cost():
    class Costly(AGENTS["shared"]):
        def macs(self, decision):
            return 10.0 * (decision + 1)

    torch.manual_seed(0)
    data = synthetic_mtl(num_tasks=2, num_classes=3, image_size=3)
    env = small_env(4)
    result = routing_gym.evaluate(Costly(env), env)
    assert result.router_macs == 60 and result.macs == 9 * 16 + 16 * 16 + 16 * 3 + 60

    class Leave(Agent):
        def act(self, observation, context):
            return torch.zeros_like(observation["depth"])

        def macs(self, decision):
            return 10.0

    tree = ExitTree([[1], []])
    data = {k: dataclasses.replace(v, images=v.images[:, :, :2]) for k, v in data.items()}
    env = RoutingVectorEnv(tree, data, 4)
    assert routing_gym.evaluate(Leave(env), env).router_macs == 10


def test_the_carry_and_the_record_reach_the_trajectory():
    env = small_env(4, rho=0.3, autoreset_mode="disabled")
    agent = make_agent("random", env)
    trajectory = rollout(agent, env.unwrapped)
    assert trajectory.steps[0].record["probabilities"].tolist() == [[[pytest.approx(1 / 3)] * 3]] * 4
    assert [int(step.decision[0]) for step in trajectory.steps] == [0, 1, 2]
    assert all(torch.equal(step.reach, torch.ones(4)) for step in trajectory.steps)
    for step, reward in zip(trajectory.steps, (1.0, 2.0, 4.0), strict=True):
        step.reward = torch.full((4,), reward)
    returns = trajectory.returns(0.5) - trajectory.final_reward
    assert returns[:, 0].tolist() == [3.0, 4.0, 4.0]


def test_context_defaults():
    context = Context(Known(torch.ones(1, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)))
    assert context.carry is None and context.record == {} and not context.deterministic
