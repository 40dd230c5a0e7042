"""Data: is a digit even, is it prime, is it above 4? Three tasks on scikit-learn's digits.

routing-gym compare --plugin docs/examples/own_data.py --env example/DigitQuestions-v0 --agents wpl shared
"""

import numpy as np
from sklearn.datasets import load_digits

import routing_gym
from routing_gym import MultiTaskDataset

QUESTIONS = {
    "even": lambda digit: digit % 2 == 0,
    "prime": lambda digit: np.isin(digit, [2, 3, 5, 7]),
    "above 4": lambda digit: digit > 4,
}


def digit_questions(*, test_share: float = 0.3) -> dict[str, MultiTaskDataset]:
    """Build the splits; keyword-only parameters become options of the environment."""
    pixels, digit = load_digits(return_X_y=True)
    images = (pixels * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(0).permutation(len(images))
    cut = int(test_share * len(images))
    splits: dict[str, MultiTaskDataset] = {}
    for split, rows in (("train", order[cut:]), ("test", order[:cut])):
        labels = {name: question(digit[rows]).astype(int) for name, question in QUESTIONS.items()}
        splits[split] = MultiTaskDataset.from_arrays(
            images[rows], labels, name="digit questions", split=split, like=splits.get("train")
        )
    return splits


routing_gym.register_dataset("digit-questions", digit_questions)
routing_gym.register_env("example/DigitQuestions-v0", dataset="digit-questions", network="mlp")
