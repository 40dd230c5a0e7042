"""Agents in networks where several tensors choose at a decision; their formulas are tested with each of them."""

import gymnasium
import pytest
import torch
from deciding import choosers, seen_by
from resuming import assert_goes_on
from toys import CLASSES, IMAGE, MaskedColumns, PlantedGate, of_family, planted_env, small_env

import routing_gym
from routing_gym.agents import make_agent, needs
from routing_gym.envs import rollout
from routing_gym.networks import ColumnsMLP

AGENTS = [(name, form) for name in ("wpl", "reinforce", "actor-critic", "gumbel") for form in ("table", "mlp")]
ARRANGED = [
    (name, form, arrangement)
    for name, form in AGENTS
    for arrangement in ("single", "per_task", "dispatched")
    if (name, arrangement) != ("gumbel", "dispatched")  # gates have no dispatcher
]


def columns_env(name, num_envs=12, network=None, **options):
    network = MaskedColumns() if network is None else network
    return small_env(network, num_envs, action_type=needs(name)["action_type"], **options)


def test_a_joint_choice_by_hand():
    """Two columns of two layers, one row; both are sent to column 0, so that column 1 has nothing to choose then."""
    env = small_env(ColumnsMLP(IMAGE, CLASSES, 2, width=4, layers=2, num_tasks=1), 1)
    routes = make_agent("fixed-routes", env, routes=[[[0, 0], [1, 0]]] * 3)
    agent = make_agent("reinforce", env, arrangement="single", baseline="none", entropy=0.5)
    with torch.no_grad():
        agent.scores.table[0, 1] = torch.tensor([[0.2, 0.8], [0.3, 0.7]]).log()
    trajectory = rollout(routes, env)
    trajectory.final_reward = torch.tensor([2.0])
    log_chosen, entropy = agent.chosen(trajectory.steps)
    torch.testing.assert_close(log_chosen, torch.tensor([[-1.386294], [-0.223144]]))  # 2 log 2, and of one column
    torch.testing.assert_close(entropy, torch.tensor([[1.386294], [0.500402]]))
    metrics = agent.receive(trajectory)
    # −2 (e_c − π) from the choice; −H has the slope π_j (log π_j + H), which is 0 for a coin.
    second = [0.4 + 0.5 * 0.2 * (-1.609438 + 0.500402), -0.4 + 0.5 * 0.8 * (-0.223144 + 0.500402)]
    expected = torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]], [second, [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(agent.scores.table.grad[0], expected, rtol=1e-4, atol=1e-5)
    assert float(metrics["policy_entropy"]) == pytest.approx((1.386294 + 0.500402) / 2)


@pytest.mark.parametrize(("name", "representation", "arrangement"), ARRANGED)
def test_every_tensor_keeps_to_its_own_mask(name, representation, arrangement):
    env = columns_env(name, 64, rho=0.1)
    agent = make_agent(name, env, representation=representation, arrangement=arrangement)
    masks = env.network.masks.float()
    for deterministic in (False, True, False):
        trajectory = rollout(agent, env, deterministic=deterministic)  # an illegal choice would be refused
        for number, step in enumerate(trajectory.steps):
            chances = step.record["probabilities"]
            assert chances.shape == (64, 3, 3) and not chances.requires_grad
            torch.testing.assert_close(chances.sum(-1), torch.ones(64, 3))
            assert bool((chances * (1 - masks[number]) == 0).all())
            taken = step.action.detach() if name == "gumbel" else torch.nn.functional.one_hot(step.action, 3)
            assert bool((taken * (1 - masks[number]) == 0).all()) and bool((taken != 0).sum(-1).eq(1).all())
            if not deterministic:  # all that is legal is tried
                assert torch.equal((taken != 0).any(0), masks[number].bool())
        if name != "gumbel":
            assert [int(step.choosing.sum()) for step in trajectory.steps] == [
                sum(len(choosers(agent, trajectory.steps, row)[i]) for row in range(64)) for i in range(2)
            ]
        agent.receive(trajectory)
    assert all(bool(parameter.isfinite().all()) for parameter in agent.parameters())


# A table of WPL has no gradient: it is held against Algorithm 3, visit by visit.
@pytest.mark.parametrize(("name", "representation"), [case for case in AGENTS if case != ("wpl", "table")])
def test_tensors_that_do_not_choose_get_no_gradient(name, representation):
    """In `Gates` one tensor arrives at first, and the place it is sent to is the only one that goes on."""
    env = small_env(of_family("gates"), 1, action_type=needs(name)["action_type"])
    agent = make_agent(name, env, representation=representation, arrangement="single")
    for _ in range(5):
        trajectory = rollout(agent, env)
        if name == "gumbel":
            agent.optimizer.zero_grad()
            trajectory.exits[0].loss.mean().backward()
        else:
            trajectory.final_reward = torch.tensor([1.0])
            agent.receive(trajectory)
        scores = agent.scores.table if representation == "table" else agent.scores.output.bias
        slopes = scores.grad.view(-1, 3, 3)  # row, tensor, choice
        chosen = [step.action if step.action.ndim == 2 else step.action.argmax(-1) for step in trajectory.steps]
        alive = 0
        for number in range(3):
            assert trajectory.steps[number].choosing[0].tolist() == [tensor == alive for tensor in range(3)]
            assert [bool(slope.any()) for slope in slopes[number]] == [tensor == alive for tensor in range(3)]
            alive = int(chosen[number][0, alive])


@pytest.mark.parametrize("estimator", ["straight-through", "soft"])
@pytest.mark.parametrize("representation", ["table", "mlp"])
def test_gumbel_weights_against_a_loop(representation, estimator):
    env = columns_env("gumbel", 6)
    agent = make_agent("gumbel", env, representation=representation, estimator=estimator, temperature=0.7, seed=5)
    if representation == "table":
        with torch.no_grad():
            agent.scores.table.normal_(generator=torch.Generator().manual_seed(1))
    observation = env.reset()[0]
    pull = torch.arange(54.0).view(6, 3, 3).sin()
    state = agent.generator.get_state()
    weights = rollout(agent, env, instances=env.state.instance).steps[0].action
    (weights * pull).sum().backward()
    scores = agent.scores.table if representation == "table" else agent.scores.output.bias
    got = scores.grad.clone()

    noise = torch.empty(6, 3, 3).exponential_(generator=agent.generator.set_state(state)).log().neg()
    total = torch.zeros(())
    for row in range(6):
        task = int(observation["task"][row])
        if representation == "table":
            numbers = agent.scores.table[task, 0]
        else:
            which = task * 3
            x = seen_by(agent, observation, row)
            hidden = (x @ agent.scores.hidden.weight[which] + agent.scores.hidden.bias[which]).clamp(min=0)
            numbers = (hidden @ agent.scores.output.weight[which] + agent.scores.output.bias[which]).view(3, 3)
        for tensor in range(3):
            legal = env.network.masks[0, tensor].nonzero().flatten()
            powers = ((numbers[tensor, legal] + noise[row, tensor, legal]) / 0.7).exp()
            soft = powers / powers.sum()
            by_hand = torch.zeros(3)
            if estimator == "soft":
                by_hand[legal] = soft.detach()
            else:
                by_hand[legal[soft.argmax()]] = 1.0
            torch.testing.assert_close(weights[row, tensor].detach(), by_hand)
            total = total + (soft * pull[row, tensor, legal]).sum()
    (expected,) = torch.autograd.grad(total, [scores])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert float(got.abs().sum()) > 0


def test_gumbel_pays_for_the_union_of_what_tensors_reach():
    """Two tensors, soft weights: E = Σ_j cost_j (1 − (1 − g_0j)(1 − g_1j)), with a gradient."""
    env = planted_env(2, PlantedGate(), action_type="weights", k_cpt=0.25)
    agent = make_agent("gumbel", env, arrangement="single", estimator="soft")
    trajectory = rollout(agent, env)
    gates = trajectory.steps[0].action
    expected = [sum(1 - (1 - row[0, j]) * (1 - row[1, j]) for j in range(4)) for row in gates]
    torch.testing.assert_close(trajectory.expected_macs, torch.stack(expected))
    (slope,) = torch.autograd.grad(agent.auxiliary_loss(trajectory), [agent.scores.table])
    assert bool(slope[0, 0].abs().sum(-1).gt(0).all())


@pytest.mark.parametrize(("name", "representation", "arrangement"), ARRANGED)
def test_shapes_costs_plans_and_predictions(name, representation, arrangement):
    env = columns_env(name, 6)
    agent = make_agent(name, env, representation=representation, arrangement=arrangement)
    agent.learn(env, 12)
    asked = 2 if arrangement == "dispatched" else 1
    told = 1 if arrangement == "per_task" else 3
    # All three columns are seen, and 3 · 3 numbers are given.
    cost = 0 if representation == "table" else (3 * 6 + told) * 64 + 64 * 9
    assert [agent.macs(0), agent.macs(1)] == [asked * cost, cost]
    assert agent.policy() is None  # (T, N, A) has no room for it

    observation = env.reset(seed=0)[0]
    action, carry = agent.predict(observation, deterministic=True)
    weights = (3,) if name == "gumbel" else ()
    assert tuple(action.shape) == (6, 3, *weights)
    one, _ = agent.predict({key: value[0].numpy() for key, value in observation.items()}, deterministic=True)
    assert one.tolist() == action[0].tolist()
    if arrangement == "dispatched":
        assert carry.shape == (6,) and 0 <= int(carry.min()) <= int(carry.max()) < 3
    plan = agent.plan(observation["task"], True)
    assert (plan is None) == (representation == "mlp" or arrangement == "dispatched" or name == "gumbel")
    if plan is not None:
        assert tuple(plan.shape) == (6, 2, 3) and torch.equal(plan[:, 0], action)
        table = agent.preference_table()
        assert table.shape == (agent.arrangement.num_agents, 3, 3, 3)
        who = agent.arrangement.agent_of(observation["task"])
        for row in range(6):
            assert plan[row].tolist() == table[who[row], :2].argmax(-1).tolist()


@pytest.mark.parametrize(("name", "representation"), AGENTS)
def test_a_checkpoint_goes_on_bit_for_bit(name, representation, tmp_path):
    options = {"num_tasks": 2, "num_classes": 3, "image_size": 3, "width": 4, "form": "columns", "num_envs": 8}

    def made():
        env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", **options, **needs(name))
        return make_agent(name, env, representation=representation)

    assert_goes_on(made, (2, 2), tmp_path)


RATES = {
    "wpl": {"table": {"policy_rate": 0.02}, "mlp": {"policy_rate": 0.01}},
    "reinforce": {"table": {"learning_rate": 0.05}, "mlp": {"learning_rate": 0.01}},
    "actor-critic": {"table": {"learning_rate": 0.05}, "mlp": {"learning_rate": 0.01}},
    "gumbel": {"table": {"temperature_final": 1.0}, "mlp": {"temperature_final": 1.0}},
    "ppo": {"mlp": {"learning_rate": 0.01, "epochs": 2}},
    "grpo": {"table": {"learning_rate": 0.05}},
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "representation", "arrangement"),
    [
        (name, representation, arrangement)
        for name, representation, arrangement in [*ARRANGED, ("ppo", "mlp", "per_task"), ("grpo", "table", "per_task")]
        if arrangement != "single"
        # Two tasks settle with one agent, whose routes suit neither: nothing makes a table of WPL try others.
        and (name, representation, arrangement) != ("wpl", "table", "dispatched")
    ],
)
def test_learners_find_the_place_of_each_tensor(name, representation, arrangement):
    """One pair of sixteen is right, another for every task; nothing but the routes can be learned."""
    env = planted_env(192, PlantedGate(), action_type=needs(name)["action_type"])
    rate = RATES[name][representation]
    if (representation, arrangement) == ("table", "dispatched"):
        rate = {**rate, "entropy": 0.1}
    agent = make_agent(name, env, representation=representation, arrangement=arrangement, **rate)
    for _ in range(12):
        agent.learn(env, 192 * 30)
        solved = routing_gym.evaluate(agent, env).accuracy
        if solved == 1:
            break
    assert solved == 1


def test_random_places_are_right_for_half():
    env = planted_env(192, PlantedGate())
    assert 0.3 < routing_gym.evaluate(make_agent("random", env), env).accuracy < 0.7


@pytest.mark.long
@pytest.mark.parametrize(("name", "representation"), [*AGENTS, ("random", None)])
def test_routes_of_columns_are_learned_together_with_the_blocks(name, representation):
    """Three tasks that call the same images by other names; by random routes half of the answers are right."""
    network = ColumnsMLP(IMAGE, CLASSES, 3, width=8, layers=2, num_tasks=3)
    env = columns_env(name, 72, network, learning_rate=0.03)
    options = {} if name == "random" else {"representation": representation}
    if (name, representation) == ("wpl", "table"):
        options["policy_rate"] = 0.02
    agent = make_agent(name, env, **options).learn(env, 72 * 35)
    accuracy = routing_gym.evaluate(agent, env, split="train").accuracy
    assert accuracy < 0.7 if name == "random" else accuracy > 0.95


@pytest.mark.parametrize("name", ["q-learning", "sarsa", "soft-mixture", "top-k"])
def test_agents_of_one_tensor_say_so(name):
    with pytest.raises(ValueError, match=f"'{name}' chooses for 1 tensor per decision, this network has up to 3"):
        make_agent(name, columns_env(name))
