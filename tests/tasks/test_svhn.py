"""SVHN: turned the right way up from MATLAB's order, digit 0 where the file says 10, broken files refused by name."""

import hashlib

import numpy as np
import pytest
import torch
from scipy.io import savemat
from standins import write_cifar100

from routing_gym.experiments.cli import main
from routing_gym.tasks import SOURCES, DataError, Shift, files, svhn
from routing_gym.tasks.digits import read_svhn

MENDED = r"delete it and run `routing-gym download svhn --data-dir"


def digit_of(split):
    """The digit that a stand-in's brightness shows, for every row of a split."""
    return (split.images[split.image].float().mean((1, 2, 3)) // 20).long()


@pytest.mark.parametrize("held_out", [0, 3])
def test_svhn_is_one_task_of_ten_digits(held_out):
    splits = svhn(held_out=held_out)
    of_each = {"train": 13 - held_out, "test": 5} | ({"validation": held_out} if held_out else {})
    assert {name: split.label.bincount().tolist() for name, split in splits.items()} == {
        name: [count] * 10 for name, count in of_each.items()
    }
    for name, split in splits.items():
        assert torch.equal(split.label, digit_of(split)) and not split.task.any()
        assert (split.num_tasks, split.num_classes, split.split) == (1, 10, name)
        assert split.input_shape == (3, 32, 32) and split.images.is_contiguous()
        assert split.augmentation == (Shift(4, flip=False, fill="black") if name == "train" else None)
    if held_out:
        assert splits["validation"].image.tolist() == list(range(30))  # the first three of each digit
        assert splits["train"].image.tolist() == list(range(30, 130))
    assert svhn(shift=0)["train"].augmentation is None
    with pytest.raises(ValueError, match=r"SVHN: held_out must be an integer from 0 to 12, got 13"):
        svhn(held_out=13)


@pytest.mark.parametrize("compressed", [True, False])
def test_pixels_stand_where_the_file_says(compressed, tmp_path):
    pixels = np.zeros((32, 32, 3, 6), np.uint8)
    pixels[3, 20, 2, 4] = 200  # row 3, column 20, blue, of image 4
    pixels[31, 0, 1, 5] = 100
    labels = np.array([[10], [1], [9], [10], [2], [5]], np.uint8)
    savemat(tmp_path / "few.mat", {"X": pixels, "y": labels}, do_compression=compressed)
    images, digits = read_svhn(tmp_path / "few.mat", 6, "")
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.uint8 and images.is_contiguous()
    assert images.nonzero().tolist() == [[4, 2, 3, 20], [5, 1, 31, 0]]
    assert int(images[4, 2, 3, 20]) == 200 and int(images[5, 1, 31, 0]) == 100
    assert digits.dtype == torch.int64 and digits.tolist() == [0, 1, 9, 0, 2, 5]


def test_more_images_than_are_turned_at_a_time(tmp_path):
    number = np.arange(4100)
    pixels = np.zeros((32, 32, 3, 4100), np.uint8)
    pixels[number % 32, number // 32 % 32, number % 3, number] = 1 + number % 255
    labels = np.ones((4100, 1), np.uint8)
    savemat(tmp_path / "many.mat", {"y": labels, "X": pixels}, do_compression=True)
    images, _ = read_svhn(tmp_path / "many.mat", 4100, "")
    assert images.count_nonzero() == 4100
    for n in (0, 1, 33, 4095, 4096, 4099):
        assert int(images[n, n % 3, n % 32, n // 32 % 32]) == 1 + n % 255


def test_truncated_files_are_named(copied):
    train = copied / "SVHN/train_32x32.mat"
    whole = train.read_bytes()
    for kept in (0, 10, 100, 127, 128, 150, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        train.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=rf"SVHN/train_32x32.mat is (truncated|of other data).*; {MENDED}"):
            svhn(data_dir=str(copied))


def test_damaged_files_are_refused_wherever_the_damage_is(copied):
    train = copied / "SVHN/train_32x32.mat"
    whole = np.frombuffer(train.read_bytes(), np.uint8)
    first, _ = read_svhn(train, 130, "")
    random = np.random.default_rng(0)
    for place in [*range(124, 160), *random.integers(160, len(whole), 40).tolist()]:
        broken = whole.copy()
        broken[place] ^= 0x5A
        train.write_bytes(broken.tobytes())
        try:
            images, _ = read_svhn(train, 130, "")
        except DataError as error:
            assert str(train) in str(error)
        else:
            assert torch.equal(images, first), place  # bytes that say nothing about X or y


def test_foreign_files_are_refused_with_what_was_expected(copied):
    def refuses(message, **content):
        savemat(test, content)
        with pytest.raises(DataError, match=rf"SVHN/test_32x32.mat is {message}; {MENDED}"):
            svhn(data_dir=str(copied))

    test = copied / "SVHN/test_32x32.mat"
    pixels, labels = np.zeros((32, 32, 3, 50), np.uint8), np.ones((50, 1), np.uint8)
    refuses(r"of other data: X is no such array, expected uint8 of shape \(32, 32, 3, 50\)", y=labels)
    refuses(r"of other data: y is no such array, expected uint8 of shape \(50, 1\)", X=pixels)
    refuses(
        r"of other data: X is uint8 of shape \(32, 32, 3, 49\), expected uint8 of shape \(32, 32, 3, 50\)",
        X=pixels[..., :49],
        y=labels,
    )
    refuses(r"of other data: X is float64 of shape .*", X=pixels / 255, y=labels)
    refuses(r"of other data: y is uint8 of shape \(1, 50\), .*", X=pixels, y=labels.T)
    refuses(r"of other data: X is \[.*\] of shape \(1, 1\), .*", X={"a": 1}, y=labels)
    for wrong, values in ((0, "0 to 1"), (11, "1 to 11")):
        labels[7] = wrong
        refuses(rf"of other data: y holds values from {values}, expected 1 to 10", X=pixels, y=labels)

    write_cifar100(copied / "other", {"test": 100})
    hdf5 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n"
    for content in (b"GIF89a" * 100, bytes(1000), (copied / "other/test.bin").read_bytes(), hdf5):
        test.write_bytes(content)
        with pytest.raises(DataError, match=rf"SVHN/test_32x32.mat is truncated or not a MATLAB file: .*; {MENDED}"):
            svhn(data_dir=str(copied))


def test_only_the_published_files_are_taken(copied, monkeypatch):
    for name in files.SVHN.files:
        found = hashlib.md5((copied / "SVHN" / name).read_bytes()).hexdigest()
        monkeypatch.setitem(files.SVHN.files, name, found)
    assert len(svhn(data_dir=str(copied))["test"]) == 50
    # Another file of the same layout is refused as well.
    test = copied / "SVHN/test_32x32.mat"
    test.write_bytes((copied / "SVHN/train_32x32.mat").read_bytes())
    other = files.SVHN.files["train_32x32.mat"]
    with pytest.raises(DataError, match=rf"test_32x32.mat is damaged .* is {other}, expected {found}; {MENDED}"):
        svhn(data_dir=str(copied))


def test_svhn_is_downloaded_from_its_authors_page(stand_in_data, tmp_path, monkeypatch):
    asked = []

    def retrieve(url, known_hash, fname, path, progressbar):
        asked.append(url)
        (path / fname).write_bytes((stand_in_data / "SVHN" / fname).read_bytes())
        return str(path / fname)

    monkeypatch.setattr("routing_gym.tasks.files.pooch.retrieve", retrieve)
    assert main(["download", "svhn", "--data-dir", str(tmp_path)]) == 0
    assert asked == [f"http://ufldl.stanford.edu/housenumbers/{part}_32x32.mat" for part in ("train", "test")]
    assert SOURCES["svhn"] is files.SVHN and len(svhn(data_dir=str(tmp_path))["train"]) == 130
