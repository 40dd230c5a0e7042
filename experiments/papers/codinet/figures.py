"""The figures of CoDiNet, drawn from recorded runs and the paths they have left in their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from routing_gym.experiments.engine.figures import learning_curves, save
from routing_gym.experiments.engine.records import by_label, read_arrays
from routing_gym.experiments.engine.run import PATHS
from routing_gym.experiments.papers.codinet.results import gflops_of
from routing_gym.experiments.papers.codinet.rows import CONSISTENT, MARGINS, VANILLA, WITH_BOTH, with_margin
from routing_gym.experiments.papers.figures import row_of
from routing_gym.experiments.papers.reproduction import Drawing, Runs, among, distinct, mean_of

CLASSES = 5
"""Figs. 6 and 9 show the first five classes: airplane, automobile, bird, cat and deer of CIFAR-10."""
SHOWN = 1500
"""Images that t-SNE arranges."""
LOOKED_INTO = {
    "regularization": (VANILLA, CONSISTENT, WITH_BOTH),
    "margins": (with_margin(MARGINS[0]), WITH_BOTH, *map(with_margin, MARGINS[2:])),
}
"""Rows of groups whose paths are drawn."""

Arranged = Mapping[str, Mapping[str, np.ndarray]]
"""Of each run `place (S, 2)` and `label (S,)` of some images, and `length (S,)`, the expected number of blocks."""


def draw(drawing: Drawing) -> None:
    """Draw the figures of a group."""
    group, own = drawing.group, drawing.records
    if group in ("cost", "depth", "agents"):
        drawing.add(group, _accuracy_and_cost, drawing.all_records if group == "agents" else own)
    else:
        drawing.add(group, learning_curves, own)
    firsts = [runs[0] for label, runs in by_label(own).items() if label in LOOKED_INTO.get(group, ())]
    shown = [record for record in firsts if (Path(record["folder"]) / PATHS).exists()]
    if shown:
        arranged = {record["label"]: _arranged(Path(record["folder"]) / PATHS) for record in shown}
        drawing.add(f"{group}-classes", _paths_by_class, arranged, "Paths by class (t-SNE)")
        drawing.add(f"{group}-lengths", _paths_by_length, arranged, "Paths by expected length (t-SNE)")
        drawing.add(f"{group}-paths", _path_counts, shown)


def _arranged(path: Path) -> dict[str, np.ndarray]:
    """Arrange some images of the first classes in a plane by t-SNE of their relaxed paths, see `Arranged`."""
    from sklearn.manifold import TSNE

    paths = read_arrays(path, chances=2, choices=2, label=1)
    rows = np.flatnonzero(paths["label"] < CLASSES)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:SHOWN])
    chances = paths["chances"][rows].astype(np.float32)
    place = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init="random", random_state=0).fit_transform(chances)
    return {"place": place, "label": paths["label"][rows], "length": chances.sum(1)}


def _panels(title: str, count: int, width: float = 4.0) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width * count, 4), layout="constrained")
    figure.suptitle(title)
    return figure, row_of(figure, count)


def _paths_by_class(arranged: Arranged, path: Path, title: str) -> None:
    """Draw relaxed paths, one panel per run, coloured by class (Figs. 6 and 9)."""
    figure, panels = _panels(title, len(arranged))
    for axes, (label, images) in zip(panels, arranged.items(), strict=True):
        for kind in np.unique(images["label"]):
            own = images["place"][images["label"] == kind]
            axes.scatter(own[:, 0], own[:, 1], s=4, color=f"C{kind}", label=f"class {kind}")
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=10)
    panels[-1].legend(markerscale=3, fontsize=8)
    save(figure, path)


def _paths_by_length(arranged: Arranged, path: Path, title: str) -> None:
    """Draw relaxed paths, one panel per run, coloured by the expected number of blocks (Fig. 11)."""
    figure, panels = _panels(title, len(arranged))
    lengths = np.concatenate([images["length"] for images in arranged.values()])
    ends = {"vmin": lengths.min(), "vmax": lengths.max()}
    for axes, (label, images) in zip(panels, arranged.items(), strict=True):
        points = axes.scatter(
            images["place"][:, 0], images["place"][:, 1], s=4, c=images["length"], cmap="coolwarm", **ends
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=10)
    figure.colorbar(points, ax=panels, label="blocks expected to run")
    save(figure, path)


def _path_counts(records: Runs, path: Path, title: str) -> None:
    """Draw how many paths there are, what share of images keeps theirs, and how far predictions move (Fig. 10)."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    shown = {"paths": "different paths", "kept": "images that keep their path", "kl": "KL of predictions, nats"}
    places, labels = range(len(records)), [record["label"] for record in records]
    for axes, (key, what) in zip(row_of(figure, len(shown)), shown.items(), strict=True):
        values = [record["compared_paths"].get(key, np.nan) for record in records]
        axes.bar(places, values, color=[f"C{number}" for number in places])
        axes.set_xticks(places, labels, rotation=20, ha="right", fontsize=8)
        axes.set_title(what, fontsize=10)
    save(figure, path)


def _accuracy_and_cost(records: Runs, path: Path, title: str) -> None:
    """Draw accuracy against GFLOPs, a curve for each series (Fig. 7), a panel for each part."""
    parts = distinct(records, "part")
    figure, panels = _panels(title, len(parts), width=5.5)
    for axes, part in zip(panels, parts, strict=True):
        own = [{**record, "series": record["series"] or record["label"]} for record in among(records, part=part)]
        for series in distinct(own, "series"):
            points = sorted(
                (float(np.mean([gflops_of(run) for run in runs])), 100 * mean_of(runs, "test_accuracy"))
                for runs in by_label(among(own, series=series)).values()
            )
            line = "-" if len(points) > 1 else ""
            axes.plot(*zip(*points, strict=True), label=series, marker="o", linestyle=line)
        axes.set(xlabel="GFLOPs per image", ylabel="test accuracy, %", title=part)
        axes.legend(fontsize=7)
    save(figure, path)
