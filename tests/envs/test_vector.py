"""The vector environment in both modes."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from stepping import step
from torch import nn
from toys import TREE, ExitTree, toy_data, toy_env

from routing_gym.agents import make_agent
from routing_gym.envs import REWARDS, RoutingVectorEnv, register_reward, rollout
from routing_gym.networks import RoutedMLP
from routing_gym.testing import legal_actions


def test_ids_can_be_made_from_text_and_with_options():
    env = gymnasium.make_vec("routing_gym:routing_gym/SyntheticMTL-v0", num_envs=3, num_tasks=2, width=5, k_cpt=1e-3)
    assert env.unwrapped.network.observation_size == 16 and env.unwrapped.dataset.num_tasks == 2
    again = gymnasium.make_vec(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.num_envs == 3 and again.unwrapped.config == env.unwrapped.config
    env = gymnasium.make_vec("routing_gym/SyntheticMTL-v0", num_envs=2, num_blocks=(3, 1, 2))
    again = gymnasium.make_vec(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert [[d.n for d in e.unwrapped.network.decisions] for e in (env, again)] == [[3, 1, 2]] * 2
    network = RoutedMLP((1, 8, 8), 2, 3)
    assert gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=2, network=network).unwrapped.network is network
    assert gymnasium.make("routing_gym/DigitsMTL-v0", network=network).unwrapped.network is network
    with pytest.raises(gymnasium.error.Error):
        gymnasium.make("routing_gym/DigitMTL-v0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be an integer of at least 1, got 0"),
        (
            {"num_blocks": [3, 2]},
            r"num_blocks must be one number, or one for each of the 3 sets .*, got \[3, 2\]",
        ),
        ({"rho": 2.0}, r"rho must lie in \[0, 1\], got 2.0"),
        ({"rho": 0.3}, "collaboration='frequency'"),
        ({"k_cpt": -1.0}, "k_cpt must be at least 0"),
        ({"optimizer": "adagrad"}, "optimizer must be 'adam' or 'adamw' or 'sgd', got 'adagrad'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"split": "valid"}, "split must be one of"),
        ({"network": "mpl"}, "unknown network 'mpl'"),
        ({"width": 0}, "width must be an integer of at least 1"),
        ({"differentiable": True}, "autoreset_mode='disabled'"),
        ({"autoreset_mode": "last_step"}, "autoreset_mode must be"),
        ({"render_mode": "human"}, "render_mode must be"),
        ({"replay_batch": 0}, "replay_batch must be an integer of at least 1"),
        ({"final_reward": "accuracy"}, "final_reward must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=2, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: gymnasium.make("routing_gym/DigitsMTL-v0", **options),
        lambda **options: gymnasium.make_vec("routing_gym/DigitsMTL-v0", **options),
        lambda **options: toy_env(**options),
        lambda **options: toy_env().sibling(3, **options),
    ],
    ids=["make", "make_vec", "class", "sibling"],
)
def test_unknown_options_are_refused_as_by_any_callable(make):
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'frameskip'; it takes .*autoreset_mode"):
        make(frameskip=4)


def test_autoreset_modes_are_taken_as_gymnasium_has_them():
    name, modes = "routing_gym/SyntheticMTL-v0", gymnasium.vector.AutoresetMode
    for mode in modes:
        env = gymnasium.make_vec(name, num_envs=2, autoreset_mode=mode)
        assert env.unwrapped.autoreset_mode is env.metadata["autoreset_mode"] is mode
        assert env.unwrapped.config == gymnasium.make_vec(name, autoreset_mode=mode.name.lower()).unwrapped.config
        again = gymnasium.make_vec(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
        assert again.unwrapped.config == env.unwrapped.config
        assert toy_env(autoreset_mode="disabled").sibling(2, autoreset_mode=mode).autoreset_mode is mode
    env = gymnasium.make(name, autoreset_mode=modes.SAME_STEP)
    assert '"autoreset_mode": "same_step"' in env.spec.to_json()
    with pytest.raises(
        ValueError, match="autoreset_mode must be 'same_step' or 'next_step' or 'disabled', got 'never'"
    ):
        gymnasium.make_vec(name, autoreset_mode="never")


def test_a_network_with_too_few_classes_is_refused():
    with pytest.raises(ValueError, match="has 3 classes, but the network gives logits for 2"):
        RoutingVectorEnv(RoutedMLP((1, 2, 3), 2, 3), toy_data())
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1, got 0"):
        toy_env(num_envs=0)


def test_integers_of_numpy_count():
    made = gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=np.int64(4), num_tasks=np.int32(2)).unwrapped
    assert (made.num_envs, made.dataset.num_tasks) == (4, 2) and type(made.num_envs) is int
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1, got .*4.0"):
        toy_env(num_envs=np.float64(4))


def test_rewards_are_correctness_and_cost():
    env = toy_env(autoreset_mode="disabled", k_cpt=0.01)
    env.reset(seed=0)
    network, total = env.network, torch.zeros(6)
    images = env.dataset.pixels(env.state.instance)
    actions = [torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([0, 0, 1, 0, 1, 2]), torch.tensor([0, 0, 0, 0, 0, 0])]
    for action in actions:
        _, reward, terminated, _, infos = env.step(action)
        total += reward
        torch.testing.assert_close(infos["action_reward"] + infos["final_reward"] * infos["_loss"], reward)
    assert bool(terminated.all())
    # row 0 leaves at once, by hand: column 0, its classifier, nothing else
    features = network.columns[0](images[:1].flatten(1))
    logits = network.heads[0](features)
    right = int(logits.argmax()) == int(env.batch.label[0])
    assert float(total[0]) == pytest.approx((1 if right else -1) - 0.01 * network.decisions[0].macs[0])
    # row 3: column 2, leaves from there
    logits = network.heads[2](network.columns[2](network.columns[0](images[3:4].flatten(1))))
    right = int(logits.argmax()) == int(env.batch.label[3])
    macs = network.decisions[0].macs[2] + network.decisions[2].macs[0]
    assert float(total[3]) == pytest.approx((1 if right else -1) - 0.01 * macs)
    assert float(env.state.macs[3]) == network.stem_macs + macs
    loss = torch.nn.functional.cross_entropy(logits, env.batch.label[3:4])
    assert float(env.batch.loss[3]) == pytest.approx(loss.item())


def test_negative_loss_and_soft_outcomes():
    env = toy_env(ExitTree([[1], []]), autoreset_mode="disabled", final_reward="negative-loss", action_type="weights")
    env.reset(seed=0)
    weights = torch.tensor([[0.25, 0.75]]).repeat(6, 1)
    _, reward, terminated, _, infos = env.step(weights)
    assert bool(terminated.all())
    h = env.network.columns[0](env.dataset.pixels(env.state.instance).flatten(1))
    losses = [
        torch.nn.functional.cross_entropy(logits, env.batch.label, reduction="none")
        for logits in (env.network.heads[0](h), env.network.heads[1](env.network.columns[1](h)))
    ]
    torch.testing.assert_close(reward, -(0.25 * losses[0] + 0.75 * losses[1]).detach())
    torch.testing.assert_close(infos["loss"], -reward)


def test_frequency_collaboration_reward():
    env = toy_env(
        RoutedMLP((1, 2, 3), 3, 3, width=4, layers=2), 4, autoreset_mode="disabled", rho=0.5, collaboration="frequency"
    )
    rewards = []
    for action in (torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 2])):
        env.reset()
        _, reward, *_ = env.step(action)
        rewards.append(reward.tolist())
        env.step(action)
    assert rewards == [[0.0] * 4, [0.375, 0.125, 0.0, 0.0]]


def test_frequency_within_a_task():
    """Three batches of four rows, by hand: what a task took before counts for its own rows alone."""
    network = RoutedMLP((1, 2, 3), 3, 3, width=4, layers=2)
    env = toy_env(network, 4, autoreset_mode="disabled", rho=0.5, collaboration="task-frequency")
    assert env.dataset.num_tasks > 1
    taken, rows = {}, [(env.dataset.task == task).nonzero().flatten()[:2] for task in (0, 1)]
    for action in ([0, 0, 0, 1], [0, 1, 2, 0], [1, 1, 0, 0]):
        env.reset(options={"instances": torch.cat(rows).tolist()})
        for decision in range(2):
            chosen = [(task, decision, choice) for task, choice in zip([0, 0, 1, 1], action, strict=True)]
            totals = [sum(taken.get((task, decision, c), 0) for c in range(3)) for task, *_ in chosen]
            expected = [0.5 * taken.get(it, 0) / max(1, total) for it, total in zip(chosen, totals, strict=True)]
            _, _, _, _, infos = env.step(torch.tensor(action))
            assert infos["action_reward"].tolist() == pytest.approx(expected)
            for it in chosen:
                taken[it] = taken.get(it, 0) + 1
    with pytest.raises(ValueError, match="counts integer choices, not weights"):
        toy_env(network, 4, action_type="weights", rho=0.5, collaboration="task-frequency")


def test_train_blocks_takes_the_step_of_a_plain_network():
    """All rows through block 0: the same update as the static network with the same weights."""
    network = RoutedMLP((1, 2, 3), 3, 2, width=4)
    env = toy_env(network, 5, autoreset_mode="disabled", optimizer="sgd", learning_rate=0.1)
    plain = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.ReLU(),
        torch.nn.Linear(4, 3),
    )  # fmt: skip
    with torch.no_grad():
        for layer, bank in zip([plain[1], plain[3], plain[5]], network.banks, strict=True):
            layer.weight.copy_(bank.weight[0].t())
            layer.bias.copy_(bank.bias[0])
    env.reset(seed=0)
    images, label = env.dataset.pixels(env.state.instance), env.batch.label
    for _ in range(3):
        env.step(torch.zeros(5, dtype=torch.int64))
    seen = []
    loss = env.train_blocks(before_step=lambda: seen.append(network.banks[0].weight.grad.clone()))
    reference = torch.nn.functional.cross_entropy(plain(images), label)
    torch.testing.assert_close(loss, reference.detach())
    reference.backward()
    torch.testing.assert_close(seen[0][0], plain[1].weight.grad.t())
    assert seen[0][1].abs().sum() == 0
    torch.testing.assert_close(network.banks[2].bias[0].detach(), plain[5].bias.detach() - 0.1 * plain[5].bias.grad)
    with pytest.raises(RuntimeError, match="trained on already"):
        env.train_blocks()


def test_train_blocks_needs_a_finished_batch_with_a_graph():
    env = toy_env(autoreset_mode="disabled")
    env.reset()
    env.step(torch.tensor([0, 0, 1, 1, 2, 2]))
    with pytest.raises(RuntimeError, match="4 rows have not left"):
        env.train_blocks()
    batch = {"autoreset_mode": "disabled"}
    for env in (toy_env(), toy_env(**batch, train=False), toy_env(**batch, replay=True)):
        env.reset()
        with pytest.raises(RuntimeError, match="no graph is held"):
            env.train_blocks()


def test_reset_mask_restarts_finished_rows_and_keeps_the_rest_of_the_graph():
    env = toy_env(autoreset_mode="disabled")
    env.reset(seed=0)
    env.step(torch.tensor([0, 0, 1, 1, 2, 2]))
    with pytest.raises(ValueError, match=r"rows \[2\] have not left"):
        env.reset(options={"reset_mask": torch.tensor([True, False, True, False, False, False])})
    label = env.batch.label.clone()
    observation, _ = env.reset(
        options={"reset_mask": torch.tensor([True] + [False] * 5), "instances": torch.tensor([7])}
    )
    assert observation["depth"].tolist() == [0, 4, 1, 1, 2, 2]
    assert int(env.state.instance[0]) == 7 and torch.equal(env.batch.label[1:], label[1:])
    for _ in range(4):
        if env.state.waiting:
            env.step(torch.zeros(6, dtype=torch.int64))
    assert sum(len(exit.loss) for exit in env.batch.exits) == 6
    parts = torch.stack([
        torch.zeros(6).index_add(0, exit.rows if exit.rows is not None else torch.arange(6), exit.loss.detach())
        for exit in env.batch.exits
    ]).sum(0)  # fmt: skip
    torch.testing.assert_close(parts, env.batch.loss)
    assert float(env.train_blocks()) == pytest.approx(float(parts.mean()))
    state = env.state
    with pytest.raises(ResetNeeded, match="has been trained on: reset all rows"):
        env.reset(options={"reset_mask": torch.tensor([True] + [False] * 5)})
    assert env.state is state
    env.reset(options={"reset_mask": torch.ones(6, dtype=torch.bool)})
    assert env.state.active.all()


def test_bad_resets_are_refused():
    env = toy_env(autoreset_mode="disabled")
    with pytest.raises(ResetNeeded):
        env.step(torch.zeros(6, dtype=torch.int64))
    env.reset(seed=0)
    state = env.state
    for options, message in (
        ({"reset_mask": np.zeros(6, bool)}, "at least one row"),
        ({"reset_mask": np.zeros(6)}, "must be bool"),
        ({"reset_mask": np.ones(5, bool)}, r"shape \(6,\)"),
        ({"instances": [0]}, "6 integers"),
        ({"instances": [0.5] * 6}, "integers"),
        ({"instances": [10**6] * 6}, "must lie in"),
        ({"mask": None}, r"got \['mask'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(seed=3, options=options)
        assert env.state is state
    for _ in range(4):
        if env.state.waiting:
            env.step(torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ResetNeeded, match="every instance has left"):
        env.step(torch.zeros(6, dtype=torch.int64))


@pytest.mark.parametrize("mode", ["same_step", "disabled"])
@pytest.mark.parametrize("action_type", ["discrete", "weights"])
def test_the_routes_that_ended_first_are_replayed(action_type, mode):
    """The blocks' step equals one on the mean loss of those routes, each walked alone."""
    torch.manual_seed(0)
    network = ExitTree(TREE)
    twin = copy.deepcopy(network)
    soft = action_type == "weights"
    options = dict(action_type=action_type, autoreset_mode=mode, replay=mode == "disabled")
    env = RoutingVectorEnv(network, toy_data(shift=1), 4, replay_batch=5, optimizer="sgd", learning_rate=0.5, **options)
    generator = torch.Generator().manual_seed(3)
    env.reset(seed=0)
    under_way, ended = [[] for _ in range(4)], []
    while not env.trainer.instances:
        action = legal_actions(env, generator)
        starts = [
            (env.state.instance[row : row + 1].clone(), env.batch.augmentation[row : row + 1].clone())
            for row in range(4)
        ]
        _, _, terminated, _, _ = env.step(action)
        for row in range(4):
            under_way[row].append(action[row : row + 1])
            if terminated[row]:
                ended.append((*starts[row], under_way[row]))
                under_way[row] = []
        if mode == "disabled" and terminated.any():
            env.reset(options={"reset_mask": terminated})
    assert env.trainer.instances == env.config.replay_batch and not network.training
    assert any(augmentation.any() for _, augmentation, _ in ended)

    losses = []
    for instance, augmentation, actions in ended[:5]:
        state = twin.start(env.dataset.pixels(instance, augmentation), env.dataset.task[instance])
        for action in actions:
            state = step(twin, state, action)
        label = env.dataset.label[instance]
        losses += [
            (exit.weight * torch.nn.functional.cross_entropy(exit.logits, label, reduction="none")).sum()
            for exit in state.exits
        ]
    assert soft or len(losses) == 5
    (sum(losses) / 5).backward()
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        change = 0 if theirs.grad is None else 0.5 * theirs.grad
        torch.testing.assert_close(ours, theirs - change)


