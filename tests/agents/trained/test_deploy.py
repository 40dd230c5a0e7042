"""What is left after training: agent by agent, through the environment, and what is refused."""

import io

import gymnasium
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import step
from torch import nn
from toys import IMAGE, TREE, ExitTree, Gates, Residual, toy_env

import routing_gym
from routing_gym.agents import Agent, FixedRoutes, extract, make_agent, needs, prune
from routing_gym.networks import Deployable, RoutedMLP, route

TASKS = 3


def made(num_envs=32, **options):
    defaults = {"num_tasks": TASKS, "num_classes": 3, "image_size": 3, "images_per_class": 30, "width": 16}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=num_envs, **{**defaults, **options})


def logits_row_by_row(agent, task, count=5):
    """Logits of a task's first test instances, each routed alone by the agent; and their uint8 images."""
    test = agent.env.datasets["test"]
    rows = (test.task == task).nonzero().flatten()[:count]
    one = agent.env.sibling(1, split="test", train=False, autoreset_mode="disabled", render_mode=None)
    logits = []
    for row in rows.tolist():
        observation, _ = one.reset(options={"instances": [row]})
        state = one.state
        while state.waiting:
            seen = {"activation": one.network.observe(state), "task": state.task, "depth": state.at}
            choice, _ = agent.predict(seen, deterministic=True)
            with torch.no_grad():
                state = step(one.network, state, choice)
        logits.append(state.exits[0].logits)
    return torch.cat(logits), test.images[test.image[rows]], rows


def exported(module, images):
    """A module after a round trip through `torch.export`."""
    program = torch.export.export(module, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


LEFT = [
    ("wpl", {}),
    ("wpl", {"recurrent": True, "layers": 5}),
    ("q-learning", {"k_cpt": 1e-3, "recurrent": True}),
    ("task-specific-all", {"rho": 0.5}),
    ("random-fixed", {"autoreset_mode": "disabled", "differentiable": True}),
    ("shared-with-task", {"task_input": True}),
]


@pytest.mark.parametrize(("name", "options"), LEFT)
def test_an_extracted_task_gives_the_logits_of_its_rows_routed_alone(name, options):
    env = made(**{"autoreset_mode": "disabled", **options})
    agent = make_agent(name, env).learn(env, 640)
    env.reset(seed=3)
    drawn, state, weights = torch.get_rng_state(), env.unwrapped.state, list(env.unwrapped.network.parameters())
    for task in range(TASKS):
        expected, pixels, rows = logits_row_by_row(agent, task)
        module = extract(agent, task)
        assert type(module) is nn.Sequential and not any(part.training for part in module.modules())
        for images in (pixels, pixels.float()):
            torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-5)
        normalised = env.unwrapped.datasets["test"].pixels(rows)
        torch.testing.assert_close(extract(agent, task, normalize=False)(normalised), module(pixels))
        theirs = {parameter.data_ptr() for parameter in weights}
        assert not theirs & {parameter.data_ptr() for parameter in module.parameters()}
    assert torch.equal(torch.get_rng_state(), drawn) and env.unwrapped.state is state


@pytest.mark.parametrize(("name", "options"), LEFT)
def test_a_pruned_agent_judges_as_before_with_fewer_blocks_and_is_saved(name, options, tmp_path):
    env = made(num_blocks=5, **{"rho": 0.0, **options, "autoreset_mode": "disabled"})
    agent = make_agent(name, env).learn(env, 640)
    before, drawn = routing_gym.evaluate(agent, env), torch.get_rng_state()
    smaller = prune(agent)
    assert torch.equal(torch.get_rng_state(), drawn)
    after = routing_gym.evaluate(smaller, smaller.env)
    assert type(smaller) is FixedRoutes and smaller.env is not env.unwrapped
    assert (after.task_accuracy, after.macs, after.paths) == (before.task_accuracy, before.macs, before.paths)
    assert after.loss == pytest.approx(before.loss, rel=1e-5) and after.blocks_used == before.blocks_used
    network = smaller.env.network
    assert sum(network.block_counts) < sum(env.unwrapped.network.block_counts)
    if not options.get("recurrent"):
        assert sum(network.block_counts) == after.blocks_used
    for task in range(TASKS):
        torch.testing.assert_close(logits_row_by_row(smaller, task)[0], logits_row_by_row(agent, task)[0])

    smaller.save(tmp_path / "small.pt")
    again = gymnasium.make_vec(smaller.env.spec)
    loaded = Agent.load(tmp_path / "small.pt", again)
    assert torch.equal(loaded.routes, smaller.routes)
    assert routing_gym.evaluate(loaded, again).task_accuracy == before.task_accuracy
    with pytest.raises(ValueError, match="does not fit this environment"):
        Agent.load(tmp_path / "small.pt", env)
    loaded.learn(again, 640)  # the blocks that are left can be trained further
    assert torch.equal(loaded.routes, smaller.routes)


