"""Network and agent as one plain computation: the logits of each row alone, exported, and what is refused."""

import copy
import operator

import gymnasium
import pytest
import torch
from stepping import step
from toys import TREE, ExitTree, small_env, toy_env

from routing_gym.agents import Agent, agent_class, extract, make_agent, needs
from routing_gym.agents.trained.classify import route_out
from routing_gym.agents.trained.dense import Dense, exported
from routing_gym.envs import RoutingVectorEnv
from routing_gym.experiments.benchmarks.steps import stand_in_images
from routing_gym.networks import RoutedPyramid

SKIP = {"network": "resnet32-skip", "stages": [1, 1, 1], "width": 4, "image_size": 8, "num_classes": 3}
VIT = {"image_size": 8, "num_classes": 3, "width": 8, "heads": 2, "hidden": 8, "layers": 2}
HARD = {"alpha": 0.0}  # one version of an image is enough then


def env_for(kind, name, **options):
    options = {"action_type": agent_class(name).action_type, **agent_class(name).env_kwargs, **options}
    if kind == "mlp":
        return small_env(num_envs=24, **options)
    if kind in ("chain", "tree"):
        torch.manual_seed(0)
        network = RoutedPyramid((3, 32, 32), 10, width=2, columns=3, junctions=2 if kind == "tree" else 0)
        return RoutingVectorEnv(network, stand_in_images(1, 10, per_class=3), 24, autoreset_mode="disabled", **options)
    made = {**needs(name), **kind, **({"augmentations": 1} if name == "codinet" else {})}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=24, num_tasks=2, **made)


def disturbed(kind, name, settings, **options):
    """An agent whose rows take several ways."""
    agent, numbers = make_agent(name, env_for(kind, name, **options), **settings), torch.Generator().manual_seed(1)
    for _ in range(20):
        with torch.no_grad():
            for value in [*agent.parameters(), *agent.env.network.parameters()]:
                value += 0.5 * torch.randn(value.shape, generator=numbers)
        if kind not in ("chain", "tree"):
            return agent
        images, task = given_to(agent)
        if len({(exit.decision, exit.choice) for state in route_out(agent, images, task) for exit in state.exits}) > 1:
            return agent
    raise AssertionError("all images take one way")


def given_to(agent, count=12):
    """Images and tasks, from all over the data."""
    data = agent.env.dataset
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    return data.images[data.image[rows]], data.task[rows]


@torch.no_grad()
def one_by_one(agent, images, task):
    """Logits of every image, routed alone by `predict` and weighed over its exits."""
    network, logits = agent.env.network.eval(), []
    for image, of in zip(agent.env.dataset.normalized(images), task, strict=True):
        state, memory = network.start(image[None], of[None]), None
        while state.waiting:
            seen = {"activation": network.observe(state), "task": state.task, "depth": state.at}
            action, memory = agent.predict(seen, memory, deterministic=True)
            state = step(network, state, action)
        logits.append(sum(exit.weight[:, None] * exit.logits for exit in state.exits))
    return torch.cat(logits)


CASES = [
    ("chain", "actor", {}),
    ("chain", "pragmatic-critic", {}),
    ("tree", "optimistic-critic", {}),
    ("tree", "reinforce", {"representation": "mlp"}),
    (SKIP, "codinet", HARD),
    (SKIP, "codinet", {**HARD, "router": "rnn"}),
    ({**SKIP, "observes": "map"}, "codinet", {**HARD, "router": "cnn"}),
    ("mlp", "actor-critic", {"representation": "mlp", "arrangement": "dispatched"}),
    (SKIP, "wpl", {"representation": "mlp"}),
    ("mlp", "top-k", {"k": 2}),
    ({"recurrent": True, "layers": 4}, "top-k", {"k": 2, "k_last": 1, "task_embedding": 3}),
    ("mlp", "gumbel", {"representation": "mlp", "arrangement": "single"}),
    ("mlp", "reinforce", {"representation": "mlp"}),
    ("mlp", "q-learning", {}),
    ({"form": "columns"}, "cross-stitch", {}),
    ("chain", "confidence", {"threshold": 0.9}),
    ("mlp", "top-k", {"k": 1, "shared": 1, "softmax": "all"}),
    ("mlp", "remoe", {"representation": "mlp"}),
    ("mlp", "smear", {"representation": "mlp"}),
    ("mlp", "hash", {"by": "instance"}),
    ({**VIT, "network": "vit", "num_blocks": 2}, "gumbel", {"representation": "mlp"}),
    ({**VIT, "network": "vit-skip"}, "mixture-of-depths", {}),
    ({"network": "basecnn-2-cp", "width": 2, "hidden": 4, "image_size": 8}, "gumbel", {"representation": "mlp"}),
]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "name", "settings"), CASES, ids=str)
def test_a_program_gives_the_logits_of_each_row_alone(kind, name, settings):
    agent = disturbed(kind, name, settings)
    images, task = given_to(agent)
    expected, form = one_by_one(agent, images, task), Dense(agent, normalize=True, price=None)
    near = {"rtol": 0, "atol": 1e-5 * max(1.0, float(expected.abs().max()))}
    torch.testing.assert_close(agent.classify(images, task), expected, **near)
    given = (images, task)[: form.inputs]
    program = exported(form, *(part[:2] for part in given))
    for node in program.graph.nodes:  # nothing of this library is needed to load it
        of_torch = getattr(node.target, "namespace", "") == "aten" or node.target is operator.getitem
        assert node.op != "call_function" or of_torch, node.target
    run = program.module()  # one that was written and read: tests/experiments/test_deploy.py
    for rows in (slice(12), slice(1), slice(3, 8)):
        torch.testing.assert_close(run(*(part[rows] for part in given)), expected[rows], **near)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "name", "settings"), [CASES[0], CASES[4], CASES[9]], ids=str)
