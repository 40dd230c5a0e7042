"""Data sets that come as official files: built right from whole files, refused by name from broken ones."""

import gzip
import hashlib
import io
import tarfile

import numpy as np
import pooch
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standins import write_idx

from routing_gym.experiments.cli import main
from routing_gym.tasks import (
    DataError,
    Shift,
    cifar10,
    cifar100,
    cifar100_mtl,
    download,
    files,
    mnist_digits,
    mnist_mtl,
    svhn,
)


def test_mnist_mtl_is_one_vs_rest_over_disjoint_images():
    splits = mnist_mtl()
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [1200, 400, 400]
    for split in splits.values():
        digit = split.images[:, 0, 4:24:2].float().mean(-1).argmax(1)[split.image]  # as the stand-in shows it
        assert torch.equal(split.label, (digit == split.task).long())
        assert float(split.label.float().mean()) == pytest.approx(0.1)
        assert split.input_shape == (1, 28, 28) and split.task.bincount().unique().numel() == 1
    seen = [{image.numpy().tobytes() for image in splits[name].images} for name in ("train", "validation")]
    assert not seen[0] & seen[1]
    assert torch.equal(mnist_mtl()["train"].images, splits["train"].images)
    assert not torch.equal(mnist_mtl(data_seed=1)["train"].images, splits["train"].images)


@pytest.mark.parametrize("held_out", [0, 5])
def test_mnist_is_also_one_task_of_ten_classes(held_out):
    splits = mnist_digits(held_out=held_out)
    of_each = {"train": 20 - held_out, "test": 5} | ({"validation": held_out} if held_out else {})
    assert {name: split.label.bincount().tolist() for name, split in splits.items()} == {
        name: [count] * 10 for name, count in of_each.items()
    }
    for name, split in splits.items():
        digit = split.images[:, 0, 4:24:2].float().mean(-1).argmax(1)[split.image]  # as the stand-in shows it
        assert torch.equal(split.label, digit) and not split.task.any()
        assert (split.num_tasks, split.num_classes, split.split) == (1, 10, name) and split.augmentation is None
        pixels = splits["train"].images[splits["train"].image].double()
        torch.testing.assert_close(split.mean, pixels.mean((0, 2, 3)).float())
    if held_out:
        assert not set(splits["train"].image.tolist()) & set(splits["validation"].image.tolist())
    with pytest.raises(ValueError, match=r"MNIST: held_out must be an integer from 0 to 19, got 20"):
        mnist_digits(held_out=20)


def test_cifar_mtl_has_a_task_per_coarse_class():
    splits = cifar100_mtl()
    assert set(splits) == {"train", "test"} and len(splits["train"]) == 300 and len(splits["test"]) == 100
    for split in splits.values():
        fine = torch.arange(len(split)) % 100
        assert torch.equal(split.task, fine // 5) and torch.equal(split.label, fine % 5)
    held = cifar100_mtl(held_out=1, shift=2, flip=True)
    assert len(held["train"]) == 200 and len(held["validation"]) == 100 and len(held["test"]) == 100
    assert not set(held["train"].image.tolist()) & set(held["validation"].image.tolist())
    assert torch.equal((held["validation"].image % 100).sort().values, torch.arange(100))
    assert held["train"].augmentation is not None and held["validation"].augmentation is None
    with pytest.raises(ValueError, match=r"held_out must be an integer from 0 to 2, got 3"):
        cifar100_mtl(held_out=3)


def test_cifar_100_is_also_one_task_of_its_fine_classes():
    splits = cifar100(held_out=1)
    assert {name: len(split) for name, split in splits.items()} == {"train": 200, "test": 100, "validation": 100}
    for split in splits.values():
        assert torch.equal(split.label, split.image % 100) and not split.task.any()  # as the stand-in has them
        assert (split.num_tasks, split.num_classes, split.input_shape) == (1, 100, (3, 32, 32))
    assert splits["validation"].image.tolist() == list(range(100))  # the first of each class
    assert splits["train"].augmentation == Shift(4, flip=True, fill="black")
    assert splits["validation"].augmentation is None and splits["test"].augmentation is None
    assert cifar100(shift=0, flip=False)["train"].augmentation is None and set(cifar100()) == {"train", "test"}
    assert torch.equal(splits["test"].images, cifar100_mtl()["test"].images)
    with pytest.raises(ValueError, match=r"CIFAR-100: held_out must be an integer from 0 to 2, got 3"):
        cifar100(held_out=3)


def test_missing_files_are_named_with_what_mends_it(tmp_path, capsys):
    for build, file, name in (
        (mnist_mtl, "MNIST/raw/train-images-idx3-ubyte.gz", "mnist"),
        (cifar100_mtl, "cifar-100-binary/train.bin", "cifar-100"),
        (cifar100, "cifar-100-binary/train.bin", "cifar-100"),
        (svhn, "SVHN/train_32x32.mat", "svhn"),
    ):
        with pytest.raises(DataError, match=f"{file} is missing: run `routing-gym download {name} --data-dir"):
            build(data_dir=str(tmp_path))
    out = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["compare", "--env", "routing_gym/MnistMTL-v0", *out]) == 2
    assert "ROUTING_GYM_DATA" in capsys.readouterr().err


