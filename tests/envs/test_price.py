"""Prices of computation: shown, drawn for every instance, paid, and asked for by whoever predicts or judges."""

import gymnasium
import numpy as np
import pytest
import torch
from by_hand import CHAIN, exit_env, given
from damage import same
from deciding import seen_by
from toys import TREE, ExitTree, planted_env, small_env, toy_data, toy_env

import routing_gym
from routing_gym.agents import add_task, make_agent
from routing_gym.envs import rollout
from routing_gym.envs.pettingzoo import RoutingAECEnv, RoutingParallelEnv
from routing_gym.envs.sb3 import RoutingVecEnv
from routing_gym.networks import RoutedMLP
from routing_gym.testing import check_vector_env

PRICES = (0.0, 1e-9, 6.4e-8)
SHOWN = [0.0, 0.01, 0.64]  # of ten million multiply-accumulates
ID = "routing_gym/SyntheticMTL-v0"


def tree_env(mode="same_step", num_envs=60, **options):
    options = {"autoreset_mode": mode, "k_cpt": PRICES, "price": True, **options}
    return toy_env(ExitTree(TREE), num_envs, **options)


def shown(values):
    return sorted({round(float(value), 6) for value in np.asarray(values).reshape(-1)})


# ------------------------------------------------------------------------------------------------------------- faces


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_the_vector_environment_shows_the_price_of_ten_million(mode):
    env = tree_env(mode)
    space = gymnasium.spaces.Box(0.0, np.inf, (1,), np.float32)
    assert env.single_observation_space["price"] == space and env.observation_space["price"].shape == (60, 1)
    observation, _ = env.reset(seed=0)
    assert observation["price"].shape == (60, 1) and observation["price"].dtype == torch.float32
    torch.testing.assert_close(observation["price"][:, 0], 1e7 * env.state.price)
    assert shown(observation["price"]) == SHOWN
    check_vector_env(env)
    assert "price" not in tree_env(mode, price=False).reset()[0]
    assert "price" not in tree_env(mode, price=False).observation_space.spaces


def test_the_view_of_one_instance():
    env = gymnasium.make(ID, k_cpt=PRICES, price=True)
    seen = []
    for seed in range(12):
        observation, _ = env.reset(seed=seed)
        assert env.observation_space.contains(observation) and observation["price"].dtype == np.float32
        seen.append(observation["price"])
        again, _ = env.reset(seed=seed)
        assert again["price"] == observation["price"]
        following = env.step(0)[0]
        assert following["price"] == observation["price"]
    assert shown(seen) == SHOWN
    assert shown([env.reset()[0]["price"] for _ in range(20)]) == SHOWN


def test_the_face_of_stable_baselines3():
    env = RoutingVecEnv(tree_env(num_envs=30))
    observation = env.reset()
    assert env.observation_space["price"].shape == (1,) and observation["price"].shape == (30, 1)
    before = observation["price"].copy()
    observation, _, ended, infos = env.step(np.zeros(30, dtype=int))  # all leave
    assert ended.all() and shown(observation["price"]) == SHOWN and not np.array_equal(observation["price"], before)
    assert [info["terminal_observation"]["price"].item() for info in infos] == before[:, 0].tolist()


def test_the_game_of_many():
    env = RoutingParallelEnv(tree_env(), instances_per_agent=20)
    observations, _ = env.reset(seed=0)
    for agent, observation in observations.items():
        assert env.observation_space(agent).contains(observation)
        assert observation["observation"]["price"].shape == (20, 1)
        assert shown(observation["observation"]["price"]) == SHOWN


def test_the_game_of_two_moves():
    env, seen = RoutingAECEnv(tree_env()), []
    for seed in range(12):
        env.reset(seed=seed)
        seen.append(env.observe("dispatcher")["observation"]["price"])
        env.step(1)
        assert env.observation_space("agent_1").contains(env.observe("agent_1"))
        assert env.observe("agent_1")["observation"]["price"] == seen[-1]
    assert shown(seen) == SHOWN


