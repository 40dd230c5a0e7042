"""ResNets whose blocks are run or skipped, against a plain ResNet with the same weights."""

import gymnasium
import pytest
import torch
from plain_paths import randomised
from stepping import changed_by, check_export, check_what_is_left, routed, step
from torch import nn
from torch.nn import functional

from routing_gym.agents import add_task, make_agent, needs, prune
from routing_gym.agents.codinet import linear_routers
from routing_gym.blocks import subsample_first
from routing_gym.networks import EXIT, make_network
from routing_gym.testing import check_vector_env

CIFAR, IMAGENET = "resnet32-skip", "resnet50-skip"
CLASSES, TASKS = 5, 2
SMALL = {
    CIFAR: ((3, 9, 8), {"width": 4, "stages": [2, 1, 2]}),
    IMAGENET: ((3, 33, 40), {"width": 2, "stages": [1, 2, 1, 1]}),
}


def small(name, **options):
    torch.manual_seed(0)
    shape, own = SMALL[name]
    network = make_network(name, num_tasks=TASKS, num_classes=CLASSES, **{"input_shape": shape, **own, **options})
    return randomised(network).eval()


def small_env(name=CIFAR, **options):
    size = {CIFAR: 8, IMAGENET: 32}[name]
    own = {"width": 2, "stages": [1] * len(SMALL[name][1]["stages"])}
    data = {"num_tasks": 3, "num_classes": 3, "image_size": size, "images_per_class": 12}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", network=name, **{"num_envs": 6, **data, **own, **options})


# ---------------------------------------------------------------------- a plain ResNet


def conv_norm(inputs, outputs, kernel, stride=1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [subsample_first(conv), nn.BatchNorm2d(outputs)]


class PlainBlock(nn.Module):
    def __init__(self, inputs, width, stride, deep):
        super().__init__()
        if deep:
            outputs = 4 * width
            self.path = nn.Sequential(
                *conv_norm(inputs, width, 1),
                nn.ReLU(),
                *conv_norm(width, width, 3, stride),
                nn.ReLU(),
                *conv_norm(width, outputs, 1),
            )
        else:
            outputs = width
            self.path = nn.Sequential(*conv_norm(inputs, width, 3, stride), nn.ReLU(), *conv_norm(width, width, 3))
        self.stride, self.added = stride, outputs - inputs
        projected = deep and (stride > 1 or self.added)
        self.project = nn.Sequential(*conv_norm(inputs, outputs, 1, stride)) if projected else None

    def past(self, x):
        if self.project is not None:
            return self.project(x)
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))

    def forward(self, x):
        return torch.relu(self.path(x) + self.past(x))


class Plain(nn.Module):
    """He et al. (2016): option A on small images, bottlenecks with their stride in the 3x3 convolution on large."""

    def __init__(self, channels, width, stages, classes, deep):
        super().__init__()
        self.first = nn.Sequential(*(conv_norm(channels, width, 7, 2) if deep else conv_norm(channels, width, 3)))
        self.pool = nn.MaxPool2d(3, 2, 1) if deep else nn.Identity()
        blocks, inputs = [], width
        for stage, count in enumerate(stages):
            for number in range(count):
                blocks.append(PlainBlock(inputs, width * 2**stage, 2 if stage and number == 0 else 1, deep))
                inputs = width * 2**stage * (4 if deep else 1)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x, run=None):
        x = self.pool(torch.relu(self.first(x)))
        for number, block in enumerate(self.blocks):
            x = block(x) if run is None or run[number] else block.past(x)
        return self.head(x.mean((2, 3)))


def plain_copy(network, name, task):
    shape, own = SMALL[name]
    plain = Plain(shape[0], own["width"], own["stages"], CLASSES, deep=name == IMAGENET)
    parts = [[m for m in whole.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)] for whole in (network, plain)]
    for ours, theirs in zip(*parts, strict=True):
        theirs.load_state_dict(ours.state_dict())
    plain.head.weight.data.copy_(network.readouts.weight[task].t())
    plain.head.bias.data.copy_(network.readouts.bias[task].flatten())
    return plain.eval()


