"""Tables and the picture of benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter
from rich import box
from rich.table import Table

from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.engine.records import Record

Columns = dict[str, Callable[[Record], str]]

RATIOS: Columns = {
    "train": lambda r: f"{r['train_ratio']:.3f}",
    "inference": lambda r: f"{r['inference_ratio']:.3f}",
    "MACs": lambda r: f"{r['macs_ratio']:.2f}",
    "memory": lambda r: f"{r['peak_memory_bytes'] / r['static_peak_memory_bytes']:.2f}",
}
"""Routed over static: samples per second, multiply-accumulates per instance, bytes held in a training step."""

THREADS: Columns = {"threads": lambda r: str(r["threads"])}
BATCH: Columns = {"batch": lambda r: str(r["batch"])}

STEPS: Columns = {
    "agent": lambda r: name_of(r),
    "blocks": lambda r: str(r["blocks"]),
    **BATCH,
    **THREADS,
    **RATIOS,
    "trained per s": lambda r: f"{r['train_samples_per_second']:,.0f}",
    "transitions per s": lambda r: f"{r['transitions_per_second']:,.0f}",
}
FACES: Columns = {
    "face": lambda r: r["face"],
    **BATCH,
    **THREADS,
    "blocks learn": lambda r: "yes" if r["train"] else "no",
    "transitions per s": lambda r: f"{r['transitions_per_second']:,.0f}",
    "of the core": lambda r: f"{r['share_of_core']:.3f}",
    "of a core of as many rows": lambda r: f"{r['share_of_core_of_as_many_rows']:.2f}",
}
EXPERTS: Columns = {
    "case": lambda r: r["case"],
    "against": lambda r: r["against"],
    **BATCH,
    **THREADS,
    **RATIOS,
}
SKIPPING: Columns = {
    "case": lambda r: r["case"],
    "share": lambda r: f"{r['share']:.2f}",
    **BATCH,
    **THREADS,
    **RATIOS,
    "MACs saved": lambda r: f"{100 * r['macs_saved']:.0f} %",
    "training saved": lambda r: f"{100 * r['train_time_saved']:.0f} %",
    "inference saved": lambda r: f"{100 * r['inference_time_saved']:.0f} %",
}
CONVNET: Columns = {
    "agent": lambda r: name_of(r),
    **THREADS,
    **RATIOS,
    "s per 50 000": lambda r: f"{r['seconds_per_50000']:.1f}",
    "static": lambda r: f"{r['static_seconds_per_50000']:.1f}",
}

EARLY_EXIT: Columns = {
    "case": lambda r: r["case"],
    **BATCH,
    **THREADS,
    "MACs": lambda r: f"{r['macs_ratio']:.2f}",
    "floor": lambda r: _or_dash(r["floor_ratio"], ".2f"),
    "time": lambda r: f"{r['time_ratio']:.2f}",
    "µs": lambda r: f"{r['microseconds']:,.0f}",
    "static": lambda r: f"{r['static_microseconds']:,.0f}",
    "of the MACs' saving": lambda r: _or_dash(r["saving_arrived"], ".0%"),
    "of the floor's": lambda r: _or_dash(r["possible_saving_arrived"], ".0%"),
}

BLOCK_SKIP: Columns = {
    "case": lambda r: r["case"],
    **BATCH,
    **THREADS,
    "MACs": lambda r: f"{r['macs_ratio']:.2f}",
    "time": lambda r: f"{r['time_ratio']:.2f}",
    "µs": lambda r: f"{r['microseconds']:,.0f}",
    "static": lambda r: f"{r['static_microseconds']:,.0f}",
    "of the MACs' saving": lambda r: _or_dash(r["saving_arrived"], ".0%"),
    "against all routed": lambda r: _or_dash(r["of_routed"], ".0%"),
}

PARALLEL_PATHS: Columns = {
    "network": lambda r: r["network"],
    **BATCH,
    **THREADS,
    **RATIOS,
    "loop: train": lambda r: f"{r['loop_train_ratio']:.2f}",
    "loop: inference": lambda r: f"{r['loop_inference_ratio']:.2f}",
    "loop: memory": lambda r: f"{r['peak_memory_bytes'] / r['loop_peak_memory_bytes']:.2f}",
    "channels first: train": lambda r: f"{r['channels_first_loop_train_ratio']:.2f}",
    "channels first: inference": lambda r: f"{r['channels_first_loop_inference_ratio']:.2f}",
}
LIVE_PATHS: Columns = {
    "network": lambda r: r["network"],
    "live": lambda r: f"{r['live_paths']} of {r['blocks']}",
    **BATCH,
    **THREADS,
    "MACs": lambda r: f"{r['macs_of_soft']:.2f}",
    "training time": lambda r: f"{r['train_time_of_soft']:.2f}",
    "inference time": lambda r: f"{r['inference_time_of_soft']:.2f}",
    "trained per s": lambda r: f"{r['train_samples_per_second']:,.0f}",
    "classified per s": lambda r: f"{r['inference_samples_per_second']:,.0f}",
}


def name_of(record: Record) -> str:
    """Return an agent's name with the options it was given, and with the precision where that is not float32."""
    precision = [] if record["dtype"] == "float32" else [record["dtype"]]
    return " ".join([record["agent"], *record["agent_options"], *precision])


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form).replace("%", " %")


