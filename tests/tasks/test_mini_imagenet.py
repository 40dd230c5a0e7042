"""MIN-MTL: built right from a whole folder, refused by name from a broken one, decoded once."""

import csv
import os
import shutil

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

import routing_gym
from routing_gym.experiments.cli import main
from routing_gym.tasks import DataError, mini_imagenet, mini_imagenet_mtl

CACHE = mini_imagenet.CACHE


@pytest.fixture(scope="module")
def label_of(stand_in_data):
    """The label of every stand-in file, as the CSV files say it."""
    rows = {}
    for part in ("train", "val", "test"):
        with open(stand_in_data / "mini-imagenet" / f"{part}.csv", newline="") as file:
            rows |= {row["filename"]: row["label"] for row in csv.DictReader(file)}
    return rows


@pytest.fixture(scope="module")
def file_of(stand_in_data, label_of):
    """The name of every stand-in file by its pixels, as Pillow decodes them."""
    folder = stand_in_data / "mini-imagenet/images"
    names = {np.asarray(Image.open(folder / name)).transpose(2, 0, 1).tobytes(): name for name in label_of}
    assert len(names) == 400
    return names


def members(split, file_of):
    """Yield file name, task and label of every row of a split."""
    for image, task, label in zip(split.image.tolist(), split.task.tolist(), split.label.tolist(), strict=True):
        yield file_of[split.images[image].numpy().tobytes()], task, label


