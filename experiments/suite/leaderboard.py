"""The leaderboard of the suite: tables and pictures from scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from routing_gym.experiments.engine.console import counted, plain_table
from routing_gym.experiments.engine.figures import save
from routing_gym.experiments.engine.metrics import METRICS
from routing_gym.experiments.engine.page import write_page
from routing_gym.experiments.engine.records import write_results
from routing_gym.experiments.engine.report import TABLES, write_report
from routing_gym.experiments.engine.statistics import (
    FEWEST_SEEDS,
    best_and_alike,
    half_interval,
    paired_difference,
    performance_profile,
)
from routing_gym.experiments.suite.problems import DIFFICULTIES, PROBLEMS
from routing_gym.experiments.suite.scoring import Scale, Score, Standing, broken, improvement, standings

MOST_SHOWN = 8
"""Agents in a picture: those that stand best."""
YARDSTICK = "task-specific-last(equal=parameters)"
"""Static row that all are compared with: in pilots, before any of these runs, the best of its size."""
OF_PROBLEMS = (
    *("problem", "difficulty", "ability", "environment", "knob", "passes (batch)"),
    *("scored", "random frozen paths", "oracle", "oracle ahead"),
)
LINES = ("-", "--", "-.", ":")
TITLE = "The suite: problems on which routing agents can be told apart"


def at_main_difficulty(scores: Sequence[Score]) -> list[Score]:
    """Scores at the difficulty that the leaderboard is of: the default one, or the first that was run."""
    there = {score["difficulty"] for score in scores}
    main = "default" if "default" in there else next(name for name in DIFFICULTIES if name in there)
    return [score for score in scores if score["difficulty"] == main]


def problems_of(scores: Sequence[Score]) -> list[str]:
    """Problems that were run, in the order of the suite."""
    there = {score["problem"] for score in scores}
    return [*(name for name in PROBLEMS if name in there), *sorted(there - PROBLEMS.keys())]


def stands(scores: Sequence[Score]) -> list[Standing]:
    """Standings at the difficulty that the leaderboard is of."""
    return standings(at_main_difficulty(scores))


def cell(standing: Standing, problem: str, half: bool = False) -> str:
    """Mean score of an agent on a problem, perhaps with half of its 95 % interval; a dash where it cannot run it."""
    values = list(standing.scores.get(problem, {}).values())
    spread = half_interval(values) if half else None
    return (f"{float(np.mean(values)):.2f}" if values else "–") + ("" if spread is None else f" ± {spread:.2f}")


def best_of(found: Sequence[Standing], problem: str) -> set[str]:
    """The best agent on a problem and all that cannot be told apart from it; nobody where seeds are too few."""
    by_agent = {of.agent: of.scores[problem] for of in found if problem in of.scores}
    with suppress(ValueError):  # no seed is common
        if (best := best_and_alike(by_agent)).seeds >= FEWEST_SEEDS:
            return {best.agent, *best.alike}
    return set()


def told_iqm(standing: Standing, problems: Sequence[str]) -> str:
    """Interquartile mean of an agent, with its interval, and of how many of some problems where not of all."""
    bounds, own = standing.interval, len(standing.scores)
    interval = f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else ""
    iqm = "–" if np.isnan(standing.iqm) else f"{standing.iqm:.2f}"
    return f"{iqm}{interval}" + (f", {own} of {len(problems)}" if own < len(problems) else "")


def table(scores: Sequence[Score]) -> Table:
    """Leaderboard: a row per agent, its interquartile mean, its rank, and its mean score on every problem."""
    problems, seeds = problems_of(scores), len({score["seed"] for score in scores})
    title = f"Score, {at_main_difficulty(scores)[0]['difficulty']} difficulty, {counted(seeds, 'seed')}"
    caption = "0: random frozen paths, 1: the oracle; IQM: interquartile mean over runs and problems"
    found = plain_table("agent", "IQM", "rank", title=title, caption=caption)
    for problem in problems:
        found.add_column(problem, justify="right")
    for standing in stands(scores):
        own = [cell(standing, problem) for problem in problems]
        found.add_row(standing.agent, told_iqm(standing, problems), f"{standing.rank:.1f}", *own)
    return found


def write(scales: Sequence[Scale], scores: Sequence[Score], holes: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Write leaderboard.md, its pictures and the report into a folder."""
    found, problems = stands(scores), problems_of(scores)
    pictures = [profile(found, problems, folder / "profiles.png")]
    if len(problems) > 2:
        pictures.insert(0, radar(found, problems, folder / "abilities.png"))
    if len({score["difficulty"] for score in scores}) > 1:
        pictures.append(along_knobs(scores, at_several(scores, found), folder / "knobs.png"))
    parts = parts_of(scales, scores, holes)
    write_page(folder / "leaderboard.md", TITLE, "\n\n".join(part.markdown() for part in parts), pictures)
    write_results([dataclasses.asdict(part) for part in parts], folder / TABLES)
    write_report([folder], folder / "report.html")


