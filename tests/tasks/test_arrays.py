"""Data from what users have: arrays, lists and features that are no bytes."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routing_gym import MultiTaskDataset
from routing_gym.tasks import Shift, ShuffledStream, synthetic_mtl

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (12, 2, 3, 4), dtype=np.uint8)
TASK, LABEL = np.arange(12) % 3, np.arange(12) // 3 % 2
FORMS = {
    "numpy": np.asarray,
    "torch": lambda x: torch.from_numpy(np.asarray(x)),
    "list": lambda x: np.asarray(x).tolist(),
    "read only": lambda x: np.broadcast_to(x, x.shape),
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
}


@settings(max_examples=30, deadline=None)
@given(
    images=st.sampled_from(list(FORMS)),
    task=st.sampled_from(list(FORMS)),
    label=st.sampled_from(list(FORMS)),
    kind=st.sampled_from(["uint8", "int16", "int32", "uint32", "int64"]),
)
def test_arrays_of_every_form_make_the_same_split(images, task, label, kind):
    expected = MultiTaskDataset(
        "mine", "train", torch.tensor(IMAGES), torch.arange(12), torch.tensor(TASK), torch.tensor(LABEL), 3, 2,
        torch.tensor(IMAGES).float().mean((0, 2, 3)), torch.tensor(IMAGES).float().std((0, 2, 3), correction=0),
    )  # fmt: skip
    rows = FORMS[task](TASK.astype(kind)), FORMS[label](LABEL.astype(kind))
    got = MultiTaskDataset.from_arrays(FORMS[images](IMAGES), rows[1], rows[0], name="mine")
    plain = dataclasses.replace(expected, images=FORMS[images](IMAGES), task=rows[0], label=rows[1], mean=[100, 200])
    for field in ("images", "image", "task", "label", "mean", "std"):
        torch.testing.assert_close(getattr(got, field), getattr(expected, field))
        assert isinstance(getattr(plain, field), torch.Tensor)
    assert (got.num_tasks, got.num_classes, got.input_shape) == (3, 2, (2, 3, 4))
    assert torch.equal(plain.task, expected.task) and torch.equal(plain.images, expected.images)


def test_another_split_is_like_the_one_for_training():
    train = MultiTaskDataset.from_arrays(IMAGES, LABEL, TASK, augmentation=Shift(1))
    test = MultiTaskDataset.from_arrays(IMAGES[:3], [0, 0, 0], [0, 1, 2], split="test", like=train)
    assert (test.num_tasks, test.num_classes, test.augmentation) == (3, 2, None)
    assert torch.equal(test.mean, train.mean) and torch.equal(test.std, train.std)
    many = MultiTaskDataset.from_arrays(IMAGES[:2], [0, 1, 1], [0, 0, 1], image=[0, 1, 0])
    assert len(many) == 3 and torch.equal(many.pixels(torch.tensor([0])), many.pixels(torch.tensor([2])))
    assert MultiTaskDataset.from_arrays(IMAGES, LABEL).num_tasks == 1


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
def test_features_that_are_no_bytes_are_normalised_too(kind):
    features = RANDOM.normal(3, 2, (40, 2, 3, 1)).astype(kind)
    split = MultiTaskDataset.from_arrays(features, np.zeros(40, int), augmentation=Shift(1))
    assert split.images.dtype == torch.float32
    seen = split.pixels(torch.arange(40))
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(2))
    drawn = split.draw_augmentation(4, torch.Generator().manual_seed(0))
    assert split.pixels(torch.arange(4), drawn).shape == (4, 2, 3, 1)
    with pytest.raises(ValueError, match=r"floating-point images are filled with black \(0\) and not recoloured"):
        dataclasses.replace(split, augmentation=Shift(1, fill="mean"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"images": IMAGES[:, 0]},
            r"images must be uint8 \(0 to 255\) or floating point, of shape \(N, C, H, W\) .* 3, 4",
        ),
        ({"images": IMAGES.astype(np.int64)}, "images must be uint8 .*, got int64 of shape"),
        ({"images": IMAGES[:0]}, "and not empty, got uint8 of shape"),
        ({"images": [[[[300]]]] * 12}, "images must be uint8 .*, got torch.int64 of shape"),
        ({"images": None}, "images must be a tensor, a NumPy array or lists of numbers of one length, got None"),
        ({"images": "images.npy"}, "images must be a tensor, .*, got 'images.npy'"),
        ({"images": np.full((12, 1, 1, 1), np.nan)}, "images must be finite"),
        ({"task": TASK.astype(float)}, r"task must be integers of shape \(R,\), got torch.float64 of shape \(12,\)"),
        ({"task": TASK.astype(bool)}, r"task must be integers of shape \(R,\), got torch.bool"),
        ({"task": TASK[:5]}, r"task must be int64 of shape \(12,\) as image is, got shape \(5,\)"),
        ({"task": 2 * TASK}, r"every one of the 5 tasks needs at least one row, got none for \[1, 3\]"),
        ({"task": ["a"] * 12}, r"task must be a tensor, .* lists of numbers of one length, got \['a', "),
        ({"task": [[0], [0, 1]]}, "lists of numbers of one length"),
        ({"labels": LABEL[:5]}, "5 labels for 12 images: say with image=... which image each row has"),
        ({"labels": LABEL - 1}, r"label must lie in \[0, 1\), .*, got values from -1 to 0"),
        ({"labels": []}, r"labels must be integers of shape \(R,\), got torch.float64 of shape \(0,\)"),
        ({"image": [99] * 12}, r"image must lie in \[0, 12\), got values from 99 to 99"),
        ({"like": 3}, "like must be another split, a MultiTaskDataset, got int"),
        ({"augmentation": 1}, "augmentation must be a Shift or None, got 1"),
    ],
)
def test_other_arrays_are_refused(changed, message):
    given = {"images": IMAGES, "task": TASK, "labels": LABEL, **changed}
    with pytest.raises(ValueError, match=f"mine, split 'train': .*{message}"):
        MultiTaskDataset.from_arrays(name="mine", **given)


def test_labels_by_task_make_rows_of_their_own():
    """As a loop over tasks and images makes them; -1 is none."""
    labels = {"even": [0, 1, -1, 0], 7: np.array([2, -1, -1, 0]), "last": torch.tensor([1, 1, 1, 1])}
    split = MultiTaskDataset.from_arrays(IMAGES[:4], labels)
    rows = [
        (image, task, int(label))
        for task, of_task in enumerate(labels.values())
        for image, label in enumerate(of_task)
        if label >= 0
    ]
    assert list(zip(split.image.tolist(), split.task.tolist(), split.label.tolist(), strict=True)) == rows
    assert (split.num_tasks, split.num_classes, split.name, split.split) == (3, 3, "own data", "train")


def test_tasks_of_splits_are_matched_by_their_names():
    first, second = np.arange(12) % 2, np.arange(12) % 3 == 0
    train = MultiTaskDataset.from_arrays(IMAGES, {"a": first, "b": second})
    test = MultiTaskDataset.from_arrays(IMAGES, {"b": second, "a": first}, split="test", like=train)
    assert test.task_names == train.task_names == ("a", "b") and torch.equal(test.label, train.label)
    assert train.select_tasks([1]).task_names == ("b",) and test.with_tasks(train).task_names == ()
    with pytest.raises(ValueError, match=r"labels must be of the tasks \('a', 'b'\), as those of like, got \('c',\)"):
        MultiTaskDataset.from_arrays(IMAGES, {"c": first}, like=train)
    other = MultiTaskDataset.from_arrays(IMAGES, {"b": second, "a": first}, split="test")
    with pytest.raises(ValueError, match="splits must have the same tasks in the same order"):
        gymnasium.make_vec("routing_gym/DigitsMTL-v0", dataset={"train": train, "test": other})


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        ({}, {}, "labels must be of at least one task, got none"),
        ({"a": [0] * 5}, {}, "labels of 'a' must be one for each of 12 images, got 5"),
        ({"a": [0.5] * 12}, {}, "labels of 'a' must be integers"),
        ({"a": [0] * 12}, {"task": [0] * 12}, "say which task and image a row has: leave these out"),
        ({"a": [-1] * 12}, {}, "labels and task must have at least one row"),
        ({"a": [0] * 12, "b": [-1] * 12, "c": [1] * 12}, {}, r"needs at least one row, got none for \[1\]"),
        ({"a": [0] * 12, "b": [-1] * 12}, {}, r"needs at least one row, got none for \[1\]"),
        ({1: [0] * 12, "1": [1] * 12}, {}, "tasks must have different names"),
        (
            {"a": [-2] * 12},
            {},
            r"label must lie in \[0, 1\), .*, got values from -2 to -2",
        ),
    ],
)
def test_other_labels_by_task_are_refused(labels, more, message):
    with pytest.raises(ValueError, match=f"own data, split 'train': .*{message}"):
        MultiTaskDataset.from_arrays(IMAGES, labels, **more)


WRONG = [None, "a", "", -1, 2.5, float("nan"), [], {}, object]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_are_refused_by_their_names(wrong):
    split = synthetic_mtl()["train"]
    for field in ("images", "image", "task", "label", "num_tasks", "num_classes", "mean", "std", "drawings"):
        with pytest.raises(ValueError, match=rf"SYNTHETIC-MTL, split 'train': (.*{field}|every one)"):
            dataclasses.replace(split, **{field: wrong})
    for refused in (
        lambda: split.select_tasks(wrong),
        lambda: split.with_tasks(wrong),
        lambda: ShuffledStream(wrong),
        lambda: Shift(wrong),
        lambda: synthetic_mtl(num_tasks=wrong),
        lambda: synthetic_mtl(noise=wrong if wrong != 2.5 else -2.5),
    ):
        with pytest.raises(ValueError, match="got|asked for"):
            refused()


def test_splits_on_scales_of_their_own_are_refused():
    """Made without `like`, a test split would be normalised by its own mean and deviation."""
    train = MultiTaskDataset.from_arrays(IMAGES, LABEL, TASK)
    test = MultiTaskDataset.from_arrays(IMAGES // 2, LABEL, TASK, split="test")
    with pytest.raises(ValueError, match="splits must be normalised alike, .*'train': .*: make the others like=train"):
        gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=2, dataset={"train": train, "test": test})
    alike = MultiTaskDataset.from_arrays(IMAGES // 2, LABEL, TASK, split="test", like=train)
    gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=2, dataset={"train": train, "test": alike})


def test_messages_name_what_was_given():
    with pytest.raises(
        ValueError, match=r"got float32 of shape \(3, 12\): give features of shape \(N, F\) as features"
    ):
        MultiTaskDataset.from_arrays(np.zeros((3, 12), np.float32), [0, 1, 0])


def test_bytes_and_numbers_are_not_mixed():
    """One of them would be 255 times the other."""
    train = MultiTaskDataset.from_arrays(IMAGES, LABEL, TASK)
    test = MultiTaskDataset.from_arrays(IMAGES / 255, LABEL, TASK, split="test", like=train)
    with pytest.raises(ValueError, match="images of one shape and type, got .*torch.uint8.*torch.float32"):
        gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=2, dataset={"train": train, "test": test})


def test_labels_that_begin_at_one_are_doubted():
    with pytest.warns(UserWarning, match="own data, split 'train': the least label is 1; labels count from 0"):
        train = MultiTaskDataset.from_arrays(IMAGES, LABEL + 1, TASK)
    assert train.num_classes == 3 and MultiTaskDataset.from_arrays(IMAGES, LABEL + 1, TASK, like=train) is not None


def test_numbers_of_tokens_stay_as_they_are():
    tokens = np.arange(24).reshape(4, 1, 1, 6).astype(np.float32)
    train = MultiTaskDataset.from_arrays(tokens, np.arange(4), normalize=False)
    other = MultiTaskDataset.from_arrays(tokens + 5, np.arange(4), split="test", like=train)
    for split, wanted in ((train, tokens), (other, tokens + 5)):
        assert split.mean.tolist() == [0] and split.std.tolist() == [1]
        assert split.normalized(split.images).tolist() == wanted.tolist()


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 9, 8, 1)])
def test_channels_that_come_last_are_doubted(shape):
    with pytest.warns(UserWarning, match=rf"that is {shape[1]} channels; give \(N, H, W, C\) as images.transpose"):
        MultiTaskDataset.from_arrays(np.zeros(shape, np.uint8), np.arange(2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 1, 3), (2, 3, 4, 4), (2, 16, 4, 4)])
def test_other_images_are_not(shape):
    MultiTaskDataset.from_arrays(np.zeros(shape, np.uint8), np.arange(2))


def test_it_is_shown_in_a_line_and_is_itself():
    one, other = (MultiTaskDataset.from_arrays(IMAGES, LABEL, TASK, name="mine") for _ in range(2))
    assert repr(one) == "<mine, train: 12 rows, 12 images of 2x3x4, 3 tasks>"
    assert one in [other, one] and one != other and len({one, other}) == 2