@pytest.mark.parametrize(("task_input", "recurrent"), [(True, False), (False, True)])
def test_what_is_extracted_is_the_same_after_a_round_trip_through_export(task_input, recurrent):
    env = made(task_input=task_input, recurrent=recurrent, layers=4, num_blocks=3)
    passed = 6 if recurrent else 2
    agent = make_agent("fixed-routes", env, routes=[[0, passed, 1, 2], [1, 0, passed, 0], [1, passed, passed, 0]])
    images = env.unwrapped.dataset.images
    module = extract(agent, 2)
    assert sum(isinstance(part, nn.Linear) for part in module) == (2 if recurrent else 4)
    loaded = exported(module, images)
    for size in (1, 2, 3, 40):
        torch.testing.assert_close(loaded(images[:size]), module(images[:size]))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:No complete tensor found")  # of weights that lie channels last
def test_convolutions_and_their_statistics_are_extracted_too():
    env = gymnasium.make_vec("routing_gym/MnistMTL-v0", num_envs=64, num_tasks=4, num_blocks=4)
    agent = make_agent("task-specific-all", env).learn(env, 256)
    smaller = prune(make_agent("shared", env))
    assert smaller.env.network.block_counts == (1, 1, 1)
    for judged, task in ((agent, 3), (smaller, 0)):
        expected, pixels, _ = logits_row_by_row(judged, task)
        module = extract(judged, task)
        torch.testing.assert_close(module(pixels), expected, rtol=1e-4, atol=1e-5)
    loaded = exported(module, pixels)
    torch.testing.assert_close(loaded(pixels[:1]), module(pixels[:1]))


def test_a_network_of_ones_own_is_pruned_and_extracted(tmp_path):
    torch.manual_seed(0)
    network = route(Residual(), ["body", "middle"], 4, input_shape=(1, 3, 3))
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=16, network=network, num_tasks=TASKS, image_size=3)
    agent = make_agent("random-fixed", env).learn(env, 160)
    smaller = prune(agent)
    assert smaller.env.spec is None and sum(smaller.env.network.block_counts) < 8
    for task in range(TASKS):
        expected, pixels, _ = logits_row_by_row(agent, task)
        torch.testing.assert_close(logits_row_by_row(smaller, task)[0], expected)
        torch.testing.assert_close(extract(agent, task)(pixels), expected, rtol=1e-4, atol=1e-5)
    smaller.save(tmp_path / "small.pt")
    torch.testing.assert_close(exported(extract(smaller, 2), pixels)(pixels), expected, rtol=1e-4, atol=1e-5)
    again = route(Residual(), ["body", "middle"], smaller.env.network.block_counts, input_shape=(1, 3, 3))
    fresh = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=16, network=again, num_tasks=TASKS, image_size=3)
    loaded = Agent.load(tmp_path / "small.pt", fresh)
    torch.testing.assert_close(logits_row_by_row(loaded, 2)[0], expected)


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(data=st.data(), recurrent=st.booleans())
def test_any_routes_are_kept(data, recurrent):
    env = made(num_envs=4, recurrent=recurrent, layers=4, num_blocks=4, images_per_class=3)
    routes = [[data.draw(st.integers(0, d.n - 1)) for d in env.unwrapped.network.decisions] for _ in range(TASKS)]
    agent = make_agent("fixed-routes", env, routes=routes)
    assert agent.routes.tolist() == routes
    smaller = prune(agent)
    for task in range(TASKS):
        torch.testing.assert_close(logits_row_by_row(smaller, task)[0], logits_row_by_row(agent, task)[0])
    assert prune(smaller).env.network.block_counts == smaller.env.network.block_counts


class Looks(Agent):
    """Sends bright and dark instances of task 1 different ways at the first decision."""

    def act(self, observation, context):
        bright = observation["activation"].sum(1) > self.threshold
        return ((observation["task"] == 1) & (observation["depth"] == 0) & bright).long()


class Mixes(Agent):
    action_type = "weights"

    def act(self, observation, context):
        return context.mask.float() / context.mask.sum(-1, keepdim=True)