@pytest.mark.parametrize("held_out", [0, 1, 2])
def test_min_mtl_is_ten_groups_of_five_labels(held_out, file_of, label_of):
    splits = mini_imagenet_mtl(held_out=held_out)
    per_label = {"train": 3 - held_out, "validation": held_out, "test": 1}
    assert set(splits) == {split for split, count in per_label.items() if count}
    place_of, seen = {}, []
    for name, split in splits.items():
        assert split.images.shape == (50 * per_label[name], 3, 84, 84) and split.images.dtype == torch.uint8
        assert split.num_tasks == 10 and split.num_classes == 5
        assert torch.equal((split.task * 5 + split.label).bincount(), torch.full((50,), per_label[name]))
        for file, task, label in members(split, file_of):  # found by its pixels: as Pillow decodes them
            seen.append(file)
            assert place_of.setdefault(label_of[file], (task, label)) == (task, label)
    assert len(set(seen)) == len(seen) == 50 * 4  # no image twice, in whatever split
    assert len(place_of) == 50 and len(set(place_of.values())) == 50  # disjoint groups: every label has one place
    for task in range(10):
        assert sorted(label for label, place in place_of.items() if place[0] == task) == [
            next(label for label, place in place_of.items() if place == (task, number)) for number in range(5)
        ]
    pixels = splits["train"].images.double()
    torch.testing.assert_close(splits["train"].mean, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(splits["test"].std, pixels.std((0, 2, 3), correction=0).float())


def test_the_choice_is_always_the_same(file_of):
    names_of = {f"n{label:08}": [f"n{label:08}{image:08}.jpg" for image in range(600)] for label in range(100)}
    drawn = mini_imagenet._draw_labels({label: names[::-1] for label, names in reversed(names_of.items())})
    assert drawn == mini_imagenet._draw_labels(names_of)  # whatever the order in the files
    # Were these to change, results would no longer be about the same tasks, nor the test images unseen.
    assert [int(names[0][1:9]) for names in drawn[:10]] == [19, 44, 71, 90, 93, 37, 53, 69, 91, 95]
    assert [int(name[9:17]) for name in drawn[0][-5:]] == [329, 279, 538, 491, 161]
    train, test = (list(members(mini_imagenet_mtl()[split], file_of)) for split in ("train", "test"))
    assert list(members(mini_imagenet_mtl()["train"], file_of)) == train
    held = mini_imagenet_mtl(held_out=1)
    assert list(members(held["test"], file_of)) == test
    assert list(members(held["validation"], file_of)) + list(members(held["train"], file_of)) == train


def test_options():
    held = mini_imagenet_mtl(held_out=1, shift=2, flip=True)
    assert held["train"].augmentation is not None and held["validation"].augmentation is None
    assert held["test"].augmentation is None and mini_imagenet_mtl()["train"].augmentation is None
    with pytest.raises(ValueError, match=r"MIN-MTL: held_out must be an integer from 0 to 2, got 3"):
        mini_imagenet_mtl(held_out=3)


def test_the_environment_can_be_made_and_stepped():
    env = gymnasium.make_vec("routing_gym/MiniImagenetMTL-v0", num_envs=6, held_out=1, flip=True)
    observation, _ = env.reset(seed=0)
    assert observation["activation"].shape == (6, 800) and env.unwrapped.network.num_classes == 5
    for _ in range(4):
        observation, reward, terminated, *_ = env.step(torch.zeros(6, dtype=torch.int64))
    assert bool(torch.isfinite(reward).all())
    accuracy = routing_gym.evaluate(routing_gym.agents.make_agent("random", env), env, split="validation").accuracy
    assert 0 <= accuracy <= 1


@pytest.fixture
def copied(stand_in_data, tmp_path):
    """A copy of the stand-in folder, not decoded yet, that a test may break: of its images those it makes its `own`."""
    folder = tmp_path / "mini-imagenet"
    shutil.copytree(stand_in_data / "mini-imagenet", folder, ignore=shutil.ignore_patterns(CACHE, "images"))
    shutil.copytree(stand_in_data / "mini-imagenet/images", folder / "images", copy_function=os.link)
    return folder


def own(image):
    """Return the path of an image after making it a file of its own, no longer linked with the stand-in."""
    copy = shutil.copy2(image, image.with_suffix(".own"))
    return copy.replace(image)


def build(folder):
    """Build MIN-MTL from a folder; return its training images."""
    return mini_imagenet_mtl(data_dir=str(folder.parent))["train"].images


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, as they are."""
    names = []
    decode = mini_imagenet._decode_jpeg
    monkeypatch.setattr(
        mini_imagenet, "_decode_jpeg", lambda path, *rest: names.append(path.name) or decode(path, *rest)
    )
    return names


def test_files_are_decoded_once(copied, decoded):
    first = build(copied)
    assert len(decoded) == 200 and len(set(decoded)) == 200
    assert torch.equal(build(copied), first) and len(decoded) == 200
    assert len(mini_imagenet_mtl(data_dir=str(copied.parent), held_out=2)["train"]) == 50 and len(decoded) == 200
    assert sorted(path.name for path in copied.iterdir()) == sorted(
        [CACHE, "images", "test.csv", "train.csv", "val.csv"]
    )


def test_a_stale_cache_is_not_used(copied, decoded):
    first = build(copied)
    changed = own(copied / "images" / decoded[0])
    content = (copied / "images" / decoded[1]).read_bytes()
    changed.write_bytes(content)
    second = build(copied)
    assert len(decoded) == 400 and torch.equal(second[0], first[1]) and torch.equal(second[1:], first[1:])
    assert torch.equal(build(copied), second) and len(decoded) == 400
    os.utime(changed, ns=(0, 0))  # written again, to as many bytes
    assert torch.equal(build(copied), second) and len(decoded) == 600


def flip_a_bit(cache, **arrays):
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(content)


def save_one_array(cache, images, **arrays):
    with open(cache, "wb") as out:
        np.save(out, images)


DAMAGES = {
    "half": lambda cache, **arrays: os.truncate(cache, cache.stat().st_size // 2),
    "empty": lambda cache, **arrays: os.truncate(cache, 0),
    "bit": flip_a_bit,
    "text": lambda cache, **arrays: cache.write_text("not found"),
    "one array": save_one_array,
    "shape": lambda cache, key, images: np.savez(cache, key=key, images=images[:-1]),
    "type": lambda cache, key, images: np.savez(cache, key=key, images=images.astype(np.int16)),
    "no key": lambda cache, key, images: np.savez(cache, images=images),
}


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_not_used(copied, decoded, damage):
    whole = build(copied)
    with np.load(copied / CACHE) as stored:
        arrays = dict(stored)
    damage(copied / CACHE, **arrays)
    assert torch.equal(build(copied), whole) and len(decoded) == 400
    assert torch.equal(build(copied), whole) and len(decoded) == 400  # written anew


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_nothing(copied, decoded, monkeypatch, error):
    def half(out, **arrays):
        out.write(b"PK\x03\x04")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", half)
        if isinstance(error, OSError):
            assert len(build(copied)) == 150
        else:
            with pytest.raises(KeyboardInterrupt):
                build(copied)
    assert sorted(path.name for path in copied.iterdir()) == ["images", "test.csv", "train.csv", "val.csv"]
    build(copied)
    assert len(decoded) == 400 and (copied / CACHE).is_file()


def test_a_folder_that_cannot_be_written_to_is_decoded_each_time(copied, decoded, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(routing_gym.files, "open", refuse, raising=False)
    assert torch.equal(build(copied), build(copied)) and len(decoded) == 400
    assert not (copied / CACHE).exists()


def test_missing_files_are_named_with_what_to_do(tmp_path, copied, capsys):
    (tmp_path / "elsewhere").mkdir()
    for part in ("train.csv", "val.csv", "test.csv"):
        (copied / part).rename(tmp_path / "elsewhere" / part)
        with pytest.raises(
            DataError, match=rf"mini-imagenet/{part} is missing: .* cannot be downloaded: .*ROUTING_GYM"
        ):
            build(copied)
        (tmp_path / "elsewhere" / part).rename(copied / part)
    (copied / "images").rename(tmp_path / "elsewhere" / "images")
    with pytest.raises(DataError, match=r"mini-imagenet/images is missing: .* into .*mini-imagenet/images"):
        build(copied)
    out = ["--data-dir", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert main(["compare", "--env", "routing_gym/MiniImagenetMTL-v0", *out]) == 2
    assert "none/mini-imagenet/train.csv is missing: mini-ImageNet cannot be" in capsys.readouterr().err


def test_a_download_is_refused_with_what_to_do(tmp_path, capsys):
    assert main(["download", "mini-imagenet", "--data-dir", str(tmp_path / "data")]) == 2
    said = capsys.readouterr().err
    folder = tmp_path / "data/mini-imagenet"
    assert "cannot be downloaded" in said and "image-net.org" in said and "84x84" in said
    assert (
        "train.csv, val.csv and test.csv (https://github.com/twitter-research/meta-learning-lstm/tree/master/" in said
    )
    assert f"into {folder}, and" in said and f"into {folder}/images" in said
    assert not (tmp_path / "data").exists()


def edit(path, change):
    """Rewrite the lines of a file."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [], r"train.csv begins with '', expected 'filename,label': take the published file"),
        (lambda lines: lines[1:], r"train.csv begins with 'n\d+.jpg,n\d+', expected 'filename,label'"),
        (lambda lines: ["id,filename,label", *lines[1:]], "begins with 'id,filename,label', expected"),
        (lambda lines: [*lines[:4], "n01", *lines[4:]], "train.csv, line 5 has 1 columns, expected 2"),
        (lambda lines: [*lines, ""], "train.csv, line 258 has 0 columns, expected 2"),
        (lambda lines: [*lines, lines[1]], r"train.csv, line 258 names n\d+.jpg, which an earlier line does as well"),
        (lambda lines: lines[:-1], r"train.csv names 3 images of label n\d+, mini-ImageNet has 4"),
        (
            lambda lines: lines[:1],
            "train.csv, val.csv, test.csv in .* hold 36 labels, mini-ImageNet has 100: .*another",
        ),
        (lambda lines: [*lines, "../train.csv,n01"], "images/../train.csv is missing, but .*train.csv, line 258 names"),
    ],
)
def test_broken_tables_are_named(copied, change, said):
    edit(copied / "train.csv", change)
    with pytest.raises(DataError, match=said):
        build(copied)


