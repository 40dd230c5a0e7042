"""Every agent on a network that instances leave at different depths."""

import gymnasium
import pytest
import torch
from resuming import assert_goes_on
from toys import CROSS_PATHS, SHARE_OUTCOMES, SKIP_BLOCKS

import routing_gym
from routing_gym.agents import AGENTS, Agent, agent_class, make_agent
from routing_gym.envs import rollout
from routing_gym.networks import EXIT, ways_out

HYBRID = "routing_gym/HybridEarlyExit-v0"
BATCH = 16

LEARNERS = ["wpl", "reinforce", "q-learning", "sarsa", "actor-critic"]
ARRANGEMENTS = [{}, {"arrangement": "single"}, {"arrangement": "dispatched", "num_agents": 3}]
"""Every learner in each, as a table and as approximators in turn: all pairs of the three are there."""
AGENTS_AND_OPTIONS = [
    *(
        (name, {"representation": ("table", "mlp")[(number + place) % 2], **arrangement})
        for number, name in enumerate(LEARNERS)
        for place, arrangement in enumerate(ARRANGEMENTS)
    ),
    ("gumbel", {}),
    ("gumbel", {"estimator": "soft"}),
    ("gumbel", {"representation": "mlp"}),
    ("soft-mixture", {}),
    ("soft-mixture", {"conditioned": True}),
    ("ppo", {"representation": "mlp"}),
    *(("grpo", options) for options in ({}, {"representation": "mlp", "arrangement": "dispatched"})),
    *(("relax", options) for options in ({"representation": "mlp"}, {"control": "rebar"})),
    *((name, {}) for name in ("thompson", "em", "annealed-em")),
    ("em", {"representation": "mlp"}),
    ("task-clustering", {}),
    ("top-k", {"k": 1}),
    ("top-k", {"k": 2}),
    *(("gumbel", {"estimator": name}) for name in ("reinmax", "dense")),
    *((name, {}) for name in ("expert-choice", "loss-free", "dselect-k")),
    *((name, {}) for name in ("task-specific-all", "task-specific-last", "shared", "random-fixed", "random", "hash")),
    ("fixed-routes", {"routes": [[1, 0]]}),
    *((name, {}) for name in ("actor", "pragmatic-critic", "optimistic-critic")),
    *((f"{name}-critic-sampled", {}) for name in ("pragmatic", "optimistic")),
    ("confidence", {"threshold": 0.6}),
    ("confidence", {"measure": "patience", "threshold": 1}),
    *((f"sb3:{name}", {}) for name in ("PPO", "A2C", "DQN", "MaskablePPO")),
    *((f"sb3:{name}", {"representation": "mlp"}) for name in ("PPO", "DQN")),
]
SHARES = {"gumbel", "soft-mixture", "top-k", "expert-choice", "loss-free", "dselect-k", *SHARE_OUTCOMES}
"""What acts by weights, which share an instance out among the ways out."""
MIXES = {"soft-mixture", "expert-choice", "loss-free", "dselect-k"}
"""What does so when judged, too."""


def early_exit(name, env_id=HYBRID, **options):
    """An environment for an agent, of three small columns."""
    cls = agent_class(name)
    needs = {"autoreset_mode": "disabled", "action_type": cls.action_type, **cls.env_kwargs}
    return gymnasium.make_vec(env_id, num_envs=BATCH, **{"columns": 3, "width": 2, **needs, **options})


def costs_of_ways_out(network):
    """What an instance costs that takes one way to its end, by (decision, choice); decisions in a chain."""
    spent, costs = network.stem_macs, {}
    for number, decision in enumerate(network.decisions):
        for choice, target in enumerate(decision.next):
            if target == EXIT:
                costs[number, choice] = spent + decision.macs[choice]
        spent += decision.macs[1]
    return costs


