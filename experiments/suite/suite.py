"""The command that runs the suite: every agent on every problem, scored between random frozen paths and the oracle."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from routing_gym.agents import AGENTS, FixedAgent
from routing_gym.experiments.engine.arguments import Tunable, write_tuned
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import one_line, say, show
from routing_gym.experiments.engine.equal import cost_of, equal_form, with_options
from routing_gym.experiments.engine.folders import check_own, keep_failures, locked, runs_in
from routing_gym.experiments.engine.launchers import Launching, perform, say_failures
from routing_gym.experiments.engine.records import Record, damaged, read_results, write_results
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import (
    TrainingSettings,
    as_text,
    at_least_one,
    each_once,
    filled_up,
    folder_name,
    known_names,
    options_of_agents,
    parse_options,
    repeated,
    writable_folder,
)
from routing_gym.experiments.suite.problems import DIFFICULTIES, PROBLEMS, Difficulty
from routing_gym.experiments.suite.scoring import FORM, Scale, Score, broken, check_place, scale_of, score_of, standings
from routing_gym.forms import check_form
from routing_gym.options import unknown_name

DRAWS = 10
"""Draws of random frozen paths whose mean is the zero of a scale."""
FIRST_DRAW = 1000
"""Seed of the first of them: no seed of an agent that is scored, `random-fixed` itself included."""
ORACLE, RANDOM = "oracle", "random-fixed"
USUAL = ("task-clustering", "annealed-em", "reinforce", "wpl", "gumbel", "top-k", "task-specific-last", "random-fixed")
EQUAL = "equal="
COSTS = (f"{EQUAL}parameters", f"{EQUAL}macs")
FILES = SCORES, SCALES, HOLES = "scores.json", "scales.json", "holes.json"

TUNED = "suite"
"""What options are tuned for: one setting of an agent for all problems."""

Place = tuple[str, str]
"""A problem at a difficulty."""
Hole = dict[str, str]
"""An agent, a problem and difficulty it cannot run, and the reason."""
OF_HOLE = dict.fromkeys(("agent", "problem", "difficulty", "reason"), str)


@dataclasses.dataclass(frozen=True)
class Entrant:
    """Who takes part, under a name of its own.

    Attributes:
        label: The name.
        agent: The agent.
        options: Its options, as NAME=VALUE.
        equal: What a fixed agent's network is to cost no more of than the others': parameters, macs or nothing.
    """

    label: str
    agent: str
    options: tuple[str, ...] = ()
    equal: str = ""

    @classmethod
    def of(cls, text: str) -> Entrant:
        """Entrant from AGENT, or AGENT(NAME=VALUE,...), which is its name, too; a `UsageError` if it is neither."""
        agent, bracket, inside = text.partition("(")
        if agent not in AGENTS:
            raise UsageError(f"--agents: {unknown_name('agent', agent, sorted(AGENTS))}")
        if bracket and not (inside.endswith(")") and inside[:-1]):
            raise UsageError(f"--agents takes AGENT or 'AGENT(NAME=VALUE,...)', got {text!r}")
        options = [re.sub(r"^\s*(\w+)\s*=\s*", r"\1=", item) for item in re.split(r",(?=\s*\w+\s*=)", inside[:-1])]
        options = [item.strip() for item in options] if bracket else []
        parse_options("agents", tuple(options))
        each_once("agents", options)
        equal = next((option for option in options if option.startswith(EQUAL)), "")
        if equal and not (equal in COSTS and issubclass(AGENTS[agent], FixedAgent)):
            raise UsageError(f"--agents takes {' or '.join(COSTS)} for agents with fixed routes, got {text!r}")
        return cls(text, agent, tuple(option for option in options if option != equal), equal.removeprefix(EQUAL))


@dataclasses.dataclass(frozen=True)
class Suite(Launching, Tunable):
    """Score agents on problems whose best routing is known: 0 for random frozen paths, 1 for the oracle.

    Every seed draws data, first weights and choices anew. Prints the leaderboard and writes it (leaderboard.md, with
    pictures, and report.html), scores.json, scales.json (what 0 and 1 are), holes.json (who cannot run what, and why),
    a folder per run. Called again it goes on, also with more agents, seeds or problems. Of an agent that takes part
    with several settings the best is written to OUT/tuned, which `--tuned --tuned-dir OUT/tuned` uses.

    Attributes:
        agents: Agents, also with options, 'reinforce(entropy=0.2)'; `routing-gym list` prints them. Fixed ones also in
            networks no dearer than the others', 'task-specific-last(equal=parameters)' or (equal=macs).
        seeds: Number of seeds.
        problems: Problems; the ten that need no download if left out.
        difficulty: How hard they are: easy, default, hard, or several of these for a curve along each knob.
        agent_options: Options of one agent as AGENT.NAME=VALUE, e.g. wpl.policy_rate=0.02.
        first_seed: The first seed; options should be tuned on others than are reported. Random frozen paths are drawn
            for data from this seed on, so that each first seed wants a folder of its own.
        passes: Passes over the training split, instead of each problem's own; each is judged.
        scores: Folder with scores.json and its company: they are shown anew, and nothing is run.
        data_dir: Where downloaded data lies; by default what ROUTING_GYM_DATA names, else a folder in the user's cache.
        device: "auto" takes CUDA where present.
        threads: CPU threads of a run, whatever runs beside it.
        out: Folder for everything that is written.
    """

    agents: tuple[str, ...] = USUAL
    seeds: int = 5
    problems: tuple[str, ...] = ()
    difficulty: tuple[Difficulty, ...] = ("default",)
    agent_options: tuple[str, ...] = ()
    first_seed: int = 0
    passes: int | None = None
    scores: Path | None = None
    data_dir: str | None = None
    device: str = "auto"
    threads: int = 1
    out: Path = Path("results/suite")

    def execute(self, console: Console) -> int:
        """Run it; return the exit status, 1 where some run failed."""
        if self.scores is not None:
            if not self.scores.is_dir():
                raise UsageError(f"--scores {self.scores} is no folder: name one that suite has written")
            shown = read_all(self.scores)
            with locked(writable_folder(self.out)):
                check_own(self.out, "suite")
                return show_all(*shown, self.out, console)
        places, entrants = self._places(), self._entrants()
        launcher = self.make_launcher(self.out)
        floors = {place: self._floors(place) for place in places}
        runs: dict[tuple[Place, str], list[Run]] = {}
        holes: list[Hole] = []
        for place, entrant in itertools.product(places, entrants):
            try:
                runs[place, entrant.label] = self._runs(place, entrant)
            except UsageError as error:
                holes.append(hole_of(place, entrant.label, error))
        with ExitStack() as stack:
            stack.callback(launcher.end)
            stack.enter_context(locked(writable_folder(self.out)))
            check_own(self.out, "suite")
            order = [run for pair in floors.values() for of_end in pair for run in of_end]
            order += [run for of_seed in zip(*runs.values(), strict=True) for run in of_seed]  # everyone early
            there = {run.folder: run for run in order}  # of the oracle both, if it takes part
            records = {folder: record for folder, run in there.items() if (record := run.finished())}
            holes += self._tried(runs, records)
            say_holes(holes, len(places) * len(entrants), launcher.told(console))
            cannot = [((hole["problem"], hole["difficulty"]), hole["agent"]) for hole in holes]
            absent = {run.folder for key in cannot for run in runs.get(key, [])}
            left = [run for folder, run in there.items() if folder not in records and folder not in absent]

            def keep(run: Run, record: Record) -> None:
                records[run.folder] = record

            def known(wanted: Sequence[Run]) -> list[Record]:
                return [records[run.folder] for run in wanted if run.folder in records]

            scales: list[Scale] = []
            scores: list[Score] = []
            try:
                failures = perform(left, launcher, keep, console, self.debug, False, self.population)
            finally:
                for place, pair in floors.items():
                    ends = [known(of_end) for of_end in pair]
                    if all(ends):
                        scales.append(scale_of(*place, PROBLEMS[place[0]], *ends))
                        of_place = [run for key, of_key in runs.items() if key[0] == place for run in of_key]
                        if scales[-1].upright:
                            scores += [score_of(record, scales[-1]) for record in known(of_place)]
                write_all(self.out, scales, scores, holes)
            if not launcher.here:
                return say_failures(failures, launcher.told(console), self.out)
            keep_failures(self.out, failures)
            self._say_others(entrants, console)
            self._write_tuned(entrants, scores)
            return max(show_all(scales, scores, holes, self.out, console), say_failures(failures, console, self.out))

    @property
    def _seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def _places(self) -> list[Place]:
        """Problems and difficulties that are asked for; a `UsageError` says what is no problem."""
        at_least_one("seeds", self.seeds, FIRST_DRAW)
        at_least_one("passes", 1 if self.passes is None else self.passes)
        if not 0 <= self.first_seed <= FIRST_DRAW - self.seeds:
            why = f"since random frozen paths have seeds from {FIRST_DRAW} on"
            raise UsageError(f"--first-seed must lie in [0, {FIRST_DRAW - self.seeds}], {why}; got {self.first_seed}")
        usual = tuple(name for name, problem in PROBLEMS.items() if not problem.download)
        problems = known_names("problems", self.problems, tuple(PROBLEMS)) if self.problems else usual
        difficulties = known_names("difficulty", self.difficulty, DIFFICULTIES)
        return [(name, difficulty) for difficulty in difficulties for name in problems]

    def _entrants(self) -> list[Entrant]:
        """Who takes part, with all options; a `UsageError` says who is nobody."""
        if not self.agents:
            raise UsageError(f"--agents needs at least one of {', '.join(sorted(AGENTS))}")
        entrants = [Entrant.of(text) for text in self.agents]
        if twice := repeated(entrant.label for entrant in entrants):
            raise UsageError(f"--agents names {twice!r} twice")
        given = options_of_agents(tuple(dict.fromkeys(of.agent for of in entrants)), self.agent_options)
        entrants = [dataclasses.replace(of, options=filled_up(of.options, given[of.agent])) for of in entrants]
        for of in entrants:
            if of.label in (ORACLE, RANDOM) and of.options:
                mend = f"give it a place beside them: --agents '{of.label}({','.join(of.options)})'"
                raise UsageError(f"{of.label} without options is what scores go by, and has none of yours: {mend}")
        return entrants

    def _run(self, place: Place, entrant: Entrant, seed: int, data_seed: int | None = None) -> Run:
        """Run of an entrant on a problem; its data are those of its seed, unless another is given."""
        name, difficulty = place
        problem = PROBLEMS[name]
        options = {**problem.options_at(difficulty), "data_seed": seed if data_seed is None else data_seed}
        if entrant.agent == ORACLE:
            options |= problem.oracle_options
        if self.passes is not None and "passes" in options:
            options["passes"] = self.passes
        training = TrainingSettings(
            problem.env,
            problem.judgements if self.passes is None else self.passes,
            problem.batch_size,
            tuple(f"{option}={as_text(value)}" for option, value in options.items()),
            self.data_dir,
            self.device,
            self.threads,
            callbacks=(),
            epoch_passes=problem.passes // problem.judgements if self.passes is None else 1,
        )
        training, of_agent = self.settings_of(training, entrant.agent, entrant.options, of=TUNED)
        folder = self.out / name / difficulty / folder_name(entrant.label) / f"seed-{seed}"
        title = f"{name}{'' if difficulty == 'default' else f' ({difficulty})'}, {entrant.label}, seed {seed}"
        facts = {"label": entrant.label, "problem": name, "difficulty": difficulty}
        return Run(training, entrant.agent, seed, folder, of_agent, title=title, facts=facts, plugins=self.plugin)

    def _runs(self, place: Place, entrant: Entrant) -> list[Run]:
        """Runs of an entrant on a problem, one for each seed; a `UsageError` where its cost cannot be made equal."""
        runs = [self._run(place, entrant, seed) for seed in self._seeds]
        if not entrant.equal:
            return runs
        random = self._run(place, Entrant(RANDOM, RANDOM), self.first_seed).training
        most = cost_of(entrant.equal, RANDOM, random)
        form = equal_form(entrant.equal, most, entrant.agent, runs[0].training, entrant.options)
        return [dataclasses.replace(run, training=with_options(run.training, form)) for run in runs]

    def _floors(self, place: Place) -> tuple[list[Run], list[Run]]:
        """Runs of the oracle, one for each seed, and of random frozen paths, which are drawn so often in any case."""
        oracle, random = Entrant(ORACLE, ORACLE), Entrant(RANDOM, RANDOM)
        return [self._run(place, oracle, seed) for seed in self._seeds], [
            self._run(place, random, FIRST_DRAW + draw, self.first_seed + draw) for draw in range(DRAWS)
        ]

    def _say_others(self, entrants: Sequence[Entrant], console: Console) -> None:
        """Say whose runs are in the folder, but not shown."""
        shown = {folder_name(of.label) for of in entrants} | {ORACLE, RANDOM}
        others = {path.parent.name for path in runs_in(self.out, "[!.]*/*/*")} - shown
        if others:
            say(console, f"Not shown, since they were not asked for, are runs of {', '.join(sorted(others))}")

    def _write_tuned(self, entrants: Sequence[Entrant], scores: Sequence[Score]) -> None:
        """Write the best setting, by interquartile mean, of every agent that takes part with several."""
        # All difficulties count.
        places = ({**score, "problem": f"{score['problem']}, {score['difficulty']}"} for score in scores)
        order = [standing.agent for standing in standings(places)]
        problems = " ".join(dict.fromkeys(score["problem"] for score in scores))
        problems += f" ({', '.join(dict.fromkeys(score['difficulty'] for score in scores))})"
        seeds = f"seeds {self._seeds[0]} to {self._seeds[-1]}"
        for agent in {of.agent: None for of in entrants}:
            settings = [of for of in entrants if of.agent == agent and of.label in order]
            if len(settings) > 1:
                best = min(settings, key=lambda of: order.index(of.label))
                how = f"the best of {len(settings)} settings in routing-gym suite, {seeds}: {problems}"
                write_tuned(self.out / "tuned", TUNED, agent, {}, parse_options("agent_options", best.options), how)

    def _tried(self, runs: Mapping[tuple[Place, str], Sequence[Run]], records: Mapping[Path, Record]) -> list[Hole]:
        """Who cannot run what, and why: found out on one batch each, before a minute is spent."""
        holes = []
        for (place, label), of_key in runs.items():
            left = [run for run in of_key if run.folder not in records]
            try:
                if left:
                    left[0].try_out(batch=True, fresh=True)  # a checkpoint that does not fit is this run's failure
            except (Exception, SystemExit) as error:
                holes.append(hole_of(place, label, error))
        return holes


def hole_of(place: Place, label: str, error: BaseException) -> Hole:
    """Why somebody cannot run something."""
    reason = str(error) if isinstance(error, UsageError) else one_line(error)
    return {"agent": label, "problem": place[0], "difficulty": place[1], "reason": reason}


def say_holes(holes: Sequence[Hole], asked: int, console: Console) -> None:
    """Say who cannot run what, a line for each reason; a `UsageError` if nobody can run anything."""
    if len(holes) == asked:
        raise UsageError(f"{holes[0]['agent']} can run none of these problems: {holes[0]['reason']}")
    for agent, reason in dict.fromkeys((hole["agent"], hole["reason"]) for hole in holes):
        where = dict.fromkeys(hole["problem"] for hole in holes if (hole["agent"], hole["reason"]) == (agent, reason))
        say(console, f"{agent} cannot run {', '.join(where)}: {reason}", style="yellow")


def write_all(folder: Path, scales: Sequence[Scale], scores: Sequence[Score], holes: Sequence[Hole]) -> None:
    """Write scores, the scales they are on, and holes."""
    write_results(scores, folder / SCORES)
    write_results([dataclasses.asdict(scale) for scale in scales], folder / SCALES)
    write_results(holes, folder / HOLES)


def read_all(folder: Path) -> tuple[list[Scale], list[Score], list[Hole]]:
    """Read what `write_all` has written, compressed or not; a `UsageError` if it is not there, or damaged."""
    paths = [
        next((path for end in ("", ".gz") if (path := folder / f"{name}{end}").exists()), folder / name)
        for name in FILES
    ]

    def check_score(score: Score) -> None:
        check_form({name: score.get(name) for name in FORM}, FORM, "score")
        check_place(score, "score")

    scores, scales = read_results(paths[0], check_score), read_results(paths[1])
    holes = read_results(paths[2], lambda hole: check_form({name: hole.get(name) for name in OF_HOLE}, OF_HOLE, "hole"))
    try:
        places = {(scale["problem"], scale["difficulty"]) for scale in scales}
        if lost := next((of for of in scores if (of["problem"], of["difficulty"]) not in places), None):
            raise ValueError(f"it has no scale for {lost['problem']}, {lost['difficulty']}")
        return [Scale.of(scale) for scale in scales], scores, holes
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise damaged(paths[1], error) from error


def show_all(
    scales: Sequence[Scale], scores: Sequence[Score], holes: Sequence[Hole], folder: Path, console: Console
) -> int:
    """Print the leaderboard, and write it with its pictures; return the exit status, 1 where a problem is broken."""
    wrong = broken(scales, scores)
    for line in wrong:
        say(console, line, style="red")
    if not scores:
        say(console, f"Nobody has a score; written to {folder}: {', '.join(FILES)}")
        return 1 if wrong else 0
    from routing_gym.experiments.suite import leaderboard

    show(console, leaderboard.table(scores))
    leaderboard.write(scales, scores, holes, folder)
    say(console, f"Written to {folder}: leaderboard.md, its pictures, report.html")
    return 1 if wrong else 0