@dataclasses.dataclass(frozen=True)
class Part:
    """A table of the page and of the report: what stands above it, its head and its rows, all text."""

    heading: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The part in Markdown."""
        lines = [f"| {' | '.join(row)} |" for row in (self.heads, *self.rows)]
        table = "\n".join([lines[0], f"|{' --- |' * len(self.heads)}", *lines[1:]]) if self.rows else ""
        return "\n\n".join(filter(None, [f"## {self.heading}", self.note, table]))


def parts_of(scales: Sequence[Scale], scores: Sequence[Score], holes: Sequence[Mapping[str, str]]) -> list[Part]:
    """All that is said of scores."""
    found, problems, main = stands(scores), problems_of(scores), at_main_difficulty(scores)
    parts = [_leaders(found, scores, problems), _problems(scales, scores), _ways(found, main), _chances(found)]
    if any(standing.agent == YARDSTICK for standing in found):
        parts.insert(1, _ahead(found, main, problems))
    if len({score["difficulty"] for score in scores}) > 1:
        parts.append(_along(at_several(scores, found), scores, problems))
    if holes:
        rows = sorted([hole[name] for name in ("agent", "problem", "difficulty", "reason")] for hole in holes)
        parts.append(Part("Holes", "Who cannot run what, and why.", ["agent", "problem", "difficulty", "reason"], rows))
    return parts


def _leaders(found: Sequence[Standing], scores: Sequence[Score], problems: Sequence[str]) -> Part:
    main, seeds = at_main_difficulty(scores), sorted({score["seed"] for score in scores})
    made = (("commit", "commit"), ("PyTorch", "torch"), ("on", "processor"))
    note = (
        "Score: 0 for random frozen paths (mean of draws on the same data), 1 for the oracle; "
        f"{counted(len(seeds), 'seed')}, from {seeds[0]} on, each with data of its own; "
        f"{main[0]['difficulty']} difficulty. IQM: interquartile mean over runs and problems, with the 95 % interval "
        "of the stratified bootstrap; who was run on some problems only stands below, with their number. Rank: "
        "mean over problems, 1 for the best. ±: half of the 95 % t-interval over seeds. ●: the best of a problem and "
        "all that cannot be told apart from it (paired t, Holm, 5 %). †: spends more multiply-accumulates than the "
        "oracle, and may beat it. "
        f"Made at {'; '.join(f'{word} ' + ', '.join(sorted({of[key] for of in scores})) for word, key in made)}."
    )
    more = {(of["agent"], of["problem"]) for of in main if of["more_macs"]}
    best = {problem: best_of(found, problem) for problem in problems}
    rows = []
    for of in found:
        marks = [" ●" * (of.agent in best[p]) + " †" * ((of.agent, p) in more) for p in problems]
        cells = [cell(of, problem, half=True) + mark for problem, mark in zip(problems, marks, strict=True)]
        rows.append([of.agent, told_iqm(of, problems), f"{of.rank:.1f}", *cells, f"{of.seconds:.0f} s"])
    return Part("Leaderboard", note, ["agent", "IQM", "rank", *problems, "training a seed"], rows)


def _ahead(found: Sequence[Standing], scores: Sequence[Score], problems: Sequence[str]) -> Part:
    values: dict[tuple[str, str], dict[int, float]] = {}
    for of in scores:
        metric = METRICS[of["scored"]]
        scale = metric.scale * (-1 if metric.better == "less" else 1)
        values.setdefault((of["agent"], of["problem"]), {})[of["seed"]] = scale * of["value"]
    shown = [problem for problem in problems if (YARDSTICK, problem) in values]

    def ahead(agent: str, problem: str) -> str:
        with suppress(ValueError):  # no seed is common
            found = paired_difference(values.get((agent, problem), {}), values[YARDSTICK, problem])
            return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"
        return "–"

    rows = [[of.agent, *(ahead(of.agent, problem) for problem in shown)] for of in found if of.agent != YARDSTICK]
    note = (
        f"How much better agents are than `{YARDSTICK}`, a shared network with last layers of their own for tasks, no "
        "larger than theirs: paired differences in what is scored, points of per cent, 95 % t-intervals over seeds."
    )
    return Part(f"Ahead of {YARDSTICK}", note, ["agent", *shown], rows)


def _problems(scales: Sequence[Scale], scores: Sequence[Score]) -> Part:
    rows = []
    for scale in scales:
        (zero, one), spread = scale.ends, half_interval(list(scale.random.values()))
        half = "" if spread is None else f" ± {spread:.3f}"
        apart = {"better": "yes", "worse": "no"}.get(scale.separated.verdict, "not enough")
        known = PROBLEMS.get(scale.problem)
        asked = [known.ability, knob(scale.problem, scale.difficulty)] if known else ["", ""]
        own = [
            score for score in scores if (score["problem"], score["difficulty"]) == (scale.problem, scale.difficulty)
        ]
        passes = {score.get("passes", known.passes) for score in own} if known else set()  # older scores do not tell
        length = f"{' or '.join(map(str, sorted(passes or {known.passes})))} ({known.batch_size})" if known else ""
        place = [scale.problem, scale.difficulty, asked[0], scale.env.rpartition("/")[2], asked[1], length]
        rows.append([*place, scale.scored, f"{zero:.3f}{half}", f"{one:.3f}", apart])
    wrong = " ".join(f"**{line}.**" for line in broken(scales, scores))
    return Part("Problems", wrong or "No agent beats an oracle at its own cost.", OF_PROBLEMS, rows)


def _ways(found: Sequence[Standing], scores: Sequence[Score]) -> Part:
    rows = []
    for standing in found:
        own = [score for score in scores if score["agent"] == standing.agent]
        columns = (
            [of[name] for of in own if of.get(name) is not None]
            for name in ("alignment", "effective_blocks", "settled")
        )
        rows.append([standing.agent, *(f"{np.mean(column):.2f}" if column else "–" for column in columns)])
    note = (
        "Means over problems and seeds: adjusted Rand index of whole routes and what is planted; effective number of "
        "blocks at a decision; share of training after which routes no longer change."
    )
    return Part("How they get there", note, ["agent", "alignment", "effective blocks", "settled"], rows)


def _chances(found: Sequence[Standing]) -> Part:
    rows = []
    for a in found:
        chances = (None if a is b else improvement(a, b) for b in found)
        rows.append([a.agent, *("–" if chance is None else f"{chance:.2f}" for chance in chances)])
    note = "That a run of the row's agent beats one of the column's, on a problem that both were able to run."
    return Part("Probability of improvement", note, ["", *(of.agent for of in found)], rows)


def at_several(scores: Sequence[Score], found: Sequence[Standing]) -> list[str]:
    """Agents that were run at more than one difficulty, in the order of their standings."""
    places = {(score["agent"], score["difficulty"]) for score in scores}
    return [of.agent for of in found if sum(agent == of.agent for agent, _ in places) > 1]


def means_along(scores: Sequence[Score], agent: str, problem: str) -> list[float]:
    """Mean scores of an agent on a problem by difficulty, NaN where it was not run."""
    own = [score for score in scores if score["agent"] == agent and score["problem"] == problem]
    values = ([score["score"] for score in own if score["difficulty"] == difficulty] for difficulty in DIFFICULTIES)
    return [float(np.mean(of)) if of else np.nan for of in values]


def _along(agents: Sequence[str], scores: Sequence[Score], problems: Sequence[str]) -> Part:
    rows = []
    for problem in problems:
        columns = [means_along(scores, agent, problem) for agent in agents]
        for difficulty, values in zip(DIFFICULTIES, zip(*columns, strict=True), strict=True):
            texts = ("–" if np.isnan(value) else f"{value:.2f}" for value in values)
            rows.append([problem, difficulty, knob(problem, difficulty), *texts])
    note = "Mean scores from easy to hard."
    return Part("Along the knobs", note, ["problem", "difficulty", "knob", *agents], rows)


def knob(problem: str, difficulty: str) -> str:
    """Values of a problem's knobs at a difficulty."""
    if problem not in PROBLEMS:
        return ""
    at = DIFFICULTIES.index(difficulty)
    return ", ".join(f"{name}={values[at]}" for name, values in PROBLEMS[problem].knobs.items())


