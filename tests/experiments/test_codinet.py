"""CoDiNet's rows, tables, claims and pictures, on stand-in data and on made-up records; paths of images."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from records import cells, made, of_row, over_seeds, verdicts
from standins import write_cifar10
from stepping import step

from routing_gym.agents import make_agent
from routing_gym.envs import RoutingVectorEnv, evaluate
from routing_gym.experiments import reproduce
from routing_gym.experiments.cli import main
from routing_gym.experiments.engine.paths import (
    Paths,
    augmented,
    cropped_flipped_rotated,
    judged_paths,
    paths_of,
    rotated,
)
from routing_gym.experiments.engine.run import PATHS
from routing_gym.experiments.papers.codinet import CODINET
from routing_gym.experiments.papers.codinet.results import claims, paths_and_cost
from routing_gym.experiments.papers.codinet.rows import (
    CIFAR10,
    CONSISTENT,
    DEPTHS,
    GAMMAS,
    MARGINS,
    PAPER,
    PRINTED,
    RELAXATIONS,
    RESNET,
    VANILLA,
    WITH_BOTH,
    with_depth,
    with_gamma,
    with_margin,
)
from routing_gym.experiments.papers.judging import claims_of
from routing_gym.networks import make_network
from routing_gym.tasks import Shift, synthetic_mtl

TINY = ("network=resnet32-skip", "stages=[1, 1, 1]", "width=2")


def test_the_rows_are_the_papers(tmp_path):
    rows = {row.label: (row, cell) for row, cell in cells(CODINET, PAPER, tmp_path)}
    assert len(rows) == len(CODINET.rows) == len({cell.folder for _, cell in rows.values()})
    missing = set(PRINTED) - set(rows)
    assert missing == {with_gamma(0.0), with_margin(0.5)}, "those two are the same run as the one with both losses"
    row, cell = rows[VANILLA]
    assert row.paper == {250: 93.16} and cell.training.epochs == 250 and cell.training.batch_size == 256
    assert {"alpha=0.0", "beta=0.0", "gamma=0.0", "freeze_after=218.75"} == set(cell.agent_options)
    assert {"schedule_epochs=(150, 200)", "augmentations=4", "weight_decay=1e-4"} <= set(cell.training.env_options)
    assert rows[WITH_BOTH][0].groups == ("regularization", "cost", "margins")
    assert rows[with_gamma(0.1)][1].agent_options == ("gamma=0.1", "freeze_after=218.75")


@pytest.mark.long
def test_every_row_on_cifar10_can_be_made(tmp_path):
    """Each agent on its own options; the networks are narrow, and but for the first of a depth of three blocks."""
    write_cifar10(tmp_path / "cifar-10-batches-bin", 20)
    seen, whole = set(), set()
    for row, cell in cells(CODINET, PAPER, tmp_path):
        if row.env != CIFAR10:
            continue
        depths = [depth for depth in DEPTHS if f" {depth} layers" in row.label]
        expected = (depths[0] - 2) // 2 if depths else 54
        narrow = ("width=1",)
        if expected in whole and row.series != RESNET:  # its routes name every block
            narrow, expected = (*narrow, "stages=[1, 1, 1]"), 3
        whole.add(expected)
        agent = made(cell, *narrow, data_dir=str(tmp_path))
        assert agent.name == row.agent and agent.num_decisions == expected, row.label
        if row.series == RESNET:
            assert agent.routes.tolist() == [[1] * expected]
        seen.add(row.agent)
    assert {"codinet", "fixed-routes", "reinforce"} <= seen


# ----------------------------------------------------------------------------------------------------------- paths


def skipping_env(num_envs=16, **options):
    data = synthetic_mtl(num_tasks=1, num_classes=3, image_size=8, images_per_class=20)
    data["train"] = dataclasses.replace(data["train"], augmentation=Shift(2, flip=True))
    torch.manual_seed(0)
    shape = data["train"].input_shape
    network = make_network("resnet32-skip", num_tasks=1, num_classes=3, input_shape=shape, stages=[1, 1, 1], width=4)
    return RoutingVectorEnv(network, data, num_envs, autoreset_mode="disabled", **options)


def test_paths_are_those_of_every_image():
    env = skipping_env(differentiable=True, action_type="weights", augmentations=4)
    agent = make_agent("codinet", env)
    agent.learn(env, 32)
    test = env.datasets["test"]
    paths = paths_of(agent, test)
    state = env.network.eval().start(test.pixels(torch.arange(len(test))), test.task)
    agent.eval()
    for number in range(3):
        scores = agent.scores.of[number](env.network.observe(state)[:, : env.network.decisions[number].width])
        torch.testing.assert_close(paths.chances[:, number], scores.softmax(-1).detach())
        assert torch.equal(paths.choices[:, number], (scores[:, 1] >= scores[:, 0]).long())
        state = step(env.network, state, paths.choices[:, number])
    torch.testing.assert_close(paths.logits, state.exits[0].logits.detach())
    assert torch.equal(paths.label, test.label)
    judged = evaluate(agent, env)
    assert judged.paths == len({tuple(path) for path in paths.choices.tolist()})
    assert float(paths.choices.sum(1).double().mean()) == pytest.approx(float(judged.use[:, 1].sum()))


def test_paths_of_an_agent_that_says_no_chances_are_its_choices():
    env = skipping_env()
    paths = paths_of(make_agent("fixed-routes", env, routes=[[1, 0, 1]]), env.datasets["test"])
    assert paths.choices.unique(dim=0).tolist() == [[1, 0, 1]]
    assert torch.equal(paths.chances[..., 1], paths.choices.to(paths.chances.dtype))


def test_images_are_augmented_once_and_otherwise_left_alone():
    split = synthetic_mtl(num_tasks=1, num_classes=3, image_size=8, images_per_class=20)["test"]
    shift = Shift(2, flip=True)
    moved = augmented(split, shift, 3)
    assert torch.equal(moved.label, split.label) and torch.equal(moved.image, split.image)
    parameters = shift.draw(len(split.images), torch.Generator().manual_seed(3))
    assert torch.equal(moved.images, shift.apply(split.images, parameters))
    assert not torch.equal(moved.images, split.images)


def test_rotations_are_right_where_the_answer_is_known():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    turned = rotated(images, torch.tensor([0.0, 90.0, -90.0, 180.0]))
    for image, quarters, found in zip(images, (0, 1, -1, 2), turned, strict=True):
        assert torch.equal(found, image.rot90(quarters, (1, 2)))
    small = torch.rand(1, 1, 8, 8)  # features are not rounded
    torch.testing.assert_close(rotated(small, torch.tensor([90.0])), small.rot90(1, (2, 3)))
    # A bar from the centre to the right is turned up by 30 degrees: where it ends in 40 by 60 pixels, corners black.
    bar = torch.zeros(1, 1, 40, 60, dtype=torch.uint8)
    bar[..., 19:21, 30:50] = 255
    (up,) = rotated(bar, torch.tensor([30.0]))[0] / 255
    down, right = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(60) - 29.5, indexing="ij")
    along, beside = right * np.cos(np.pi / 6) - down * 0.5, right * 0.5 + down * np.cos(np.pi / 6)
    inside = ((beside.abs() < 1) & (along > 0) & (along < 20)).float()
    assert float((up - inside).abs().max()) < 0.75 and float(up.sum()) == pytest.approx(40, rel=0.05)
    assert float((up * along).sum() / up.sum()) == pytest.approx(10, abs=0.1)


def test_augmented_as_in_the_paper(monkeypatch):
    """Without rotation an image is moved and mirrored, both ways by halves; rotations go as far to either side."""
    split = synthetic_mtl(num_tasks=1, num_classes=3, image_size=8, images_per_class=200)["test"]
    turns = []
    monkeypatch.setattr(
        "routing_gym.experiments.engine.paths.rotated",
        lambda images, degrees: turns.append(degrees) or images,
    )
    found = cropped_flipped_rotated(split, Shift(1), 3)
    assert torch.equal(found.label, split.label) and torch.equal(found.image, split.image)
    mirrored = {(vertical, horizontal): 0 for vertical in (False, True) for horizontal in (False, True)}
    for image, ours in zip(split.images, found.images, strict=True):
        for vertical, horizontal in mirrored:
            flipped = image.flip([axis for axis, whether in ((1, vertical), (2, horizontal)) if whether])
            padded = torch.nn.functional.pad(flipped, (1, 1, 1, 1))
            crops = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
            if any(torch.equal(ours, crop) for crop in crops):
                mirrored[vertical, horizontal] += 1
                break
    count = len(split.images)
    assert sum(mirrored.values()) == count, "every image is one of 36"
    assert min(mirrored.values()) > count / 8
    (degrees,) = turns
    assert -15 <= float(degrees.min()) < -14 and 14 < float(degrees.max()) <= 15 and abs(float(degrees.mean())) < 2


def test_shares_of_kept_paths_where_they_are_known(monkeypatch, tmp_path):
    """Paths go by which half of an image is brighter: to move and mirror it changes nothing, to turn it over does."""
    splits = synthetic_mtl(num_tasks=1, num_classes=3, image_size=16, images_per_class=200)
    images = torch.zeros_like(splits["test"].images)
    images[::2, :, 4:6] = 200  # every other one is black and stays as it is
    splits = {
        "train": dataclasses.replace(splits["train"], augmentation=Shift(2, flip=True)),
        "test": dataclasses.replace(splits["test"], images=images),
    }

    def by_brighter_half(agent, split):
        pixels = split.images[split.image].float().sum((1, 3))
        brighter = (pixels[:, :8].sum(1) > pixels[:, 8:].sum(1)).long()[:, None]
        return Paths(brighter, torch.nn.functional.one_hot(brighter, 2), torch.zeros(len(pixels), 3), split.label)

    monkeypatch.setattr("routing_gym.experiments.engine.paths.paths_of", by_brighter_half)
    judged = SimpleNamespace(
        agent=SimpleNamespace(env=SimpleNamespace(datasets=splits)), evaluation=SimpleNamespace(split="test")
    )
    found = judged_paths(judged, 5, tmp_path / PATHS)
    turned_over = torch.rand(2, len(images), generator=torch.Generator().manual_seed(6))[0] < 0.5
    assert found["kept"] == 1 and found["kl"] == 0 and found["paths"] == 2 and found["length"] == pytest.approx(0.5)
    assert found["kept_rotated"] == pytest.approx(1 - float(turned_over[::2].sum()) / len(images))
    assert 0.6 < found["kept_rotated"] < 0.9
    splits["train"] = dataclasses.replace(splits["train"], augmentation=None)
    assert {"paths", "length"} == set(judged_paths(judged, 5, tmp_path / PATHS))


# --------------------------------------------------------------------------------------------------------- records


def record(label, accuracy, macs=1e8, *, paths=10.0, kept=0.5, kl=0.1, **more):
    compared = {"paths": paths, "length": 7.5, "kept": 0.9, "kept_rotated": kept, "kl": kl}
    return of_row(label, accuracy, macs, paths=paths, compared_paths=compared, **more)


def test_claims_follow_the_records():
    good = [
        record(VANILLA, 0.90, paths=100.0, kept=0.2, kl=0.3),
        record(CONSISTENT, 0.88, paths=20.0, kl=0.1),
        record(WITH_BOTH, 0.93, 1.5e8, paths=300.0, kept=0.6),
        *(record(with_gamma(gamma), 0.92, 1.4e8 - 1e9 * gamma) for gamma in GAMMAS[1:-1]),
        record(with_gamma(0.1), 0.85, 1e7),
        *(record(with_margin(margin), 0.9, paths=600 * margin) for margin in MARGINS if margin != 0.5),
        record(with_depth(WITH_BOTH, 32, "CIFAR-10"), 0.93),
        record(with_depth(RESNET, 32, "CIFAR-10"), 0.91),
        *(record(name, 0.93 - 0.05 * i) for i, name in enumerate(RELAXATIONS.values())),
    ]
    good = over_seeds(good)
    found = verdicts(claims(good))
    assert set(found.values()) == {"holds"} and len(found) == 11
    assert set(verdicts(claims([run for run in good if run["seed"] < 2])).values()) == {"not enough"}
    bad = [
        record(VANILLA, 0.93, paths=10.0, kept=0.7, kl=0.1),
        record(CONSISTENT, 0.95, paths=20.0, kl=0.3),
        record(WITH_BOTH, 0.90, 1.5e8, paths=5.0, kept=0.6),
        *(record(with_gamma(gamma), 0.95, 2e8 + 1e9 * gamma) for gamma in GAMMAS[1:]),
        *(record(with_margin(margin), 0.9, paths=1 / margin) for margin in MARGINS if margin != 0.5),
        record(with_depth(WITH_BOTH, 32, "CIFAR-10"), 0.90),
        record(with_depth(RESNET, 32, "CIFAR-10"), 0.93),
        *(record(name, 0.80 + 0.05 * i) for i, name in enumerate(RELAXATIONS.values())),
    ]
    assert set(verdicts(claims(over_seeds(bad))).values()) == {"does not hold"}


def test_a_claim_waits_for_its_own_rows_alone():
    paper = reproduce.REPRODUCTIONS["codinet"]
    (protocol,) = (one for one in paper.settings if one.name == "two-cores")
    worse, falling = "Table 2: with consistency alone more images are classified wrong", "Table 5: the larger gamma"
    runs = over_seeds([record(VANILLA, 0.90), record(WITH_BOTH, 0.93)])
    found = verdicts(claims_of(paper, protocol, runs))  # of no seed there are all rows
    assert found[protocol.decides] == "holds" and worse not in found
    runs += over_seeds([record(CONSISTENT, 0.88)], 2)
    assert verdicts(claims_of(paper, protocol, runs))[worse] == "not enough"
    runs += [record(CONSISTENT, 0.88, seed=2)]
    found = verdicts(claims_of(paper, protocol, runs))
    assert found[worse] == "holds" and not any(text.startswith(falling) for text in found)
    runs += over_seeds([record(with_gamma(gamma), 0.92, 1.4e8 - 1e9 * gamma) for gamma in GAMMAS[1:]])
    assert any(text.startswith(falling) for text in verdicts(claims_of(paper, protocol, runs)))
    runs = [run for run in runs if run["seed"] < 2 or run["label"] != VANILLA]
    found = verdicts(claims_of(paper, protocol, runs))
    assert found[protocol.decides] == found[worse] == "not enough"


def test_the_table_has_ours_and_theirs():
    lines = paths_and_cost([record(VANILLA, 0.9), record(VANILLA, 0.92, seed=1), record("ours", 0.5)])
    assert (
        "**91.00 ± " in lines[2]
        and "*93.16*" in lines[2]
        and "0.2000" in lines[2]
        and "| 50.0 *22.65* | 90.0 |" in lines[2]
    )
    assert lines[2].endswith("| 8 | 0.0 | 2 |") and "10 *113*" in lines[2] and "1.110" in lines[2]
    assert lines[3].startswith("| ours | **50.00** | 0.2000 |")
    plain = {key: value for key, value in record("plain", 0.9).items() if key != "compared_paths"}
    assert "|  |  |  |  |  |" in paths_and_cost([plain])[2]


@pytest.mark.long
def test_the_command_runs_and_draws(monkeypatch, tmp_path):
    """Three rows and what they are compared with, on 120 stand-in images and three blocks."""
    write_cifar10(tmp_path / "data" / "cifar-10-batches-bin", 20)
    small = dataclasses.replace(PAPER, epochs=1, env_options=(*PAPER.env_options, *TINY))
    paper = dataclasses.replace(CODINET, settings=(small,), batch_size=40)
    monkeypatch.setitem(reproduce.REPRODUCTIONS, "codinet", paper)
    out = tmp_path / "out"
    options = ["--groups", "regularization", "agents", "--rows", "vanilla", "with", "REINFORCE", "--seeds", "1"]
    command = ["reproduce", "codinet", *options, "--data-dir", str(tmp_path / "data"), "--out", str(out)]
    assert main([*command, "--device", "cpu", "--threads", "1"]) == 0
    found = json.loads((out / "results.json").read_text())
    assert {run["label"] for run in found} == {VANILLA, CONSISTENT, WITH_BOTH, "REINFORCE", "REINFORCE, table"}
    for run in found:
        assert {"paths", "length", "kept", "kept_rotated", "kl"} == set(run["compared_paths"])
        with np.load(f"{run['folder']}/{PATHS}") as saved:
            assert saved["chances"].shape == saved["choices"].shape == (20, 3) and saved["label"].shape == (20,)
            paths = len({tuple(row) for row in saved["choices"].tolist()})
        assert paths == run["paths"] == run["compared_paths"]["paths"]
    report = (out / "codinet.md").read_text()
    assert "Table 2: with both losses fewer images are classified wrong than with neither" in report
    for name in (*(f"regularization{end}" for end in ("", "-classes", "-images", "-lengths", "-paths")), "agents"):
        picture = imread(out / f"paper-{name}.png")
        assert picture.std() > 0.01, name
