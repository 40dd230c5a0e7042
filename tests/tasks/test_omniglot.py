"""Omniglot: alphabets as tasks, drawers as splits; decoded once, refused by name where files are broken."""

import io
import math
import shutil
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from standins import omniglot_code, omniglot_drawing, png

from routing_gym.envs import make_routing_vector_env
from routing_gym.tasks import DataError, omniglot, omniglot_mtl

# The official table, before a fixture puts the stand-ins' small one in its place.
from routing_gym.tasks.omniglot import CHARACTERS as OFFICIAL

BACKGROUND, EVALUATION = OFFICIAL
SHARES = {"train": 10, "validation": 4, "test": 6}
ALL = {name: count for counts in OFFICIAL.values() for name, count in counts.items()}


@pytest.fixture(scope="module")
def place_of():
    """Alphabet and label of every stand-in character, by its number."""
    counts = [(name, count) for part in omniglot.CHARACTERS.values() for name, count in part.items()]
    places = [(name, label) for name, count in counts for label in range(count)]
    return dict(enumerate(places, start=1))


def members(split):
    """Yield number of the character, drawer, task and label of every row of a split."""
    for image, task, label in zip(split.image.tolist(), split.task.tolist(), split.label.tolist(), strict=True):
        yield *omniglot_code(split.images[image, 0]), task, label


def check(splits, names, place_of):
    """Assert that tasks, labels and splits are what these alphabets give."""
    wanted = {number: (names.index(name), label) for number, (name, label) in place_of.items() if name in names}
    assert list(splits) == ["train", "validation", "test"]
    for name, split in splits.items():
        rows = list(members(split))
        assert len(rows) == len(set(rows)) == len(split.images) == SHARES[name] * len(wanted)
        for number, drawer, task, label in rows:
            assert wanted[number] == (task, label) and drawer in omniglot.DRAWERS[name]
        assert split.num_tasks == len(names) and split.num_classes == max(label for _, label in wanted.values()) + 1
        assert split.split == name and split.input_shape == (1, 105, 105) and split.augmentation is None


def test_omniglot_is_a_task_per_alphabet(place_of):
    names = sorted({name for name, _ in place_of.values()})
    check(omniglot_mtl(alphabets=50), names, place_of)
    check(omniglot_mtl(), omniglot._choose(20), place_of)
    some = ["Tengwar", "Balinese", "Latin"]  # in the order that is asked for, out of both archives
    check(omniglot_mtl(alphabets=some), some, place_of)


def test_pixels_are_those_of_the_files_with_ink_bright(stand_in_data):
    split = omniglot_mtl(alphabets=["Arcadian"])["test"]
    with zipfile.ZipFile(stand_in_data / "omniglot" / BACKGROUND) as archive:
        named = [name for name in archive.namelist() if "/Arcadian/" in name]
        wanted = [
            255 - 255 * np.asarray(Image.open(io.BytesIO(archive.read(name)))).astype(np.uint8)
            for name in named
            if int(name[-6:-4]) in omniglot.DRAWERS["test"]
        ]
    assert np.array_equal(split.images[:, 0].numpy(), np.stack(wanted))


def test_all_are_normalised_by_the_training_images():
    splits = omniglot_mtl(alphabets=3, size=20)
    pixels = splits["train"].images.double()
    for split in splits.values():
        torch.testing.assert_close(split.mean, pixels.mean((0, 2, 3)).float())
        torch.testing.assert_close(split.std, pixels.std((0, 2, 3), correction=0).float())
    seen = splits["train"].pixels(torch.arange(len(splits["train"])))
    assert abs(float(seen.mean())) < 1e-4 and float(seen.std()) == pytest.approx(1, abs=1e-3)


def test_drawers_are_those_of_liang_et_al():
    generator, left = np.random.RandomState(1337), np.arange(1, 21)
    for split, count in SHARES.items():
        # The last split has what is left, which draws nothing.
        drawn = left if count == len(left) else generator.choice(left, count, replace=False)
        assert tuple(sorted(drawn.tolist())) == omniglot.DRAWERS[split]
        left = np.setdiff1d(left, drawn)


