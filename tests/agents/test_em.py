"""EM over instances' routes: both steps by hand, and whose routes are kept."""

import copy
import itertools

import gymnasium
import pytest
import torch
from deciding import assert_descends_by, legal_for, policies_of, scores_of, watched_trials
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import of_family, planted_env, small_env

import routing_gym
from routing_gym.agents import Agent, make_agent, needs, train_batch
from routing_gym.envs import rollout


def worth_by_hand(agent, instance, route):
    """Log p(y | x, h) + log p(h | x) less the price of what ran, of one instance along one route; and the route."""
    env, network = agent.env, copy.deepcopy(agent.env.network).eval()
    task = env.dataset.task[instance].view(1)
    state, worth, taken = network.start(env.dataset.pixels(instance.view(1)), task), 0.0, {}
    while state.waiting:
        depth, seen = int(state.at), {"task": task, "depth": state.at, "activation": network.observe(state)}
        step = type("Step", (), {"observation": seen, "decision": state.at})
        legal, before = legal_for(agent, step, 0), float(state.macs)
        worth += float(scores_of(agent, step, 0).log_softmax(0)[legal.index(route[depth])].detach())
        state, taken[depth] = network.advance(state, torch.tensor([[route[depth]]])), route[depth]
        worth -= (float(state.macs) - before) * env.config.k_cpt
        for left in state.exits:
            worth += float(left.logits.detach().log_softmax(1)[0, env.dataset.label[instance]])
    return worth, taken


def route_of(trajectory, row):
    """The choices of a row by decision."""
    return {int(step.decision[row]): int(step.action[row]) for step in trajectory.steps if step.active[row]}


@pytest.mark.long
@settings(max_examples=8, deadline=None)
@given(
    arrangement=st.sampled_from(["per_task", "single"]),
    representation=st.sampled_from(["table", "mlp"]),
    family=st.sampled_from(["mlp", "tree"]),
    rho=st.sampled_from([0.0, 1e-9]),  # then `act` is asked of tables too
    seed=st.integers(0, 10**4),
)
def test_the_route_kept_is_the_best_of_those_drawn_and_the_one_before(arrangement, representation, family, rho, seed):
    env = small_env(of_family(family), k_cpt=0.1, rho=rho, seed=seed, learning_rate=0.05)
    agent = make_agent(
        "em", env, samples=2, arrangement=arrangement, representation=representation, learning_rate=0.3, seed=seed
    )
    batches, instance = watched_trials(agent), torch.arange(12)
    for number in range(2):
        before, policy = agent.kept.clone(), copy.deepcopy(agent.scores.state_dict())
        rolled = rollout(agent, env, instances=instance)
        tried = batches[number]
        assert len(tried) == 3 and all(torch.equal(one.instance, instance) for one in tried)
        for row in range(12):
            candidates = [route_of(one, row) for one in tried]
            if number:  # an instance that comes for the first time has one more route drawn
                assert candidates[2].items() <= dict(enumerate(before[row].tolist())).items()
            worths = [worth_by_hand(agent, instance[row], route)[0] for route in candidates]
            worth, taken = worth_by_hand(agent, instance[row], route_of(rolled, row))
            assert worth == pytest.approx(max(worths), abs=1e-4)
            assert route_of(rolled, row) == taken  # blocks and policy learn on it
        assert torch.equal(agent.kept, before)  # until it is learned on
        assert all(torch.equal(value, policy[name]) for name, value in agent.scores.state_dict().items())

        def loss_by_hand(rolled=rolled):
            made = [policy for row in range(12) for step in policies_of(agent, rolled.steps, row) for policy in step]
            return -sum(log[taken] for log, taken in made) / 12

        assert assert_descends_by(agent, loss_by_hand, lambda rolled=rolled: agent.receive(rolled)) == 1
        assert bool((agent.kept[12:] == -1).all())
        for row in range(12):
            assert route_of(rolled, row).items() <= dict(enumerate(agent.kept[row].tolist())).items()
        env.train_blocks()


def test_for_fixed_blocks_and_policy_kept_routes_only_become_more_likely_up_to_the_best():
    env = small_env(num_envs=9)
    agent, instance = make_agent("em", env, arrangement="single", samples=1), torch.arange(3).repeat(3)
    with torch.no_grad():
        agent.scores.table[0, :2] = torch.tensor([[0.0, 0.5, -0.5], [0.3, 0.0, -0.3]])
    routes = list(itertools.product(range(3), repeat=2))
    worths = [{route: worth_by_hand(agent, one, route)[0] for route in routes} for one in instance[:3]]
    last = [-torch.inf] * 3
    for _ in range(25):
        rolled = rollout(agent, env, instances=instance)  # several rows of one instance share a route
        taken = torch.stack([step.action for step in rolled.steps], 1)
        agent.kept[instance] = taken
        assert torch.equal(taken, agent.kept[instance])
        now = [worth[tuple(kept)] for worth, kept in zip(worths, agent.kept[:3].tolist(), strict=True)]
        assert all(new >= old - 1e-6 for new, old in zip(now, last, strict=True))
        last = now
    assert last == pytest.approx([max(worth.values()) for worth in worths])


