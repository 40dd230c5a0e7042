"""What every agent that learns from rewards must be able to learn."""

import gymnasium
import pytest
import torch
from damage import same
from toys import ExitTree, planted_env, small_env

import routing_gym
from routing_gym.agents import make_agent, needs
from routing_gym.envs import rollout
from routing_gym.networks import RoutedMLP, actions

# Rates at which forty batches of a hundred rows and more suffice, of the values of approximators twice as many.
RATES = {
    "wpl": {"table": {"policy_rate": 0.0003}, "mlp": {"policy_rate": 0.01}},
    "reinforce": {"table": {"learning_rate": 0.03}, "mlp": {"learning_rate": 0.01}},
    "actor-critic": {"table": {"learning_rate": 0.03}, "mlp": {"learning_rate": 0.01}},
    "q-learning": {"table": {"learning_rate": 0.015}, "mlp": {"learning_rate": 0.005}},
    "sarsa": {"table": {"learning_rate": 0.015}, "mlp": {"learning_rate": 0.005}},
    "ppo": {"table": {"learning_rate": 0.03, "epochs": 2}, "mlp": {"learning_rate": 0.01, "epochs": 2}},
    "grpo": {"table": {"learning_rate": 0.03, "group": 2}, "mlp": {"learning_rate": 0.01, "group": 2}},
    "relax": {"table": {"learning_rate": 0.03}, "mlp": {"learning_rate": 0.01}},
    "thompson": {"table": {}},
}
VALUES = ("q-learning", "sarsa")
LEARNERS = [(name, representation) for name, rates in RATES.items() for representation in rates]
POLICIES = ("ppo", "grpo", "relax")
QUICK = [case for case in LEARNERS if case[0] not in POLICIES or case[1] == "table"]
"""Without approximators of those whose scores are those of `reinforce`; these are to find planted routes."""


def learner(name, env, representation="table", **options):
    if name in VALUES:
        options = {"epsilon_episodes": 120 * env.num_envs, **options}
    return make_agent(name, env, representation=representation, **{**RATES[name][representation], **options})


def practise(agent, env, reward, batches=40):
    """Let an agent learn from rewards of our own making; the blocks stay as they are."""
    if agent.name == "grpo":  # it learns from what it tries
        tries = agent._trials.of

        def paid(*arguments):
            tried = tries(*arguments)
            tried.final_reward = reward(tried)
            return tried

        agent._trials.of = paid
    batches *= 2 if agent.name in VALUES and agent.config.representation == "mlp" else 1
    for _ in range(batches):
        trajectory = rollout(agent, env)
        trajectory.final_reward = reward(trajectory)
        agent.receive(trajectory)
        agent.episodes += len(trajectory)


@pytest.mark.long
@pytest.mark.parametrize(
    ("arrangement", "shifts"), [("single", [-3.0]), ("per_task", [0.0, -3.0]), ("dispatched", [-3.0])]
)
@pytest.mark.parametrize(("name", "representation"), QUICK)
def test_the_best_arm_of_a_noisy_bandit_becomes_greedy(name, representation, arrangement, shifts):
    """Three arms of mean 0.2, 0.5, 0.8 (or all negative), noise 0.5: the best is greedy for 10 of 10 agents.

    One agent per task is ten agents for each shift side by side, each with rows of its own.
    """
    rows, tasks = (128 * 10 * len(shifts), 10 * len(shifts)) if arrangement == "per_task" else (512, 3)
    env = small_env(RoutedMLP((1, 2, 3), 3, 3, width=4, layers=1), rows, num_tasks=tasks, train=False)
    agent = learner(name, env, representation, arrangement=arrangement)
    noise = torch.Generator().manual_seed(1000)  # not the agent's own numbers

    def reward(trajectory):
        means = torch.tensor([0.2, 0.5, 0.8])[trajectory.steps[-1].action.view(-1)]
        shift = torch.tensor(shifts)[trajectory.task % len(shifts)]
        return means + shift + 0.5 * torch.randn(len(means), generator=noise)

    practise(agent, env, reward)
    routed = rollout(agent, env, deterministic=True)
    assert bool((routed.steps[-1].action == 2).all()) and len(routed.task.unique()) == tasks


