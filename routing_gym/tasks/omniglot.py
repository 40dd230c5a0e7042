"""Omniglot as a multi-task problem (Meyerson and Miikkulainen 2018): alphabets are tasks, characters their classes."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from routing_gym.options import unknown_name
from routing_gym.tasks.checking import whole_number
from routing_gym.tasks.dataset import MultiTaskDataset
from routing_gym.tasks.files import OMNIGLOT, DataError, cached_pixels, data_folder, find, how_to_replace
from routing_gym.tasks.splits import build_splits

_PUBLISHED = {
    "images_background.zip": """
        Alphabet_of_the_Magi 20, Anglo-Saxon_Futhorc 29, Arcadian 26, Armenian 41, Asomtavruli_(Georgian) 40,
        Balinese 24, Bengali 46, Blackfoot_(Canadian_Aboriginal_Syllabics) 14, Braille 26, Burmese_(Myanmar) 34,
        Cyrillic 33, Early_Aramaic 22, Futurama 26, Grantha 43, Greek 24, Gujarati 48, Hebrew 22,
        Inuktitut_(Canadian_Aboriginal_Syllabics) 16, Japanese_(hiragana) 52, Japanese_(katakana) 47, Korean 40,
        Latin 26, Malay_(Jawi_-_Arabic) 40, Mkhedruli_(Georgian) 41, N_Ko 33,
        Ojibwe_(Canadian_Aboriginal_Syllabics) 14, Sanskrit 42, Syriac_(Estrangelo) 23, Tagalog 17, Tifinagh 55
    """,
    "images_evaluation.zip": """
        Angelic 20, Atemayar_Qelisayer 26, Atlantean 26, Aurek-Besh 26, Avesta 26, Ge_ez 26, Glagolitic 45,
        Gurmukhi 45, Kannada 41, Keble 26, Malayalam 47, Manipuri 40, Mongolian 30, Old_Church_Slavonic_(Cyrillic) 45,
        Oriya 46, Sylheti 28, Syriac_(Serto) 23, Tengwar 25, Tibetan 42, ULOG 26
    """,
}
CHARACTERS: dict[str, dict[str, int]] = {
    archive: {name: int(count) for name, count in (entry.split() for entry in alphabets.split(","))}
    for archive, alphabets in _PUBLISHED.items()
}
"""How many characters each alphabet of the two official archives has: 964 and 659."""

IMAGE_SIZE = 105
DRAWERS = {"train": (1, 2, 3, 4, 5, 6, 12, 13, 14, 16), "validation": (7, 9, 11, 20), "test": (8, 10, 15, 17, 18, 19)}
"""The numbers, 1 to 20, of the drawings of every character that each split has: 50, 20 and 30 % of them.

Those that the code named in `omniglot_mtl` draws, with NumPy's legacy generator and the seed 1337.
"""
NUM_DRAWERS = 20

SELECTION_SEED = 234
"""The smallest seed whose 20 alphabets have the 668 characters that the paper's 6 680 training images mean."""

LIANG_2018 = tuple(
    """
    Alphabet_of_the_Magi Angelic Anglo-Saxon_Futhorc Arcadian Atemayar_Qelisayer Cyrillic Early_Aramaic Ge_ez Gujarati
    Gurmukhi Japanese_(katakana) Keble Korean Malay_(Jawi_-_Arabic) Manipuri Old_Church_Slavonic_(Cyrillic) Sanskrit
    Sylheti Syriac_(Estrangelo) Tibetan
    """.split()
)
"""The first 20 of the order in that code, sorted here; 668 characters as well, so very likely the paper's."""

CACHE = "omniglot-pixels.npz"
ROW_BYTES = (IMAGE_SIZE + 7) // 8
DRAWINGS_AT_ONCE = 1024
# What zipfile, zlib and Pillow raise for broken files.
_OF_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
_OF_PNG = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_PNG = re.compile(r"(\w+)/([^/]+)/character(\d\d)/\d{4}_(\d\d)\.png")