def test_torchrl_takes_it():
    envs = pytest.importorskip("torchrl.envs", reason="TorchRL is not installed: pip install 'routing_gym[torchrl]'")
    core = gymnasium.make_vec(ID, num_envs=5, k_cpt=PRICES, price=True)
    wrapped = envs.GymWrapper(core, categorical_action_encoding=True, convert_actions_to_numpy=False)
    envs.check_env_specs(wrapped)
    assert wrapped.reset()["price"].shape == (5, 1)


# ------------------------------------------------------------------------------------------------- drawn and paid


def test_same_seed_same_prices_all_about_as_often():
    drawn = []
    for _ in range(2):
        env = tree_env("disabled", 3000)
        env.reset(seed=5)
        first = env.state.price
        env.reset()
        drawn.append((first, env.state.price))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*drawn, strict=True))
    assert not torch.equal(*drawn[0])
    counts = [int((drawn[0][0] == torch.tensor(price)).sum()) for price in PRICES]
    assert sum(counts) == 3000 and min(counts) > 900  # 1000 expected, deviation 26
    env.reset(seed=6)
    assert not torch.equal(env.state.price, first)


def test_a_single_price_costs_no_random_numbers():
    orders = []
    for k_cpt in (0.0, 1e-3, (1e-3,)):
        env = tree_env("disabled", 10, k_cpt=k_cpt)
        orders.append(torch.cat([env.reset()[0]["activation"].flatten(1) for _ in range(4)]))
        assert float(env.state.price[0]) == pytest.approx(1e-3 if k_cpt else 0)
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_every_row_pays_its_own_price(mode):
    env = tree_env(mode, 40, k_cpt=(0.0, 1e-3, 1e-2), final_reward="correctness", replay_batch=8)
    env.reset(seed=1)
    generator, restarted = torch.Generator().manual_seed(0), 0
    for _ in range(12):
        at, price, active = env.state.at, env.state.price.clone(), env.state.active.clone()
        legal = env.network.masks[at.clamp(max=3), 0].long()
        choice = (torch.rand(40, 3, generator=generator) * legal).argmax(1)
        _, reward, left, _, info = env.step(choice)
        for row in range(40):
            spent = env.network.decisions[int(at[row])].macs[int(choice[row])] if active[row] else 0.0
            assert float(info["action_reward"][row]) == pytest.approx(-float(price[row]) * spent, abs=1e-7)
            assert bool(left[row]) or float(reward[row]) == pytest.approx(float(info["action_reward"][row]))
        # Those on their way keep their price, those that begin draw another.
        on_their_way = ~left if mode == "same_step" else torch.ones(40, dtype=torch.bool)
        assert torch.equal(env.state.price[on_their_way], price[on_their_way])
        restarted += int((env.state.price != price).sum())
        if not env.state.waiting:
            break
    assert (restarted > 20) is (mode == "same_step")


def test_replayed_routes_and_restarted_rows_have_the_prices_they_had():
    env = tree_env(num_envs=6, replay_batch=12, k_cpt=(1e-3, 2e-3, 3e-3))
    seen, finished = [], []
    start = env.network.start

    def begin(images, task, *, instance=None, price=None):
        if len(images) == 12:
            seen.append((instance.tolist(), price.tolist()))
        return start(images, task, instance=instance, price=price)

    env.network.start = begin
    env.reset(seed=0)
    while not seen:
        instance, price = env.state.instance.tolist(), env.state.price.tolist()
        left = env.step(torch.zeros(6, dtype=torch.int64))[2].nonzero().flatten().tolist()
        finished += [(instance[row], price[row]) for row in left]
    assert list(zip(*seen[0], strict=True)) == finished[:12] and len({price for _, price in finished}) == 3

    env = tree_env("disabled", 6)
    env.reset(seed=0)
    env.step(torch.tensor([0, 1, 2, 0, 1, 2]))
    before = env.state.price.clone()
    kept = torch.tensor([False, True, True, True, True, True])
    env.reset(options={"reset_mask": ~kept})
    assert torch.equal(env.state.price[kept], before[kept])


