"""Reproducing a paper: every row of its tables as a run of ours, theirs and ours side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

import routing_gym
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import counted, one_line, say
from routing_gym.experiments.engine.folders import check_own, locked
from routing_gym.experiments.engine.launchers import Launcher, Launching, perform, say_failures
from routing_gym.experiments.engine.page import check_page, write_page
from routing_gym.experiments.engine.records import Record, read_results, write_results
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import (
    DEFAULT_ENV,
    MOST_SEEDS,
    TrainingSettings,
    at_least_one,
    known_names,
    writable_file,
    writable_folder,
)
from routing_gym.experiments.papers.codinet import CODINET
from routing_gym.experiments.papers.diversity import DIVERSITY
from routing_gym.experiments.papers.judging import claims_of
from routing_gym.experiments.papers.multipath import MULTIPATH
from routing_gym.experiments.papers.parallel_paths import PARALLEL_PATHS
from routing_gym.experiments.papers.pilots import flatness, outlook
from routing_gym.experiments.papers.protocols import PROTOCOLS
from routing_gym.experiments.papers.reproduction import (
    Plan,
    Reproduction,
    Runs,
    among,
    asks_for,
    chosen_by,
    distinct,
)
from routing_gym.experiments.papers.routing_networks import ROUTING_NETWORKS
from routing_gym.experiments.papers.rows import Change, Protocol, Settings
from routing_gym.options import unknown_name
from routing_gym.tasks import DataError

REPRODUCTIONS = {
    reproduction.name: dataclasses.replace(
        reproduction, settings=(*reproduction.settings, *PROTOCOLS[reproduction.name])
    )
    for reproduction in (ROUTING_NETWORKS, DIVERSITY, MULTIPATH, CODINET, PARALLEL_PATHS)
}


@dataclasses.dataclass(frozen=True)
class Reproduce(Launching):
    """Run what a paper reports and put our figures beside theirs.

    Every run is a folder of its own: finished ones are skipped, an interrupted one goes on where it stopped. The report
    is written anew after every run, from all that is there; pictures are drawn in the end.

    Attributes:
        name: The paper.
        settings: Ways of training, or protocols, which a small machine can follow to a verdict; all of the former if
            left out, of kept records all of the latter.
        groups: Figures or tables; all of them if left out.
        rows: Only rows whose label contains one of these texts, or is one of them where `=` stands before it; all of
            them if left out.
        epochs: Passes over the training split, instead of each setting's own.
        seeds: Number of seeds, from 0 on; 3 if left out, of a protocol as many as it says.
        records: Folder of finished runs, as `routing-gym queue` keeps them: they are shown, and nothing is run.
        data_dir: Where downloaded data lies; by default what ROUTING_GYM_DATA names, else a folder in the user's cache.
        device: "auto" takes CUDA where present.
        threads: CPU threads of PyTorch.
        out: Folder for everything that is written: results.json, pictures, a folder per run.
        report: The report; OUT/NAME.md if left out. What stands in a file beside it, NAME.text.md, becomes part of it.
    """

    name: Annotated[str, tyro.conf.Positional]
    settings: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    epochs: int | None = None
    seeds: int | None = None
    records: Path | None = None
    data_dir: str | None = None
    device: str = "auto"
    threads: int = 1
    out: Path = Path("results/reproduce")
    report: Path | None = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status, 1 where some run failed."""
        if self.name not in REPRODUCTIONS:
            raise UsageError(unknown_name("paper", self.name, REPRODUCTIONS))
        paper = REPRODUCTIONS[self.name]
        known = {setting.name: setting for setting in paper.settings}
        kept = self.records is not None
        usual = tuple(name for name, setting in known.items() if isinstance(setting, Protocol) == kept)
        settings = [known[name] for name in known_names("settings", self.settings or usual, tuple(known))]
        groups = known_names("groups", self.groups, (*paper.groups, *paper.measured))
        at_least_one("seeds", 1 if self.seeds is None else self.seeds, MOST_SEEDS)
        if self.records is not None and not self.records.is_dir():
            raise UsageError(f"--records must name a folder of finished runs, there is no {self.records}")
        target = writable_file(self.report or self.out / f"{self.name}.md", "--report")
        check_page(target)
        launcher = self.make_launcher(self.out)
        base, folder = self.training(), self.records or self.out
        plans = [Plan(paper, setting, base, folder, groups, self.rows, self.epochs) for setting in settings]
        labels = {row.label for plan in plans for row in plan.rows}
        for text in self.rows:
            if not any(asks_for(text, label) for label in labels):
                named = f"is named {text[1:]!r}" if text.startswith("=") else f"has {text!r} in its name"
                raise UsageError(f"--rows: no row of {', '.join(groups)} {named}")
        self.training(epochs=1 if self.epochs is None else self.epochs).check()
        work = _Work(self, paper, plans, groups, target, console)
        work.look()
        with locked(writable_folder(self.out)), ExitStack() as stack:
            stack.callback(launcher.end)
            check_own(self.out, "reproduce")
            if not kept:
                check_paper(self.out / "results.json", paper)
            return work.done(launcher)

    def training(self, env: str = DEFAULT_ENV, epochs: int = 1, batch_size: int = 1) -> TrainingSettings:
        """Return how something is trained on this machine."""
        return TrainingSettings(env, epochs, batch_size, (), self.data_dir, self.device, self.threads)


