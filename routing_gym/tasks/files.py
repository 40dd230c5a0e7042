"""Official data files: where they lie, whether they are whole, and how to get them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pooch

from routing_gym.files import WriteError, write_atomically

DATA_VARIABLE = "ROUTING_GYM_DATA"
SUMS = "MD5SUMS"


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set as it is published.

    Attributes:
        name: What `routing-gym download` calls it.
        folder: Where its files lie below the data folder.
        files: File names, with the md5 sum of each where one is published, else None.
        base_url: Where the files, or the archive, are.
        archive: Name and md5 sum of the archive the files come in; None where they come one by one.
        by_hand: What to do instead where nobody may pass the files on, `{folder}` standing for their folder; None where
            `download` fetches them.
        repacked: Copies in other containers than the published ones go round: `find` leaves md5 sums alone, which
            `download` checks, and who reads the files checks what is in them.

    Of what comes in an archive only the archive's md5 sum is published. `download` notes those of the files it unpacks
    beside them, in `MD5SUMS`. Files put there by hand have none: who reads them checks their sizes and labels, but a
    pixel that has changed cannot be seen.
    """

    name: str
    folder: str
    files: dict[str, str | None]
    base_url: str
    archive: tuple[str, str] | None = None
    by_hand: str | None = None
    repacked: bool = False