def radar(found: Sequence[Standing], problems: Sequence[str], path: Path) -> Path:
    """Draw a radar chart: an axis for each problem's ability, from 0 to 1, a line for each agent."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    angles = np.linspace(0, 2 * np.pi, len(problems), endpoint=False)
    for number, standing in enumerate(found[:MOST_SHOWN]):
        means = [
            float(np.mean(list(standing.scores[p].values()))) if p in standing.scores else np.nan for p in problems
        ]
        shown = np.clip(means, 0, 1.1)
        axes.plot(
            [*angles, angles[0]], [*shown, shown[0]], marker=".", linestyle=LINES[number % 4], label=standing.agent
        )
    axes.set_xticks(angles, problems, fontsize=9)
    axes.tick_params(axis="x", pad=12)
    axes.set_ylim(0, 1.1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "0.5", "", "1"], fontsize=7)
    axes.set_title("Mean score by ability: 0 random frozen paths (or below), 1 the oracle, 1.1 or above", fontsize=10)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)
    return path


def profile(found: Sequence[Standing], problems: Sequence[str], path: Path) -> Path:
    """Draw performance profiles: the share of runs whose score is above each value; of agents without holes."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes, thresholds = figure.add_subplot(), np.linspace(-0.2, 1.1, 131)
    whole = [of for of in found if len(of.scores) == len(problems) and not np.isnan(of.iqm)]
    for number, standing in enumerate(whole[:MOST_SHOWN]):
        shares = performance_profile(standing.matrix(problems), thresholds)
        axes.plot(thresholds, shares, linestyle=LINES[number % 4], label=standing.agent)
    title = "Performance profiles" + ", of agents that can run all" * (len(whole) < len(found))
    axes.set(xlabel="score", ylabel="share of runs above it", title=title, ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)
    return path


