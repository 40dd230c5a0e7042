"""Data: is a digit even, is it prime, is it above 4? Three tasks on scikit-learn's digits.

routing-gym compare --plugin docs/examples/own_data.py --env example/DigitQuestions-v0 --agents wpl shared
"""

import torch
from sklearn.datasets import load_digits

import routing_gym
from routing_gym import MultiTaskDataset

QUESTIONS = [lambda digit: digit % 2 == 0, lambda digit: torch.isin(digit, torch.tensor([2, 3, 5, 7])), lambda d: d > 4]


def digit_questions(*, test_share: float = 0.3) -> dict[str, MultiTaskDataset]:
    """Build the splits; keyword-only parameters become options of the environment."""
    pixels, digit = load_digits(return_X_y=True)
    images = torch.tensor(pixels * 255 / 16, dtype=torch.uint8).view(-1, 1, 8, 8)
    digit = torch.tensor(digit)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    cut = int(test_share * len(images))
    splits = {}
    for split, rows in (("train", order[cut:]), ("test", order[:cut])):
        image = torch.arange(len(rows)).repeat(len(QUESTIONS))  # images are stored once, rows point at them
        task = torch.arange(len(QUESTIONS)).repeat_interleave(len(rows))
        label = torch.cat([question(digit[rows]).long() for question in QUESTIONS])
        splits[split] = MultiTaskDataset.from_arrays(
            "digit questions", split, images[rows], task, label, image=image, like=splits.get("train")
        )
    return splits


routing_gym.register_dataset("digit-questions", digit_questions)
routing_gym.register_env("example/DigitQuestions-v0", dataset="digit-questions", network="mlp")