@dataclasses.dataclass
class _Work:
    """What is run of a paper, and the report of it.

    Attributes:
        asked: The command.
        paper: The paper.
        plans: Its runs, by way of training.
        groups: Its figures and tables.
        target: The page.
        console: Where it is said how far it is.
        runs: The runs, but for those of searches.
        records: Those that are finished, by folder.
    """

    asked: Reproduce
    paper: Reproduction
    plans: Sequence[Plan]
    groups: tuple[str, ...]
    target: Path
    console: Console
    runs: list[Run] = dataclasses.field(default_factory=list)
    records: dict[Path, Record] = dataclasses.field(default_factory=dict)
    failures: list[str] = dataclasses.field(default_factory=list)
    measured: dict[str, list[Record]] = dataclasses.field(default_factory=dict)
    pictures: list[Path] = dataclasses.field(default_factory=list)

    def look(self) -> None:
        """Find out what there is to run, and what of it is finished."""
        self.runs = [run for plan in self.plans for run in plan.runs(self.asked.seeds)]
        self.records = {run.folder: record for run in self.runs if (record := run.finished())}

    def done(self, launcher: Launcher) -> int:
        """Measure, run and report; return the exit status."""
        self._measure()
        if self.asked.records is None:
            searches = _once(run for plan in self.plans for _, _, run in plan.search())
            if searching := [run for run in searches if run.finished() is None]:
                self._perform(searching, launcher, lambda *_: None)
                if not launcher.here:
                    note = "These choose rates; rows that wait for one come when they are done"
                    say(launcher.told(self.console), note)
                self.look()
            self._perform([run for run in _once(self.runs) if run.folder not in self.records], launcher, self._keep)
        out = self.asked.out
        try:
            path, records = writable_folder(out) / "results.json", self._in_order()
            if self.asked.records is None and (records or not path.exists()):
                write_results(records, path)
            drawn = [record for _, own in self._ways() for record in own]
            self.pictures[:0] = self.paper.pictures(self.groups, drawn, out, self._beside())
            self._report()
            what = "pictures" if self.asked.records else "results.json, pictures, a folder per run"
            if launcher.here:
                say(self.console, f"Written to {out}: {what}; the report is {self.target}")
        except Exception as error:
            self.failures.append(f"not everything could be written: {one_line(error)}")
        return say_failures(list(dict.fromkeys(self.failures)), self.console, out)

    def _perform(self, runs: list[Run], launcher: Launcher, keep: Callable[[Run, Record], None]) -> None:
        asked = self.asked
        self.failures += perform(runs, launcher, keep, self.console, asked.debug, population=asked.population)

    def _measure(self) -> None:
        for name, measurement in self.paper.measured.items():
            wanted = name in self.asked.groups or any(not isinstance(plan.settings, Protocol) for plan in self.plans)
            kept = (self.asked.records or self.asked.out) / f"{name}.json"
            if name in self.groups and (wanted if self.asked.records is None else kept.exists()):
                base = self.asked.training(measurement.env, 1, self.paper.batch_size)
                try:
                    known = self.asked.records is not None
                    self.measured[name] = read_results(kept) if known else measurement.measure(base, kept)
                    self.pictures.append(self.asked.out / f"{name}.png")
                    measurement.draw(self.measured[name], self.pictures[-1], measurement.title)
                except UsageError as error:
                    if not isinstance(error.__cause__, DataError):
                        raise
                    self.failures.append(f"not run: {error}")
                except Exception as error:
                    self.failures.append(f"{measurement.title}: {one_line(error)}")
                self._report()

    def _keep(self, run: Run, record: Record) -> None:
        self.records[run.folder] = record
        write_results(self._in_order(), writable_folder(self.asked.out) / "results.json")
        self._report()

    def _in_order(self) -> list[Record]:
        return [{**self.records[run.folder], **run.facts} for run in self.runs if run.folder in self.records]

    def _ways(self) -> Iterator[tuple[Plan, list[Record]]]:
        """Yield ways of training with their finished runs; of protocols those that add to what stands before."""
        before: set[str] = set()
        records = self._in_order()
        for plan in self.plans:
            own = among(records, settings=plan.settings.name)
            folders = {record["folder"] for record in own}
            if not isinstance(plan.settings, Protocol) or folders - before:
                yield plan, own
            before |= folders

    def _beside(self) -> list[Record]:
        """Finished runs of another paper's protocols that are kept beside this one's."""
        if not self.paper.beside:
            return []
        paper, folder = REPRODUCTIONS[self.paper.beside], (self.asked.records or self.asked.out).parent
        plans = [Plan(paper, one, self.asked.training(), folder / paper.name) for one in PROTOCOLS[paper.name]]
        runs = _once(run for plan in plans for run in plan.runs())
        return [record for run in runs if (record := run.finished())]

    def _report(self) -> None:
        """Write the report anew, of all that is there."""
        paper, records = self.paper, self._in_order()
        lines = [f"{paper.about} `routing-gym reproduce {paper.name}`, routing_gym {routing_gym.__version__}.", ""]
        if records:
            made = (("commit", "commit"), ("PyTorch", "torch"), ("on", "processor"))
            what = (f"{word} {', '.join(sorted(distinct(records, key)))}" for word, key in made)
            lines += [f"Runs were made at {'; '.join(what)}.", ""]
        for plan, own in self._ways():
            lines += self._about(plan, own)
        for name, found in self.measured.items():
            lines += [f"## {paper.measured[name].title}", "", *paper.measured[name].table(found), ""]
        if self.failures:
            lines += ["## Not there", "", *(f"- {failure}" for failure in self.failures), ""]
        write_page(self.target, paper.title, "\n".join(lines), self.pictures)

    def _about(self, plan: Plan, records: Sequence[Record]) -> list[str]:
        """Return tables and verdicts of the runs that were trained in one way, as Markdown."""
        paper, settings = plan.paper, plan.settings
        lines = [f"## Settings `{settings.name}`", "", settings.about[0].upper() + settings.about[1:] + ".", ""]
        if self.asked.epochs:
            lines += [
                f"Every run was asked for with `--epochs {self.asked.epochs}`, whatever is said of lengths below.",
                "",
            ]
        if isinstance(settings, Protocol):
            row = f"`routing-gym reproduce {paper.name} --settings {settings.name} --rows '=ROW'`"
            lines += [*about_protocol(settings, chosen_by(plan.search())), f"- A row again: {row}.", ""]
        for title, table, own in self._tables(settings, records):
            lines += [f"### {title}", "", *table(own), ""]
        if records:
            lines += [flatness(records), ""] if isinstance(settings, Protocol) else []
            lines += ["### What the paper says", ""]
            for claim in claims_of(paper, settings, records):
                lines.append(f"- {claim.text}: **{claim.verdict}**. {claim.numbers}")
                if isinstance(settings, Protocol) and (claim.text, claim.verdict) == (settings.decides, "not enough"):
                    lines[-1] += "".join(f" {told}" for told in map(outlook, claim.parts) if told)
            lines.append("")
        return lines

    def _tables(self, settings: Settings, records: Runs) -> Iterator[tuple[str, Callable[[Runs], list[str]], Runs]]:
        """Yield the tables of runs that were trained in one way: title, what shows them, and the runs.

        A protocol's groups that are shown alike are one table, since they have most rows in common.
        """
        shown: dict[Any, list[str]] = {}
        for group in settings.shown(self.groups):
            if any(group in record["groups"] for record in records):
                table = self.paper.tables.get(group, self.paper.table)
                shown.setdefault(table if isinstance(settings, Protocol) else group, []).append(group)
        for groups in shown.values():
            title = "; ".join(self.paper.groups[group] for group in groups)
            own = [record for record in records if not set(groups).isdisjoint(record["groups"])]
            yield title, self.paper.tables.get(groups[0], self.paper.table), own


