"""Agents that learn side by side learn what they would alone."""

import copy

import gymnasium
import pytest
import torch
from toys import small_env

from routing_gym.agents import AGENTS, Agent, Population, make_agent, needs
from routing_gym.envs import evaluate, register_reward

SYNTHETIC = "routing_gym/SyntheticMTL-v0"
ROWS, SEEDS = 24, 3

CASES = [
    ("wpl", {}, {}),
    ("wpl", {"baseline": "policy", "entropy": 0.2}, {"schedule": "cosine", "schedule_epochs": 0.3}),
    ("wpl", {"min_probability": 0.01}, {"num_tasks": 2}),
    ("wpl", {"representation": "mlp"}, {"k_cpt": 1e-5}),
    ("reinforce", {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01}),
    ("reinforce", {"representation": "mlp", "optimizer": "sgd", "entropy": 0.1}, {"task_input": True}),
    ("q-learning", {"td_lambda": 1.0, "epsilon_episodes": 200}, {"recurrent": True, "num_blocks": 3}),
    ("actor-critic", {"optimizer": "sgd", "entropy": 0.1}, {"learning_rate": 0.01}),
    ("q-learning", {"representation": "mlp", "optimizer": "sgd", "target_update": 2, "td_lambda": 0.5}, {}),
    ("sarsa", {"representation": "mlp", "optimizer": "sgd"}, {"final_reward": "negative-loss"}),
    ("grpo", {"optimizer": "sgd", "group": 2, "advantage": "mean"}, {"final_reward": "negative-loss"}),
    ("relax", {"optimizer": "sgd", "entropy": 0.1}, {}),
    ("relax", {"optimizer": "sgd", "control": "rebar", "representation": "mlp"}, {}),
    ("thompson", {"memory": 50.0}, {"num_blocks": 3}),
    ("gumbel", {"optimizer": "sgd", "temperature_episodes": 300}, {"optimizer": "sgd"}),
    *(("gumbel", {"estimator": name, "optimizer": "sgd"}, {}) for name in ("reinmax", "sparsemixer", "dense")),
    ("dselect-k", {"optimizer": "sgd", "entropy": 0.1}, {"num_blocks": 3}),
    ("gumbel", {"estimator": "soft", "optimizer": "sgd"}, {"optimizer": "sgd", "num_blocks": 3}),
    ("soft-mixture", {"arrangement": "per_task", "optimizer": "sgd"}, {"num_blocks": 4, "balance_tasks": True}),
    ("random-fixed", {}, {"num_blocks": 40, "optimizer": "adamw", "decayed": "weights", "weight_decay": 0.1}),
    ("task-specific-last", {}, {"optimizer": "sgd", "precision": "bfloat16"}),
]


def made(name, seed, env=SYNTHETIC, agent_options=(), rows=ROWS, **options):
    """An agent in an environment of its own."""
    core = gymnasium.make_vec(env, num_envs=rows, seed=seed, **{**needs(name), **options}).unwrapped
    return make_agent(name, core, seed=seed, **dict(agent_options))


def state(agent):
    """All that is learned, as numbers by name."""
    found = {f"agent {name}": value for name, value in agent.state_dict().items()}
    found |= {f"blocks {name}": value for name, value in agent.env.network.named_parameters()}
    for kind, optimizer in (("own", agent.optimizer), ("blocks'", agent.env.trainer.optimizer)):
        of_all = {} if optimizer is None else optimizer.state_dict()["state"]
        for number, averages in of_all.items():
            found |= {f"{kind} optimizer {number} {name}": value for name, value in averages.items()}
    return found


def assert_alike(alone, together, tolerance=2e-5):
    """Two agents have learned the same, but for rounding, and drawn the same."""
    expected, got = state(alone), state(together)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            *torch.broadcast_tensors(got[name], value),  # where all slices took as many steps one number counts them
            rtol=tolerance,
            atol=tolerance,
            msg=lambda why, name=name: f"{name}: {why}",
        )
    assert together.episodes == alone.episodes
    assert together.env.trainer.instances == alone.env.trainer.instances
    assert together.env.trainer.rate == pytest.approx(alone.env.trainer.rate)
    assert torch.equal(together.generator.get_state(), alone.generator.get_state())
    torch.testing.assert_close(together.env.stream.state_dict(), alone.env.stream.state_dict())


