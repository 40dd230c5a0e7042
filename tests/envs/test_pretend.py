"""On a pretend GPU: no tensor on the wrong device, the host waits once per batch, nothing that is not deterministic."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from pretend_device import CUDA, MixedDevicesError, counting, pretend_cuda
from toys import OF_OTHER_NETWORKS, quick, toy_data

from routing_gym.agents import AGENTS, Agent, make_agent, needs, read, train_batch
from routing_gym.agents.base.capture import CapturedBatch
from routing_gym.envs import EnvConfig, RoutingVectorEnv, TrainingDivergedError, evaluate
from routing_gym.experiments.cli import main
from routing_gym.networks import make_network
from routing_gym.registration import ENV_IDS
from routing_gym.tasks import ShuffledStream, synthetic_mtl

ROWS = 12
SMALL = {
    "pyramid-chain": {"columns": 3, "width": 2},
    "pyramid-tree": {"columns": 3, "junctions": 1, "width": 2},
    "resnet32-skip": {"stages": [1, 1, 1], "width": 2},
    "vit": {"layers": 2, "width": 4, "hidden": 4},
    "vit-skip": {"layers": 2, "width": 4, "hidden": 4},
}
OWN = {field.name for field in dataclasses.fields(EnvConfig)}


@pytest.fixture
def cuda():
    with pretend_cuda():
        yield CUDA


def made(name, network="mlp", device="cuda", agent_options=(), rows=ROWS, **options):
    """An agent and an environment over a small network, whose weights are the same on every device."""
    given = {**needs(name), **options}
    sized = network.startswith(("pyramid", "resnet", "simple", "vit"))
    data = synthetic_mtl(num_tasks=3, image_size=16, images_per_class=8, shift=1) if sized else toy_data()
    own = {key: value for key, value in given.items() if key not in OWN | {"block_per_task", "network_per_task"}}
    small = SMALL.get(network, {"num_blocks": 3, "width": 4})
    torch.manual_seed(0)
    shape = data["train"].input_shape
    built = make_network(network, num_tasks=3, num_classes=3, input_shape=shape, **{**small, **own})
    env = RoutingVectorEnv(
        built, data, rows, device=device, **{key: value for key, value in given.items() if key in OWN}
    )
    return make_agent(name, env, seed=1, **dict(agent_options)), env


LAYERED = sorted(name for name in set(AGENTS) - OF_OTHER_NETWORKS if not name.startswith("sb3:"))
APPROXIMATED = ("wpl", "reinforce", "q-learning", "actor-critic", "gumbel")
EXITS = ("wpl", "actor", "pragmatic-critic", "optimistic-critic", "confidence", "gumbel", "top-k")
FORMS = [
    *((name, "mlp", {}, {}) for name in LAYERED),
    *((name, "mlp", {"representation": "mlp"}, {}) for name in APPROXIMATED),
    ("wpl", "mlp", {}, {"recurrent": True, "width": 6}),
    ("reinforce", "mlp", {"arrangement": "dispatched"}, {}),
    ("wpl", "mlp", {}, {"k_cpt": 1e-6, "rho": 0.3, "collaboration": "frequency", "precision": "bfloat16"}),
    ("reinforce", "mlp", {}, {"block_gradient": "rows", "schedule": "cosine", "class_weights": (1.0, 2.0, 1.0)}),
    ("gumbel", "mlp", {}, {"dense_backward": True}),
    ("top-k", "mlp", {}, {"task_balance": "pcgrad", "max_grad_norm": 1.0}),
    ("wpl", "mlp", {}, {"task_balance": "uncertainty", "schedule": "cosine", "task_weights": (1.0, 2.0, 1.0)}),
    ("wpl", "simple-convnet", {}, {}),
    ("top-k", "simple-convnet", {}, {}),
    *((name, "pyramid-chain", {}, {}) for name in EXITS),
    ("reinforce", "pyramid-tree", {"representation": "mlp"}, {}),
    ("optimistic-critic-sampled", "pyramid-tree", {}, {}),
    ("codinet", "resnet32-skip", {"alpha": 0.1}, {}),
    ("wpl", "resnet32-skip", {}, {}),
    ("wpl", "vit", {}, {}),
    ("top-k", "vit", {}, {}),
    ("wpl", "vit-skip", {}, {}),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("name", "network", "agent_options", "options"), FORMS)
def test_nothing_is_on_the_wrong_device(name, network, agent_options, options, cuda, tmp_path):
    """Trained, judged, saved, loaded, asked for predictions and classes; a mixture of devices would be refused."""
    agent, env = made(name, network, "cuda", agent_options, rows=ROWS if name != "codinet" else 4 * ROWS, **options)
    losses = []
    agent.learn(env, 2 * env.num_envs, lambda metrics: losses.append(float(metrics["loss"])))
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert all(parameter.device == cuda for parameter in (*env.network.parameters(), *agent.parameters()))
    judged = evaluate(agent, env, split="test")
    assert 0 <= judged.accuracy <= 1
    agent.save(tmp_path / "agent.pt")
    other = made(name, network, "cuda", agent_options, rows=env.num_envs, **options)[1]
    loaded = Agent.load(tmp_path / "agent.pt", other)
    assert evaluate(loaded, other, split="test").accuracy == judged.accuracy
    loaded.learn(other, other.num_envs)
    observation, _ = other.reset()
    as_arrays = {key: value.detach().cpu().numpy() for key, value in observation.items()}
    action, _ = loaded.predict(as_arrays, deterministic=True)
    assert len(action[0] if isinstance(action, tuple) else action) == other.num_envs
    if not other.config.price:
        images = torch.zeros(2, *other.dataset.input_shape, dtype=torch.uint8)
        assert loaded.classify(images).shape == (2, 3)


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_outside_agents_in_every_mode(mode, cuda):
    _, env = made("random", "mlp", autoreset_mode=mode, replay=True, replay_batch=8)
    env.reset(seed=0)
    for _ in range(12):
        if mode == "disabled" and not env.state.waiting:
            env.reset()
        observation, reward, *_ = env.step(torch.zeros(ROWS, dtype=torch.int64, device="cuda"))
        assert observation["activation"].device == reward.device == cuda
    assert env.trainer.instances > 0


WAITS = {  # of the host for the device in a batch of training; what is one is the check that all is finite
    **{(name, "mlp"): 1 for name in LAYERED if name not in ("annealed-em", "best-random")},
    ("annealed-em", "mlp"): 6,  # trials of every choice, and a search for the temperature
    **{(name, "mlp"): 3 for name in ("em", "grpo")},  # trials: which instances, and whether all was allowed
    ("wpl", "simple-convnet"): 1,
    # How many rows go which way, at each of two decisions; and which columns have run.
    **{(name, "pyramid-chain"): 4 for name in ("wpl", *EXITS[1:5])},
    # How many rows run each of three blocks, and which have run.
    ("wpl", "resnet32-skip"): 5,
    ("codinet", "resnet32-skip"): 2,
    # As many at each of two layers, and of two layers' attention and feed-forward blocks.
    ("wpl", "vit"): 4,
    ("wpl", "vit-skip"): 6,
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("name", "network"), WAITS)
def test_how_often_the_host_waits(name, network, cuda):
    agent, env = made(name, network, rows=8)
    train_batch(agent, env)
    for _ in range(3):  # not one of these is the first of a pass
        with counting() as counts:
            train_batch(agent, env)
        waits = dict(counts.waits)
        passes = sum(number for (_, line), number in waits.items() if line.startswith("sampling.py"))
        assert sum(waits.values()) - passes == WAITS[name, network], waits
        assert passes <= 1
        assert not counts.refused, counts.refused


@pytest.mark.usefixtures("cuda")
def test_balanced_tasks_and_prices_wait_no_longer():
    agent, env = made("wpl", balance_tasks=True, k_cpt=(0.0, 1e-6), price=True, rows=8)
    train_batch(agent, env)
    with counting() as counts:
        train_batch(agent, env)
    assert sum(counts.waits.values()) == 1, counts.waits


@pytest.mark.parametrize(
    ("name", "agent_options"),
    [
        ("gumbel", {}),
        ("gumbel", {"estimator": "sparsemixer"}),
        ("top-k", {"softmax": "all"}),
        ("remoe", {}),
        ("sinkhorn", {}),
    ],
)
def test_gates_that_pay_wait_no_longer(name, agent_options, cuda):
    agent, env = made(name, agent_options=agent_options, k_cpt=(0.0, 1e-6), rows=8)
    train_batch(agent, env)
    with counting() as counts:
        train_batch(agent, env)
    assert sum(counts.waits.values()) == 1, counts.waits


@pytest.mark.parametrize("balance", ["pcgrad", "uncertainty"])
def test_balanced_losses_wait_no_longer(balance, cuda):
    agent, env = made("task-specific-last", task_balance=balance, rows=8)
    train_batch(agent, env)
    with counting() as counts:
        train_batch(agent, env)
    assert sum(counts.waits.values()) == 1, counts.waits
    assert not counts.refused, counts.refused


@pytest.mark.parametrize("representation", ["table", "mlp"])
def test_approximators_wait_no_longer(representation, cuda):
    for name in APPROXIMATED:
        agent, env = made(name, agent_options={"representation": representation}, rows=8)
        train_batch(agent, env)
        with counting() as counts:
            train_batch(agent, env)
        assert sum(counts.waits.values()) == 1, counts.waits


@pytest.mark.parametrize(("name", "launches"), [("shared", 390), ("wpl", 437), ("gumbel", 480), ("top-k", 1085)])
def test_how_many_kernels_are_launched(name, launches, cuda):
    """Not many more or fewer than when docs/performance.md was written."""
    agent, env = made(name, rows=8)
    train_batch(agent, env)
    with counting() as counts:
        train_batch(agent, env)
    assert sum(counts.launches.values()) == pytest.approx(launches, rel=0.1)


def test_an_order_is_handed_over_once_per_pass(cuda):
    stream, here = ShuffledStream(10, seed=3, device="cuda"), ShuffledStream(10, seed=3)
    with counting() as counts:
        drawn = [stream.draw(4) for _ in range(5)]
    assert sum(counts.waits.values()) == 2
    assert [rows.tolist() for rows in drawn] == [here.draw(4).tolist() for _ in range(5)]
    again = ShuffledStream(10, device="cuda")
    again.load_state_dict(stream.state_dict())
    assert again.draw(13).tolist() == here.draw(13).tolist()


@pytest.mark.parametrize(
    ("name", "network"),
    [("wpl", "mlp"), ("reinforce", "mlp"), ("gumbel", "mlp"), ("top-k", "mlp"), ("actor", "pyramid-chain")],
)
def test_deterministic_algorithms_can_be_asked_for(name, network, cuda):
    agent, env = made(name, network)
    torch.use_deterministic_algorithms(True)
    try:
        agent.learn(env, 2 * ROWS)
        evaluate(agent, env, split="test")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["task-specific-all", "shared", "soft-mixture", "cross-stitch"])
@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "momentum": 0.9}])
def test_training_is_that_of_the_cpu(name, options):
    """Tiles of one height and batched products compute what grouped products do; no random number decides here."""
    losses = {}
    for device in ("cpu", "cuda"):
        with pretend_cuda():
            agent, env = made(name, device=device, **options)
            losses[device] = []
            agent.learn(env, 6 * ROWS, lambda metrics, seen=losses[device]: seen.append(float(metrics["loss"])))
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-4)


def test_a_bad_action_is_caught_with_the_batch(cuda):
    _, env = made("wpl")
    before = {name: value.cpu().clone() for name, value in env.network.state_dict().items()}
    env.reset()
    for choice in (7, 0, 0):
        env.step(torch.full((ROWS,), choice, device="cuda"))
    with pytest.raises(TrainingDivergedError, match="out of range"):
        env.train_blocks()
    assert all(torch.equal(before[name], value.cpu()) for name, value in env.network.state_dict().items())


def test_what_the_pretend_device_refuses(cuda):
    """It would not be worth much if it took everything."""
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    for wrong in (
        lambda: there + here,
        lambda: there.index_select(0, torch.tensor([1])),
        lambda: torch.cat([there, here]),
    ):
        with pytest.raises(MixedDevicesError, match="one device"):
            wrong()
    with pytest.raises(MixedDevicesError, match="a generator on cpu"):
        torch.rand(3, device="cuda", generator=torch.Generator())
    with pytest.raises(TypeError, match="cuda:0 device type tensor to numpy"):
        there.numpy()
    with counting() as counts:
        assert float(there.sum()) == 3 and there.nonzero().shape == (3, 1) and there.tolist() == [1, 1, 1]
        there.to("cpu"), here.to("cuda")
    assert sum(counts.waits.values()) == 5 and sum(counts.launches.values()) >= 2


def test_every_id_can_be_made_on_it(cuda):
    for env_id in ("routing_gym/SyntheticMTL-v0", "routing_gym/DigitsMTL-v0"):
        env = gymnasium.make_vec(env_id, num_envs=4, device="cuda", **quick(env_id) if env_id in ENV_IDS else {})
        observation, _ = env.reset(seed=0)
        assert observation["activation"].device == cuda and env.unwrapped.device == cuda
        env.close()


@pytest.mark.long
@pytest.mark.usefixtures("cuda")
def test_the_command_trains_and_goes_on(tmp_path):
    """Interrupted and gone on with it is the run it would have been, random numbers of the device included."""
    command = ["train", "--env", "routing_gym/SyntheticMTL-v0", "--agent", "reinforce", "--callbacks", "csv"]
    command += ["--batch-size", "240", "--device", "cuda"]
    for name, *epochs in (("whole", 3), ("half", 2, 3)):
        for number in epochs:
            more = [
                "--epochs",
                str(number),
                "--out",
                str(tmp_path / name),
                *(["--resume"] if number > epochs[0] else []),
            ]
            assert main([*command, *more]) == 0
    whole, half = (read(tmp_path / name / "checkpoint.pt") for name in ("whole", "half"))
    assert torch.equal(whole["extra"]["cuda_generator"], half["extra"]["cuda_generator"])
    assert whole["extra"]["curve"]["train_loss"] == half["extra"]["curve"]["train_loss"]


CAPTURED = [
    ("wpl", {}, {}),
    (
        "wpl",
        {"entropy": 0.1, "baseline": "policy"},
        {"optimizer": "sgd", "momentum": 0.9, "recurrent": True, "width": 6},
    ),
    ("reinforce", {}, {"rho": 0.3, "collaboration": "frequency"}),
    ("random-fixed", {}, {"k_cpt": 1e-5, "optimizer": "adamw"}),
]


@pytest.mark.parametrize(("name", "agent_options", "options"), CAPTURED)
def test_a_captured_batch_is_the_batch(name, agent_options, options, cuda):
    """Blocks, tables, averages, metrics and random numbers are bit for bit those of training without graphs."""
    found = []
    for capture in (False, True):
        agent, env = made(name, "mlp", "cuda", agent_options, capture=capture, **options)
        metrics = []
        for batches in (5, 7):  # captured anew in every call
            agent.learn(env, batches * ROWS, metrics.append)
        state = {**agent.state_dict(), **env.network.state_dict()}
        state |= {str(number): of for number, of in enumerate(env.trainer.optimizer.state_dict()["state"].values())}
        state["metrics"] = {str(number): of for number, of in enumerate(metrics)}
        state["generator"] = agent.generator.get_state()
        found.append(state)
        assert (agent.episodes, env.trainer.instances) == (12 * ROWS, 12 * ROWS)

    def on_host(value):
        return {key: on_host(of) for key, of in value.items()} if isinstance(value, dict) else value.cpu()

    torch.testing.assert_close(on_host(found[1]), on_host(found[0]), rtol=0, atol=0)


def test_a_captured_batch_launches_two_graphs_and_waits_once(cuda):
    agent, env = made("wpl", capture=True, rows=8)
    captured = CapturedBatch(agent, env) if agent.learn(env, 8 * 4) else None
    with counting() as counts:
        captured.run()
    assert sum(counts.waits.values()) == 1, counts.waits
    assert sum(counts.launches.values()) < 10, counts.launches


def test_a_captured_batch_that_is_no_number_takes_no_step(cuda):
    agent, env = made("wpl", capture=True)
    agent.learn(env, 4 * ROWS)
    captured = CapturedBatch(agent, env)
    with torch.no_grad():
        env.network.banks[0].weight.fill_(torch.nan)
    table, episodes = agent.table.cpu().clone(), agent.episodes
    with pytest.raises(TrainingDivergedError, match="agent 'wpl', batch 5: .*the loss is nan; the step was not taken"):
        captured.run()
    assert torch.equal(agent.table.cpu(), table) and agent.episodes == episodes


def test_what_cannot_be_captured_says_so(cuda):
    for name, network, options, why in (
        ("q-learning", "mlp", {}, "has no schedule"),
        ("gumbel", "mlp", {}, "has no schedule"),
        ("wpl", "pyramid-chain", {}, "in_order"),
        ("wpl", "mlp", {"schedule": "cosine"}, "schedule='constant'"),
        ("shared", "mlp", {"task_balance": "pcgrad"}, "task_balance=None, got 'pcgrad'"),
        ("wpl", "simple-convnet", {}, "images and prices that are the same"),
    ):
        agent, env = made(name, network, capture=True, **options)
        with pytest.raises(ValueError, match=why):
            agent.learn(env, ROWS)
    agent, env = made("wpl", device="cpu", capture=True)
    with pytest.raises(ValueError, match="capture=True needs a CUDA device, got cpu"):
        agent.learn(env, ROWS)


def test_nothing_that_waits_can_be_captured(cuda):
    x = torch.ones(3, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="when stream is capturing"):
        float(x.sum())