def test_same_step_trains_and_train_false_does_not():
    for train in (True, False):
        env = toy_env(RoutedMLP((1, 2, 3), 3, 3, width=4), 16, train=train, replay_batch=8)
        env.reset(seed=0)
        before = copy.deepcopy(env.network.state_dict())
        generator = torch.Generator().manual_seed(0)
        for _ in range(8):
            observation, *_ = env.step(legal_actions(env, generator))
            assert not observation["activation"].requires_grad
        assert env.trainer.instances == (4 * env.config.replay_batch if train else 0)
        changed = any(not torch.equal(before[k], v) for k, v in env.network.state_dict().items())
        assert changed == train
        assert not env.network.training


def test_agents_of_ours_take_whole_batches_in_any_mode():
    env = toy_env()
    env.reset()
    trajectory = rollout(make_agent("random", env), env)
    assert env.batch.manner.graph and not env.keeps_graph and env.network.training
    before = env.network.state_dict()["columns.0.0.weight"].clone()
    env.train_blocks()
    assert not torch.equal(before, env.network.state_dict()["columns.0.0.weight"]) and len(trajectory) == 6
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(torch.zeros(6, dtype=torch.int64))
    env.reset()
    assert not env.network.training and not env.batch.manner.graph


class Planned:
    """Follows a plan."""

    def __init__(self, plan):
        self._plan = plan

    def plan(self, task, deterministic):
        return self._plan