def test_broken_mnist_files_are_named(copied):
    images = copied / "MNIST/raw/train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz is truncated or not gzipped"):
        mnist_mtl(data_dir=str(copied))
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-5]))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is truncated: \d+ bytes of data, expected"):
        mnist_mtl(data_dir=str(copied))
    images.write_bytes(gzip.compress(b"GIF89a"))
    with pytest.raises(DataError, match="is not an IDX file of unsigned bytes: it begins with 47494638"):
        mnist_mtl(data_dir=str(copied))
    write_idx(images, np.zeros((200, 32, 32), np.uint8))
    with pytest.raises(DataError, match=r"images \(200, 32, 32\)"):
        mnist_mtl(data_dir=str(copied))
    write_idx(images, np.zeros((200, 28, 28), np.uint8))
    write_idx(copied / "MNIST/raw/train-labels-idx1-ubyte.gz", np.zeros(200, np.uint8))
    with pytest.raises(DataError, match="hold 0 of digit 1, MNIST-MTL needs 16"):
        mnist_mtl(data_dir=str(copied))


def test_broken_cifar_files_are_named(copied):
    train = copied / "cifar-100-binary/train.bin"
    whole = np.frombuffer(train.read_bytes(), np.uint8)
    train.write_bytes(whole[:-10].tobytes())
    with pytest.raises(DataError, match=r"train.bin is truncated or of other data: 922190 bytes, expected 922200"):
        cifar100_mtl(data_dir=str(copied))
    wrong = whole.copy()
    wrong[0] = 20
    train.write_bytes(wrong.tobytes())
    with pytest.raises(DataError, match="of another data set: label 20 in column 0, expected less than 20"):
        cifar100_mtl(data_dir=str(copied))
    wrong[0] = 7  # the first image's fine class belongs to coarse class 0
    train.write_bytes(wrong.tobytes())
    for build in (cifar100_mtl, cifar100):
        with pytest.raises(DataError, match="images of each of the fine classes"):
            build(data_dir=str(copied))
    nobody = np.where(whole.reshape(-1, 3074)[:, 1:2] == 99, [[19, 98]], whole.reshape(-1, 3074)[:, :2])
    train.write_bytes(np.concatenate([nobody.astype(np.uint8), whole.reshape(-1, 3074)[:, 2:]], 1).tobytes())
    with pytest.raises(DataError, match="images of each of the fine classes"):  # no image of class 99
        cifar100(data_dir=str(copied))


@pytest.mark.parametrize(
    ("build", "source", "name"),
    [(mnist_mtl, files.MNIST, "t10k-labels-idx1-ubyte.gz"), (cifar10, files.CIFAR10, "test_batch.bin")],
)
def test_a_wrong_md5_sum_is_refused(build, source, name, copied, monkeypatch):
    monkeypatch.setitem(source.files, name, "0" * 32)
    with pytest.raises(DataError, match=rf"{name} is damaged .* expected 0{{32}}; delete it and run"):
        build(data_dir=str(copied))


class Web:
    """Stands for the network: serves some bytes per file name, or breaks off."""

    def __init__(self, content):
        self.content = content

    def __call__(self, url, output_file, pooch_object, **options):
        name = url.rpartition("/")[2]
        if name not in self.content:
            raise ConnectionError("no route to host")
        with open(output_file, "wb") as out:
            out.write(self.content[name])