@pytest.mark.parametrize(("name", "agent_options", "options"), CASES)
def test_side_by_side_as_alone(name, agent_options, options):
    """Blocks, tables, averages, steps, rates and random numbers are those of runs alone, and metrics are."""
    if options.get("recurrent"):
        options = {**options, "width": 64}
    alone, together = (
        [made(name, seed, SYNTHETIC, agent_options, **options) for seed in range(SEEDS)] for _ in range(2)
    )
    told = []
    Population(together).learn(5 * ROWS, told.append)
    for number, agent in enumerate(alone):
        seen = []
        agent.learn(agent.env, 5 * ROWS, seen.append)
        assert_alike(agent, together[number], 0.02 if "precision" in options else 2e-5)
        assert len(seen) == len(told)
        for metrics, of_all in zip(seen, told, strict=True):
            torch.testing.assert_close(
                {name: metrics[name].float() for name in of_all[number]},
                {name: value.float() for name, value in of_all[number].items()},
                rtol=1e-3,
                atol=1e-3,
            )


def test_data_of_their_own():
    """Every run has images, normalisation and times of its own."""
    alone, together = ([made("wpl", n, data_seed=n) for n in range(SEEDS)] for _ in range(2))
    assert not torch.equal(alone[0].env.dataset.images, alone[1].env.dataset.images)
    Population(together).learn(4 * ROWS)
    for one, other in zip(alone, together, strict=True):
        one.learn(one.env, 4 * ROWS)
        assert_alike(one, other)
        assert evaluate(one, one.env).accuracy == pytest.approx(evaluate(other, other.env).accuracy, abs=0.01)


def test_the_time_of_data_is_that_of_each():
    """Blocks that went back to an earlier state (`take_back`) are at the same instances of data that change."""
    env, drift = "routing_gym/HiddenGroups-v0", {"drift_at": 0.5, "passes": 2, "num_tasks": 6, "images_per_task": 8}
    alone, together = ([made("random-fixed", n, env, **drift) for n in range(SEEDS)] for _ in range(2))
    for agent in (*alone, *together):
        agent.env.trainer.carried = agent.env.trainer.optimization.epoch
    Population(together).learn(2 * ROWS)
    for one, other in zip(alone, together, strict=True):
        one.learn(one.env, 2 * ROWS)
        assert_alike(one, other)
        assert set(one.env.state.instance.tolist()) <= set(one.env.dataset.rows_at(1.0).tolist())
    together[0].env.trainer.carried += ROWS
    with pytest.raises(ValueError, match="as many episodes behind them"):
        Population(together)


def test_going_on(tmp_path):
    """Alone, then together, saved and loaded, together again, then alone: all the same."""
    alone, together = ([made("reinforce", seed, num_blocks=30) for seed in range(SEEDS)] for _ in range(2))
    for agent in together:
        agent.learn(agent.env, 2 * ROWS)
    population = Population(together)
    population.learn(2 * ROWS)
    for number, agent in enumerate(together):
        agent.save(tmp_path / f"{number}.pt")
    loaded = [Agent.load(tmp_path / f"{n}.pt", made("reinforce", 9, num_blocks=30).env) for n in range(SEEDS)]
    population.learn(2 * ROWS)
    Population(loaded).learn(2 * ROWS)
    for one, there, other in zip(alone, together, loaded, strict=True):
        other.learn(other.env, ROWS)
        there.learn(there.env, ROWS)
        one.learn(one.env, 7 * ROWS)
        assert_alike(one, there)
        assert_alike(one, other)


def test_after_an_error():
    """A run whose loss is no number takes no step, nor do the others; all are as they were before."""
    agents = [made("wpl", seed) for seed in range(2)]
    population = Population(agents)
    with torch.no_grad():
        agents[1].env.network.banks[0].weight[-1] = torch.nan
    before = copy.deepcopy([state(agent) for agent in agents])
    with pytest.raises(RuntimeError, match="activations are not finite|not finite|loss is nan"):
        population.learn(3 * ROWS)
    for agent, expected in zip(agents, before, strict=True):
        torch.testing.assert_close(state(agent), expected, rtol=0, atol=0, equal_nan=True)


