"""Networks that compute in bfloat16, and everything around them, which does not."""

import copy
import dataclasses
from functools import partial

import gymnasium
import pytest
import torch
from damage import same
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stepping import step
from torch import nn
from torch.nn import functional
from toys import IMAGE, LAYERS, TREE, ExitTree, Gates, Residual, RunSkip, small_env, toy_data

from routing_gym.agents import agent_class, make_agent, train_batch
from routing_gym.blocks import LinearBlocks, ModuleBlocks, WithPass
from routing_gym.envs import RoutingVectorEnv, evaluate, rollout
from routing_gym.networks import RoutedMLP, RoutedNetwork, make_network, route
from routing_gym.tasks import synthetic_mtl
from routing_gym.testing import check_vector_env, legal_actions

CLOSE = 2e-2
"""How far the two precisions may differ: bfloat16 keeps 8 bits."""
RECTIFIED = 0.25
"""The same for gradients behind rectifiers and poolings, where a number that is rounded takes another way back."""
POOLED = 0.5

mlp = partial(make_network, "mlp", num_tasks=3, num_classes=3, input_shape=IMAGE, width=16)
convnet = partial(make_network, "simple-convnet", num_tasks=3, num_classes=3, input_shape=(1, 16, 16))
NETWORKS = {
    "layered": (mlp, RECTIFIED),
    "odd width": (partial(mlp, width=5), RECTIFIED),
    "told the task": (partial(mlp, task_input=True), RECTIFIED),
    "recurrent": (partial(mlp, layers=4, recurrent=True), RECTIFIED),
    "PASS alone": (partial(mlp, num_blocks=[3, 0, 3], layers=4, recurrent=True), RECTIFIED),
    "trunk": (lambda: RoutedMLP(IMAGE, 3, 3, trunk=nn.Sequential(nn.Flatten(), nn.Linear(6, 8))), RECTIFIED),
    "columns": (partial(mlp, form="columns"), RECTIFIED),
    "tree with exits": (lambda: ExitTree(TREE), CLOSE),
    "run or skip": (RunSkip, CLOSE),
    "gates": (lambda: Gates(3), CLOSE),
    "routed module": (lambda: route(Residual(), LAYERS, 3, input_shape=(1, 6, 6)), RECTIFIED),
    "convnet": (convnet, POOLED),
    "convnet, columns": (partial(convnet, form="columns"), POOLED),
    "convnet, a routed stage": (partial(convnet, routed_stages=1), POOLED),
    "convnet, all routed": (partial(convnet, routed_stages=4), POOLED),
}
SPARSE = set(NETWORKS) - {"columns", "gates", "run or skip", "convnet, columns"}


def env_of(network, num_envs=64, **options):
    """An environment in mode "disabled" with images as the network wants them."""
    shape = network.input_shape
    data = toy_data() if shape == IMAGE else synthetic_mtl(num_tasks=3, num_classes=3, image_size=shape[1])
    return RoutingVectorEnv(network, data, num_envs, **{"autoreset_mode": "disabled", **options})


def through(env, actions=None, sparse=False):
    """Carry a batch through by the same random actions each time; observations and rewards on the way."""
    numbers = torch.Generator().manual_seed(0)
    seen = [env.reset(seed=0)[0]["activation"]]
    while env.state.waiting:
        action = legal_actions(env, numbers)
        if sparse:
            weights, indices = action.topk(2, -1)
            action = indices, weights / weights.sum(-1, keepdim=True)
        observation, reward, _, _, info = env.step(action)
        seen += [observation["activation"], reward, info["action_reward"]]
    return seen


def logits_of(env):
    """The logits of every row by exit, in the order of the exits."""
    return torch.cat([exit.logits.detach() for exit in env.batch.exits])