@pytest.mark.long
@pytest.mark.parametrize(("name", "representation"), QUICK)
def test_flipping_the_reward_flips_the_preference(name, representation):
    greedy = []
    for sign in (1, -1):
        env = small_env(RoutedMLP((1, 2, 3), 3, 2, width=4, layers=1), 128, train=False)
        agent = learner(name, env, representation, arrangement="single")
        practise(agent, env, lambda trajectory, sign=sign: sign * (1.0 - 2 * trajectory.steps[0].action.view(-1)), 20)
        greedy.append(rollout(agent, env, deterministic=True).steps[0].action)
    assert bool((greedy[0] == 0).all()) and bool((greedy[1] == 1).all())


@pytest.mark.long
@pytest.mark.parametrize("arrangement", ["single", "dispatched"])
@pytest.mark.parametrize(("name", "representation"), QUICK)
def test_credit_reaches_the_first_of_two_steps(name, representation, arrangement):
    """Only what is decided first matters, and it is paid for after the second decision."""
    env = small_env(ExitTree([[1, 2], [3], [4], [], []]), 256, train=False)
    agent = learner(name, env, representation, arrangement=arrangement)

    def reward(trajectory):
        first = next(step for step in trajectory.steps if int(step.decision[0]) == 0)
        return torch.where(first.action.view(-1) == 1, 1.0, -1.0)

    practise(agent, env, reward, 25)
    assert bool((rollout(agent, env, deterministic=True).steps[0].action == 1).all())


@pytest.mark.long
@pytest.mark.parametrize("arrangement", ["per_task", "dispatched"])
@pytest.mark.parametrize(("name", "representation"), LEARNERS)
def test_learners_find_planted_routes(name, representation, arrangement):
    """One route in sixteen solves a task, another for every task; the blocks themselves cannot be changed."""
    env = planted_env(192)
    rates = {
        "wpl": {"policy_rate": 0.02} if representation == "table" else {"policy_rate": 0.01},
        "q-learning": {"learning_rate": 0.005},
        "sarsa": {"learning_rate": 0.005},
        "thompson": {},
    }.get(name, {"learning_rate": 0.05 if representation == "table" else 0.01})
    if name in ("q-learning", "sarsa"):
        rates |= {"epsilon_episodes": 40_000, "td_lambda": 1.0}
    if arrangement == "dispatched" and representation == "table":
        # Dispatcher and agents must settle together: what is learned early must not be final.
        rates |= {
            "wpl": {"baseline": "policy"},
            "reinforce": {"entropy": 0.05},
            "actor-critic": {"learning_rate": 0.03, "entropy": 0.05},
            "ppo": {"entropy": 0.05},
        }.get(name, {})
    agent = learner(name, env, representation, arrangement=arrangement, **rates)
    solved = 0.0
    for _ in range(20):
        agent.learn(env, 192 * 30)
        solved = routing_gym.evaluate(agent, env).accuracy
        if solved == 1:
            break
    assert solved == 1


@pytest.mark.parametrize(("name", "representation"), LEARNERS)
def test_observations_with_a_graph_are_learned_from_as_they_are(name, representation):
    agents = []
    for differentiable in (False, True):
        env = small_env(differentiable=differentiable)
        agents.append(learner(name, env, representation).learn(env, 12 * 3))
    assert same(agents[0].state_dict(), agents[1].state_dict())


def test_a_dispatcher_is_asked_once_per_episode_also_when_predicting():
    env = small_env(num_envs=40)
    agent = make_agent("wpl", env, arrangement="dispatched", num_agents=6)
    assert agent.table.shape == (6, 2, 3) and agent.arrangement.num_choices == 6
    observation = {key: value.clone() for key, value in env.reset(seed=0)[0].items()}
    _, first = agent.predict(observation)
    assert set(first.tolist()) == set(range(6))
    _, second = agent.predict(observation, first)
    assert torch.equal(first, second)
    begins = torch.arange(40) < 20
    _, third = agent.predict(observation, first, begins)
    assert torch.equal(third[20:], first[20:]) and not torch.equal(third[:20], first[:20])
    one = {key: value[0].numpy() for key, value in observation.items()}
    action, state = agent.predict(one)
    assert action.shape == () and 0 <= int(state[0]) < 6 and agent.predict(one, state)[1] == state