@pytest.mark.parametrize("name", SMALL)
def test_a_route_is_a_plain_resnet_without_the_blocks_it_skips(name):
    network = small(name)
    images, task = torch.randn(3, *SMALL[name][0]), torch.tensor([1, 1, 1])
    plain, blocks = plain_copy(network, name, 1), len(network.decisions)
    with torch.no_grad():
        for run in ([1] * blocks, [0] * blocks, [i % 2 for i in range(blocks)], [(i + 1) % 2 for i in range(blocks)]):
            state = routed(network, images, [torch.full((3,), choice) for choice in run], task)
            torch.testing.assert_close(state.exits[0].logits, plain(images, run), rtol=1e-4, atol=1e-5)
            static = nn.Sequential(*network.static_route(run, 1)).eval()
            torch.testing.assert_close(static(images), plain(images, run), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(plain(images), plain(images, [1] * blocks))
        # Each row its own way.
        routes = torch.randint(0, 2, (3, blocks))
        state = routed(network, images, routes.unbind(1), task)
        for row in range(3):
            own = plain(images[row : row + 1], routes[row].tolist())
            torch.testing.assert_close(state.exits[0].logits[row : row + 1], own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_while_all_blocks_run_training_is_that_of_the_plain_network(name):
    network = small(name)
    images, task = torch.randn(4, *SMALL[name][0]), torch.zeros(4, dtype=torch.int64)
    plain = plain_copy(network, name, 0).train()
    network.train()
    everyone = [torch.ones(4, dtype=torch.int64)] * len(network.decisions)
    logits = routed(network, images, everyone, task).exits[0].logits
    expected = plain(images)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    for loss in (logits, expected):
        loss.square().sum().backward()
    ours, theirs = (
        [m for m in whole.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)] for whole in (network, plain)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.weight.grad, b.weight.grad, rtol=1e-3, atol=1e-3)
        if isinstance(a, nn.BatchNorm2d):
            torch.testing.assert_close(a.running_mean, b.running_mean, rtol=1e-4, atol=1e-5)


def test_skipping_everything_leaves_stem_shortcuts_and_readout():
    network = small(CIFAR)
    images = torch.randn(2, 3, 9, 8)
    conv, norm = (m for m in network.trunk.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d))
    x = functional.conv2d(images, conv.weight, padding=1)
    x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
    pooled = torch.cat([x[:, :, ::4, ::4].mean((2, 3)), torch.zeros(2, 12)], 1)  # 4 channels of 16 hold something
    state = routed(network, images, [torch.zeros(2, dtype=torch.int64)] * 5, torch.tensor([0, 1]))
    for row in range(2):
        logits = pooled[row] @ network.readouts.weight[row] + network.readouts.bias[row].flatten()
        torch.testing.assert_close(state.exits[0].logits[row], logits, rtol=1e-4, atol=1e-5)
    assert set(state.macs.tolist()) == {network.stem_macs}


# ---------------------------------------------------------------------- sizes and costs


def convolutions(stages, width, side, channels=3):
    """`(kernel, inputs, outputs, side)` of every convolution of a CIFAR ResNet: first one, then block by block."""
    blocks, inputs = [], width
    for stage, count in enumerate(stages):
        outputs, size = width * 2**stage, side // 2**stage
        for _ in range(count):
            blocks.append([(3, inputs, outputs, size), (3, outputs, outputs, size)])
            inputs = outputs
    return (3, channels, width, side), blocks


def macs_of(*convs):
    return sum(k * k * inputs * outputs * side * side for k, inputs, outputs, side in convs)


@pytest.mark.parametrize(
    ("name", "per_stage", "printed", "parameters", "macs"),
    [
        ("resnet32-skip", 5, 0.491, 490_920, 68.9),
        ("resnet74-skip", 12, 1.212, 1_212_130, 168.0),
        ("resnet110-skip", 18, 1.830, 1_830_310, 252.9),
    ],
)
def test_sizes_of_the_papers_networks(name, per_stage, printed, parameters, macs):
    network = make_network(name, num_tasks=1, num_classes=10)
    routers = linear_routers(network, 48, price=False, seed=0)
    count = sum(p.numel() for part in (network, routers) for p in part.parameters())
    assert count == parameters and round(count / 1e6, 3) == printed
    first, blocks = convolutions([per_stage] * 3, 16, 32)
    assert len(network.decisions) == len(blocks) == 3 * per_stage
    assert [decision.macs for decision in network.decisions] == [(0.0, macs_of(*block)) for block in blocks]
    assert network.stem_macs == macs_of(first) + 64 * 10
    whole = macs_of(first) + sum(macs_of(*block) for block in blocks) + 640
    assert round(whole / 1e6, 1) == macs
    weights = sum(k * k * i * o + 2 * o for k, i, o, _ in [first, *sum(blocks, [])]) + 65 * 10
    seen = [block[0][1] for block in blocks]
    assert count == weights + sum(c * 48 + 48 + 2 * 48 + 2 for c in seen)
    # Less than one percent of a block that leaves the shape as it is (section 3.1.2).
    assert routers.macs(1) == 16 * 48 + 2 * 48 < 0.01 * network.decisions[1].macs[1]