def gradients_of(network):
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def apart(a, b):
    """How far b is from a, as a share of a's length."""
    return float((a - b).norm() / a.norm())


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def kinds_of(name):
    dense = [("discrete", False, False), ("weights", False, False), ("weights", False, True)]
    return dense + ([("weights", True, False)] if name in SPARSE else [])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "action_type", "sparse", "dense_backward"),
    [(name, *kind) for name in NETWORKS for kind in kinds_of(name)],
)
def test_every_network_does_what_it_does_in_float32(name, action_type, sparse, dense_backward):
    make, tolerance = NETWORKS[name]
    torch.manual_seed(0)
    network, runs = make(), {}
    for precision in ("float32", "bfloat16"):
        options = {"action_type": action_type, "dense_backward": dense_backward, "k_cpt": 1e-6}
        env = env_of(copy.deepcopy(network), precision=precision, **options)
        seen = through(env, sparse=sparse)
        assert all(value.dtype == torch.float32 for value in seen)
        for exit in env.batch.exits:
            assert exit.logits.dtype == exit.loss.dtype == exit.weight.dtype == torch.float32
        logits, loss = logits_of(env), env.train_blocks()
        assert loss.dtype == torch.float32
        gradients = gradients_of(env.network)
        assert all(part.dtype == torch.float32 for part in [*env.network.parameters(), *gradients.values()])
        states = [value for state in env.trainer.optimizer.state.values() for value in state.values()]
        assert states and all(value.dtype == torch.float32 for value in states)
        runs[precision] = seen, logits, gradients, env
    (seen, logits, gradients, env), (other_seen, other_logits, others, other) = runs.values()
    assert 0 < apart(logits, other_logits) < CLOSE
    assert gradients.keys() == others.keys()
    assert 0 < apart(flat(gradients), flat(others)) < tolerance
    # What is counted is not rounded.
    assert torch.equal(env.state.macs, other.state.macs)
    torch.testing.assert_close(env.state.expected_macs, other.state.expected_macs)
    for first, second in zip(seen, other_seen, strict=True):
        if first.ndim == 2 and first.norm() > 0:
            assert apart(first, second) < CLOSE


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("rows", [16, 600])
def test_chains_do_what_autocast_does_row_by_row(recurrent, rows):
    torch.manual_seed(0)
    network = RoutedMLP(IMAGE, 3, 3, width=8, layers=4, recurrent=recurrent)
    slow = copy.deepcopy(network)
    images, task, label = torch.randn(rows, *IMAGE), torch.zeros(rows, dtype=torch.int64), torch.randint(3, (rows,))
    plan = torch.stack([torch.randint(decision.n, (rows,)) for decision in network.decisions], 1)
    logits = []
    for image, route_ in zip(images.flatten(1), plan.tolist(), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = image
            for number, choice in enumerate(route_):
                bank = slow.bank(number)
                bank = bank.blocks if isinstance(bank, WithPass) else bank
                if choice == bank.num_blocks:
                    continue
                x = functional.linear(x, bank.weight[choice].t(), bank.bias[choice])
                x = functional.relu(x) if bank.relu else x
        logits.append(x.float())
    functional.cross_entropy(torch.stack(logits), label).backward()
    for follow in (True, False):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            state = network.start(images, task)
            if follow:
                state = network.follow(state, plan)
            else:
                for choice in plan.unbind(1):
                    state = network.advance(state, choice.unsqueeze(1))
        (exit,) = state.exits
        order = torch.arange(rows) if exit.rows is None else exit.rows
        assert apart(torch.stack(logits)[order].detach(), exit.logits.detach()) < 1e-2
        functional.cross_entropy(exit.logits, label[order]).backward()
        assert apart(flat(gradients_of(slow)), flat(gradients_of(network))) < 5e-2


def test_the_gradient_of_a_bias_is_summed_in_float32():
    blocks = LinearBlocks(2, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = blocks(torch.randn(4096, 8), torch.zeros(4096, dtype=torch.int64))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    # 1 + 1 + ... in bfloat16 ends at 256.
    assert blocks.bias.grad.tolist() == [[4096.0] * 8, [0.0] * 8]


def test_no_rows_and_float64_have_their_types():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nothing = LinearBlocks(2, 8, 8)(torch.randn(0, 8), torch.zeros(0, dtype=torch.int64))
        exact = LinearBlocks(2, 8, 8).double()(torch.randn(3, 8).double(), torch.zeros(3, dtype=torch.int64))
    assert (nothing.dtype, nothing.shape, exact.dtype) == (torch.bfloat16, (0, 8), torch.float64)


@pytest.mark.parametrize("blocks", ["linear", "modules"])
def test_rows_that_pass_are_mixed_with_rows_that_run(blocks):
    """Rows that pass a block are float32 where the others are bfloat16."""
    torch.manual_seed(0)
    if blocks == "linear":
        blocks = WithPass(LinearBlocks(2, 8, 8))
    else:
        blocks = ModuleBlocks([nn.Linear(8, 8), nn.Linear(8, 8), nn.Identity()], (8,))
    x, choice = torch.randn(6, 8), torch.tensor([2, 0, 2, 1, 2, 0])
    weights = torch.rand(6, 3)
    sparse = torch.tensor([[0, 2]] * 6), weights[:, :2]
    for action in (choice, choice.clamp(min=2), choice.clamp(max=1), weights, weights * (weights > 0.3), sparse):
        exact = blocks(x, action)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = blocks(x, action)
        assert apart(exact.detach(), rounded.detach().float()) < CLOSE
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(blocks(x, choice)[choice == 2], x[choice == 2])


# ------------------------------------------------------------------------------------------------ nothing is forgotten


class Watched(ExitTree):
    """Notes, for whatever a network computes, and for the gradient that comes back, whether autocast is on."""

    def __init__(self):
        super().__init__(TREE)
        self.on, self.on_back = [], []

    def watch(self):
        """Let gradients tell too."""
        self.heads[0].weight.register_hook(lambda gradient: self.on_back.append(torch.is_autocast_enabled("cpu")))
        return self


def _noting(name):
    def method(self, *arguments):
        self.on.append(torch.is_autocast_enabled("cpu"))
        return getattr(ExitTree, name)(self, *arguments)

    return method


for _name in ("stem", "enter", "readout", "describe"):
    setattr(Watched, _name, _noting(_name))


def in_one_go():
    """A network whose routes are followed at once, that notes the same."""
    network = mlp()
    network.on, network.on_back = [], []
    for name in ("stem", "traverse", "readout", "describe"):
        own = getattr(network, name)

        def noting(*arguments, own=own):
            network.on.append(torch.is_autocast_enabled("cpu"))
            return own(*arguments)

        setattr(network, name, noting)
    network.watch = lambda: network
    network.banks[0].weight.register_hook(lambda gradient: network.on_back.append(torch.is_autocast_enabled("cpu")))
    return network


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("agent", ["random", "wpl", "shared", "gumbel"])
@pytest.mark.parametrize("make", [Watched, in_one_go])
def test_whole_batches_are_computed_in_the_precision_asked_for(make, agent, precision):
    torch.manual_seed(0)
    kind = "weights" if agent == "gumbel" else "discrete"
    env = env_of(make().watch(), 12, precision=precision, action_type=kind)
    agent = make_agent(agent, env)
    for _ in range(3):
        train_batch(agent, env)
    network, wanted = env.network, precision == "bfloat16"
    assert len(network.on) >= 6 and set(network.on) == {wanted}
    assert network.on_back and not any(network.on_back)  # autocast is for the way there only
    network.on.clear()
    evaluation = evaluate(agent, env)
    assert network.on and not any(network.on)
    exact = evaluate(agent, env.sibling(12, precision="float32"))
    for field in dataclasses.fields(exact):
        ours, theirs = getattr(evaluation, field.name), getattr(exact, field.name)
        assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs, field.name


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
def test_replays_are_computed_in_the_precision_asked_for(mode):
    torch.manual_seed(0)
    network, runs = Watched(), []
    for precision in ("float32", "bfloat16"):
        own = copy.deepcopy(network).watch()
        options = {"replay_batch": 12, "optimizer": "sgd", "learning_rate": 0.1, "precision": precision}
        env = env_of(own, 12, autoreset_mode=mode, replay=True, **options)
        before = {name: value.clone() for name, value in own.state_dict().items()}
        numbers = torch.Generator().manual_seed(0)
        env.reset(seed=0)
        while not env.trainer.instances:
            observation, reward, *_ = env.step(legal_actions(env, numbers))
            assert observation["activation"].dtype == reward.dtype == torch.float32
        assert set(own.on) == {precision == "bfloat16"} and own.on_back == [False]
        assert not own.training
        runs.append(torch.cat([(value - before[name]).flatten() for name, value in own.state_dict().items()]))
    assert 0 < apart(*runs) < CLOSE


@pytest.mark.parametrize("make", [lambda: ExitTree(TREE), mlp])
def test_replays_are_steps_on_the_same_batch(make):
    """A replay in bfloat16 does what training on the batch itself does."""
    torch.manual_seed(0)
    network, ended = make(), []
    for replay in (False, True):
        env = env_of(copy.deepcopy(network), 12, replay=replay, replay_batch=12, precision="bfloat16")
        through(env)
        if not replay:
            env.train_blocks()
        ended.append(env.network.state_dict())
        assert env.trainer.instances == env.config.replay_batch
    torch.testing.assert_close(*ended, rtol=1e-5, atol=1e-6)


def test_observations_have_a_gradient_in_float32():
    torch.manual_seed(0)
    env = env_of(ExitTree(TREE), precision="bfloat16", differentiable=True)
    assert all(value.dtype == torch.float32 for value in through(env))
    env.reset(seed=0)
    seen = env.step(torch.ones(64, dtype=torch.int64))[0]["activation"]
    (gradient,) = torch.autograd.grad(seen.square().sum(), env.network.columns[0][0].weight)
    assert gradient.dtype == torch.float32 and gradient.abs().sum() > 0


# ------------------------------------------------------------------------------------------------------------ training


GATES = {
    "straight-through": ("gumbel", {}, {}, {}),
    "dense straight-through": ("gumbel", {}, {"dense_backward": True}, {}),
    "soft": ("gumbel", {"estimator": "soft"}, {}, {}),
    "approximated": ("gumbel", {"representation": "mlp"}, {}, {}),
    "mixture": ("soft-mixture", {"conditioned": True}, {}, {}),
    "top-k": ("top-k", {"noise": False}, {}, {}),
    "cross-stitch": ("cross-stitch", {}, {}, {"form": "columns"}),
}


@pytest.mark.parametrize("gate", GATES)
def test_gates_get_the_gradient_they_get_in_float32(gate):
    name, config, options, form = GATES[gate]
    torch.manual_seed(0)
    network, gradients = mlp(width=32, **form), []
    for precision in ("float32", "bfloat16"):
        env = env_of(copy.deepcopy(network), 256, action_type="weights", precision=precision, **options)
        agent = make_agent(name, env, **config).train()
        agent.optimizer.zero_grad()
        trajectory = rollout(agent, env)
        assert all(
            step.observation.get("activation", env.state.macs).dtype == torch.float32 for step in trajectory.steps
        )
        env.train_blocks(agent.auxiliary_loss(trajectory))
        own = gradients_of(agent)
        assert own and all(gradient.dtype == torch.float32 for gradient in own.values())
        gradients.append(flat(own))
    assert 0 < apart(*gradients) < RECTIFIED


@pytest.mark.parametrize("agent", ["wpl", "gumbel", "actor-critic"])
def test_the_same_seed_gives_the_same_blocks_bit_for_bit(agent):
    def trained():
        torch.manual_seed(0)
        env = small_env(precision="bfloat16", action_type=agent_class(agent).action_type)
        decides = make_agent(agent, env, seed=0)
        for _ in range(5):
            train_batch(decides, env)
        return [value.clone() for value in [*env.network.parameters(), *decides.parameters()]]

    assert same(trained(), trained())


@pytest.mark.long
def test_digits_are_learned_as_well():
    accuracy = {}
    for precision in ("float32", "bfloat16"):
        options = {"precision": precision, "device": "cpu", "learning_rate": 0.003}
        env = gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=256, **options)
        agent = make_agent("task-specific-all", env).learn(env, 43 * 4 * 256)
        accuracy[precision] = evaluate(agent, env).accuracy
    assert accuracy["bfloat16"] > 0.98 and abs(accuracy["bfloat16"] - accuracy["float32"]) < 0.01


# ---------------------------------------------------------------------------------------------------------- the option


@pytest.mark.long
def test_checkers_pass():
    make = partial(gymnasium.make_vec, "routing_gym/DigitsMTL-v0", num_envs=5, precision="bfloat16")
    single = partial(gymnasium.make, "routing_gym/DigitsMTL-v0", precision="bfloat16")
    check_env(single().unwrapped)
    check_env_sb3(single().unwrapped)
    check_vector_env(make(autoreset_mode="disabled", replay=True))
    for mode in ("same_step", "disabled"):
        for action_type in ("discrete", "weights"):
            check_vector_env(make(autoreset_mode=mode, action_type=action_type))


@pytest.mark.parametrize("precision", ["float16", "bf16", torch.bfloat16, None])
def test_other_precisions_are_refused(precision):
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got"):
        small_env(precision=precision)


def test_weights_of_another_type_are_refused():
    env = small_env(precision="bfloat16", action_type="weights")
    env.reset()
    weights = torch.full((12, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"weights must be torch.float32 .*, got torch.bfloat16"):
        env.step(weights.bfloat16())
    env.step(weights)


def test_a_checkpoint_goes_on_in_either_precision(tmp_path):
    """The blocks are the same numbers; `routing-gym train --resume` alone wants the very options it began with."""
    env = small_env(precision="bfloat16")
    agent = make_agent("wpl", env)
    train_batch(agent, env)
    agent.save(tmp_path / "wpl.pt")
    other = small_env(precision="float32")
    loaded = type(agent).load(tmp_path / "wpl.pt", other)
    assert same([*env.network.parameters()], [*other.network.parameters()])
    train_batch(loaded, other)


def test_a_network_used_alone_shows_float32_too():
    torch.manual_seed(0)
    network: RoutedNetwork = mlp()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = network.start(torch.randn(4, *IMAGE), torch.zeros(4, dtype=torch.int64))
        while state.waiting:
            assert network.observe(state).dtype == torch.float32
            state = step(network, state, torch.zeros(4, dtype=torch.int64))
    assert state.exits[0].logits.dtype == state.macs.dtype == torch.float32