def test_the_official_table_and_the_choice_of_alphabets(monkeypatch):
    monkeypatch.setattr(omniglot, "CHARACTERS", OFFICIAL)
    assert [len(counts) for counts in OFFICIAL.values()] == [30, 20] and len(ALL) == 50
    assert [sum(counts.values()) for counts in OFFICIAL.values()] == [964, 659]
    known = sorted(ALL)

    def characters(seed):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
        return sum(ALL[known[number]] for number in order[:20])

    assert next(seed for seed in range(1000) if characters(seed) == 668) == omniglot.SELECTION_SEED
    chosen = omniglot._choose(20)
    assert sum(ALL[name] for name in chosen) == 668 and len(set(chosen)) == 20
    # Were these to change, results would no longer be about the same tasks.
    assert chosen[:4] == ["Alphabet_of_the_Magi", "Armenian", "Aurek-Besh", "Early_Aramaic"]
    assert set(omniglot._choose(7)) < set(chosen) and omniglot._choose(50) == known
    assert omniglot._choose(omniglot.LIANG_2018) == list(omniglot.LIANG_2018)
    assert omniglot._choose("liang-2018") == list(omniglot.LIANG_2018)
    assert sum(ALL[name] for name in omniglot.LIANG_2018) == 668 and len(set(omniglot.LIANG_2018)) == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alphabets": 0}, "alphabets, unless they are names, must be an integer from 1 to 50, got 0"),
        ({"alphabets": 51}, "integer from 1 to 50, got 51"),
        ({"alphabets": True}, "integer from 1 to 50, got True"),
        ({"alphabets": "Greek"}, "alphabets must be a number, 'liang-2018' or a sequence of names, got 'Greek'"),
        ({"alphabets": ("Greek", "Klingon")}, "unknown alphabet 'Klingon'; known are Alphabet_of_the_Magi, Angelic, "),
        ({"alphabets": ("Greek", "Greek")}, "at least one, and none twice, got "),
        ({"alphabets": ()}, r"at least one, and none twice, got \(\)"),
        ({"size": 0}, "size must be an integer from 1 to 105, got 0"),
        ({"size": 106}, "integer from 1 to 105, got 106"),
        ({"size": 28.0}, "integer from 1 to 105, got 28.0"),
        ({"size": True}, "integer from 1 to 105, got True"),
    ],
)
def test_values_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=f"Omniglot: .*{said}"):
        omniglot_mtl(**options)


def area_means(image, size):
    """Return the exact mean of the area under each of `size` pixels: every pixel is cut into squares first."""
    cut = 105 * size // math.gcd(105, size)
    small = image.repeat(cut // 105, axis=0).repeat(cut // 105, axis=1)
    step = cut // size
    sums = small.reshape(size, step, size, step).astype(np.int64).sum((1, 3))
    return [[Fraction(int(value), step * step) for value in row] for row in sums]


@pytest.mark.parametrize("size", [1, 7, 28, 42, 60])
def test_smaller_images_are_means_of_areas(size):
    whole = omniglot_mtl(alphabets=["Futurama"])["validation"]
    small = omniglot_mtl(alphabets=["Futurama"], size=size)["validation"]
    assert small.input_shape == (1, size, size) and torch.equal(small.label, whole.label)
    for position in (0, -1):
        exact = area_means(whole.images[position, 0].numpy(), size)
        assert small.images[position, 0].tolist() == [[round(value) for value in row] for row in exact]


def test_resizing_goes_piece_by_piece(monkeypatch):
    whole = {size: omniglot_mtl(alphabets=2, size=size)["train"].images for size in (105, 15)}
    monkeypatch.setattr(omniglot, "DRAWINGS_AT_ONCE", 7)
    for size, images in whole.items():
        assert torch.equal(omniglot_mtl(alphabets=2, size=size)["train"].images, images)


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_CUDA])])
def test_the_environment_draws_batches_on_its_device(device):
    env = make_routing_vector_env(dataset="omniglot", num_envs=6, alphabets=["Greek", "Latin"], size=14, device=device)
    observation, _ = env.reset(seed=0)
    assert observation["task"].device.type == device and set(env.datasets) == set(SHARES)
    assert env.network.num_tasks == 2 and env.dataset.images.device.type == device
    rows = torch.arange(5, device=device)
    assert env.dataset.pixels(rows).shape == (5, 1, 14, 14) and env.dataset.pixels(rows).dtype == torch.float32
    with pytest.raises(ValueError, match="alphabets must be a number, .liang-2018. or a sequence of names"):
        make_routing_vector_env(dataset="omniglot", alphabets="Greek")


@pytest.fixture
def copied(stand_in_data, tmp_path):
    """A copy of the stand-in folder, not decoded yet, that a test may break."""
    ignore = shutil.ignore_patterns(omniglot.CACHE)
    return shutil.copytree(stand_in_data / "omniglot", tmp_path / "omniglot", ignore=ignore)


def build(folder):
    """Build Omniglot from a folder; return its training images."""
    return omniglot_mtl(data_dir=str(folder.parent), alphabets=50)["train"].images


@pytest.fixture
def decoded(monkeypatch):
    """The names of the archives that are decoded, as they are."""
    names, decode = [], omniglot._decode_archive
    monkeypatch.setattr(omniglot, "_decode_archive", lambda path, mend: names.append(path.name) or decode(path, mend))
    return names


