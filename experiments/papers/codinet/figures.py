"""The figures of CoDiNet, drawn from recorded runs and the paths they have left in their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import ListedColormap

from routing_gym.experiments.engine.figures import learning_curves, save
from routing_gym.experiments.engine.records import Record, by_label, read_arrays
from routing_gym.experiments.engine.run import PATHS
from routing_gym.experiments.engine.training import CHECKPOINT
from routing_gym.experiments.papers.codinet.results import gflops_of
from routing_gym.experiments.papers.codinet.rows import WITH_BOTH
from routing_gym.experiments.papers.figures import panels, show
from routing_gym.experiments.papers.reproduction import Drawing, Runs, among, distinct, mean_of
from routing_gym.experiments.train import load_with_env

CLASSES = 5
"""Figs. 6 and 9 show the first five classes: airplane, automobile, bird, cat and deer of CIFAR-10."""
SHOWN, IMAGES = 1500, 8
"""Images that t-SNE arranges, and that are shown of a class."""
LOOKED_INTO = ("regularization", "margins")
"""Groups whose paths are drawn."""
COLORS = {"class": ListedColormap([f"C{label}" for label in range(CLASSES)]), "blocks expected to run": "coolwarm"}
"""What images are coloured by, and the colours."""


def draw(drawing: Drawing) -> None:
    """Draw the figures of a group."""
    group, own = drawing.group, drawing.records
    if group in ("cost", "depth", "agents"):
        drawing.add(group, _accuracy_and_cost, drawing.all_records if group == "agents" else own)
    else:
        drawing.add(group, learning_curves, own)
    firsts = [runs[0] for runs in by_label(own).values()]
    shown = [run for run in firsts if group in LOOKED_INTO and (Path(run["folder"]) / PATHS).exists()]
    if shown:
        arranged = {record["label"]: _arranged(Path(record["folder"]) / PATHS) for record in shown}
        drawing.add(f"{group}-classes", _plane, arranged, "Paths by class (t-SNE)", by="class")
        length = "blocks expected to run"
        drawing.add(f"{group}-lengths", _plane, arranged, "Paths by expected length (t-SNE)", by=length)
        drawing.add(f"{group}-paths", _path_counts, shown)
    for record in among(shown, label=WITH_BOTH) if group == "regularization" else ():
        drawing.add(f"{group}-images", _few_and_many, record, f"{record['label']}: images by the blocks they run")


def _arranged(path: Path) -> dict[str, np.ndarray]:
    """Return some images of the first classes: a place `(S, 2)` by t-SNE of relaxed paths, and what of `COLORS`."""
    from sklearn.manifold import TSNE

    paths = read_arrays(path, chances=2, choices=2, label=1)
    rows = np.flatnonzero(paths["label"] < CLASSES)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:SHOWN])
    chances = paths["chances"][rows].astype(np.float32)
    place = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init="random", random_state=0).fit_transform(chances)
    return {"place": place, "class": paths["label"][rows], "blocks expected to run": chances.sum(1)}


def _plane(arranged: Mapping[str, Mapping[str, np.ndarray]], path: Path, title: str, by: str) -> None:
    """Draw relaxed paths, one panel per run, coloured by class (Figs. 6 and 9) or by expected length (Fig. 11)."""
    figure, axes_of = panels(title, list(arranged), 4 * len(arranged), 4)
    values = np.concatenate([images[by] for images in arranged.values()])
    shown = {"s": 4, "cmap": COLORS[by], "vmin": values.min(), "vmax": values.max()}
    for label, axes in axes_of.items():
        x, y = arranged[label]["place"].T
        points = axes.scatter(x, y, c=arranged[label][by], **shown)
        axes.set(xticks=[], yticks=[])
    if by == "class":
        axes.legend(*points.legend_elements(), title=by, fontsize=8)
    else:
        figure.colorbar(points, ax=list(axes_of.values()), label=by)
    save(figure, path)


def _path_counts(records: Runs, path: Path, title: str) -> None:
    """Draw how many paths there are, what share of images keeps theirs, and how far predictions move (Fig. 10)."""
    shown = {"different paths": "paths", "images that keep their path": "kept_rotated", "as in training": "kept",
             "KL of predictions, nats": "kl"}  # fmt: skip
    figure, axes_of = panels(title, list(shown), 11, 3.2)
    places, labels = range(len(records)), [record["label"] for record in records]
    for what, axes in axes_of.items():
        values = [record["compared_paths"][shown[what]] for record in records]
        axes.bar(places, values, color=[f"C{number}" for number in places])
        axes.set_xticks(places, labels, rotation=20, ha="right", fontsize=8)
    save(figure, path)


def _few_and_many(record: Record, path: Path, title: str) -> None:
    """Draw the images of some classes that run the fewest blocks and those that run the most (section 4.4.3)."""
    folder = Path(record["folder"])
    paths = read_arrays(folder / PATHS, chances=2, choices=2, label=1)
    data = load_with_env(folder / CHECKPOINT).env.datasets["test"]
    length = paths["chances"].astype(np.float32).sum(1)
    columns = min(IMAGES, *np.bincount(paths["label"])[:CLASSES].tolist())
    figure, axes_of = panels(title, ["fewest", "most"], 9, 4.5)
    for (what, axes), order in zip(axes_of.items(), (length, -length), strict=True):
        ranked = order.argsort(kind="stable")
        rows = np.concatenate([ranked[paths["label"][ranked] == label][:columns] for label in range(CLASSES)])
        show(axes, data.images[data.image[torch.from_numpy(rows)]], columns)
        axes.set_xlabel(f"{what}: {length[rows].mean():.2f} blocks expected to run, a class in each row", fontsize=8)
    save(figure, path)


def _accuracy_and_cost(records: Runs, path: Path, title: str) -> None:
    """Draw accuracy against GFLOPs, a curve for each series (Fig. 7), a panel for each part."""
    parts = distinct(records, "part")
    figure, axes_of = panels(title, parts, 5.5 * len(parts), 4)
    for part, axes in axes_of.items():
        own = [{**record, "series": record["series"] or record["label"]} for record in among(records, part=part)]
        for series in distinct(own, "series"):
            rows = by_label(among(own, series=series)).values()
            common = set.intersection(*({run["seed"] for run in runs} for runs in rows))  # a curve is of the same seeds
            shown = [[run for run in runs if run["seed"] in common] for runs in rows] if common else rows
            points = sorted(
                (float(np.mean([gflops_of(run) for run in runs])), 100 * mean_of(runs, "test_accuracy"))
                for runs in shown
            )
            axes.plot(*zip(*points, strict=True), label=series, marker="o")
        axes.set(xlabel="GFLOPs per image", ylabel="test accuracy, %")
        axes.legend(fontsize=7)
    save(figure, path)