def omniglot_mtl(
    *, data_dir: str | None = None, alphabets: int | str | Sequence[str] = 20, size: int = IMAGE_SIZE
) -> dict[str, MultiTaskDataset]:
    """Build multi-task Omniglot: which character of its alphabet is this? Drawings of 105x105 pixels, grey.

    Ramachandran and Le 2019 (section 4.2) take 20 of the 50 alphabets, with 6 680 training images, but do not say
    which. Here a permutation with the seed `SELECTION_SEED` of all alphabets, sorted by name, does: its first 20, which
    have 668 characters, 55 at most. They follow Liang et al. 2018; later code that names that paper as its method
    (github.com/aim123/ENN-ENN-Training-V2) lists the alphabets in a random order and takes the first 20, which have 668
    characters too and are very likely the paper's: `alphabets="liang-2018"`.

    Every character was drawn by 20 people, of whom 10 are for training, 4 for validation and 6 for test (`DRAWERS`, as
    in that code). A number is the same person throughout an alphabet, so validation and test are of hands that training
    never saw in it. What a split has of an alphabet does not depend on the other alphabets.

    Ink is 255 and paper 0, the other way round than in the files (that code has 1 and 0). The paper names no
    augmentation, so there is none.

    The first call decodes all 32 460 drawings and leaves their pixels beside the archives, in one file of 48 MB.

    Args:
        data_dir: The data folder; see `routing_gym.tasks.files.data_folder`.
        alphabets: How many, the first of the permutation (50 for all), and tasks are then sorted by name;
            `"liang-2018"` for `LIANG_2018`; or the names of some, in the order of the tasks.
        size: Height and width, at most 105; below, each pixel is the mean of the area it covers.

    Returns:
        The splits `train`, `validation` and `test`; a label is the character's number less one.
    """
    names = _choose(alphabets)
    whole_number("Omniglot: size", size, 1, IMAGE_SIZE)
    drawings = _read_drawings(data_dir)
    count_of = _counts()
    end_of = dict(zip(count_of, np.cumsum(list(count_of.values())), strict=True))
    characters = np.concatenate([np.arange(end_of[name] - count_of[name], end_of[name]) for name in names])
    counts = torch.tensor([count_of[name] for name in names])
    task = torch.arange(len(names)).repeat_interleave(counts)
    label = torch.cat([torch.arange(count) for count in counts.tolist()])
    drawers = DRAWERS.items()
    return build_splits(
        "Omniglot",
        {split: _unpack(drawings[characters][:, np.array(numbers) - 1], size) for split, numbers in drawers},
        {split: label.repeat_interleave(len(numbers)) for split, numbers in drawers},
        tasks={split: task.repeat_interleave(len(numbers)) for split, numbers in drawers},
    )


def _counts() -> dict[str, int]:
    """Number of characters of every alphabet, in the order in which `_read_drawings` has them."""
    return {name: count for alphabets in CHARACTERS.values() for name, count in alphabets.items()}


def _choose(alphabets: int | str | Sequence[str]) -> list[str]:
    """Names of the alphabets that are the tasks."""
    known = sorted(_counts())
    if isinstance(alphabets, int):
        whole_number("Omniglot: alphabets, unless they are names,", alphabets, 1, len(known))
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(SELECTION_SEED))
        return sorted(known[number] for number in order[:alphabets].tolist())
    if alphabets == "liang-2018":
        return list(LIANG_2018)
    if isinstance(alphabets, str):
        raise ValueError(
            f"Omniglot: alphabets must be a number, 'liang-2018' or a sequence of names, got {alphabets!r}"
        )
    names = list(alphabets)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"Omniglot: {unknown_name('alphabet', unknown[0], known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Omniglot: alphabets must name at least one, and none twice, got {alphabets!r}")
    return names


def _read_drawings(data_dir: str | None) -> np.ndarray:
    """Drawings `(characters, 20, 105, 14)` uint8 of the alphabets as `CHARACTERS` has them, from the cache if possible.

    A bit for each pixel, 1 for ink; the last seven bits of a row mean nothing.
    """
    paths, mend = [find(OMNIGLOT, name, data_dir) for name in CHARACTERS], how_to_replace(OMNIGLOT, data_dir)
    shape = (sum(_counts().values()), NUM_DRAWERS, IMAGE_SIZE, ROW_BYTES)

    def decode() -> np.ndarray:
        return np.concatenate([_decode_archive(path, mend) for path in paths]).reshape(shape)

    return cached_pixels(data_folder(data_dir) / OMNIGLOT.folder / CACHE, paths, mend, shape, decode)


