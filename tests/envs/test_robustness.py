"""Whatever is wrong is refused where it enters, and changes nothing."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from stepping import block_loss
from torch import nn
from toys import TREE, ExitTree, Gates, toy_env

import routing_gym
from routing_gym.agents import Agent
from routing_gym.blocks import plain
from routing_gym.envs import TrainingDivergedError, rollout
from routing_gym.networks import RoutedMLP
from routing_gym.testing import check_vector_env


def test_a_diverged_loss_stops_training_and_changes_nothing():
    env = toy_env(RoutedMLP((1, 2, 3), 3, 2, width=4), 4, autoreset_mode="disabled")
    with torch.no_grad():
        env.network.banks[2].bias[1] = float("nan")
    env.reset(seed=0)
    for _ in range(3):
        env.step(torch.ones(4, dtype=torch.int64))
    before = copy.deepcopy(env.state_dict())
    with pytest.raises(TrainingDivergedError, match="stopped after 0 instances: the loss is nan;"):
        env.train_blocks()
    after = env.state_dict()
    assert all(
        torch.equal(before["blocks"]["network"][k].nan_to_num(), v.nan_to_num())
        for k, v in after["blocks"]["network"].items()
    )
    assert after["blocks"]["instances"] == 0 and after["blocks"]["optimizer"]["state"] == {}


def test_illegal_choices_are_refused_or_replaced():
    actions = torch.tensor([1, 1, 2, 2, 0, 0])
    for options, raises in (
        ({"autoreset_mode": "disabled"}, True),
        ({}, False),
        ({"illegal": "raise"}, True),
        ({"autoreset_mode": "disabled", "illegal": "first_legal"}, False),
    ):
        env = toy_env(train=False, **options)
        env.reset(seed=0)
        env.step(actions)
        bad = torch.tensor([2, 0, 2, 2, 2, 2])  # decision 1 (rows 0 and 1) has two choices only
        if raises:
            state = env.state
            with pytest.raises(ValueError, match=r"may choose from \[0, 1\], got 2"):
                env.step(bad)
            assert env.state is state
        else:
            _, _, terminated, _, infos = env.step(bad)
            assert infos["illegal_action"].tolist() == [1, 0, 0, 0, 0, 0]
            assert infos["illegal_action"].dtype == torch.int8
            assert bool(terminated[0])  # the first legal choice there is to leave
        with pytest.raises(ValueError, match=r"choices must lie in \[0, 3\)"):
            env.reset(seed=0)
            env.step(torch.full((6,), 3))


def test_actions_of_the_wrong_kind_are_refused():
    env = toy_env()
    env.reset()
    for action, message in (
        (torch.zeros(6), "takes a tensor of integer choices, got torch.float32"),
        (torch.full((6, 3), 1 / 3), "takes a tensor of integer choices"),
        (np.zeros(6), "takes a tensor of integer choices, got torch.float32"),
        (torch.zeros(6, dtype=torch.bool), "integers or floating-point weights, got torch.bool"),
        (torch.zeros(5, dtype=torch.int64), r"shape \(6,\) here, got \(5,\)"),
        ([0.0] * 6, "takes a tensor of integer choices, got torch.float32"),
        ([0] * 5, r"shape \(6,\) here, got \(5,\)"),
        ([0, [1], 0, 0, 0, 0], r"lists of numbers of one length, got \[0, \[1\]"),
        (["a"] * 6, r"lists of numbers of one length, got \['a', "),
        ([True] * 6, "integers or floating-point weights, got torch.bool"),
        (None, "a torch tensor or a pair of them, got NoneType"),
        (torch.zeros(6, dtype=torch.int64, device="meta"), "device cpu, got meta"),
    ):
        with pytest.raises(ValueError, match=message):
            env.step(action)
    soft = toy_env(action_type="weights")
    soft.reset()
    with pytest.raises(ValueError, match="takes a tensor of floating-point weights, got torch.int64"):
        soft.step(torch.zeros(6, dtype=torch.int64))


def test_lists_are_actions():
    chosen, listed = toy_env(), toy_env()
    for env, action in ((chosen, torch.tensor([1, 1, 2, 2, 0, 0])), (listed, [1, 1, 2, 2, 0, 0])):
        env.reset(seed=0)
        env.step(action)
    assert torch.equal(chosen.state.at, listed.state.at) and len(chosen.state.at.unique()) > 1
    for action in ([[0.5, 0.25, 0.25]] * 6, [[1, 0, 0]] * 6, ([[0, 1]] * 6, [[0.5, 0.5]] * 6)):
        env = toy_env(action_type="weights", autoreset_mode="disabled")
        env.reset()
        env.step(action)
        assert bool(env.state.macs.gt(0).all())


def test_weights_take_the_type_of_the_activations():
    env = toy_env(RoutedMLP((1, 2, 3), 3, 3, width=4), 2, action_type="weights")
    env.reset()
    env.step(np.full((2, 3), 1 / 3))  # numpy counts in double
    with pytest.raises(ValueError, match="weights must be torch.float32 as the activations are, got torch.float64"):
        env.step(torch.full((2, 3), 1 / 3, dtype=torch.float64))


def test_what_weighs_nothing_may_point_anywhere_in_range():
    env = toy_env(ExitTree(TREE), 2, action_type="weights", autoreset_mode="disabled")
    env.reset()
    env.step((torch.tensor([[1, 0]] * 2), torch.tensor([[1.0, 0.0]] * 2)))
    env.step((torch.tensor([[1, 2]] * 2), torch.tensor([[1.0, 0.0]] * 2)))  # decision 1 has two choices
    assert not env.state.waiting


def test_a_gradient_that_is_no_number_stops_training_before_the_step():
    env = toy_env(RoutedMLP((1, 2, 3), 3, 2, width=4), 4, autoreset_mode="disabled")
    env.reset()
    for _ in range(3):
        env.step(torch.zeros(4, dtype=torch.int64))
    weight = env.network.banks[0].weight
    extra = ((weight - weight.detach()) ** 2).sum().sqrt()  # 0, with an infinite slope
    before = copy.deepcopy(env.network.state_dict())
    with pytest.raises(TrainingDivergedError, match="a gradient is not finite; the step was not taken"):
        env.train_blocks(extra)
    assert all(torch.equal(before[key], value) for key, value in env.network.state_dict().items())


def test_a_failed_batch_leaves_no_trace_in_running_statistics():
    env = toy_env(ExitTree([[1], []], batch_norm=True), 4, autoreset_mode="disabled")
    env.reset()
    env.step(torch.ones(4, dtype=torch.int64))
    env.train_blocks()
    before = copy.deepcopy(env.network.state_dict())
    assert int(before["columns.1.1.num_batches_tracked"]) == 1
    env.reset()
    env.step(torch.ones(4, dtype=torch.int64))
    with pytest.raises(TrainingDivergedError):
        env.train_blocks(torch.tensor(float("nan")))
    assert all(torch.equal(before[key], value) for key, value in env.network.state_dict().items())


def test_restarting_some_rows_does_not_move_what_a_failed_batch_goes_back_to():
    env = toy_env(ExitTree([[1], []], batch_norm=True), 4, autoreset_mode="disabled")
    env.reset()
    before = copy.deepcopy(env.network.state_dict())  # the first column has run already; its statistics are noted
    noted = {name: value.clone() for name, value in env.batch.statistics.items()}
    env.step(torch.tensor([0, 0, 1, 1]))
    env.reset(options={"reset_mask": torch.tensor([True, True, False, False])})
    env.step(torch.ones(4, dtype=torch.int64))
    with pytest.raises(TrainingDivergedError):
        env.train_blocks(torch.tensor(float("nan")))
    after = env.network.state_dict()
    assert int(before["columns.0.1.num_batches_tracked"]) == 1
    assert all(torch.equal(after[name], value) for name, value in noted.items())
    assert int(after["columns.0.1.num_batches_tracked"]) == 0


def test_a_replay_that_fails_leaves_every_row_on_its_way():
    env = toy_env(ExitTree(TREE), 3, replay_batch=2, seed=1)
    env.reset(seed=0)
    env.step(torch.tensor([0, 1, 2]))
    with torch.no_grad():
        env.network.heads[0].bias.fill_(float("inf"))
    with pytest.raises(TrainingDivergedError):
        env.step(torch.tensor([0, 0, 0]))
    assert env.state.at.tolist() == [0, 0, 0]
    _, _, terminated, _, _ = env.step(torch.tensor([1, 1, 2]))
    assert not bool(terminated.any())


class Stubborn(Agent):
    """Always takes the last choice, legal or not."""

    def act(self, observation, context):
        return torch.full_like(observation["depth"], self.num_choices - 1)


def test_without_validation_a_bad_action_voids_the_batch():
    """What a GPU does, so as not to wait: replace what is not allowed, and say so once per batch."""
    for bad in (torch.full((6,), 9), torch.full((6,), -4), torch.tensor([0, 2, 0, 0, 0, 0])):
        env = toy_env(ExitTree(TREE), autoreset_mode="disabled", validate=False)
        before = copy.deepcopy(env.network.state_dict())
        env.reset(seed=0)
        env.step(torch.tensor([1, 1, 2, 2, 2, 2]))
        env.step(bad)
        while env.state.waiting:
            env.step(torch.zeros(6, dtype=torch.int64))
        assert sum(len(exit.loss) for exit in env.batch.exits) == 6
        with pytest.raises(TrainingDivergedError, match="out of range, masked or not finite"):
            env.train_blocks()
        assert all(torch.equal(before[key], value) for key, value in env.network.state_dict().items())
        env.reset()
        while env.state.waiting:
            env.step(torch.zeros(6, dtype=torch.int64))
        env.train_blocks()
    judged = toy_env(ExitTree(TREE), validate=False)
    with pytest.raises(ValueError, match="its results are void"):
        routing_gym.evaluate(Stubborn(judged), judged)
    recurrent = RoutedMLP((1, 2, 3), 3, 3, width=4, layers=3, recurrent=True)
    env = toy_env(recurrent, autoreset_mode="disabled", validate=False)
    rolled = rollout(Stubborn(env), env)
    assert [int(step.action.max()) for step in rolled.steps] == [0, 3, 0]
    with pytest.raises(TrainingDivergedError):
        env.train_blocks()


def test_same_step_always_validates():
    env = toy_env(ExitTree(TREE), validate=False)
    env.reset()
    with pytest.raises(ValueError, match="got 9"):
        env.step(torch.full((6,), 9))


def test_the_trajectory_holds_what_was_done():
    env = toy_env(ExitTree(TREE), autoreset_mode="disabled", illegal="first_legal", train=False)
    trajectory = rollout(Stubborn(env), env)
    assert trajectory.steps[0].action.tolist() == [2] * 6
    routing_gym.evaluate(Stubborn(env), env)


def test_tensors_that_do_not_exist_or_are_not_alive_do_not_count():
    env = toy_env(Gates(2), 4, autoreset_mode="disabled", rho=1.0, collaboration="frequency")
    for expected in (0.0, 1.0):
        env.reset(seed=0)
        _, _, _, _, infos = env.step(torch.tensor([[0, 1]] * 4))  # the second tensor does not exist yet
        assert infos["action_reward"].tolist() == [expected] * 4
    assert env.network.choosing(env.state).tolist() == [[True, False]] * 4  # path 1 was not reached

    class First(Agent):
        max_tensors = None

        def act(self, observation, context):
            return torch.zeros(len(observation["depth"]), 2, dtype=torch.int64)

    result = routing_gym.evaluate(First(env), env)
    assert result.blocks_used == 3 and result.paths == 1


def test_resetting_with_a_mask_before_anything_began_changes_nothing():
    env = toy_env(train=False)
    place = env.stream.state_dict()
    with pytest.raises(ResetNeeded):
        env.reset(options={"reset_mask": np.ones(6, dtype=bool)})
    assert torch.equal(env.stream.state_dict()["generator"], place["generator"])


def test_what_the_caller_does_with_its_own_arrays_afterwards_does_not_matter():
    env = toy_env()
    instances = np.array([3, 4, 5, 6, 7, 8])
    observation, _ = env.reset(options={"instances": instances})
    instances[:] = 0
    for value in observation.values():
        value.zero_()
    assert env.state.instance.tolist() == [3, 4, 5, 6, 7, 8]
    assert env.state.task.tolist() == env.dataset.task[3:9].tolist()


def test_batch_norm_is_made_safe_for_single_rows():
    class Plain(RoutedMLP):
        def __init__(self):
            super().__init__((1, 2, 3), 3, 2, width=4)
            self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(2))

        def transition(self, decision, activation, action, task):
            y = plain(super().transition(decision, activation, action, task)[0])
            if decision < 2:
                y = y.index_copy(0, (action == 0).nonzero()[:, 0], self.norms[decision](y[action == 0]))
            return (y,)

    env = toy_env(Plain(), 4, autoreset_mode="disabled")
    env.reset()
    for _ in range(3):
        env.step(torch.tensor([0, 1, 1, 1]))  # one row alone goes through the norm
    env.train_blocks()


def test_dense_backward_reaches_the_ways_an_outcome_did_not_take():
    gradients = {}
    for dense in (False, True):
        env = toy_env(ExitTree([[1], []]), 4, autoreset_mode="disabled", action_type="weights", dense_backward=dense)
        env.reset(seed=0)
        weights = torch.tensor([[1.0, 0.0]] * 4, requires_grad=True)
        env.step(weights)
        (gradients[dense],) = torch.autograd.grad(block_loss(env), weights)
    assert bool((gradients[False][:, 1] == 0).all()) and bool((gradients[True][:, 1] != 0).all())
    torch.testing.assert_close(gradients[False][:, 0], gradients[True][:, 0])


def test_the_checker_leaves_everything_as_it_is():
    env = toy_env(RoutedMLP((1, 2, 3), 3, 3, width=4), 32)
    observation, _ = env.reset(seed=0)
    before, place = copy.deepcopy(env.network.state_dict()), env.stream.state_dict()
    check_vector_env(env)
    assert env.trainer.instances == 0 and torch.equal(env.state.task, observation["task"])
    assert all(torch.equal(before[key], value) for key, value in env.network.state_dict().items())
    assert torch.equal(env.stream.state_dict()["generator"], place["generator"])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_momentum_of_blocks_that_are_first_taken_later(weight_decay):
    torch.manual_seed(0)
    env = toy_env(
        ExitTree(TREE), autoreset_mode="disabled", optimizer="sgd", learning_rate=0.1, momentum=0.9,
        weight_decay=weight_decay,
    )  # fmt: skip
    plain = copy.deepcopy(env.network)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=weight_decay, fused=False)
    for batch, choices in enumerate(([0], [1, 0], [1, 1], [2, 1, 1], [0], [2, 0])):
        env.reset(seed=batch)
        for choice in choices:
            if env.state.waiting:
                env.step(torch.full((env.num_envs,), choice))

        def copy_gradients():
            for ours, theirs in zip(env.network.parameters(), plain.parameters(), strict=True):
                theirs.grad = None if ours.grad is None else ours.grad.clone()

        env.train_blocks(before_step=copy_gradients)
        reference.step()
        torch.testing.assert_close([*env.network.parameters()], [*plain.parameters()])


def test_a_seed_given_to_make_decides_the_order_until_another_one_is_given():
    def order(**options):
        env = gymnasium.make("routing_gym/SyntheticMTL-v0", **options)
        return [round(float(env.reset()[0]["activation"].sum()), 4) for _ in range(6)]

    assert order(seed=3) == order(seed=3) != order(seed=4)
    assert order(seed=0) == order(seed=0) and order() != order()  # without one it is the system's


def test_reset_options_that_are_no_mapping_are_refused():
    for env in (gymnasium.make("routing_gym/SyntheticMTL-v0"), gymnasium.make_vec("routing_gym/SyntheticMTL-v0")):
        with pytest.raises(ValueError, match="reset options are 'reset_mask' and 'instances' by name"):
            env.reset(options=[1])
