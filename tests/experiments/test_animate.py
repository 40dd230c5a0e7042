"""Routes settling as moving pictures: an epoch a picture, and what cannot be drawn."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.records import read_arrays, write_arrays


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    credit = ["--env", "routing_gym/Credit-v0", "--env-options", "num_tasks=4", "images_per_task=64"]
    common = [*credit, "--agents", "random", "random-fixed", "--seeds", "1", "--callbacks"]
    assert main(["compare", *common, "--epochs", "3", "--out", str(out)]) == 0
    return [out / agent / "seed-0" for agent in ("random", "random-fixed")]


def test_there_is_a_picture_for_every_epoch_and_the_last_stays(runs, tmp_path):
    out = tmp_path / "routes.gif"
    assert main(["animate", *map(str, runs), "--out", str(out), "--fps", "4"]) == 0
    with Image.open(out) as gif:
        assert gif.n_frames == 3
        shown, pictures = [], []
        for at in range(3):
            gif.seek(at)
            shown.append(gif.info["duration"])
            pictures.append(gif.convert("RGB").tobytes())
    assert shown == [250, 250, 3000]
    assert len(set(pictures)) == 3  # `random` goes other ways in every epoch, and each says which it is


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "1 to 4 runs, got 0"),
        (["nowhere"], "nowhere is no folder of a run: it has no routes.npz"),
        (["RUN"] * 5, "1 to 4 runs, got 5"),
        (["RUN", "--fps", "0"], r"--fps must lie in \(0, 50\], got 0"),
        (["RUN", "--out", "."], "--out must end in .gif"),
        (["RUN", "--out", "a.mp4"], r"--out must end in .gif, the one format animate writes, got a\.mp4"),
    ],
)
def test_what_is_refused(arguments, message, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["animate", *(str(runs[0]) if each == "RUN" else each for each in arguments)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_damaged_is_named(runs, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "routes.npz").write_bytes(b"nothing")
    (folder / "results.json").write_bytes((runs[0] / "results.json").read_bytes())
    assert main(["animate", str(folder), "--out", str(tmp_path / "x.gif")]) == 2
    assert "routes.npz cannot be read back" in capsys.readouterr().err
    (folder / "results.json").write_text(json.dumps([]))
    assert main(["animate", str(folder), "--out", str(tmp_path / "x.gif")]) == 2
    assert "results.json cannot be read back" in capsys.readouterr().err


def test_data_without_a_validation_split(runs, tmp_path):
    for path in runs[0].iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (record,) = json.loads((tmp_path / "results.json").read_text())
    record["curve"]["judged_on"] = "test"  # the columns of a curve are called as they are
    (tmp_path / "results.json").write_text(json.dumps([record]))
    assert main(["animate", str(tmp_path), "--out", str(tmp_path / "routes.gif")]) == 0


def test_a_run_that_is_being_lengthened_ends_with_its_record(runs, tmp_path, capsys):
    (folder := tmp_path / "run").mkdir()
    (folder / "results.json").write_bytes((runs[0] / "results.json").read_bytes())
    known = read_arrays(runs[0] / "routes.npz", epoch=1, routes=4)
    longer = {name: np.concatenate([of, of[-1:] + (name == "epoch")]) for name, of in known.items()}
    write_arrays(folder / "routes.npz", **longer)
    assert main(["animate", str(folder), "--out", str(tmp_path / "routes.gif")]) == 0
    with Image.open(tmp_path / "routes.gif") as gif:
        assert gif.n_frames == 3
    write_arrays(folder / "routes.npz", **{name: of[-1:] for name, of in longer.items()})
    assert main(["animate", str(folder), "--out", str(tmp_path / "routes.gif")]) == 2
    assert "has none of the 3 epochs of the record" in capsys.readouterr().err