@pytest.mark.parametrize(
    ("k_cpt", "message"),
    [
        (-1e-9, "k_cpt must be at least 0 and finite"),
        (float("nan"), "k_cpt must be at least 0 and finite"),
        (float("inf"), "k_cpt must be at least 0 and finite"),
        ((), "k_cpt must be at least 0 and finite, or a tuple of such numbers"),
        ((0.0, -1.0), "k_cpt must be at least 0 and finite, or a tuple of such numbers"),
        ((0.0, True), "k_cpt must be at least 0 and finite, or a tuple of such numbers"),
        (("a",), "k_cpt must be at least 0 and finite, or a tuple of such numbers"),
        (True, "k_cpt must be of type float or tuple"),
        ("high", "k_cpt must be of type float or tuple"),
    ],
)
def test_what_is_no_price_is_refused(k_cpt, message):
    with pytest.raises(ValueError, match=message):
        tree_env(k_cpt=k_cpt)


# ------------------------------------------------------------------------------------------- predicting and judging


def thrifty(name="actor", **options):
    """A router whose score of leaving is the price shown: at 1 (a k_cpt of 1e-7) it is as high as that of going on."""
    env = exit_env(ExitTree(CHAIN[3]), name, 5, price=True, k_cpt=(0.0, 2e-7), **options)
    agent = make_agent(name, env).eval()
    with torch.no_grad():
        for router in agent.scores.of:
            for number in (0, 3):
                router[number].weight.zero_()
            router[0].weight[0, 0] = router[3].weight[0, 0] = router[6].weight[0, 0] = 1  # the price comes first
            router[6].bias.copy_(torch.tensor([0.0, 1.0]))
    return agent


@pytest.mark.parametrize("name", ["actor", "optimistic-critic", "pragmatic-critic-sampled"])
def test_at_a_high_price_one_leaves_earlier(name):
    agent = thrifty(name)
    observation, _ = agent.env.reset(seed=0)

    def leaving(action):
        action = np.asarray(action)
        return (action.argmax(-1) if action.ndim > np.ndim(seen["depth"]) else action) == 0

    one, several = ({key: value[part] for key, value in observation.items()} for part in (2, slice(None)))
    for batch in (one, several):
        for convert in (lambda value: value.detach(), lambda value: value.detach().numpy()):
            seen = {key: convert(value) for key, value in batch.items()}
            for k_cpt, expected in ((0.0, False), (0, False), (0.9e-7, False), (1.1e-7, True), (1e-3, True)):
                action, _ = agent.predict(seen, deterministic=True, k_cpt=k_cpt)
                assert isinstance(action, torch.Tensor) is isinstance(seen["activation"], torch.Tensor)
                assert bool(np.all(leaving(action))) is bool(np.any(leaving(action))) is expected
    # Without it, what the observation says: 0 or 2.
    action, _ = agent.predict(observation, deterministic=True)
    chosen = action.argmax(1) if action.ndim == 2 else action
    assert torch.equal(chosen == 0, observation["price"][:, 0] > 1) and 0 < int((chosen == 0).sum()) < 5
    priceless = {key: value for key, value in observation.items() if key != "price"}
    assert agent.predict(priceless, deterministic=True, k_cpt=1.0)[0].shape == action.shape


@pytest.mark.parametrize("k_cpt", [-1e-9, float("nan"), float("inf"), True, "high", [1e-9]])
def test_what_is_no_price_is_not_predicted_with(k_cpt):
    agent = thrifty()
    with pytest.raises(ValueError, match="k_cpt must be at least 0 and finite, got"):
        agent.predict(agent.env.reset()[0], k_cpt=k_cpt)


