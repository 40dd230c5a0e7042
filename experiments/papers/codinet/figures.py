"""The figures of CoDiNet, drawn from recorded runs and the paths they have left in their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from routing_gym.experiments.engine.figures import learning_curves, save
from routing_gym.experiments.engine.records import Record, by_label, read_arrays
from routing_gym.experiments.engine.run import PATHS
from routing_gym.experiments.papers.codinet.labels import CONSISTENT, MARGINS, VANILLA, WITH_BOTH, with_margin
from routing_gym.experiments.papers.codinet.tables import gflops_of
from routing_gym.experiments.papers.reproduction import Drawing

CLASSES = 5
"""Figs. 6 and 9 show the first five classes: airplane, automobile, bird, cat and deer of CIFAR-10."""

SHOWN = 1500
"""Images that t-SNE arranges."""


def draw(drawing: Drawing) -> list[Path]:
    """Draw the figures of a group; return their files."""
    group, own = drawing.group, drawing.records
    path = drawing.path(group)
    if group in ("cost", "depth", "agents"):
        accuracy_and_cost(own if group != "agents" else drawing.all_records, path, drawing.title)
    else:
        learning_curves(own, path, drawing.title)
    labels = {
        "regularization": (VANILLA, CONSISTENT, WITH_BOTH),
        "margins": (with_margin(MARGINS[0]), WITH_BOTH, *map(with_margin, MARGINS[2:])),
    }.get(group, ())
    shown = {label: runs[0] for label, runs in by_label(own).items() if label in labels and _has_paths(runs[0])}
    if not shown:
        return [path]
    arranged = {label: _arranged(_load(record)) for label, record in shown.items()}
    by_class, by_length, counts = (drawing.path(f"{group}-{what}") for what in ("classes", "lengths", "paths"))
    paths_by_class(arranged, by_class)
    paths_by_length(arranged, by_length)
    path_counts(list(shown.values()), counts)
    return [path, by_class, by_length, counts]


def _has_paths(record: Record) -> bool:
    return (Path(record["folder"]) / PATHS).exists()


def _load(record: Record) -> dict[str, np.ndarray]:
    return read_arrays(Path(record["folder"]) / PATHS, chances=2, choices=2, label=1)


def _arranged(paths: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrange some images of the first classes in a plane by t-SNE of their relaxed paths.

    Returns:
        `place (S, 2)`, `label (S,)`, and `length (S,)`, the expected number of blocks.
    """
    from sklearn.manifold import TSNE

    rows = np.flatnonzero(paths["label"] < CLASSES)
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:SHOWN])
    chances = paths["chances"][rows].astype(np.float32)
    place = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init="random", random_state=0).fit_transform(chances)
    return {"place": place, "label": paths["label"][rows], "length": chances.sum(1)}


def paths_by_class(arranged: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draw relaxed paths, one panel per run, coloured by class (Figs. 6 and 9)."""
    figure, panels = _panels(len(arranged))
    for axes, (label, images) in zip(panels, arranged.items(), strict=True):
        for kind in np.unique(images["label"]):
            own = images["place"][images["label"] == kind]
            axes.scatter(own[:, 0], own[:, 1], s=4, color=f"C{kind}", label=f"class {kind}")
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=10)
    panels[-1].legend(markerscale=3, fontsize=8)
    figure.suptitle("Paths by class (t-SNE)")
    save(figure, path)


def paths_by_length(arranged: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Draw relaxed paths, one panel per run, coloured by the expected number of blocks (Fig. 11)."""
    figure, panels = _panels(len(arranged))
    lengths = np.concatenate([images["length"] for images in arranged.values()])
    for axes, (label, images) in zip(panels, arranged.items(), strict=True):
        points = axes.scatter(
            images["place"][:, 0],
            images["place"][:, 1],
            s=4,
            c=images["length"],
            cmap="coolwarm",
            vmin=lengths.min(),
            vmax=lengths.max(),
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=10)
    figure.colorbar(points, ax=panels, label="blocks expected to run")
    figure.suptitle("Paths by expected length (t-SNE)")
    save(figure, path)


def path_counts(records: Sequence[Record], path: Path) -> None:
    """Draw how many paths there are, what share of images keeps theirs, and how far predictions move (Fig. 10)."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    shown = {"paths": "different paths", "kept": "images that keep their path", "kl": "KL of predictions, nats"}
    panels = figure.subplots(1, len(shown))
    for axes, (key, title) in zip(panels, shown.items(), strict=True):
        values = [record["compared_paths"].get(key, np.nan) for record in records]
        axes.bar(range(len(records)), values, color=[f"C{number}" for number in range(len(records))])
        axes.set_xticks(
            range(len(records)), [record["label"] for record in records], rotation=20, ha="right", fontsize=8
        )
        axes.set_title(title, fontsize=10)
    save(figure, path)


def accuracy_and_cost(records: Sequence[Record], path: Path, title: str) -> None:
    """Draw accuracy against GFLOPs, a curve for each series (Fig. 7), a panel for each part."""
    parts = list(dict.fromkeys(record["part"] for record in records))
    figure, panels = _panels(len(parts), width=5.5)
    for axes, part in zip(panels, parts, strict=True):
        own = [record for record in records if record["part"] == part]
        for series in dict.fromkeys(record["series"] or record["label"] for record in own):
            points = sorted(_point(runs) for runs in by_label(_of(own, series)).values())
            style: dict[str, Any] = {"marker": "o", "linestyle": "-" if len(points) > 1 else ""}
            axes.plot(*zip(*points, strict=True), label=series, **style)
        axes.set(xlabel="GFLOPs per image", ylabel="test accuracy, %", title=part)
        axes.legend(fontsize=7)
    figure.suptitle(title)
    save(figure, path)


def _of(records: Sequence[Record], series: str) -> list[Record]:
    return [record for record in records if (record["series"] or record["label"]) == series]


def _point(runs: Sequence[Record]) -> tuple[float, float]:
    return float(np.mean([gflops_of(run) for run in runs])), 100 * float(
        np.mean([run["test_accuracy"] for run in runs])
    )


def _panels(count: int, width: float = 4.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, 4), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))
