"""Vision transformers, against their parameters used one image, one head and one token at a time."""

import gymnasium
import pytest
import torch
from stepping import changed_by, check_export, check_owners, check_what_is_left, step
from torch import nn
from torch.nn import functional

import routing_gym
from routing_gym.agents import make_agent, needs
from routing_gym.networks import make_network
from routing_gym.testing import check_vector_env

SHAPE, CLASSES, TASKS = (3, 8, 12), 5, 2
SMALL = {"patch": 4, "width": 6, "heads": 2, "hidden": 10, "layers": 2}
NAMES = ("vit", "vit-skip")


def small(name, **options):
    torch.manual_seed(0)
    own = {**({"num_blocks": 3} if name == "vit" else {}), **SMALL, "input_shape": SHAPE, **options}
    network = make_network(name, num_tasks=TASKS, num_classes=CLASSES, **own)
    for parameter in network.parameters():  # so that scales, shifts and tokens do something
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network.eval()


def small_env(name, **options):
    data = {"num_tasks": 3, "num_classes": 3, "image_size": 8, "images_per_class": 12, "shift": 1}
    own = {**data, **SMALL, "num_envs": 6, "learning_rate": 0.01, **options}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", network=name, **own)


# ---------------------------------------------------------------------- by hand


def tokens_by_hand(patches, image):
    """Tokens `(N, D)`: every patch with every filter, left to right, top to bottom."""
    kernel, bias = patches.project.weight, patches.project.bias
    rows = [patches.token[0, 0]] if patches.token is not None else []
    for top in range(0, image.shape[1], 4):
        for left in range(0, image.shape[2], 4):
            piece = image[:, top : top + 4, left : left + 4]
            rows.append(torch.stack([(piece * one).sum() for one in kernel]) + bias)
    return torch.stack(rows) + patches.positions[0]


def attention_by_hand(attention, x):
    """Every token looks at all, one head after the other."""
    width, heads, queried = x.shape[1], attention.heads, x @ attention.project.weight.t() + attention.project.bias
    size, rows = width // heads, []
    for token in range(len(x)):
        parts = []
        for head in range(heads):
            q, k, v = (queried[:, i * width + head * size : i * width + (head + 1) * size] for i in range(3))
            share = torch.stack([q[token] @ other for other in k]).div(size**0.5).softmax(0)
            parts.append(sum(weight * value for weight, value in zip(share, v, strict=True)))
        rows.append(torch.cat(parts))
    return torch.stack(rows) @ attention.join.weight.t() + attention.join.bias


def feed_forward_by_hand(first, last, x):
    h = x @ first.weight.t() + first.bias
    return 0.5 * h * (1 + torch.erf(h / 2**0.5)) @ last.weight.t() + last.bias