def test_a_task_without_a_single_route_is_refused_by_name():
    env = made()
    for take in (prune, lambda agent: extract(agent, 2)):
        with pytest.raises(
            ValueError, match=r"task \d has no single route: at decision 0 \('layer 1'\) agent 'random' takes the"
        ):
            take(make_agent("random", env))
    agent = Looks(env)
    agent.threshold = 0.0
    with pytest.raises(ValueError, match=r"task 1 .* decision 0 \('layer 1'\) .* choices \[0, 1\], depending on the"):
        extract(agent, 1)
    with pytest.raises(ValueError, match="task 1 has no single route"):
        prune(agent)
    extract(agent, 0)
    agent.threshold = float("inf")
    assert prune(agent).env.network.block_counts == (1, 1, 1)

    mixing = Mixes(made(action_type="weights", autoreset_mode="disabled"))
    mixing.name = "mixes"
    gates = make_agent("shared", toy_env(Gates()))
    for take in (prune, lambda agent: extract(agent, 0)):
        with pytest.raises(ValueError, match="agent 'mixes' mixes blocks by weights"):
            take(mixing)
        with pytest.raises(ValueError, match="Gates can be neither pruned nor extracted: derive it from"):
            take(gates)
        with pytest.raises(ValueError, match="ExitTree can be neither pruned nor extracted"):
            take(make_agent("shared", toy_env(ExitTree(TREE))))

    class OpenGates(Gates, Deployable):
        def static_route(self, route, task):
            return []

        def pruned(self, routes):
            return self, routes

    with pytest.raises(ValueError, match="up to 2 tensors choose at a decision, so that no task has a single route"):
        prune(make_agent("shared", toy_env(OpenGates())))


def test_what_a_subclass_computes_of_its_own_is_not_left_out_in_silence():
    class Louder(RoutedMLP):
        def readout(self, decision, choice, activation, task):
            return 2 * super().readout(decision, choice, activation, task)

    agent = make_agent("shared", toy_env(Louder(IMAGE, 3, 2)))
    assert type(prune(agent).env.network) is Louder
    with pytest.raises(ValueError, match="what is left of the Louder gives other logits than the network itself"):
        extract(agent, 0)


@pytest.mark.parametrize("task", [-1, 3, True, 1.0, "1"])
def test_unknown_tasks_are_refused(task):
    with pytest.raises(ValueError, match=r"task must be an integer in \[0, 3\), its tasks have no names, got "):
        extract(make_agent("shared", made()), task)


def test_a_task_goes_by_its_name_too(monkeypatch):
    agent = make_agent("random-fixed", made())
    monkeypatch.setitem(vars(agent.env.dataset), "task_names", ("even", "odd", "1"))
    images = agent.env.dataset.images[:3]
    for name, number in (("odd", 1), ("1", 2)):
        assert torch.equal(extract(agent, name)(images), extract(agent, number)(images))
    with pytest.raises(ValueError, match=r"in \[0, 3\) or one of \['even', 'odd', '1'\], got 'evne'"):
        extract(agent, "evne")


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ([[0, 0, 0]] * 2, r"routes must be lists of integers of shape \(3, 3\), got \[\[0, 0, 0\], \[0, 0, 0\]\]"),
        ([[0, 0, 0], [0, 0], [0, 0, 0]], "must be lists of integers of shape"),
        ([[0.0, 0, 0]] * 3, "must be lists of integers of shape"),
        ("000", "routes must be of type .*Sequence.* or None, got '000'"),
        ([], "must be lists of integers of shape"),
        ([[0, 0, 0], [0, 3, 0], [0, 0, 0]], r"at decision 1 \('layer 2'\) task 1 may choose from \[0, 1\], got 3"),
        ([[0, 0, 0], [0, 0, 0], [0, 0, -1]], r"at decision 2 \('layer 3'\) task 2 may choose from \[0, 1, 2\], got -1"),
        ([[0, 2, 0], [0, 0, 0], [0, 0, 0]], r"at decision 1 \('layer 2'\) task 0 may choose from \[0, 1\], got 2"),
    ],
)
def test_bad_routes_are_refused(routes, message):
    with pytest.raises(ValueError, match=f"agent 'fixed-routes'.*{message}"):
        make_agent("fixed-routes", made(num_blocks=[3, 2, 3]), routes=routes)


def test_routes_of_several_tensors():
    env = toy_env(Gates(), autoreset_mode="disabled")
    routes = [[[0, 0], [1, 0], [0, 1]], [[1, 0], [0, 0], [1, 1]], [[0, 0], [1, 1], [0, 0]]]
    agent = make_agent("fixed-routes", env, routes=routes)
    assert agent.routes.tolist() == routes
    assert make_agent("fixed-routes", env).routes.tolist() == [[[0, 0]] * 3] * 3
    with pytest.raises(ValueError, match=r"of shape \(3, 3, 2\)"):
        make_agent("fixed-routes", env, routes=[[0, 1, 0]] * 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("single-task", {"network": "simple-convnet", "image_size": 16, **needs("single-task")}),
        ("gumbel", {**needs("gumbel"), "merge_blocks": True}),
    ],
)
def test_a_pruned_agent_comes_back_by_its_own_id(name, options, tmp_path):
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=4, num_tasks=2, **options)
    smaller = prune(make_agent(name, env))
    smaller.save(tmp_path / "small.pt")
    again = gymnasium.make_vec(smaller.env.spec)
    loaded = Agent.load(tmp_path / "small.pt", again)
    judged = [routing_gym.evaluate(agent, agent.env) for agent in (smaller, loaded)]
    assert judged[0].loss == judged[1].loss and judged[0].macs == judged[1].macs