@pytest.fixture
def web(monkeypatch):
    """Serve what a test puts into the dictionary."""
    content = {}
    monkeypatch.setattr(pooch.core, "choose_downloader", lambda url, progressbar=False: Web(content))
    return content


def test_downloads_are_checked_before_they_get_their_names(web, tmp_path, monkeypatch, capsys):
    for name in files.MNIST.files:
        web[name] = name.encode()
        monkeypatch.setitem(files.MNIST.files, name, hashlib.md5(name.encode()).hexdigest())
    web["t10k-images-idx3-ubyte.gz"] = b"half"
    assert main(["download", "mnist", "--data-dir", str(tmp_path)]) == 2
    assert "t10k-images-idx3-ubyte.gz could not be fetched" in capsys.readouterr().err
    folder = tmp_path / "MNIST/raw"
    assert sorted(path.name for path in folder.iterdir()) == sorted(files.MNIST.files)[2:]
    web["t10k-images-idx3-ubyte.gz"] = b"t10k-images-idx3-ubyte.gz"
    assert main(["download", "mnist", "--data-dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(files.MNIST.files)
    web.clear()  # what is there is not fetched again
    download(files.MNIST, str(tmp_path))
    with pytest.raises(DataError, match=r"no route to host. Fetch it elsewhere and put it into"):
        download(files.CIFAR100, str(tmp_path))
    assert main(["download", "imagenet"]) == 2
    assert "known are mnist, cifar-100" in capsys.readouterr().err


def test_archives_that_others_pack_anew_have_md5_sums_for_downloads_only(web, stand_in_data, tmp_path, capsys):
    name = "images_background.zip"
    assert files.find(files.OMNIGLOT, name, None) == stand_in_data / "omniglot" / name
    web.update(dict.fromkeys(files.OMNIGLOT.files, b"half"))
    assert main(["download", "omniglot", "--data-dir", str(tmp_path)]) == 2
    assert f"brendenlake/omniglot/master/python/{name} could not be fetched" in capsys.readouterr().err
    assert not list((tmp_path / "omniglot").iterdir())


@pytest.fixture
def unpacked(web, stand_in_data, tmp_path):
    """CIFAR-100 as `download` leaves it, and its source."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for file in ("train.bin", "test.bin"):
            archive.add(stand_in_data / "cifar-100-binary" / file, f"cifar-100-binary/{file}")
    web["cifar-100-binary.tar.gz"] = packed.getvalue()
    md5 = hashlib.md5(packed.getvalue()).hexdigest()
    source = files.Source(**{**vars(files.CIFAR100), "archive": ("cifar-100-binary.tar.gz", md5)})
    download(source, str(tmp_path))
    return tmp_path, source


def test_an_archive_is_unpacked_into_the_official_layout(unpacked):
    folder, _ = unpacked
    assert len(cifar100_mtl(data_dir=str(folder))["train"]) == 300
    found = sorted(path.name for path in (folder / "cifar-100-binary").iterdir())
    assert found == ["MD5SUMS", "test.bin", "train.bin"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["train.bin", "test.bin"]), place=st.integers(0, 100 * 3074 - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_in_an_unpacked_file_is_refused(unpacked, name, place, bit):
    folder, source = unpacked
    path = folder / "cifar-100-binary" / name
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is damaged .*; delete it and run `routing-gym download cifar-100"):
        cifar100_mtl(data_dir=str(folder))
    path.unlink()
    download(source, str(folder))
    cifar100_mtl(data_dir=str(folder))


def test_files_put_there_by_hand_are_read_without_sums(unpacked):
    folder, _ = unpacked
    sums = folder / "cifar-100-binary/MD5SUMS"
    sums.write_bytes(sums.read_bytes().replace(b"train.bin", b"t\xffain.bin"))
    with pytest.raises(DataError, match=r"MD5SUMS does not name train\.bin: delete it to read"):
        cifar100_mtl(data_dir=str(folder))
    sums.unlink()
    path = folder / "cifar-100-binary/test.bin"
    content = bytearray(path.read_bytes())
    content[1] ^= 1  # the first image's fine class
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"test\.bin is of other data: expected 1 images of each of the fine classes"):
        cifar100(data_dir=str(folder))
    content[1] ^= 1
    content[2] ^= 1  # a pixel: nobody can tell
    path.write_bytes(content)
    cifar100(data_dir=str(folder))