@pytest.mark.long
def test_the_form_for_imagenet_is_resnet50():
    network = make_network(IMAGENET, num_tasks=1, num_classes=1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    decisions = network.decisions
    assert len(decisions) == 16
    assert network.stem_macs + sum(decision.macs[1] for decision in decisions) == pytest.approx(4.09e9, rel=1e-3)
    projections = {0: 64 * 256 * 56**2, 3: 256 * 512 * 28**2, 7: 512 * 1024 * 14**2, 13: 1024 * 2048 * 7**2}
    assert network.stem_macs == 49 * 3 * 64 * 112**2 + sum(projections.values()) + 2048 * 1000
    assert [decision.macs[0] for decision in decisions] == [0] * 16
    assert [network.bank(number).shared_macs for number in range(16)] == [projections.get(n, 0) for n in range(16)]
    assert decisions[1].macs[1] == 56**2 * (256 * 64 + 9 * 64 * 64 + 64 * 256)
    assert [decision.width for decision in decisions] == [64] + [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 2


def test_executed_and_expected_costs():
    network = small(CIFAR)
    images, task = torch.randn(4, 3, 9, 8), torch.tensor([0, 1, 0, 1])
    routes = torch.randint(0, 2, (4, 5))
    cost = torch.tensor([decision.macs[1] for decision in network.decisions])
    state = routed(network, images, routes.unbind(1), task)
    torch.testing.assert_close(state.macs, network.stem_macs + routes.float() @ cost)
    v = torch.rand(4, 5).requires_grad_()
    state = routed(network, images, [torch.stack([1 - one, one], 1) for one in v.unbind(1)], task)
    torch.testing.assert_close(state.expected_macs, network.stem_macs + v @ cost)
    torch.testing.assert_close(torch.autograd.grad(state.expected_macs.sum(), v)[0], cost.expand(4, 5))


# ---------------------------------------------------------------------- the environment, what is seen


@pytest.mark.parametrize("name", SMALL)
def test_what_a_decision_sees(name):
    images, task = torch.randn(3, *SMALL[name][0]), torch.tensor([1, 0, 1])
    mean, whole = small(name), small(name, observes="map")
    states = [network.start(images, task) for network in (mean, whole)]
    for number, decision in enumerate(mean.decisions):
        x = states[1].waiting[number].activation[0]
        assert tuple(x.shape[1:]) == whole.observed_shapes[number]
        seen, flat = mean.observe(states[0]), whole.observe(states[1])
        torch.testing.assert_close(seen[:, : decision.width], x.mean((2, 3)))
        assert torch.equal(flat[:, : whole.decisions[number].width], x.contiguous().flatten(1))
        assert decision.width == x.shape[1] and whole.decisions[number].width == x[0].numel()
        assert not bool(seen[:, decision.width :].any()) and not bool(flat[:, x[0].numel() :].any())
        action = torch.tensor([0, 1, 1])
        states = [step(network, state, action) for network, state in zip((mean, whole), states, strict=True)]
    assert decision.next == (EXIT, EXIT)


@pytest.mark.parametrize("action_type", ["discrete", "weights"])
def test_passes_the_checker(action_type):
    check_vector_env(small_env(action_type=action_type, k_cpt=1e-6))


def test_the_form_for_imagenet_and_whole_maps_pass_the_checker():
    check_vector_env(small_env(IMAGENET, num_envs=3, autoreset_mode="disabled"))
    check_vector_env(small_env(observes="map", num_envs=3, autoreset_mode="disabled"))


@pytest.mark.long
@pytest.mark.parametrize("observes", ["mean", "map"])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_left_after_training(name, observes, tmp_path):
    env = small_env(name, num_envs=4, learning_rate=0.01, observes=observes, **needs("random-fixed"))
    agent = make_agent("random-fixed", env).learn(env, episodes=8)
    agent.routes[:, 0], agent.routes[:, 1] = 1, 0  # all run the first block, all skip the second
    pruned, loaded = check_what_is_left(agent, env, tmp_path)
    network, whole = pruned.env.network, agent.env.network
    assert network.experts[:2] == (("run",), ("skip",)) and network.block_counts[:2] == (1, 1)
    assert network.observes == loaded.env.network.observes == observes
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in whole.parameters())
    if observes == "mean":  # what is extracted decides nothing, so observes nothing
        check_export(agent, env, 1)
    prune(pruned)  # once more, nothing being left to drop


def test_blocks_may_be_fixed_from_the_beginning():
    network = small(CIFAR, experts=[["run"], ["skip", "run"], ["skip"], ["skip"], ["run"]])
    assert [decision.n for decision in network.decisions] == [1, 2, 1, 1, 1]
    assert network.decisions[2].macs == (0.0,) and network.decisions[4].macs[0] > 0
    assert [decision.n for decision in small(CIFAR, experts=["run"]).decisions] == [1] * 5


@pytest.mark.parametrize("agent", ["wpl", "q-learning", "gumbel", "soft-mixture", "top-k"])
def test_other_agents_train_it(agent):
    changed = changed_by(agent, small_env(num_envs=6, learning_rate=0.01, **needs(agent)), 36)
    assert {key.split(".")[0] for key in changed} == {"trunk", "banks", "readouts"}


def test_ids_are_those_of_the_paper():
    """ResNet-110, crops of images with 4 black pixels around them, mirrored but for house numbers."""
    for name, classes, flip in (("Cifar10", 10, True), ("Cifar100", 100, True), ("Svhn", 10, False)):
        env = gymnasium.make_vec(f"routing_gym/{name}BlockSkip-v0", num_envs=1).unwrapped
        assert len(env.network.decisions) == 54 and env.network.num_classes == classes
        augmentation = env.dataset.augmentation
        assert (augmentation.pixels, augmentation.flip, augmentation.fill) == (4, flip, "black")
        assert env.datasets["test"].augmentation is None
        everything = env.network.stem_macs + sum(decision.macs[1] for decision in env.network.decisions)
        assert env.config.k_cpt * everything == pytest.approx(0.5, abs=0.01)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (CIFAR, {"width": 0}, "'resnet32-skip': width must be an integer of at least 1, got 0"),
        (CIFAR, {"stages": [1, 1]}, r"'resnet32-skip': .* has 3 stages, got stages=\[1, 1\]"),
        (IMAGENET, {"stages": [1, 1, 1]}, r"'resnet50-skip': .* has 4 stages, got stages=\[1, 1, 1\]"),
        (CIFAR, {"stages": [1, 0, 1]}, r"stages\[1\] must be an integer of at least 1, got 0"),
        (CIFAR, {"input_shape": (3, 3, 8)}, r"at least 4x4 pixels, got \(3, 3, 8\)"),
        (IMAGENET, {"input_shape": (3, 32, 31)}, r"at least 32x32 pixels, got \(3, 32, 31\)"),
        (CIFAR, {"num_blocks": 3}, r"no num_blocks to choose: .*stages.* got num_blocks=3"),
        (CIFAR, {"observes": "all"}, "observes must be 'mean' or 'map', got 'all'"),
        (CIFAR, {"experts": ["run", "skip"]}, r"choices of a block are some of .*, got \['run', 'skip'\]"),
        (CIFAR, {"experts": ["run", "run"]}, r"choices of a block are some of .*, got \['run', 'run'\]"),
        (CIFAR, {"experts": ["conv3"]}, r"choices of a block are some of .*, got \['conv3'\]"),
        (CIFAR, {"experts": [["skip"], ["run"]]}, "one for each of the 5 layers"),
        (CIFAR, {"experts": []}, r"must be a list of names, or one for each of the 5 layers, got \[\]"),
        (CIFAR, {"stages": [1, 1.5, 1]}, "resnet32-skip"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        small(name, **options)


def test_a_task_that_comes_later_has_no_readout():
    env = small_env(**needs("shared"))
    with pytest.raises(ValueError, match="no place for another one"):
        add_task(make_agent("shared", env), env.unwrapped.datasets)
