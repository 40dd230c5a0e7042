"""Targets and losses on numbers worked out by hand."""

import pytest
import torch

from routing_gym.agents.parts.losses import (
    generalized_advantages,
    joint_choice,
    lambda_returns,
    policy_gradient_loss,
    project,
    squared_td_error,
    wpl_delta,
)

# One row passes three decisions, the other leaves after the first.
REWARDS = torch.tensor([[1.0, 1.0], [2.0, 0.0], [4.0, 0.0]])
VALUES = torch.tensor([[9.0, 3.0], [10.0, 8.0], [20.0, 8.0]])
FINAL = torch.tensor([6.0, 5.0])
ACTIVE = torch.tensor([[True, True], [True, False], [True, False]])


@pytest.mark.parametrize(
    ("gamma", "lambda_", "first_row"),
    [
        (1.0, 1.0, [13.0, 12.0, 10.0]),  # 4 + 6; 2 + 10; 1 + 12
        (0.5, 1.0, [4.5, 7.0, 10.0]),  # 4 + 6; 2 + 0.5 · 10; 1 + 0.5 · 7
        (1.0, 0.0, [11.0, 22.0, 10.0]),  # 4 + 6; 2 + 20; 1 + 10
        (0.5, 0.5, [5.875, 9.5, 10.0]),  # 2 + 0.5 · (10 + 5); 1 + 0.5 · (5 + 4.75)
    ],
)
def test_lambda_returns(gamma, lambda_, first_row):
    returns = lambda_returns(REWARDS, VALUES, FINAL, ACTIVE, gamma=gamma, lambda_=lambda_)
    assert returns[:, 0].tolist() == first_row
    assert float(returns[0, 1]) == 6.0  # 1 + 5, whatever stands where it had left


def test_arriving_can_cost():
    arrival = torch.tensor([[-7.0, -7.0], [-1.0, -7.0], [-2.0, -7.0]])  # nobody arrives at the first
    returns = lambda_returns(REWARDS, VALUES, FINAL, ACTIVE, arrival=arrival)
    assert returns[:, 0].tolist() == [10.0, 10.0, 10.0] and float(returns[0, 1]) == 6.0


def test_generalized_advantages():
    """Errors 4 + 6 − 20 = −10; 2 + 0.5 · 20 − 10 = 2; 1 + 0.5 · 10 − 9 = −3; of the other row 1 + 5 − 3 = 3."""
    found = generalized_advantages(REWARDS, VALUES, FINAL, ACTIVE, gamma=0.5, lambda_=0.5)
    assert found[:, 0].tolist() == [-3.125, -0.5, -10.0]  # 2 − 0.25 · 10; −3 − 0.25 · 0.5
    assert found[:, 1].tolist() == [3.0, 0.0, 0.0]
    whole = generalized_advantages(REWARDS, VALUES, FINAL, ACTIVE, gamma=1.0, lambda_=1.0)
    assert (whole + VALUES)[ACTIVE].tolist() == [13.0, 6.0, 12.0, 10.0]  # the whole returns


def test_joint_choice():
    """A coin, and a choice of 0.2 and 0.8 beside something that is not legal."""
    policy = torch.tensor([[[[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]]]])
    action = torch.tensor([[[0, 1]]])
    coin, other = 0.693147, 0.500402
    for choosing, log_chosen, entropy in (
        ([True, True], -coin - 0.223144, coin + other),
        ([False, True], -0.223144, other),
        ([False, False], 0.0, 0.0),
    ):
        found = joint_choice(policy.log(), action, torch.tensor([[choosing]]))
        torch.testing.assert_close(found, (torch.tensor([[log_chosen]]), torch.tensor([[entropy]])))
    found = joint_choice(policy[:, :, 1].log(), action[..., 1])
    torch.testing.assert_close(found, (torch.tensor([[-0.223144]]), torch.tensor([[other]])))


def test_policy_gradient_loss():
    """−(3 log π + 0.5 H) of the first of two rows, a coin with slopes −3 (e − π) in the scores; one had left."""
    scores = torch.zeros(1, 2, 2, requires_grad=True)
    log_chosen, entropy = joint_choice(scores.log_softmax(-1), torch.tensor([[0, 0]]))
    active = torch.tensor([[1.0, 0.0]])
    loss = policy_gradient_loss(log_chosen, torch.tensor([[3.0, 9.0]]), entropy, active, 0.5)
    assert float(loss.detach()) == pytest.approx(0.5 * (3 * 0.693147 - 0.5 * 0.693147))
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[[-0.75, 0.75], [0.0, 0.0]]]))


def test_squared_td_error():
    value = torch.tensor([[1.0, 4.0], [3.0, 0.0]], requires_grad=True)
    error = squared_td_error(torch.tensor([[2.0, 2.0], [6.0, 9.0]]), value, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert float(error.detach()) == (1 + 4 + 9) / 2
    error.backward()
    assert value.grad.tolist() == [[-1.0, 2.0], [-3.0, 0.0]]


def test_wpl_delta():
    difference, probability = torch.tensor([2.0, -2.0, 0.0]), torch.tensor([0.25, 0.25, 0.25])
    assert wpl_delta(difference, probability, "algorithm3").tolist() == [0.5, -1.5, 0.0]
    assert wpl_delta(difference, probability, "appendix").tolist() == [1.5, -0.5, 0.0]


def test_projection():
    old, legal = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([True, True, False])
    assert project(torch.tensor([1.5, 0.25, 9.0]), old, legal, 0.0).tolist() == pytest.approx([0.8, 0.2, 0.0])
    assert project(torch.tensor([-1.0, -2.0, 9.0]), old, legal, 0.0).tolist() == [0.5, 0.5, 0.0]  # nothing is left
    # of (1, 0) 0.9 lies above the floor of the first; what two floors leave, 0.8, is all its own
    assert project(torch.tensor([1.0, -1.0, 0.0]), old, legal, 0.1).tolist() == pytest.approx([0.9, 0.1, 0.0])
