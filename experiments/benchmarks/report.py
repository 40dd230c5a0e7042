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
"""What a table shows of a record, by its heading."""


def name_of(record: Record) -> str:
    """Return an agent's name with the options it was given, and with the precision where that is not float32."""
    precision = [] if record["dtype"] == "float32" else [record["dtype"]]
    return " ".join([record["agent"], *record["agent_options"], *precision])


def _show(key: str, form: str = "") -> Callable[[Record], str]:
    """Return what shows something of a record, a dash where there is nothing."""
    form, percent = form.removesuffix("%"), form.endswith("%")
    return lambda r: "-" if r[key] is None else f"{100 * r[key]:{form}f} %" if percent else format(r[key], form)


def _memory(over: str) -> Callable[[Record], str]:
    return lambda r: f"{r['peak_memory_bytes'] / r[f'{over}_peak_memory_bytes']:.2f}"


SIZE: Columns = {"batch": _show("batch"), "threads": _show("threads")}
RATIOS: Columns = {
    "train": _show("train_ratio", ".3f"),
    "inference": _show("inference_ratio", ".3f"),
    "MACs": _show("macs_ratio", ".2f"),
    "memory": _memory("static"),
}
"""Routed over static: samples per second, multiply-accumulates per instance, bytes held in a training step."""
INFERENCE: Columns = {
    "time": _show("time_ratio", ".2f"),
    "µs": _show("microseconds", ",.0f"),
    "static": _show("static_microseconds", ",.0f"),
    "of the MACs' saving": _show("saving_arrived", ".0%"),
}
TRAINED: Columns = {"trained per s": _show("train_samples_per_second", ",.0f")}
TRANSITIONS: Columns = {"transitions per s": _show("transitions_per_second", ",.0f")}
OVER = "ratios: routed / static"
TABLES: dict[str, tuple[str, Columns]] = {
    "steps": (
        f"Three layers, 128 wide; {OVER}",
        {"agent": name_of, "blocks": _show("blocks"), **SIZE, **RATIOS, **TRAINED, **TRANSITIONS},
    ),
    "faces": (
        "Core and faces, random actions",
        {
            "face": _show("face"),
            **SIZE,
            "blocks learn": lambda r: "yes" if r["train"] else "no",
            **TRANSITIONS,
            "of the core": _show("share_of_core", ".3f"),
            "of a core of as many rows": _show("share_of_core_of_as_many_rows", ".2f"),
        },
    ),
    "experts": (
        f"Unlike convolution blocks; {OVER}",
        {"case": _show("case"), "against": _show("against"), **SIZE, **RATIOS},
    ),
    "skipping": (
        f"Rows that skip; {OVER}, and what is saved against nobody skipping",
        {
            "case": _show("case"),
            "share": _show("share", ".2f"),
            **SIZE,
            **RATIOS,
            "MACs saved": _show("macs_saved", ".0%"),
            "training saved": _show("train_time_saved", ".0%"),
            "inference saved": _show("inference_time_saved", ".0%"),
        },
    ),
    "convnet": (
        f"SimpleConvNet; {OVER}",
        {
            "agent": name_of,
            "threads": _show("threads"),
            **RATIOS,
            "s per 50 000": _show("seconds_per_50000", ".1f"),
            "static": _show("static_seconds_per_50000", ".1f"),
        },
    ),
    "early-exit": (
        "Early exit, inference; ratios to the whole network, and how much of the saving arrives",
        {
            "case": _show("case"),
            **SIZE,
            "MACs": _show("macs_ratio", ".2f"),
            "floor": _show("floor_ratio", ".2f"),
            **INFERENCE,
            "of the floor's": _show("possible_saving_arrived", ".0%"),
        },
    ),
    "block-skip": (
        "Blocks that are skipped, inference; ratios to the whole network, how much of the saving arrives",
        {
            "case": _show("case"),
            **SIZE,
            "MACs": _show("macs_ratio", ".2f"),
            **INFERENCE,
            "against all routed": _show("of_routed", ".0%"),
        },
    ),
    "parallel-paths": (
        "Parallel paths, soft gates; ratios to the single network, and to a loop over the paths",
        {
            "network": _show("network"),
            **SIZE,
            **RATIOS,
            "loop: train": _show("loop_train_ratio", ".2f"),
            "loop: inference": _show("loop_inference_ratio", ".2f"),
            "loop: memory": _memory("loop"),
            "channels first: train": _show("channels_first_loop_train_ratio", ".2f"),
            "channels first: inference": _show("channels_first_loop_inference_ratio", ".2f"),
        },
    ),
    "live-paths": (
        "Parallel paths, hard choices; ratios to soft gates, which run all paths",
        {
            "network": _show("network"),
            "live": lambda r: f"{r['live_paths']} of {r['blocks']}",
            **SIZE,
            "MACs": _show("macs_of_soft", ".2f"),
            "training time": _show("train_time_of_soft", ".2f"),
            "inference time": _show("inference_time_of_soft", ".2f"),
            **TRAINED,
            "classified per s": _show("inference_samples_per_second", ",.0f"),
        },
    ),
}
"""Title and columns of the table of each part; two parts have two kinds of records."""


def tables(records: Sequence[Record]) -> list[Table]:
    """Return a table of every part that was measured."""
    made: dict[str, Table] = {}
    for record in records:
        kind = "skipping" if record["part"] == "experts" and "share" in record else record["part"]
        title, columns = TABLES["live-paths" if "live_paths" in record else kind]
        if title not in made:
            made[title] = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            for number, column in enumerate(columns):
                made[title].add_column(column, justify="right" if number else "left", no_wrap=not number)
        made[title].add_row(*(show(record) for show in columns.values()))
    return list(made.values())


def ratios_against_blocks(records: Sequence[Record], path: Path) -> None:
    """Draw routed / static samples per second against blocks: a panel per batch size, a line per agent.

    Args:
        records: Of the part steps.
        path: The picture. Training is in the upper row, inference in the lower.
    """
    batches, blocks, threads = (sorted({record[key] for record in records}) for key in ("batch", "blocks", "threads"))
    names = list(dict.fromkeys(name_of(record) for record in records))
    figure = Figure(figsize=(3.2 * len(batches) + 2.4, 5.6), layout="constrained")
    where = records[0]["accelerator"] or records[0]["processor"]
    figure.suptitle(f"Routed / static samples per second\n{where}, PyTorch {records[0]['torch']}", fontsize=10)
    grid = figure.subplots(2, len(batches), sharex=True, sharey="row", squeeze=False)
    for row, (key, what) in enumerate((("train_ratio", "training"), ("inference_ratio", "inference"))):
        for axes, batch in zip(grid[row], batches, strict=True):
            for number, name in enumerate(names):
                for dash, count in enumerate(threads):
                    own = [r for r in records if (r["batch"], r["threads"], name_of(r)) == (batch, count, name)]
                    places, ratios = ([r[of] for r in own] for of in ("blocks", key))
                    label = name if len(threads) == 1 else f"{name}, {count} thread{'s' * (count > 1)}"
                    line = ("-", "--", ":", "-.")[dash % 4]
                    axes.plot(places, ratios, line, marker="o", markersize=4, color=f"C{number}", label=label)
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