@pytest.mark.long
def test_archives_are_decoded_once(copied, decoded):
    whole = build(copied)
    assert decoded == [BACKGROUND, EVALUATION]
    assert torch.equal(build(copied), whole) and len(decoded) == 2
    omniglot_mtl(data_dir=str(copied.parent), alphabets=3, size=10)  # one cache for all choices
    assert len(decoded) == 2
    (copied / omniglot.CACHE).write_bytes((copied / omniglot.CACHE).read_bytes()[:-5000])
    assert torch.equal(build(copied), whole) and len(decoded) == 4
    rewrite(copied / BACKGROUND, lambda name, content: (name, content))  # another container: another file
    assert torch.equal(build(copied), whole) and len(decoded) == 6


def rewrite(path, change):
    """Write a zip file anew; `change` returns name and content of each member, or None to leave it out."""
    with zipfile.ZipFile(path) as archive:
        content = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for pair in content:
            if (kept := change(*pair)) is not None:
                archive.writestr(*kept)


def test_containers_may_differ(copied):
    whole = build(copied)
    with zipfile.ZipFile(copied / EVALUATION) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if name.endswith(".png")}
    with zipfile.ZipFile(copied / EVALUATION, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._images_evaluation", b"\0")
        for name in reversed(content):  # no folders, another order, packed
            archive.writestr(name, content[name])
    assert torch.equal(build(copied), whole)


def test_missing_archives_are_named_with_what_to_do(copied, tmp_path):
    for name in (BACKGROUND, EVALUATION):
        build(copied)  # a cache does not stand for its archives
        (copied / name).rename(tmp_path / name)
        with pytest.raises(DataError, match=rf"omniglot/{name} is missing: run `routing-gym download omniglot --data"):
            build(copied)
        (tmp_path / name).rename(copied / name)
    with pytest.raises(DataError, match=r"is missing: .* ROUTING_GYM_DATA="):
        omniglot_mtl(data_dir=str(tmp_path / "none"))


def flip(path):
    """Change one byte in the middle of the first drawing's pixels."""
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 12] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is truncated or not a zip file: "),
        (lambda path: path.write_bytes(b""), "is truncated or not a zip file: "),
        (lambda path: path.write_bytes(b"\x89PNG" * 100), "is truncated or not a zip file: "),
        (lambda path: (path.unlink(), path.symlink_to("gone")), "is missing: "),
        (
            flip,
            r": images_evaluation/Angelic/character01/\d+_01.png is damaged or not a PNG file: Bad CRC-32 .*; delete",
        ),
    ],
)
def test_damaged_archives_are_named(copied, breaks, said):
    breaks(copied / EVALUATION)
    with pytest.raises(DataError, match=rf"{EVALUATION}{'' if said[0] == ':' else ' '}{said}.*run `routing-gym downl"):
        build(copied)
    assert not (copied / omniglot.CACHE).exists()


def only(part, content=None, rename=None):
    """Return a change for `rewrite` that leaves out, fills anew or renames the members whose names have `part`."""

    def change(name, old):
        if part not in name:
            return name, old
        if content is None and rename is None:
            return None
        return name.replace(part, rename or part), old if content is None else content

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (only("_17.png"), r"lacks 39 of 780 drawings, the first of them number 17 of images_evaluation/Angelic/char"),
        (only("/ULOG/character02/"), r"lacks 20 of 780 drawings, the first .* number 1 of .*/ULOG/character02; delete"),
        (only("images_evaluation/", rename="other/"), "lacks 780 of 780 drawings"),
        (only("/Angelic/", rename="/Greek/"), r"is of other data: it has images_evaluation/Greek/.*Omniglot's has not"),
        (only("_20.png", rename="_21.png"), r"is of other data: it has images_evaluation/Angelic/.*_21.png, Omniglot"),
        (only("_20.png", rename="_00.png"), r"is of other data: it has images_evaluation/Angelic/.*_00.png, Omniglot"),
        (only("/Angelic/character01/", rename="/Angelic/character56/"), "is of other data: it has .*/character56/"),
        (
            only("Atemayar_Qelisayer/character02/", rename="Atemayar_Qelisayer/character01/"),
            r"is of other data: .*/character01/\d+_01.png and .*/character01/\d+_01.png are the same drawing",
        ),
    ],
)
def test_archives_of_other_drawings_are_named(copied, change, said):
    rewrite(copied / EVALUATION, change)
    with pytest.raises(DataError, match=f"{EVALUATION} {said}"):
        build(copied)


DRAWING = omniglot_drawing(3, 9)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged or not a PNG file: cannot identify"),
        (b"GIF89a", "is damaged or not a PNG file: cannot identify"),
        (png(DRAWING)[:-30], "is damaged or not a PNG file: "),
        (png(DRAWING[:100]), "is 105x100 of mode 1, expected 105x105 of mode 1; delete"),
        (png(DRAWING.astype(np.uint8)), "is 105x105 of mode L, expected 105x105 of mode 1; delete"),
    ],
)
def test_broken_drawings_are_named(copied, content, said):
    rewrite(copied / BACKGROUND, only("Greek/character01/", content=content))
    with pytest.raises(DataError, match=rf"{BACKGROUND}: images_background/Greek/character01/\d+_01.png {said}"):
        build(copied)