def check_paper(path: Path, paper: Reproduction) -> None:
    """Refuse a file with records of another paper, which would be replaced, by a `UsageError`."""
    for record in read_results(path) if path.exists() else ():
        place = record.get("label"), record.get("groups")
        of = [name for name, other in REPRODUCTIONS.items() if place in [(r.label, [*r.groups]) for r in other.rows]]
        if of and paper.name not in of:
            raise UsageError(f"{path} holds runs of {of[0]}, not of {paper.name}: take another folder")


def _once(runs: Iterable[Run]) -> list[Run]:
    """Runs, each once: settings that share a folder ask for some of them again."""
    return list({run.folder: run for run in runs}.values())


def about_protocol(protocol: Protocol, choices: Mapping[str, Change]) -> list[str]:
    """Return what a protocol fixes before it runs, as Markdown, and what its search has chosen."""
    lines = [
        f"- Keeps: {protocol.keeps}.",
        f"- Makes smaller: {protocol.shrinks}.",
        f"- Decides, over {protocol.seeds} seeds: {protocol.decides}. The effect: {protocol.effect}.",
    ]
    if search := protocol.search:
        seeds = ", ".join(map(str, search.seeds))
        lines.append(f"- Chooses on validation, {counted(search.epochs, 'epoch')}, seed {seeds} (chosen in bold):")
        rows: dict[str, list[str]] = {}
        for label, tried in search.choices.items():
            texts = [f"**{_named(choice)}**" if choice == choices.get(label) else _named(choice) for choice in tried]
            rows.setdefault(", ".join(texts), []).append(label)
        lines += [f"  - {'; '.join(labels)}: {texts}." for texts, labels in rows.items()]
    return lines


def _named(choice: Change) -> str:
    """What is tried, and of which part where it is of both."""
    of_each = [f"{part}: {' '.join(own)}" for part, own in (("blocks", choice.env), ("agent", choice.agent)) if own]
    return ", ".join(of_each) if len(of_each) > 1 else choice.text
