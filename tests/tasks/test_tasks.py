import dataclasses

import pytest
import torch
from damage import same
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from routing_gym.tasks import MultiTaskDataset, Shift, ShuffledStream, digits_mtl, pixel_statistics, synthetic_mtl


def test_digits_are_one_vs_rest_over_disjoint_images():
    splits = digits_mtl()
    digit = torch.as_tensor(load_digits().target)
    images = {name: set(split.image.tolist()) for name, split in splits.items()}
    assert images["train"] | images["validation"] | images["test"] == set(range(1797))
    assert sum(map(len, images.values())) == 1797
    for split in splits.values():
        assert torch.equal(split.label == 1, digit[split.image] == split.task)
        assert torch.equal(torch.bincount(split.task), torch.full((10,), len(split) // 10))
        share = torch.bincount(digit[split.image[split.task == 0]]) / (len(split) / 10)
        assert (share - 0.1).abs().max() < 0.01  # stratified: as many of each digit
        assert split.images is splits["train"].images


def test_pixels_are_normalised_by_the_training_images():
    train = digits_mtl()["train"]
    pixels = train.pixels(torch.arange(len(train)))
    assert pixels.shape == (len(train), 1, 8, 8) and pixels.dtype == torch.float32
    assert abs(float(pixels.mean())) < 1e-4 and abs(float(pixels.std()) - 1) < 1e-3
    raw = torch.as_tensor(load_digits().data[int(train.image[5])] * 15, dtype=torch.float32)
    torch.testing.assert_close(pixels[5].flatten(), (raw - train.mean) / train.std)


def test_pixel_statistics_are_those_of_every_channel():
    images = torch.randint(0, 256, (5, 3, 4, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[:, 1] = 255
    mean, std = pixel_statistics(images)
    torch.testing.assert_close(mean, images.double().mean((0, 2, 3)).float())
    torch.testing.assert_close(std[::2], images[:, ::2].double().std((0, 2, 3), correction=0).float())
    assert mean[1] == 255 and std[1] == 1  # a flat channel is not divided by 0
    some = torch.tensor([4, 0, 3])
    assert same(pixel_statistics(images, some), pixel_statistics(images[some]))
    assert not torch.equal(pixel_statistics(images, some)[0], mean)


def test_synthetic_labels_conflict_between_tasks():
    train = synthetic_mtl(num_tasks=3, num_classes=3)["train"]
    labels = train.label.view(3, -1)
    assert torch.equal(labels[1], (labels[0] + 1) % 3) and torch.equal(labels[2], (labels[0] + 2) % 3)
    assert torch.equal(train.image.view(3, -1)[0], train.image.view(3, -1)[2])


def test_shift_moves_pixels():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    moved = Shift(1).apply(image.repeat(3, 1, 1, 1), torch.tensor([[0, 0, 0], [1, 0, 0], [-1, 1, 0]]))
    assert moved[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert moved[1, 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]  # down
    assert moved[2, 0].tolist() == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]  # up and right
    mirrored = Shift(1, flip=True).apply(image.repeat(3, 1, 1, 1), torch.tensor([[0, 0, 1], [0, 1, 1], [0, -1, 0]]))
    assert mirrored[0, 0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert mirrored[1, 0].tolist() == [[0, 3, 2], [0, 6, 5], [0, 9, 8]]  # mirrored, then to the right
    assert mirrored[2, 0].tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]
    drawn = Shift(2).draw(500, torch.Generator().manual_seed(0))
    assert sorted(drawn[:, :2].unique().tolist()) == [-2, -1, 0, 1, 2] and not drawn[:, 2].any()
    assert 200 < int(Shift(0, flip=True).draw(500, torch.Generator().manual_seed(0))[:, 2].sum()) < 300
    with pytest.raises(ValueError, match="at least 1 pixel or flips"):
        Shift(0)


@given(size=st.integers(1, 9), draws=st.lists(st.integers(0, 12), max_size=6), seed=st.integers(0, 99))
def test_a_stream_gives_everything_once_per_pass(size, draws, seed):
    stream = ShuffledStream(size, seed)
    drawn = torch.cat([torch.empty(0, dtype=torch.int64), *[stream.draw(count) for count in draws]])
    assert len(drawn) == sum(draws)
    for start in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[start : start + size].tolist()) == list(range(size))
    copy = ShuffledStream(size, seed + 1)
    copy.load_state_dict(stream.state_dict())
    assert torch.equal(copy.draw(20), stream.draw(20))
    again = ShuffledStream(size, seed)
    assert torch.equal(torch.cat([again.draw(1) for _ in drawn]) if len(drawn) else drawn, drawn)


def test_bad_data_is_refused():
    good = synthetic_mtl()["train"]

    def changed(**fields) -> MultiTaskDataset:
        return dataclasses.replace(good, **fields)

    with pytest.raises(ValueError, match=r"SYNTHETIC-MTL.*needs at least one row, got none for \[4\]"):
        changed(num_tasks=5)
    with pytest.raises(ValueError, match="images must be uint8"):
        changed(images=good.images.int())
    with pytest.raises(ValueError, match=r"label must lie in \[0, 2\)"):
        changed(num_classes=2)
    with pytest.raises(ValueError, match="image must lie"):
        changed(image=good.image + 1)
    with pytest.raises(ValueError, match="task must be int64"):
        changed(task=good.task[:-1])
    with pytest.raises(ValueError, match="std positive"):
        changed(std=torch.zeros(1))
    with pytest.raises(ValueError, match="num_tasks must be an integer of at least 1, got 0"):
        synthetic_mtl(num_tasks=0)
    with pytest.raises(ValueError, match="size of a stream must be an integer of at least 1, got 0"):
        ShuffledStream(0)