def test_a_table_that_is_no_text_is_named(copied):
    (copied / "val.csv").write_bytes(b"filename,label\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"val.csv is not a CSV file: 'utf-8' codec can't decode"):
        build(copied)


def test_a_label_in_two_tables_is_named(copied):
    moved = (copied / "train.csv").read_text().splitlines()[-1]
    edit(copied / "train.csv", lambda lines: lines[:-1])
    edit(copied / "test.csv", lambda lines: [*lines, moved])
    with pytest.raises(DataError, match=r"test.csv, line 82 is of label n\d+, which train.csv has as well"):
        build(copied)


def test_more_than_a_hundred_labels_are_another_data_set(copied):
    edit(copied / "train.csv", lambda lines: [*lines[:-1], lines[-1].partition(",")[0] + ",n99999999"])
    with pytest.raises(DataError, match="hold 101 labels, mini-ImageNet has 100"):
        build(copied)


def some_image(folder, decoded):
    """Return the path of an image that is in a task."""
    build(folder)
    return own(folder / "images" / decoded[17])


def test_a_missing_image_is_named(copied, decoded):
    image = some_image(copied, decoded)  # decoded before, so a cache of it is there
    image.unlink()
    with pytest.raises(DataError, match=rf"images/{image.name} is missing, but .*csv, line \d+ names it: unpack"):
        build(copied)


def save(path, size=(84, 84), mode="RGB", **options):
    Image.new(mode, size).save(path, **options)


@pytest.mark.long
@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is truncated or not a jpg file: .*truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "is truncated or not a jpg file: "),
        (lambda path: path.write_bytes(b""), "is truncated or not a jpg file: cannot identify"),
        (lambda path: save(path, format="PNG"), "is truncated or not a jpg file: cannot identify"),
        (lambda path: save(path, (84, 80)), "is 84x80 of mode RGB, expected 84x84 of mode RGB: put"),
        (lambda path: save(path, (500, 375)), "is 500x375 of mode RGB, expected 84x84 .* resized to 84x84 pixels"),
        (lambda path: save(path, mode="L"), "is 84x84 of mode L, expected 84x84 of mode RGB: put"),
        (lambda path: save(path, mode="CMYK"), "is 84x84 of mode CMYK, expected 84x84 of mode RGB: put"),
        (lambda path: (path.unlink(), path.symlink_to("gone")), "cannot be read: .*No such file.*; put"),
        (lambda path: (path.unlink(), path.mkdir()), "is truncated or not a jpg file: "),
    ],
)
def test_broken_images_are_named(copied, decoded, breaks, said):
    image = some_image(copied, decoded)
    breaks(image)
    with pytest.raises(DataError, match=f"images/{image.name} {said}"):
        build(copied)