@pytest.mark.long
@pytest.mark.parametrize("estimator", ["straight-through", "reinmax", "sparsemixer", "soft", "dense"])
@pytest.mark.parametrize("representation", ["table", "mlp"])
def test_gumbel_gates_find_planted_routes(estimator, representation):
    env = planted_env(192, action_type="weights", dense_backward=estimator in ("straight-through", "reinmax"))
    agent = make_agent("gumbel", env, representation=representation, estimator=estimator, temperature_final=1.0)
    agent.learn(env, 192 * 150)
    assert routing_gym.evaluate(agent, env).accuracy == 1


TRIES = {"learning_rate": 0.03, "noise": True}
GATES = [
    *(("gumbel", {"estimator": name, "representation": "mlp"}) for name in ("reinmax", "sparsemixer", "dense")),
    *((name, {}) for name in ("sinkhorn", "remoe", "dselect-k")),
    ("dselect-k", {"representation": "mlp"}),
    ("loss-free", TRIES),
]
"""Gates, and options by which all blocks are tried."""


@pytest.mark.long
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("name", "options"), GATES, ids=str)
def test_gates_find_the_best_of_unequal_blocks(name, options, layer):
    """Four blocks pass on 0.2, 0.5, 0.8 and 0.1 of the signal, of the other layer all of it."""
    env = planted_env(96, action_type="weights", dense_backward=options.get("estimator") == "reinmax")
    env.network.passes.fill_(1)
    env.network.passes[layer] = torch.tensor([0.2, 0.5, 0.8, 0.1])
    agent = make_agent(name, env, arrangement="single", **options).learn(env, 96 * 60)
    step = rollout(agent, env, deterministic=True).steps[layer]
    assert bool((actions.dense(step.action, 4).view(96, 4).argmax(-1) == 2).all())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"representation": form}) for name in ("remoe", "dselect-k") for form in ("table", "mlp")),
        ("sinkhorn", {}),
        *((name, {**TRIES, "arrangement": "per_task"}) for name in ("expert-choice", "loss-free")),
    ],
    ids=str,
)
def test_other_gates_find_planted_routes(name, options):
    env = planted_env(96, action_type="weights")
    agent = make_agent(name, env, **options).learn(env, 96 * 150)
    assert routing_gym.evaluate(agent, env).accuracy == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("env_id", "name", "options", "least"),
    [
        ("Credit", "remoe", {}, 0.95),
        ("Credit", "dselect-k", {}, 0.95),
        ("Credit", "gumbel", {"estimator": "dense"}, 0.95),
        ("Credit", "gumbel", {"estimator": "reinmax"}, 0.5),
        ("Credit", "gumbel", {"estimator": "sparsemixer"}, 0.5),
        ("HiddenGroups", "remoe", {}, 0.65),
        ("HiddenGroups", "gumbel", {"estimator": "reinmax"}, 0.7),
    ],
    ids=str,
)
def test_gates_route_what_is_planted_with_blocks_that_learn(env_id, name, options, least):
    """Random frozen paths reach 0.3 of the lock, and 0.6 of the groups."""
    problem = {"num_tasks": 4, "images_per_task": 64} if env_id == "Credit" else {"num_tasks": 9, "images_per_task": 40}
    problem |= {"num_blocks": 3, **({"num_groups": 3} if env_id == "HiddenGroups" else {})}
    env = gymnasium.make_vec(f"routing_gym/{env_id}-v0", num_envs=160, learning_rate=3e-3, **problem, **needs(name))
    agent = make_agent(name, env, **options).learn(env, 160 * 200)
    assert routing_gym.evaluate(agent, env).accuracy > least


@pytest.mark.parametrize(
    "name", ["shared", "task-specific-all", "task-specific-last", "random-fixed", "random", "hash"]
)
def test_fixed_agents_do_not(name):
    env = planted_env()
    agent = make_agent(name, env).learn(env, 64 * 20)
    assert routing_gym.evaluate(agent, env).accuracy < 0.5