@pytest.mark.parametrize("representation", ["table", "mlp"])
def test_what_is_judged_neither_reads_nor_touches_what_is_kept(representation):
    env = small_env()
    agent = make_agent("em", env, representation=representation)
    for deterministic in (True, False):  # before the first batch, too
        routing_gym.evaluate(agent, env, deterministic=deterministic)
    agent.classify(env.dataset.images[:2], env.dataset.task[:2])
    assert bool((agent.kept == -1).all())
    agent.kept.zero_()
    with torch.no_grad():  # the policy never takes what is kept
        (agent.scores.table if representation == "table" else agent.scores.output.bias)[..., 0] -= 100
    env.reset()
    kept = agent.kept.clone()
    for split, deterministic in itertools.product(env.datasets, (True, False)):
        assert int(routing_gym.evaluate(agent, env, split=split, deterministic=deterministic).routes[..., 0].sum()) == 0
    for split in ("train", "test"):
        other = env.sibling(6, split=split, autoreset_mode="disabled")
        assert all(bool((step.action > 0).all()) for step in rollout(agent, other).steps)
    assert all(bool((step.action > 0).all()) for step in rollout(agent, env, deterministic=True).steps)
    action, _ = agent.predict(env.reset()[0])
    assert bool((action > 0).all()) and torch.equal(agent.kept, kept)


@pytest.mark.parametrize("representation", ["table", "mlp"])
def test_the_e_step_leaves_no_trace_in_blocks_and_stream(representation):
    form = {"image_size": 16, "network": "simple-convnet", "routed_stages": 1, "rho": 0.2, "k_cpt": 1e-6}
    form |= {"collaboration": "frequency", "num_envs": 12, **needs("em")}
    ours, theirs = (gymnasium.make_vec("routing_gym/SyntheticMTL-v0", **form).unwrapped for _ in range(2))
    agent = make_agent("em", ours, samples=2, representation=representation)
    for _ in range(3):
        trajectory, *_ = train_batch(agent, ours)
        follows = Follows(torch.stack([step.action for step in trajectory.steps], 1))
        again = rollout(follows, theirs)
        theirs.train_blocks()
        assert torch.equal(again.instance, trajectory.instance) and torch.equal(again.loss, trajectory.loss)
        for name, value in ours.network.state_dict().items():
            assert torch.equal(value, theirs.network.state_dict()[name]), name
        assert torch.equal(ours.rewards.share.total, theirs.rewards.share.total)


class Follows:
    """Takes given routes."""

    def __init__(self, routes):
        self.routes = routes

    def act(self, observation, context):
        return self.routes[:, context.sole]


@pytest.mark.long
@pytest.mark.parametrize(
    ("representation", "arrangement"), [("table", "per_task"), ("mlp", "per_task"), ("mlp", "single")]
)
def test_planted_routes_are_found(representation, arrangement):
    """One route in sixteen solves a task, another for every task; the blocks themselves cannot be changed."""
    env = planted_env(96)
    agent = make_agent("em", env, representation=representation, arrangement=arrangement).learn(env, 96 * 60)
    assert routing_gym.evaluate(agent, env).accuracy == 1


def test_routes_kept_are_saved_and_of_this_data_alone(tmp_path):
    env = small_env()
    agent = make_agent("em", env, representation="mlp").learn(env, 24)
    agent.save(tmp_path / "em.pt")
    other = small_env()
    assert torch.equal(Agent.load(tmp_path / "em.pt", other).kept, agent.kept)
    assert int((agent.kept[:, 0] >= 0).sum()) == 24 <= len(env.dataset)


def test_what_it_cannot_be_is_refused():
    with pytest.raises(ValueError, match="'em' keeps routes, not dispatchers' choices: arrangement='per_task'"):
        make_agent("em", small_env(), arrangement="dispatched")
    with pytest.raises(ValueError, match="samples must be"):
        make_agent("em", small_env(), samples=0)
    with pytest.raises(ValueError, match="'em' compares routes of an instance, which needs one price"):
        make_agent("em", small_env(k_cpt=(0.0, 0.1)))
    with pytest.raises(ValueError, match="'em' chooses for 1 tensor per decision, this network has up to 3"):
        make_agent("em", small_env(of_family("gates")))