def tables(records: Sequence[Record]) -> list[Table]:
    """Return a table of every part that was measured."""
    parts: dict[str, tuple[Columns, list[Record]]] = {}
    for record in records:
        title, columns = _form(record)
        parts.setdefault(title, (columns, []))[1].append(record)
    return [_table(title, columns, own) for title, (columns, own) in parts.items()]


def _form(record: Record) -> tuple[str, Columns]:
    """Return the title and the columns of the table a record belongs to."""
    over = "ratios: routed / static"
    if record["part"] == "steps":
        return f"Three layers, 128 wide; {over}", STEPS
    if record["part"] == "faces":
        return "Core and faces, random actions", FACES
    if record["part"] == "convnet":
        return f"SimpleConvNet; {over}", CONVNET
    if record["part"] == "early-exit":
        return "Early exit, inference; ratios to the whole network, and how much of the saving arrives", EARLY_EXIT
    if record["part"] == "block-skip":
        return (
            "Blocks that are skipped, inference; ratios to the whole network, how much of the saving arrives",
            BLOCK_SKIP,
        )
    if record["part"] == "parallel-paths":
        if "live_paths" in record:
            return "Parallel paths, hard choices; ratios to soft gates, which run all paths", LIVE_PATHS
        return "Parallel paths, soft gates; ratios to the single network, and to a loop over the paths", PARALLEL_PATHS
    if "share" in record:
        return f"Rows that skip; {over}, and what is saved against nobody skipping", SKIPPING
    return f"Unlike convolution blocks; {over}", EXPERTS


def _table(title: str, columns: Columns, records: Sequence[Record]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for record in records:
        table.add_row(*(show(record) for show in columns.values()))
    return table


def ratios_against_blocks(records: Sequence[Record], path: Path) -> None:
    """Draw routed / static samples per second against blocks: a panel per batch size, a line per agent.

    Args:
        records: Of the part steps.
        path: The picture. Training is in the upper row, inference in the lower.
    """
    batches = sorted({record["batch"] for record in records})
    blocks = sorted({record["blocks"] for record in records})
    threads = sorted({record["threads"] for record in records})
    names = list(dict.fromkeys(name_of(record) for record in records))
    figure = Figure(figsize=(3.2 * len(batches) + 2.4, 5.6), layout="constrained")
    first = records[0]
    where = first["accelerator"] or first["processor"]
    figure.suptitle(f"Routed / static samples per second\n{where}, PyTorch {first['torch']}", fontsize=10)
    grid = figure.subplots(2, len(batches), sharex=True, sharey="row", squeeze=False)
    for row, (key, what) in enumerate((("train_ratio", "training"), ("inference_ratio", "inference"))):
        for axes, batch in zip(grid[row], batches, strict=True):
            for number, name in enumerate(names):
                for dash, count in enumerate(threads):
                    own = [r for r in records if (r["batch"], r["threads"], name_of(r)) == (batch, count, name)]
                    label = name if len(threads) == 1 else f"{name}, {count} thread{'s' * (count > 1)}"
                    axes.plot(
                        [r["blocks"] for r in own],
                        [r[key] for r in own],
                        marker="o",
                        markersize=4,
                        color=f"C{number}",
                        linestyle=("-", "--", ":", "-.")[dash % 4],
                        label=label,
                    )
            axes.axhline(1, color="black", linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(blocks)
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3)
            if row == 0:
                axes.set_title(f"batch {batch}", fontsize=10)
            else:
                axes.set_xlabel("blocks per layer")
        grid[row][0].set_ylabel(what)
        grid[row][0].set_ylim(bottom=0)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)