@pytest.mark.long
@pytest.mark.parametrize(("name", "options"), AGENTS_AND_OPTIONS, ids=lambda part: str(part))
def test_every_agent_that_can_route_it_does(name, options, tmp_path):
    env = early_exit(name)
    core = env.unwrapped
    before = [parameter.detach().clone() for parameter in core.network.parameters()]
    agent, seen = make_agent(name, env, **options), []
    agent.learn(env, 3 * BATCH, seen.append)
    assert len(seen) >= 3 and all(bool(value.isfinite()) for metrics in seen for value in metrics.values())
    if not name.startswith("sb3:"):  # those replay 64 routes at a time
        after = core.network.parameters()
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    costs = costs_of_ways_out(core.network)
    assert list(costs) == ways_out(core.network.decisions)
    everything = core.network.stem_macs + sum(sum(decision.macs) for decision in core.network.decisions)
    batch = rollout(agent, core)
    assert {(exit.decision, exit.choice) for exit in batch.exits} <= set(ways_out(core.network.decisions))
    share, spent = torch.zeros(BATCH), torch.zeros(BATCH)
    for exit in batch.exits:
        rows = torch.arange(BATCH) if exit.rows is None else exit.rows
        share[rows] += exit.weight.detach()
        spent[rows] += costs[exit.decision, exit.choice] * exit.weight.detach()
    torch.testing.assert_close(share, torch.ones(BATCH))
    torch.testing.assert_close(batch.expected_macs.detach(), spent)
    assert bool((batch.macs >= batch.expected_macs.detach() - 1).all()) and bool((batch.macs <= everything).all())
    if name not in SHARES:
        assert torch.equal(batch.macs, spent)

    judged = routing_gym.evaluate(agent, env)
    own = judged.macs - judged.router_macs
    assert min(costs.values()) <= own <= (everything if name in SHARES else max(costs.values()))
    assert 0 <= judged.accuracy <= 1 and judged.loss > 0
    arriving = judged.routes.sum(-1)[0].tolist()
    assert arriving[0] == len(core.datasets["test"]) or name in MIXES or (name, options) == ("top-k", {"k": 2})
    assert arriving == sorted(arriving, reverse=True)

    agent.save(tmp_path / "agent.pt")
    other = early_exit(name, seed=3)
    again = routing_gym.evaluate(Agent.load(tmp_path / "agent.pt", other), other)
    if name != "random":
        assert (again.accuracy, again.macs, again.routes.tolist()) == (
            judged.accuracy,
            judged.macs,
            judged.routes.tolist(),
        )


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wpl", {}),
        ("reinforce", {"representation": "mlp"}),
        ("actor-critic", {"arrangement": "dispatched", "num_agents": 2}),
        ("q-learning", {"representation": "mlp", "target_update": 2}),
        ("gumbel", {"estimator": "soft"}),
        ("top-k", {}),
    ],
    ids=lambda part: str(part),
)
def test_same_seed_same_curve_also_after_a_resume(name, options, tmp_path):
    other = early_exit(name, seed=9)
    assert_goes_on(lambda: make_agent(name, early_exit(name), seed=4, **options), (2, 3), tmp_path, lambda: other)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gumbel", {}),
        ("gumbel", {"estimator": "soft"}),
        ("soft-mixture", {"learning_rate": 0.3}),
        ("top-k", {"learning_rate": 0.3, "balance": 0.0}),
    ],
    ids=lambda part: str(part),
)
def test_gates_mind_the_price(name, options):
    """At a price at which a column costs more than any mistake, all leave at once."""
    env = early_exit(name, k_cpt=1e-3)
    agent = make_agent(name, env, **options)
    batch = rollout(agent, env.unwrapped)
    torch.testing.assert_close(agent.auxiliary_loss(batch), 1e-3 * batch.expected_macs.mean())
    agent.learn(env, 40 * BATCH)
    routes = routing_gym.evaluate(agent, env).routes[0]
    if name == "gumbel":
        assert routes.tolist() == [[45, 0], [0, 0]]
    exits = rollout(agent, env.unwrapped, deterministic=True).exits
    assert sum(float(exit.weight.sum()) for exit in exits if exit.decision == 0) / BATCH > 0.9
    free = early_exit(name, k_cpt=0.0)
    agent = make_agent(name, free, **options)
    assert agent.auxiliary_loss(rollout(agent, free.unwrapped)) is None


def test_what_cannot_route_it_is_refused_by_name():
    for name, reason in (
        ("cross-stitch", "'cross-stitch' needs an environment made with form='columns', got None"),
        ("shared-with-task", "'shared-with-task' needs an environment made with task_input=True, got None"),
        ("single-task", "'single-task': tasks would share what belongs to no block"),
        ("best-random", "'best-random' judges its draws on a validation split"),
        ("one-shot", "'one-shot' judges its draws on a validation split"),
        ("sinkhorn", "'sinkhorn': this network shares outcomes out by weights that sum to 1"),
        ("smear", "'smear' needs an environment made with merge_blocks=True, got False"),
        ("remoe", "'remoe': this network shares outcomes out by weights that sum to 1"),
        ("mixture-of-depths", "'mixture-of-depths' says whether a block is skipped"),
    ):
        env = early_exit("wpl", action_type=agent_class(name).action_type)
        with pytest.raises(ValueError, match=reason):
            make_agent(name, env)
    with pytest.raises(ValueError, match="mixes k=3 blocks, no decision of this network offers more than 2"):
        make_agent("top-k", early_exit("top-k"), k=3)
    with pytest.raises(ValueError, match=r"at decision 1 \('column 2'\) task 0 may choose from \[0, 1\], got 2"):
        make_agent("fixed-routes", early_exit("fixed-routes"), routes=[[1, 2]])
    left_out = {"cross-stitch", "shared-with-task", "oracle", "single-task", "best-random", "one-shot"}
    left_out |= {"sinkhorn", "remoe", "smear"} | SKIP_BLOCKS | CROSS_PATHS
    assert set(AGENTS) - {name for name, _ in AGENTS_AND_OPTIONS} == left_out


@pytest.mark.parametrize(
    ("name", "part", "metric"),
    [("wpl", "scores", "policy_entropy"), ("actor-critic", "values", "value"), ("q-learning", "scores", "value")],
)
def test_rows_that_have_left_do_not_count_in_what_is_reported(name, part, metric):
    """Whatever stands in the row of tables and approximators that is for instances that have left."""
    env = early_exit(name)
    core = env.unwrapped
    batch = rollout(make_agent("reinforce", env, representation="mlp"), core)
    assert not bool(batch.steps[1].active.all())
    reported = []
    for step in batch.steps if name == "q-learning" else ():
        step.action = step.action.squeeze(1)  # it chooses for one tensor
    for number in (0.0, 7.0):
        agent = make_agent(name, env, representation="mlp")
        with torch.no_grad():
            getattr(agent, part).output.bias[len(core.network.decisions), 0] = number
        reported.append(float(agent.update(batch)[metric]))
    assert reported[0] == reported[1]
    if name == "q-learning":
        targets = make_agent(name, env, representation="mlp").targets(batch)
        active = torch.stack([step.active for step in batch.steps])
        assert reported[0] == pytest.approx(float(targets[active].mean()), rel=1e-5)