REFUSED = [
    ("top-k", {}, {}, "what it does with a task may depend on others"),
    ("wpl", {"arrangement": "single"}, {}, "_average is not by task (arrangement='per_task' has"),
    ("task-clustering", {}, {}, "what it does with a task may depend on others"),
    ("wpl", {}, {"rho": 0.3, "collaboration": "frequency"}, "rho=0.3, which is about whole batches"),
    ("wpl", {}, {"max_grad_norm": 1.0}, "max_grad_norm=1.0, which is about whole batches"),
    ("wpl", {}, {"block_gradient": "rows"}, "block_gradient='rows', which is about whole batches"),
    ("shared", {}, {"task_balance": "pcgrad"}, "task_balance='pcgrad', which is about whole batches"),
    ("wpl", {}, {"k_cpt": (0.0, 1e-6)}, "where instances draw their prices (several k_cpt)"),
    ("wpl", {}, {"final_reward": "better-than-most"}, "a final_reward of one's own, which may look at whole batches"),
    ("wpl", {}, {"replay": True}, "replay=True, which is about whole batches"),
]


@pytest.mark.parametrize(("name", "agent_options", "options", "why"), REFUSED)
def test_refused(name, agent_options, options, why):
    """What looks at several tasks, or at a batch as a whole, says so by name."""
    register_reward("better-than-most", lambda loss: loss.mean() - loss, at="exit")
    with pytest.raises(ValueError, match="cannot learn side by side with others") as refused:
        Population([made(name, seed, SYNTHETIC, agent_options, **options) for seed in range(2)])
    assert why in str(refused.value)


def test_unlike_agents_are_refused():
    """Other options, another size or another age."""
    first, older = made("wpl", 0), made("wpl", 1)
    older.learn(older.env, ROWS)
    others = [older, made("reinforce", 1), made("wpl", 1, num_blocks=3), made("wpl", 1, rows=12)]
    for other in [*others, made("wpl", 1, learning_rate=0.1), made("wpl", 1, SYNTHETIC, {"policy_rate": 0.1})]:
        with pytest.raises(ValueError, match="same options but for seeds|same decisions"):
            Population([first, other])


def test_other_networks_are_refused():
    """Only blocks that are stacked can stand side by side."""
    agents = [made("wpl", seed, image_size=16, network="simple-convnet") for seed in range(2)]
    with pytest.raises(ValueError, match="RoutedMLP with a trunk"):
        Population(agents)


def test_what_is_no_population():
    """Nobody, somebody else, one agent twice, two that share their blocks; and no episodes."""
    one = made("wpl", 0)
    for wrong, why in (
        ([], "of at least one agent"),
        (["wpl"], "of at least one agent"),
        ([one, one], "an environment of its own"),
        ([one, make_agent("wpl", one.env, seed=1)], "an environment of its own"),
        ([make_agent("wpl", small_env(autoreset_mode="same_step"))], "autoreset_mode='disabled'"),
    ):
        with pytest.raises(ValueError, match=why):
            Population(wrong)
    for episodes in (0, -5, None, 1e3):
        with pytest.raises(ValueError, match="episodes must be an integer of at least 1"):
            Population([one]).learn(episodes)


def test_used_again_after_agents_have_learned_alone():
    alone, together = ([made("wpl", seed) for seed in range(SEEDS)] for _ in range(2))
    population = Population(together)
    population.learn(2 * ROWS)
    for agent in together:
        agent.learn(agent.env, 2 * ROWS)
    population.learn(2 * ROWS)
    for one, other in zip(alone, together, strict=True):
        one.learn(one.env, 6 * ROWS)
        assert_alike(one, other)
    together[1].learn(together[1].env, ROWS)
    with pytest.raises(ValueError, match="as many episodes behind them"):
        population.learn(ROWS)


def test_numbers_that_every_seed_would_share_are_refused():
    """An agent of one's own that draws from its generator, not by `drawn`."""

    class Careless(AGENTS["wpl"]):
        by_task = True

        def plan(self, task, deterministic):
            return torch.randint(3, (len(task), self.num_decisions), generator=self.generator)

    agents = []
    for seed in range(2):
        env = made("wpl", seed).env
        agents.append(Careless(env, Careless.Config(seed=seed)))
    with pytest.raises(ValueError, match="draws by drawn"):
        Population(agents).learn(ROWS)