@pytest.mark.parametrize("validate", [True, False])
def test_a_masked_choice_of_a_plan_is_replaced_where_that_is_asked_for(validate):
    network = RoutedMLP(toy_data()["train"].input_shape, toy_data()["train"].num_classes, 3)
    network._masks[:-1, :, 0] = False
    network.nothing_masked = False
    env = RoutingVectorEnv(
        network, toy_data(), 8, autoreset_mode="disabled", illegal="first_legal", validate=validate, device="cpu"
    )
    trajectory = rollout(Planned(torch.zeros(8, 3, dtype=torch.int64)), env)
    assert all(bool((step.action == 1).all()) for step in trajectory.steps)
    env.train_blocks()


def test_parts_in_eval_mode_are_trained_like_all_others():
    shape, classes = toy_data()["train"].input_shape, toy_data()["train"].num_classes
    trunk = nn.Sequential(nn.Conv2d(shape[0], 4, 1), nn.BatchNorm2d(4)).eval()
    network = RoutedMLP(shape, classes, 2, trunk=trunk)
    assert network.training and not trunk.training
    env = RoutingVectorEnv(network, toy_data(), 8, autoreset_mode="disabled", device="cpu")
    env.reset()
    assert all(part.training for part in network.modules())
    assert int(trunk[1].num_batches_tracked) == 1


def test_a_final_reward_of_another_type_goes_with_routes_followed_at_once():
    network = RoutedMLP(toy_data()["train"].input_shape, toy_data()["train"].num_classes, 2)
    register_reward("double", lambda loss, correct: correct.double())
    try:
        env = RoutingVectorEnv(network, toy_data(), 8, autoreset_mode="disabled", final_reward="double", device="cpu")
        trajectory = rollout(Planned(torch.randint(2, (8, 3))), env)
    finally:
        del REWARDS["double"]
    assert torch.equal(trajectory.final_reward, trajectory.correct)