def test_onnx_runtime_gives_the_same(kind, name, settings):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="needs the extra onnx")
    import onnxruntime

    agent = disturbed(kind, name, settings)
    images, task = given_to(agent)
    form = Dense(agent, normalize=True, price=None)
    given = (images, task)[: form.inputs]
    batch = tuple({0: torch.export.Dim("batch")} for _ in given)
    with torch.no_grad():
        first = tuple(part[:2] for part in given)
        model = torch.onnx.export(form, first, dynamo=True, verbose=False, dynamic_shapes=batch)
    session = onnxruntime.InferenceSession(model.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names, expected = [part.name for part in session.get_inputs()], agent.classify(images, task)
    assert names == ["images", "task"][: form.inputs]
    for rows in (slice(12), slice(1)):
        (found,) = session.run(None, {name: part[rows].numpy() for name, part in zip(names, given, strict=True)})
        torch.testing.assert_close(torch.from_numpy(found), expected[rows], rtol=1e-4, atol=1e-5)


def test_the_price_is_a_constant():
    agent = make_agent("actor", env_for("chain", "actor", price=True, k_cpt=(0.0, 1e-7)))
    for router in agent.scores.of:  # leaves where the price is above 0.5
        with torch.no_grad():
            for layer in (router[0], router[3], router[6]):
                layer.weight.zero_()
                layer.weight[0, 0] = 1.0
            router[6].bias[1] = 0.5
    images, task = given_to(agent, 3)
    cheap, dear = Dense(agent, normalize=True, price=0.0)(images), extract(agent, k_cpt=1e-6)(images)
    assert not torch.allclose(cheap, dear)
    torch.testing.assert_close(cheap, agent.classify(images, k_cpt=0.0))
    torch.testing.assert_close(dear, agent.classify(images, k_cpt=1e-6))
    with pytest.raises(ValueError, match="agent 'actor' decides by the price: say what"):
        extract(agent)
    with pytest.raises(ValueError, match=r"k_cpt=1e-06 is for extract\(agent\) without a task"):
        extract(agent, 0, k_cpt=1e-6)


def test_it_is_a_copy_and_touches_nothing():
    agent = disturbed("mlp", "top-k", {"k": 2})
    agent.env.network.train()
    before, numbers = copy.deepcopy(agent.env.network.state_dict()), agent.generator.get_state()
    form = extract(agent)
    images, task = given_to(agent)
    pixels = agent.env.dataset.normalized(images)
    torch.testing.assert_close(form(images, task), agent.classify(images, task))
    torch.testing.assert_close(extract(agent, normalize=False)(pixels, task), form(images, task))
    with torch.no_grad():
        for parameter in form.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in agent.env.network.state_dict().items())
    assert any(parameter.any() for parameter in agent.parameters())
    assert torch.equal(agent.generator.get_state(), numbers) and agent.env.network.training
    assert not any(getattr(part, "dense", False) for part in [*agent.modules(), *agent.env.network.modules()])
    with pytest.raises(ValueError, match="there are 3 tasks: give that of every image"):
        form(images)


class Counting(Agent):
    """Turns left (1) or right (2), and then chooses how many decisions it has seen."""

    def act(self, observation, context):
        context.carry = torch.ones_like(observation["task"]) if context.carry is None else context.carry + 1
        return torch.where(observation["depth"] == 0, self.turn, context.carry % 3)


class Remembering(Agent):
    """Takes another block every time it is asked."""

    asked = 0

    def act(self, observation, context):
        self.asked += 1
        return torch.full_like(observation["task"], self.asked // 2 % 3)


class Peeping(Agent):
    """Looks at a value."""

    def act(self, observation, context):
        return torch.full_like(observation["task"], int(observation["activation"].sum() > 0))


def test_what_is_carried_is_carried_along_a_rows_own_way():
    agent = Counting(env_for("tree", "reinforce"))
    images, task = given_to(agent, 2)
    for agent.turn in (1, 2):
        found = Dense(agent, normalize=True, price=None)(images)
        torch.testing.assert_close(found, one_by_one(agent, images, task), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_agent("random", small_env()), r"agent 'random' .*cannot be exported"),
        (
            lambda: make_agent("sb3:PPO", small_env(autoreset_mode="same_step")),
            "agent 'sb3:PPO' cannot be exported: another library's code decides for it",
        ),
        (lambda: Peeping(small_env()), r"with this RoutedMLP cannot be exported .*without a look at values"),
        (
            lambda: Remembering(small_env()),
            "cannot be exported: the exported form gives other logits when called again",
        ),
        (lambda: make_agent("reinforce", toy_env(ExitTree(TREE), autoreset_mode="disabled")), r"ExitTree .*len\(x\)"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        extract(make())


def test_who_decides_by_the_instance_is_told_of_the_other_form():
    agent = disturbed("mlp", "top-k", {"k": 2})
    with pytest.raises(ValueError, match=r"no single route.*; without a task extract\(\) takes network and agent"):
        extract(agent, 0)
