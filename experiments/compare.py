"""Agents side by side: same data, same blocks, same budget; and the report of what such commands have left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from routing_gym.agents import AGENTS
from routing_gym.experiments.engine import folders
from routing_gym.experiments.engine.arguments import Tunable
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import counted, one_line, say, show
from routing_gym.experiments.engine.equal import Rows, at_equal
from routing_gym.experiments.engine.exits import exits_table
from routing_gym.experiments.engine.folders import FAILURES, Keeping, keep_failures, locked, runs_in
from routing_gym.experiments.engine.launchers import Launching, perform, say_failures, try_out
from routing_gym.experiments.engine.plugins import Pluggable
from routing_gym.experiments.engine.records import (
    Record,
    comparison_table,
    differences_table,
    read_runs,
    with_delta_m,
    write_csv,
    write_results,
)
from routing_gym.experiments.engine.report import packed_plotly, write_report
from routing_gym.experiments.engine.run import Run, check_same
from routing_gym.experiments.engine.settings import (
    MOST_SEEDS,
    TrainingSettings,
    at_least_one,
    check_agents,
    folder_name,
    options_of_agents,
    resolved_env_options,
    writable_file,
    writable_folder,
)

BASELINES = ("task-specific-all", "task-specific-last", "shared", "shared-with-task", "random-fixed", "random")


@dataclasses.dataclass(frozen=True)
class Compare(Keeping, Launching, Tunable):
    """Train several agents on one environment over several seeds and compare them.

    Prints a table and writes report.html, learning_curves.png, routing_maps.png, results.json, results.csv, a
    checkpoint and TensorBoard events of every run, and accuracy_by_macs.png where `confidence` takes part. A run that
    fails is named in the end, the others stand.

    Attributes:
        training: How agents and blocks are trained.
        agents: Agents to compare; `routing-gym list` prints them.
        seeds: Number of seeds, 0 to N - 1: first weights, order of instances and the agent's choices.
        agent_options: Options of one agent as AGENT.NAME=VALUE, e.g. wpl.policy_rate=0.02.
        equal: Give the network of every static agent the blocks it uses, and the width at which it has as many
            parameters, or multiply-accumulates per instance, as that of the first agent that learns.
        out: Folder for everything that is written.
    """

    training: Annotated[TrainingSettings, tyro.conf.arg(name="")] = TrainingSettings()
    agents: tuple[str, ...] = ("wpl", *BASELINES)
    seeds: int = 5
    agent_options: tuple[str, ...] = ()
    equal: Literal["parameters", "macs"] | None = None
    out: Path = Path("results/compare")

    def execute(self, console: Console) -> int:
        """Run it; return the exit status, 1 where some run failed."""
        self.training.check()
        check_agents(self.agents)
        at_least_one("seeds", self.seeds, MOST_SEEDS)
        launcher = self.make_launcher(self.out)
        options = options_of_agents(self.agents, self.agent_options)
        settings = {name: self.settings_of(self.training, name, options[name]) for name in self.agents}
        told = launcher.told(console)
        self.say_untuned(self.training.env, self.agents, told)
        if self.equal is not None:
            settings = at_equal(self.equal, settings, told)
        runs = [
            Run(training, name, seed, self.out / folder_name(name) / f"seed-{seed}", given, plugins=self.plugin)
            for seed in range(self.seeds)  # seed by seed, so that every agent has something early
            for name, (training, given) in settings.items()
        ]
        with ExitStack() as stack:
            stack.callback(launcher.end)
            if self.out.is_dir():
                stack.enter_context(locked(self.out))
            folders.check_free(self.out, resume=self.resume, overwrite=self.overwrite, one_run=False)
            records = joined(self.out, runs, partial(self._as_others, settings)) if self.resume else {}
            left = [run for run in runs if (run.agent, run.seed) not in records]
            left, failures = try_out(left, told, self.debug, fresh=self.overwrite)
            if self.overwrite and not left:  # nothing would replace what is there
                return say_failures(failures, told, self.out)
            stack.enter_context(locked(writable_folder(self.out)))
            if self.overwrite:
                folders.set_aside(self.out)
            order = [*(agent for agent, _ in records if agent not in self.agents), *self.agents]

            def in_order() -> list[Record]:
                return [records[key] for key in sorted(records, key=lambda key: (order.index(key[0]), key[1]))]

            def keep(run: Run, record: Record) -> None:
                records[run.agent, run.seed] = record
                write_results(with_delta_m(in_order()), writable_folder(self.out) / "results.json")
                if sum((run.agent, run.seed) not in records for run in left) == 1:  # which goes on elsewhere, maybe
                    import_what_draws()

            failures += perform(left, launcher, keep, console, self.debug, population=self.population)
            if launcher.here:
                failures += self._show(in_order(), failures, console)
            if not failures and launcher.here:  # else what replaces it is still to be trained
                if aside := folders.drop_aside(self.out):
                    say(console, aside)
            return say_failures(failures, told, self.out)

    def _as_others(self, asked: Rows, agent: str) -> dict[str, Any]:
        """Options of the environment, by name, that runs of an agent must have that is not asked for now."""
        settings = self.settings_of(self.training, agent, ())
        if self.equal is not None and agent in AGENTS:  # else it comes from a file that this command was not given
            settings = at_equal(self.equal, {**asked, agent: settings}, Console(quiet=True))[agent]
        training, _ = settings
        return resolved_env_options(training.env, training.env_options)

    def _show(self, records: Sequence[Record], failures: Sequence[str], console: Console) -> list[str]:
        """Print the table, write records, pictures and the report; return what could not be written."""
        seeds = len({record["seed"] for record in records})
        title = f"{self.training.env}, {counted(seeds, 'seed')}, {counted(self.training.epochs, 'epoch')}"
        of_exits = exits_table(records)
        if records:
            show(console, comparison_table(records, title))
            for table in filter(None, (differences_table(records), of_exits)):
                show(console, table)
        try:
            keep_failures(writable_folder(self.out), failures)
            if not records:
                say(console, f"No run is finished; written to {self.out}: {FAILURES}")
                return []
            from routing_gym.experiments.engine import figures

            write_results(with_delta_m(records), self.out / "results.json")
            write_csv(records, self.out / "results.csv")
            figures.learning_curves(records, self.out / "learning_curves.png", title)
            figures.routing_maps(records, self.out / "routing_maps.png", f"Who takes which block: {self.training.env}")
            if of_exits is not None:
                figures.accuracy_by_macs(records, self.out / "accuracy_by_macs.png", title)
            write_report([self.out], self.out / "report.html")
        except Exception as error:
            return [f"not everything could be written to {self.out}: {one_line(error)}"]
        written = f"report.html, {'two' if of_exits is None else 'three'} pictures, results.json, results.csv"
        say(console, f"Written to {self.out}: {written}, a folder per run")
        return []


def import_what_draws() -> None:
    """Import what pictures and the report need, which takes a while."""
    with suppress(Exception):  # it is said when they are drawn
        import routing_gym.experiments.engine.figures  # noqa: F401

        packed_plotly()


def joined(
    folder: Path, runs: Sequence[Run], as_others: Callable[[str], Mapping[str, Any]]
) -> dict[tuple[str, int], Record]:
    """Finished runs of the comparison in a folder, by agent and seed, which others are to join.

    The folders of runs say what is finished; of agents that do not run now, the records of the comparison do, too.
    `as_others` gives the options of the environment that such an agent must have been trained with.

    Raises:
        UsageError: Runs of an agent with other options, or in another environment, or of other length.
    """
    asked = {run.agent: run.asked for run in runs}
    records = {}
    for path in (folder / "results.json", *(place / "results.json" for place in runs_in(folder))):
        for record in read_runs(path) if path.exists() else []:
            agent, seed, saved = record["agent"], record["seed"], record["asked"]
            of_all, place = path.parent == folder, path.parent
            if agent in asked if of_all else place.parent.name != folder_name(agent):  # a copy under another name
                continue
            mine = asked.get(agent)
            if mine is None:
                mine, here = dict(runs[0].asked), runs[0].asked.get("plugins", {})
                mine |= {name: saved.get(name) for name in ("agent", "agent_options")}
                # A file that both need has registered more than an agent: data, say.
                mine["plugins"] = {name: here.get(name, of) for name, of in saved.get("plugins", {}).items()}
                mine["env_options"] = as_others(agent)
            check_same(path, saved, {**mine, "seed": seed if of_all else int(place.name.removeprefix("seed-"))})
            records[agent, seed] = record
    return records


@dataclasses.dataclass(frozen=True)
class Report(Pluggable):
    """Write one page, complete in itself, on the runs in some folders: tables, curves, differences, routing maps.

    Attributes:
        folders: Folders that compare, train or sweep have written, finished or not.
        out: The page; by default report.html in the folder, in the current one where there are several.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    out: Path | None = None

    def execute(self, console: Console) -> int:
        """Run it; return the exit status."""
        if not self.folders:
            raise UsageError("name at least one folder that compare, train or sweep have written")
        out = self.out or (self.folders[0] / "report.html" if len(self.folders) == 1 else Path("report.html"))
        write_report(self.folders, writable_file(out) if self.folders[0].is_dir() else out)
        say(console, f"Written to {out}")
        return 0