MNIST = Source(
    name="mnist",
    folder="MNIST/raw",
    files={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    base_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
)
CIFAR100 = Source(
    name="cifar-100",
    folder="cifar-100-binary",
    files={"train.bin": None, "test.bin": None},
    base_url="https://www.cs.toronto.edu/~kriz/",
    archive=("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
)
CIFAR10 = Source(
    name="cifar-10",
    folder="cifar-10-batches-bin",
    files={**{f"data_batch_{number}.bin": None for number in range(1, 6)}, "test_batch.bin": None},
    base_url="https://www.cs.toronto.edu/~kriz/",
    archive=("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
)
_RAVI_LAROCHELLE = "https://github.com/twitter-research/meta-learning-lstm/tree/master/data/miniImagenet"
MINI_IMAGENET = Source(
    name="mini-imagenet",
    folder="mini-imagenet",
    files={"train.csv": None, "val.csv": None, "test.csv": None},
    base_url=_RAVI_LAROCHELLE,
    by_hand=(
        "mini-ImageNet cannot be downloaded: its images are ImageNet's, which image-net.org gives only to those who "
        f"accept its licence. Put Ravi and Larochelle's train.csv, val.csv and test.csv ({_RAVI_LAROCHELLE}) into "
        "{folder}, and the 60 000 jpg files they name, converted to RGB and resized to 84x84 pixels, into "
        "{folder}/images"
    ),
)
OMNIGLOT = Source(
    name="omniglot",
    folder="omniglot",
    files={
        "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
        "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
    },
    base_url="https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
    repacked=True,
)
SVHN = Source(
    name="svhn",
    folder="SVHN",
    files={"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"},
    base_url="http://ufldl.stanford.edu/housenumbers/",
)
SOURCES = {source.name: source for source in (MNIST, CIFAR100, CIFAR10, MINI_IMAGENET, OMNIGLOT, SVHN)}


PICKLED = {"cifar-10": "cifar-10-batches-py", "cifar-100": "cifar-100-python"}
"""Folders of the distributions that are not read, by data set."""


class DataError(ValueError):
    """Data files are missing, damaged or of another data set; the message names the file and what mends it."""


def data_folder(data_dir: str | None = None) -> Path:
    """The data folder: `data_dir`, else the one `ROUTING_GYM_DATA` names, else one in the user's cache."""
    return Path(data_dir or os.environ.get(DATA_VARIABLE) or pooch.os_cache("routing_gym")).expanduser()


def how_to_get(source: Source, data_dir: str | None) -> str:
    """Remedy, for messages, where files of a data set are missing or broken."""
    if source.by_hand is not None:
        return source.by_hand.format(folder=data_folder(data_dir) / source.folder)
    return f"run `routing-gym download {source.name} --data-dir {data_folder(data_dir)}`"


def how_to_replace(source: Source, data_dir: str | None) -> str:
    """Remedy, for messages, where a file is there, but broken or not the published one."""
    return f"delete it and {how_to_get(source, data_dir)}"


def find(source: Source, name: str, data_dir: str | None) -> Path:
    """Path of one file of a data set, which is there and, where that is known, has its md5 sum.

    Raises:
        DataError: It is not, or has not.
    """
    path = data_folder(data_dir) / source.folder / name
    if not path.is_file():
        if (pickled := data_folder(data_dir) / PICKLED.get(source.name, "")).is_dir() and source.name in PICKLED:
            raise DataError(
                f"{pickled} holds the pickled distribution, as torchvision downloads it: unpickling runs whatever code "
                f"is in a file, so that only the binary one is read; {how_to_get(source, data_dir)}"
            )
        mend = f"{how_to_get(source, data_dir)}, or say where the data lies with data_dir=... or {DATA_VARIABLE}=..."
        raise DataError(f"{path} is missing: {mend}")
    expected = None if source.repacked else source.files[name] or _noted_sum(path)
    if expected is not None and (found := _md5_sum(path)) != expected:
        raise DataError(
            f"{path} is damaged or not the published file: its md5 sum is {found}, expected {expected}; "
            f"{how_to_replace(source, data_dir)}"
        )
    return path


def _md5_sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _noted_sum(path: Path) -> str | None:
    """The md5 sum that a file had when `download` unpacked it; None where it was put there by hand."""
    notes = path.with_name(SUMS)
    if not notes.is_file():
        return None
    for line in notes.read_text(errors="replace").splitlines():
        noted, _, name = line.partition("  ")
        if name == path.name:
            return noted
    raise DataError(f"{notes} does not name {path.name}: delete it to read files that were put there by hand")


def download(source: Source, data_dir: str | None = None) -> Path:
    """Fetch what is missing of a data set, into the folder of its files, which is returned.

    Files are checked against their published md5 sums before they get their names, so an interrupted download leaves
    nothing that passes for whole.

    Raises:
        DataError: No network, or what came is not what was published, or this data set can only be put there by hand.
    """
    if source.by_hand is not None:
        raise DataError(how_to_get(source, data_dir))
    folder = data_folder(data_dir) / source.folder
    folder.mkdir(parents=True, exist_ok=True)
    if source.archive is None:
        for name, md5 in source.files.items():
            _fetch(source, name, md5, folder)
    elif not all((folder / name).is_file() for name in source.files):
        with tarfile.open(_fetch(source, *source.archive, folder.parent)) as archive:
            members = {file: archive.extractfile(f"{source.folder}/{file}") for file in source.files}
            contents = {file: member.read() for file, member in members.items() if member is not None}
        sums = "".join(
            f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}  {file}\n" for file, content in contents.items()
        )
        # The sums come first: files without would pass for some that were put there by hand.
        for file, content in {SUMS: sums.encode(), **contents}.items():
            write_atomically(folder / file, functools.partial(shutil.copyfileobj, io.BytesIO(content)))
    return folder


def _fetch(source: Source, name: str, md5: str | None, folder: Path) -> str:
    """Path of a file of a source in a folder, fetched unless it is there."""
    try:
        return pooch.retrieve(
            source.base_url + name, known_hash=f"md5:{md5}", fname=name, path=folder, progressbar=False
        )
    except Exception as error:  # pooch passes on whatever the transport raises
        raise DataError(
            f"{source.base_url}{name} could not be fetched: {error}. Fetch it elsewhere and put it into {folder}"
        ) from error


def cached_pixels(
    cache: Path, paths: Sequence[Path], mend: str, shape: tuple[int, ...], decode: Callable[[], np.ndarray]
) -> np.ndarray:
    """Pixels of this shape, uint8: those of `cache` where they are of these very files, else what `decode` returns.

    Decoded pixels are written to `cache` for the next time, if its folder can be written to.

    Args:
        cache: The file of decoded pixels.
        paths: The files they come from.
        mend: What mends a file that cannot be read, for messages.
        shape: The shape of the pixels.
        decode: Decodes the files.

    Raises:
        DataError: A file cannot be read.
    """
    # Taken before decoding: a file that changes meanwhile makes the cache stale, not wrong.
    key, pixels = _key(paths, mend), None
    # A damaged cache fails in many ways, of which its CRC sum is one, and is written anew after each.
    with contextlib.suppress(Exception), np.load(cache, allow_pickle=False) as stored:
        pixels = stored["images"] if str(stored["key"]) == key else None
    if pixels is None or pixels.shape != shape or pixels.dtype != np.uint8:
        pixels = decode()
        with contextlib.suppress(WriteError):  # a folder that is full or read-only: the pixels are there all the same
            write_atomically(cache, lambda out: np.savez(out, key=np.array(key), images=pixels))
    return pixels


def _key(paths: Sequence[Path], mend: str) -> str:
    """A text that changes with the files, their order, their sizes and when they were last written."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:  # a link to nowhere, say
            raise DataError(f"{path} cannot be read: {error}; {mend}") from error
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