def test_who_sees_no_price_says_so():
    blind = given(CHAIN[3], [[0.0, 0.0]] * 2, [1.0] * 3)
    with pytest.raises(ValueError, match="agent 'actor' was made for an environment without price=True, so k_cpt=1.0"):
        blind.predict(blind.env.reset()[0], k_cpt=1.0)
    with pytest.raises(ValueError, match="k_cpt=1.0 is for environments made with price=True"):
        routing_gym.evaluate(blind, blind.env, k_cpt=1.0)
    kinds = [("wpl", {}), ("reinforce", {}), ("shared", {}), ("random", {}), ("gumbel", {}), ("soft-mixture", {})]
    for name, options in kinds:
        weights = {"action_type": "weights"} if name in ("gumbel", "soft-mixture") else {}
        agent = make_agent(name, small_env(price=True, **weights), **options)
        with pytest.raises(ValueError, match=f"agent '{name}' decides without looking at the price, so k_cpt=1.0"):
            agent.predict(agent.env.reset()[0], k_cpt=1.0)


def test_judged_at_a_price():
    agent = thrifty()
    state = torch.get_rng_state()
    # Columns 24 + 16 + 16 and a classifier of 12; two routers of 5·16 + 16·16 + 16·2 = 368.
    cheap, dear = (routing_gym.evaluate(agent, agent.env, k_cpt=k_cpt) for k_cpt in (0.0, 1e-6))
    assert (cheap.macs, dear.macs) == (68 + 2 * 368, 36 + 368) and (cheap.paths, dear.paths) == (1, 1)
    both = routing_gym.evaluate(agent, agent.env)
    assert dear.macs < both.macs < cheap.macs and both.paths == 2
    assert routing_gym.evaluate(agent, agent.env).macs == both.macs  # dealt out in the same way
    assert torch.equal(torch.get_rng_state(), state)
    other = thrifty(seed=9)
    assert routing_gym.evaluate(other, other.env).macs == both.macs
    for k_cpt in (-1.0, float("nan"), True, "high"):
        with pytest.raises(ValueError, match="k_cpt must be"):
            routing_gym.evaluate(agent, agent.env, k_cpt=k_cpt)
    single = exit_env(ExitTree(CHAIN[3]), price=True, k_cpt=2e-7)
    assert routing_gym.evaluate(make_agent("actor", single), single).macs > 0


# ---------------------------------------------------------------------------------------------------- approximators

APPROXIMATE = [
    *((name, {"representation": "mlp"}) for name in ("wpl", "reinforce", "actor-critic", "q-learning", "sarsa")),
    ("gumbel", {"representation": "mlp"}),
    ("soft-mixture", {"conditioned": True}),
    ("top-k", {}),
    ("sb3:PPO", {"representation": "mlp"}),
]


@pytest.mark.parametrize(("name", "options"), APPROXIMATE)
def test_approximators_see_the_price(name, options):
    torch.manual_seed(0)
    weights = {"action_type": "weights"} if name in ("gumbel", "soft-mixture", "top-k") else {}
    mode = {"autoreset_mode": "same_step"} if name.startswith("sb3") else {}
    network = RoutedMLP((1, 2, 3), 3, 3, width=4, layers=2)
    env = small_env(network, 24, price=True, k_cpt=(0.0, 1e-7), **weights, **mode)
    agent = make_agent(name, env, **options)
    assert agent.sees_price
    agent.learn(env, 24 * 3)
    observation, _ = env.reset(seed=0)
    found = {}
    for k_cpt in (0.0, 5e-6):
        observation["price"] = torch.full((24, 1), 1e7 * k_cpt)
        found[k_cpt] = decide(agent, observation)
    assert not torch.allclose(found[0.0], found[5e-6])
    agent.predict(observation, deterministic=True, k_cpt=1e-3)


def decide(agent, observation):
    """The numbers an agent decides by."""
    everyone, legal = torch.ones(24, dtype=torch.bool), torch.ones(24, 3, dtype=torch.bool)
    with torch.no_grad():
        if agent.name.startswith("sb3"):
            from routing_gym.envs import Context, Known

            return agent.probabilities(observation, Context(Known(everyone, legal)))
        return agent.scores(observation, agent.arrangement.agent_of(observation["task"]))


