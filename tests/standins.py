"""Writing small files of the official layouts."""

import gzip
import io
import zipfile

import numpy as np
from PIL import Image
from scipy.io import savemat


def write_idx(path, values):
    """Write unsigned bytes as a gzipped IDX file."""
    axes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    content = b"\x00\x00\x08" + bytes([values.ndim]) + axes + values.tobytes()
    path.write_bytes(gzip.compress(content, compresslevel=1))


def write_mnist(folder, per_digit):
    """Write MNIST's four files, with a few images of each digit: digit d is a bright dot in row 4 + 2 d."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for stem, count in (("train", per_digit), ("t10k", per_digit // 4)):
        digits = np.arange(10).repeat(count)
        images = random.integers(0, 60, (len(digits), 28, 28), dtype=np.uint8)
        images[np.arange(len(digits)), 2 * digits + 4] = 255
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", digits.astype(np.uint8))


def write_cifar100(folder, rows):
    """Write CIFAR-100's two binary files, with a few images of each fine class; fine class f is of coarse f // 5."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for part, count in rows.items():
        fine = np.arange(count) % 100
        images = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = np.stack([fine // 5, fine], 1).astype(np.uint8)
        (folder / f"{part}.bin").write_bytes(np.concatenate([labels, images], 1).tobytes())


def write_cifar10(folder, rows_per_file):
    """Write CIFAR-10's six binary files; row i is of class i mod 10, about 20 times as bright as the class."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(3)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        kind = np.arange(rows_per_file, dtype=np.uint8) % 10
        images = random.integers(0, 20, (rows_per_file, 3072), dtype=np.uint8) + 20 * kind[:, None]
        (folder / f"{name}.bin").write_bytes(np.concatenate([kind[:, None], images], 1).tobytes())


def write_svhn(folder, rows):
    """Write SVHN's two MATLAB files; row i is of digit i mod 10, about 20 times as bright as the digit."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(4)
    for part, count in rows.items():
        digit = np.arange(count, dtype=np.uint8) % 10
        pixels = random.integers(0, 20, (32, 32, 3, count), dtype=np.uint8) + 20 * digit
        labels = np.where(digit == 0, np.uint8(10), digit)[:, None]
        savemat(folder / f"{part}_32x32.mat", {"X": pixels, "y": labels}, do_compression=True)


def write_mini_imagenet(folder, per_label):
    """Write mini-ImageNet's three CSV files and its folder of jpg files, with a few images of each of 100 labels."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(2)
    numbers = iter(random.permutation(100))  # labels are not in the order of their names
    for part, labels in (("train", 64), ("val", 16), ("test", 20)):
        rows = ["filename,label"]
        for _ in range(labels):
            label = f"n{1_000_000 + 37 * next(numbers):08}"
            for image in range(per_label):
                name = f"{label}{7 * image + 1:08}.jpg"
                coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                coarse.resize((84, 84), Image.Resampling.NEAREST).save(folder / "images" / name, quality=80)
                rows.append(f"{name},{label}")
        (folder / f"{part}.csv").write_text("\n".join(rows) + "\n")


def omniglot_characters(characters):
    """Return a few characters for each of Omniglot's alphabets: 1, 2, 3, 1, 2, 3, ... in the order of the table."""
    return {archive: {name: 1 + i % 3 for i, name in enumerate(counts)} for archive, counts in characters.items()}


def omniglot_drawing(number, drawer):
    """Return a drawing, `(105, 105)` bool with False for ink, that says in squares of ink who drew which character."""
    code = [number >> bit & 1 for bit in range(10)] + [1] + [drawer >> bit & 1 for bit in range(5)]
    paper = np.ones((105, 105), bool)
    for place, bit in enumerate(code):
        top, left = 3 + 25 * (place // 4), 4 + 25 * (place % 4)
        paper[top : top + 17, left : left + 19] = not bit
    return paper


def omniglot_code(image):
    """Return number and drawer that an image of `omniglot_drawing`, `(105, 105)` with ink not 0, says."""
    bits = [int(image[11 + 25 * (place // 4), 13 + 25 * (place % 4)] > 0) for place in range(16)]
    assert bits[10]
    return sum(bit << i for i, bit in enumerate(bits[:10])), sum(bit << i for i, bit in enumerate(bits[11:]))


def png(pixels):
    """Return the bytes of a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def write_omniglot(folder, characters):
    """Write Omniglot's two zip files, with 20 drawings of each character, numbered on from file to file."""
    folder.mkdir(parents=True)
    number = 0
    for name, counts in characters.items():
        stem = name.removesuffix(".zip")
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr(f"{stem}/", b"")
            for alphabet, count in counts.items():
                for character in range(1, count + 1):
                    number += 1
                    for drawer in range(1, 21):
                        member = f"{stem}/{alphabet}/character{character:02}/{number:04}_{drawer:02}.png"
                        archive.writestr(member, png(omniglot_drawing(number, drawer)))