def norm_by_hand(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def logits_by_hand(network, name, image, task, weights):
    """Logits of an image, and what was observed; `weights` has those of the choices of every decision."""
    x, seen = tokens_by_hand(network.trunk[0].module, image), []
    for number, share in enumerate(weights):
        bank = network.bank(number)
        if name == "vit":
            half = network.trunk[1] if number == 0 else network.between[number - 1][1]
            x = x + attention_by_hand(half.attention[1], norm_by_hand(half.attention[0], x))
            h = norm_by_hand(half.norm, x)
            seen.append(h.mean(0))
            blocks = zip(share, bank.blocks, strict=True)
            x = x + sum(weight * feed_forward_by_hand(block[0], block[2], h) for weight, block in blocks)
        else:
            seen.append(x.mean(0))
            norm, inner = bank.block.residual
            h = norm_by_hand(norm, x)
            y = feed_forward_by_hand(inner[0], inner[2], h) if number % 2 else attention_by_hand(inner, h)
            x = share[0] * x + share[1] * (x + y)
    pooled = network.between[-1][-1].module
    h = norm_by_hand(pooled.norm, x)
    features = h[0] if pooled.pooling == "token" else h.mean(0)
    return features @ network.readouts.weight[task] + network.readouts.bias[task], seen


@pytest.mark.parametrize("form", ["integers", "weights"])
@pytest.mark.parametrize("pooling", ["token", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_its_parameters_one_image_at_a_time(name, pooling, form):
    network = small(name, pooling=pooling)
    images, task = torch.randn(4, *SHAPE), torch.tensor([1, 0, 0, 1])
    actions, shares = [], []
    for decision in network.decisions:
        assert decision.width == 6
        choice, weights = torch.randint(decision.n, (4,)), torch.rand(4, decision.n).softmax(1)
        actions.append(choice if form == "integers" else weights)
        shares.append(functional.one_hot(choice, decision.n) if form == "integers" else weights)
    state, observed = network.start(images, task), []
    with torch.no_grad():
        for action in actions:
            observed.append(network.observe(state))
            state = step(network, state, action)
        for row in range(4):
            own = [share[row] for share in shares]
            logits, seen = logits_by_hand(network, name, images[row], int(task[row]), own)
            torch.testing.assert_close(state.exits[0].logits[row], logits, rtol=1e-4, atol=1e-5)
            for found, expected in zip(observed, seen, strict=True):
                torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_costs_by_hand():
    """6 patches and the class token, 7 tokens 6 wide: linear layers, and products of queries, keys and values."""
    patches, attention, feed_forward, readout = 6 * 48 * 6, 4 * 7 * 36 + 2 * 7 * 7 * 6, 2 * 7 * 6 * 10, 6 * CLASSES
    network = small("vit")
    assert [decision.macs for decision in network.decisions] == [(feed_forward,) * 3] * 2
    assert network.stem_macs == patches + 2 * attention + readout
    network = small("vit-skip")
    assert [decision.macs for decision in network.decisions] == [(0, attention), (0, feed_forward)] * 2
    assert network.stem_macs == patches + readout
    of_mean = small("vit-skip", pooling="mean")  # a token less
    assert of_mean.decisions[0].macs[1] == 4 * 6 * 36 + 2 * 6 * 6 * 6
    assert sum(parameter.numel() for parameter in small("vit").parameters()) == (
        49 * 6 + 8 * 6 + 2 * (4 * 6 * 6 + 4 * 6 + 4 * 6 + 3 * (6 * 10 + 10 + 10 * 6 + 6)) + 2 * 6 + 2 * 7 * CLASSES
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_chosen_blocks_alone(name):
    network = small(name)
    plan = (torch.arange(len(network.decisions)) % 2).repeat(4, 1)
    check_owners(network, torch.randn(4, *SHAPE), torch.tensor([0, 1, 1, 0]), plan)


# ---------------------------------------------------------------------- in use


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_it_passes_the_checker(name):
    check_vector_env(small_env(name, num_envs=3))


@pytest.mark.parametrize("agent", ["wpl", "gumbel", "top-k"])
@pytest.mark.parametrize("name", NAMES)
def test_agents_train_all_of_it(name, agent):
    changed = changed_by(agent, small_env(name, num_envs=12, **needs(agent)), 36)
    assert {key.split(".")[0] for key in changed} == {"trunk", "banks", "between", "readouts"}


@pytest.mark.long
@pytest.mark.parametrize("agent", ["wpl", "gumbel", "top-k"])
@pytest.mark.parametrize("name", NAMES)
def test_agents_learn_something(name, agent):
    env = small_env(name, num_envs=36, images_per_class=40, width=16, hidden=32, **needs(agent))
    learned = make_agent(agent, env).learn(env, episodes=36 * 40)
    assert routing_gym.evaluate(learned, env).accuracy > 0.6  # by chance 0.33


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_after_training(name, tmp_path):
    env = small_env(name, **needs("random-fixed"))
    agent = make_agent("random-fixed", env).learn(env, episodes=12)
    agent.routes[:, 0], agent.routes[:, 1] = 1, 0
    pruned, _ = check_what_is_left(agent, env, tmp_path)
    assert pruned.env.network.block_counts[:2] == (1, 1)
    static = check_export(agent, env, 1)
    assert sum(isinstance(part, nn.GELU) for part in static.modules()) == (2 if name == "vit" else 0) + sum(
        agent.routes[1, 1::2].tolist() if name == "vit-skip" else []
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit", {"patch": 5}, "'vit': patch must divide the sides of an image, got patch=5 for 8x12 pixels"),
        ("vit", {"patch": 9}, r"must be of at least 9x9 pixels, got \(3, 8, 12\)"),
        ("vit", {"heads": 4}, "heads must divide the width of a token, got heads=4 for width=6"),
        ("vit", {"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        ("vit", {"pooling": "max"}, "pooling must be 'token' or 'mean', got 'max'"),
        ("vit", {"num_blocks": [2, 2, 2]}, r"one for each of the 2 sets of blocks, got \[2, 2, 2\]"),
        ("vit-skip", {"num_blocks": 3}, "no num_blocks to choose: .*patch.* got num_blocks=3"),
        ("vit-skip", {"experts": ["run", "skip"]}, r"choices of a block are some of .*, got \['run', 'skip'\]"),
        ("vit-skip", {"experts": [["run"]] * 3}, "one for each of the 4 layers"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        small(name, **options)