@pytest.mark.parametrize(("arrangement", "told"), [("single", 3), ("per_task", 1)])
def test_an_approximator_by_hand(arrangement, told):
    """concat(v, price, one-hot t) through two layers; 1 stands for t where every task has an agent of its own."""
    env = small_env(price=True, k_cpt=(0.0, 1e-7))
    agent = make_agent("reinforce", env, representation="mlp", arrangement=arrangement)
    scores, rows = agent.scores, agent.arrangement.num_rows
    observation, _ = env.reset(seed=0)
    who = observation["task"] * (arrangement == "per_task")
    found = scores(observation, who)
    assert scores.macs(0) == (6 + 1 + told) * 64 + 64 * 3
    for row in range(12):
        x, which = seen_by(agent, observation, row), int(who[row]) * rows
        hidden = (x @ scores.hidden.weight[which] + scores.hidden.bias[which]).clamp(min=0)
        torch.testing.assert_close(found[row, 0], hidden @ scores.output.weight[which] + scores.output.bias[which])


@pytest.mark.long
@pytest.mark.parametrize("name", ["actor-critic", "q-learning"])
def test_an_agent_that_sees_the_price_learns_to_heed_it(name):
    """A tree of two ways out, the second much dearer: it pays only where computation is free."""
    env = toy_env(ExitTree([[1], []], width=64), 64, autoreset_mode="disabled", price=True, k_cpt=(0.0, 1e-7))
    agent = make_agent(name, env, representation="mlp", arrangement="single", learning_rate=0.006)
    for _ in range(200):
        trajectory = rollout(agent, env)
        onward = (trajectory.steps[0].action.view(64) == 1).float()
        trajectory.final_reward = onward * torch.where(trajectory.price > 0, -1.0, 1.0)
        agent.receive(trajectory)
        agent.episodes += 64
    observation = {key: value.detach() for key, value in env.reset()[0].items()}
    assert bool((agent.predict(observation, deterministic=True, k_cpt=0.0)[0] == 1).all())
    assert bool((agent.predict(observation, deterministic=True, k_cpt=1e-7)[0] == 0).all())


@pytest.mark.parametrize("name", ["reinforce", "sb3:PPO"])
def test_a_new_task_is_told_apart_and_the_price_stays_where_it_was(name):
    mode = {"autoreset_mode": "same_step"} if name.startswith("sb3") else {}
    env = small_env(RoutedMLP((1, 2, 3), 3, 4, width=4, layers=2), 24, price=True, k_cpt=(0.0, 1e-7), **mode)
    agent = make_agent(name, env, representation="mlp").learn(env, 24 * 5)
    grown = add_task(agent, {split: part.select_tasks([1]) for split, part in toy_data().items()})
    observation, _ = env.reset(seed=0)
    for k_cpt in (0.0, 1e-7, 1e-5):
        before, _ = agent.predict(observation, deterministic=True, k_cpt=k_cpt)
        assert torch.equal(before, grown.predict(observation, deterministic=True, k_cpt=k_cpt)[0])


def test_without_a_price_approximators_are_what_they_were():
    """Their first weights are drawn for the same inputs as ever, those of other agents' tasks included."""
    agent = make_agent("reinforce", planted_env(), representation="mlp", seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        shapes, bounds = [(9 + 3, 64), (64,), (64, 4), (4,)], [(9 + 3) ** -0.5] * 2 + [64**-0.5] * 2
        drawn = [torch.empty(3 * 3, *shape).uniform_(-at, at) for shape, at in zip(shapes, bounds, strict=True)]
    for task in range(3):
        own = slice(3 * task, 3 * task + 3)
        seen = [*range(9), 9 + task]
        assert torch.equal(agent.scores.hidden.weight[own], drawn[0][own][:, seen])
    kept = agent.scores.hidden.bias, agent.scores.output.weight, agent.scores.output.bias
    assert same(kept, drawn[1:])