def _decode_archive(path: Path, mend: str) -> np.ndarray:
    """Drawings of one archive as packed bits, `(N, 105, 14)` uint8: by alphabet, character, drawer."""
    try:
        with zipfile.ZipFile(path) as archive:
            rows = [_row(archive, member, path, mend) for member in _members(archive.namelist(), path, mend)]
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is truncated or not a zip file: {error}; {mend}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; {mend}") from error
    # In the files a bit that is set is paper.
    return np.invert(np.frombuffer(b"".join(rows), np.uint8)).reshape(-1, IMAGE_SIZE, ROW_BYTES)


def _members(names: Sequence[str], path: Path, mend: str) -> list[str]:
    """Names of an archive's drawings by alphabet, character and drawer; all of them are there.

    The published md5 sums are of the containers; what counts is that the drawings are Omniglot's.
    """
    counts = CHARACTERS[path.name]
    member_of: dict[tuple[str, int, int], str] = {}
    for name in names:
        found = _PNG.fullmatch(name)
        if found is None or found[1] != path.stem:
            continue  # folders, say, have entries of their own
        place = (found[2], int(found[3]), int(found[4]))
        if not (1 <= place[1] <= counts.get(place[0], 0) and 1 <= place[2] <= NUM_DRAWERS):
            raise DataError(f"{path} is of other data: it has {name}, Omniglot's has not; {mend}")
        if place in member_of:
            raise DataError(f"{path} is of other data: {member_of[place]} and {name} are the same drawing; {mend}")
        member_of[place] = name
    places = [
        (alphabet, character, drawer)
        for alphabet, count in counts.items()
        for character in range(1, count + 1)
        for drawer in range(1, NUM_DRAWERS + 1)
    ]
    if missing := [place for place in places if place not in member_of]:
        alphabet, character, drawer = missing[0]
        raise DataError(
            f"{path} lacks {len(missing)} of {len(places)} drawings, the first of them number {drawer} of "
            f"{path.stem}/{alphabet}/character{character:02}; {mend}"
        )
    return [member_of[place] for place in places]


def _row(archive: zipfile.ZipFile, member: str, path: Path, mend: str) -> bytes:
    """Pixels of one drawing, each row of them packed into 14 bytes."""
    try:
        with Image.open(io.BytesIO(archive.read(member)), formats=["PNG"]) as image:
            found = "{}x{} of mode {}".format(*image.size, image.mode)
            wanted = f"{IMAGE_SIZE}x{IMAGE_SIZE} of mode 1"
            pixels = image.tobytes() if found == wanted else b""
    except (*_OF_ZIP, *_OF_PNG) as error:
        raise DataError(f"{path}: {member} is damaged or not a PNG file: {error}; {mend}") from error
    if found != wanted:
        raise DataError(f"{path}: {member} is {found}, expected {wanted}; {mend}")
    return pixels


def _unpack(drawings: np.ndarray, size: int) -> Tensor:
    """Images `(N, 1, size, size)` uint8 of packed bits `(..., 105, 14)`."""
    packed = drawings.reshape(-1, IMAGE_SIZE, ROW_BYTES)
    images = torch.empty(len(packed), 1, size, size, dtype=torch.uint8)
    shares = _shares(size)
    for first in range(0, len(packed), DRAWINGS_AT_ONCE):  # floats of all at once would need gigabytes
        ink = torch.from_numpy(np.unpackbits(packed[first : first + DRAWINGS_AT_ONCE], axis=2, count=IMAGE_SIZE))
        if size == IMAGE_SIZE:
            images[first : first + DRAWINGS_AT_ONCE, 0] = ink * 255
            continue
        # Whole numbers up to 105^2, which float32 holds exactly: all machines make the same pixels.
        area = shares @ ink.float() @ shares.T
        images[first : first + DRAWINGS_AT_ONCE, 0] = (area * 255 / IMAGE_SIZE**2).round().to(torch.uint8)
    return images


def _shares(size: int) -> Tensor:
    """Share `(size, 105)` float32 of each of `size` pixels that lies in each of 105, in 105ths."""
    inner = torch.arange(size)[:, None] * IMAGE_SIZE
    outer = torch.arange(IMAGE_SIZE) * size
    shared = torch.minimum(inner + IMAGE_SIZE, outer + size) - torch.maximum(inner, outer)
    return shared.clamp(min=0).float()