def along_knobs(scores: Sequence[Score], agents: Sequence[str], path: Path) -> Path:
    """Draw the mean score of agents against the knob of each problem, from easy to hard."""
    problems = problems_of(scores)
    columns = min(5, len(problems))
    rows = -(-len(problems) // columns)
    figure = Figure(figsize=(2.6 * columns + 1.6, 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(problems) :]:
        axes.axis("off")
    for axes, problem in zip(grid.flat, problems, strict=False):
        lowest = 0.0
        for number, agent in enumerate(agents[:MOST_SHOWN]):
            means = means_along(scores, agent, problem)
            label = agent if problem == problems[0] else None
            known = [at for at, mean in enumerate(means) if not np.isnan(mean)]
            lowest = min([lowest, *(means[at] for at in known)])
            axes.plot(known, [means[at] for at in known], marker=".", linestyle=LINES[number % 4], label=label)
        ticks = [knob(problem, difficulty).partition(", ")[0].partition("=")[2] for difficulty in DIFFICULTIES]
        axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
        name = next(iter(PROBLEMS[problem].knobs), "") if problem in PROBLEMS else ""
        axes.set_title(f"{problem}\n{name}", fontsize=8)
        axes.set_ylim(lowest - 0.1, 1.15)
        axes.tick_params(axis="y", labelsize=7)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    save(figure, path)
    return path
