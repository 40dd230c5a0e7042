"""Trying out options on the validation split."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from routing_gym.experiments.engine.arguments import write_tuned
from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.console import counted, say, show
from routing_gym.experiments.engine.folders import check_own, keep_failures, locked
from routing_gym.experiments.engine.launchers import Launching, perform, say_failures, try_out
from routing_gym.experiments.engine.metrics import ACCURACY, METRICS
from routing_gym.experiments.engine.records import Record, read_results, write_results
from routing_gym.experiments.engine.run import Run
from routing_gym.experiments.engine.settings import (
    MOST_SEEDS,
    TrainingSettings,
    at_least_one,
    check_agents,
    each_once,
    flag_of,
    folder_name,
    parse_options,
    parsed_value,
    repeated,
    writable_folder,
)

OF_ENV = "env."
FIRST_SEED = 100
"""Seeds of their own, so that what is compared afterwards, from seed 0 on, was not what was tuned on."""
ASKED_AT_ONCE = 4
"""Settings that TPE proposes before it is told what came of them; the same however many run at once."""

DRAWS = 50
"""Times as many settings are drawn at random as are to be tried, or asked for again: repeats do not count."""

Setting = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values of an option that are tried: texts, or else a range, on a logarithmic scale maybe."""

    name: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is a range of integers."""
        return not self.values and isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def size(self) -> float:
        """Number of values."""
        return len(self.values) or (self.high - self.low + 1 if self.whole else math.inf)

    def text(self, share: float) -> str:
        """Value at a share in [0, 1) of the way, as NAME=VALUE."""
        if self.values:
            return f"{self.name}={self.values[int(share * len(self.values))]}"
        beyond = self.high + self.whole  # the last of some integers is as likely as the others
        low, high = (math.log(self.low), math.log(beyond)) if self.log else (self.low, beyond)
        value = low + share * (high - low)
        value = math.exp(value) if self.log else value
        if self.whole:  # exp(log(8)) is a little less than 8
            return f"{self.name}={min(math.floor(value + 1e-9), int(self.high))}"
        return f"{self.name}={value:.4g}"

    def suggested(self, trial: Any) -> str:
        """Value that Optuna proposes, as NAME=VALUE."""
        if self.values:
            return f"{self.name}={trial.suggest_categorical(self.name, self.values)}"
        if self.whole:
            return f"{self.name}={trial.suggest_int(self.name, self.low, self.high, log=self.log)}"
        return f"{self.name}={trial.suggest_float(self.name, self.low, self.high, log=self.log):.4g}"


def axis_of(item: str) -> Axis:
    """Axis from NAME=VALUE,VALUE,... or NAME=LOW..HIGH, with `:log` behind it for a logarithmic scale.

    Raises:
        UsageError: Something else.
    """
    name, _, values = item.partition("=")
    if not (name and values):
        raise UsageError(f"--grid takes NAME=VALUE,VALUE,... or NAME=LOW..HIGH, got {item!r}")
    if ".." not in values:
        tried = _parts(values)
        if twice := repeated([repr(parsed_value(value)) for value in tried]):  # 0.01 is 1e-2
            raise UsageError(f"--grid takes every value of {name} once, got {twice} twice")
        return Axis(name, tried)
    span, colon, scale = values.partition(":")
    low, _, high = span.partition("..")
    ends = parse_options("grid", (f"low={low}", f"high={high}"))
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends.values())
    if not numbers or not ends["low"] < ends["high"] or (colon and (scale != "log" or ends["low"] <= 0)):
        raise UsageError(
            f"--grid takes a range as NAME=LOW..HIGH, LOW below HIGH, or LOW..HIGH:log with LOW above 0, got {item!r}"
        )
    return Axis(name, log=bool(colon), **ends)


@dataclasses.dataclass(frozen=True)
class Sweep(Launching):
    """Train one agent with many settings of some options, and rank them on the validation split.

    The test split is not looked at. A sweep that was interrupted goes on where it stopped when it is called again.
    The best setting is written to OUT/tuned, which `--tuned --tuned-dir OUT/tuned` uses.

    Attributes:
        training: How agent and blocks are trained.
        agent: The agent; `routing-gym list` prints them.
        grid: What to try, as NAME=VALUE,VALUE,... or NAME=LOW..HIGH (LOW..HIGH:log): options of the agent, or of the
            environment as env.NAME, e.g. policy_rate=0.003,0.01 env.learning_rate=0.0003..0.01:log.
        search: Every combination, `grid`; settings drawn at random, `random`; or proposed by what came of those before,
            `tpe` (Optuna; the extra `optuna`).
        trials: Number of settings, where they are drawn or proposed.
        halving: After every seed go on with the better half of the settings alone.
        agent_options: Options of the agent that are the same throughout, as NAME=VALUE.
        seeds: Number of seeds, from 100 on.
        out: Folder for everything that is written.
    """

    training: Annotated[TrainingSettings, tyro.conf.arg(name="")] = TrainingSettings()
    agent: str = "wpl"
    grid: tuple[str, ...] = ()
    search: Literal["grid", "random", "tpe"] = "grid"
    trials: int = 20
    halving: bool = False
    agent_options: tuple[str, ...] = ()
    seeds: int = 3
    out: Path = Path("results/sweep")

    def execute(self, console: Console) -> int:
        """Run it; return the exit status, 1 where some run failed."""
        self.training.check()
        check_agents((self.agent,))
        at_least_one("seeds", self.seeds, MOST_SEEDS)
        at_least_one("trials", self.trials)
        launcher = self.make_launcher(self.out)
        axes = self._axes()
        records: dict[str, list[Record]] = {}
        failures: list[str] = []
        with ExitStack() as stack:
            stack.callback(launcher.end)
            if self.out.is_dir():
                stack.enter_context(locked(self.out))
            check_own(self.out, "sweep")

            def in_order() -> list[Record]:
                return [record for runs in records.values() for record in sorted(runs, key=lambda run: run["seed"])]

            def keep(run: Run, record: Record) -> None:
                records[run.facts["setting"]].append(record)
                write_results(in_order(), writable_folder(self.out) / "results.json")

            def run_all(settings: Sequence[Setting], seeds: Sequence[int]) -> None:
                """Finish runs of settings, as far as they are not."""
                left = []
                for run in (self._run(setting, seed) for seed in seeds for setting in settings):
                    of_setting = records.setdefault(run.facts["setting"], [])
                    if record := run.finished():
                        of_setting.append(record)
                    else:
                        left.append(run)
                left, failed = try_out(left, launcher.told(console), self.debug)
                stack.enter_context(locked(writable_folder(self.out)))
                failures.extend(
                    [*failed, *perform(left, launcher, keep, console, self.debug, population=self.population)]
                )

            def score(setting: Setting) -> float:
                """Mean accuracy of a setting so far; minus infinity where its runs failed."""
                runs = records[" ".join(setting)]
                return float(np.mean([ACCURACY.value(run) for run in runs])) if runs else -math.inf

            seeds = range(FIRST_SEED, FIRST_SEED + self.seeds)
            tried: dict[Setting, None] = {}
            for proposed in self._proposed(axes, score):
                self._check_there(proposed)
                settings = [setting for setting in dict.fromkeys(proposed) if setting not in tried]
                tried |= dict.fromkeys(settings)
                for of_round in [[seed] for seed in seeds] if self.halving else [seeds]:
                    run_all(settings, of_round)
                    if self.halving and launcher.here:
                        settings = sorted(settings, key=score, reverse=True)[: -(-len(settings) // 2)]
                if not launcher.here:
                    return say_failures(failures, launcher.told(console), self.out)
            if self.search != "grid" and len(tried) < self.trials:
                found = counted(len(tried), "setting")
                say(console, f"--trials {self.trials} asks for more than there are: no more than {found} found")
            if done := in_order():
                write_results(done, writable_folder(self.out) / "results.json")
                title = f"{self.agent} on {self.training.env}, {counted(self.training.epochs, 'epoch')}"
                show(console, ranking(done, title))
            if whole := [setting for setting in tried if len(records[" ".join(setting)]) == self.seeds]:
                say(console, f"The best setting is in {self._write_tuned(max(whole, key=score))}")
            keep_failures(self.out, failures)
            return say_failures(failures, console, self.out)

    def _check_there(self, proposed: Sequence[Setting]) -> None:
        """Refuse a folder whose records another sweep has written: they would go, and the best setting with them."""
        path, known = self.out / "results.json", {" ".join(setting) for setting in proposed}
        for record in read_results(path) if path.exists() else ():
            if record.get("agent") != self.agent:
                raise UsageError(f"{path} holds a sweep of {record.get('agent')}: take another folder")
            if self.search != "tpe" and record["setting"] not in known:  # which proposes some after others have run
                mend = "give all values at once, finished ones are not run again, or take another folder"
                raise UsageError(f"{path} holds {record['setting']}, which is not to be tried now: {mend}")

    def _axes(self) -> list[Axis]:
        if not self.grid:
            raise UsageError("--grid needs at least one NAME=VALUE,VALUE,...")
        axes = [axis_of(item) for item in self.grid]
        each_once("grid", self.grid)
        if self.search == "grid" and (spans := [axis.name for axis in axes if not axis.values]):
            raise UsageError(f"--search grid tries every value, {spans[0]} has a range: take --search random or tpe")
        if self.search == "tpe" and self.launcher == "print":
            raise UsageError("--search tpe waits for what came of its settings, --launcher print does not run them")
        return axes

    def _proposed(self, axes: Sequence[Axis], score: Callable[[Setting], float]) -> Iterator[list[Setting]]:
        """Settings to try, all at once or in portions; `score` tells what came of those before."""
        if self.search == "grid":
            yield [*itertools.product(*([f"{axis.name}={value}" for value in axis.values] for axis in axes))]
        elif self.search == "random":
            draws = np.random.default_rng(FIRST_SEED).random((DRAWS * self.trials, len(axes)))
            drawn = (tuple(axis.text(share) for axis, share in zip(axes, row, strict=True)) for row in draws)
            yield [*dict.fromkeys(drawn)][: self.trials]  # each once
        else:  # a tree-structured Parzen estimator (Bergstra et al. 2011)
            try:
                import optuna
            except ImportError as error:
                raise UsageError("--search tpe needs its extra: pip install 'routing-gym[optuna]'") from error
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            estimator, chance = (
                kind(seed=FIRST_SEED) for kind in (optuna.samplers.TPESampler, optuna.samplers.RandomSampler)
            )
            study, tried = optuna.create_study(direction="maximize"), set[Setting]()
            while len(tried) < min(self.trials, math.prod(axis.size for axis in axes)):
                trials: dict[Setting, Any] = {}
                repeats = 0
                while len(trials) < min(ASKED_AT_ONCE, self.trials - len(tried)) and repeats < DRAWS:
                    study.sampler = estimator if repeats < DRAWS // 2 else chance  # which does not insist on one
                    trial = study.ask()
                    setting = tuple(axis.suggested(trial) for axis in axes)
                    if setting in tried or setting in trials:
                        repeats += 1
                        study.tell(trial, state=optuna.trial.TrialState.FAIL)  # counts for nothing
                    else:
                        trials[setting] = trial
                if not trials:
                    return
                tried.update(trials)
                yield [*trials]
                for setting, trial in trials.items():
                    failed = None if math.isfinite(found := score(setting)) else optuna.trial.TrialState.FAIL
                    study.tell(trial, found if failed is None else None, state=failed)

    def _run(self, setting: Setting, seed: int) -> Run:
        of_env, of_agent = _options(setting)
        env_options, agent_options = (*self.training.env_options, *of_env), (*self.agent_options, *of_agent)
        each_once("env_options", env_options)
        each_once("agent_options", agent_options)
        name = " ".join(setting)
        return Run(
            dataclasses.replace(self.training, env_options=env_options),
            self.agent,
            seed,
            self.out / folder_name(name.replace(" ", "_")) / f"seed-{seed}",
            agent_options,
            split="validation",
            title=f"{name}, seed {seed}",
            facts={"setting": name},
            plugins=self.plugin,
        )

    def _write_tuned(self, setting: Setting) -> Path:
        of_env, of_agent = _options(setting)
        options = parse_options("grid", of_env), parse_options("agent_options", (*self.agent_options, *of_agent))
        told = {"agent", "search", "seeds", "env", "epochs", "batch_size", "trials" if self.search != "grid" else ""}
        words = ["routing-gym", "sweep"]
        for of in (self, self.training):
            for field in dataclasses.fields(of):
                value = getattr(of, field.name)
                if field.name in ("training", "grid", "out", "debug"):
                    continue
                if field.name not in told and value == field.default:
                    continue
                values = [] if value is True else map(str, value) if isinstance(value, tuple) else [str(value)]
                words += [flag_of(field.name), *values]
        how = shlex.join([*words, "--grid", *self.grid])
        return write_tuned(self.out / "tuned", self.training.env, self.agent, *options, how)


def _parts(values: str) -> tuple[str, ...]:
    """Values between commas, but not those within brackets."""
    parts, depth = [""], 0
    for sign in values:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return tuple(parts)


def _options(setting: Setting) -> tuple[Setting, Setting]:
    """Options of the environment and of the agent, NAME=VALUE."""
    of_env = tuple(item for item in setting if item.startswith(OF_ENV))
    return tuple(item.removeprefix(OF_ENV) for item in of_env), tuple(item for item in setting if item not in of_env)


def ranking(records: Sequence[Record], title: str) -> Table:
    """Table with a row per setting, those with most seeds first, of them the best; accuracies on validation."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting")
    for column in ("seeds", "validation %", "worst seed", "best epoch", "time"):
        table.add_column(column, justify="right")
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["setting"], []).append(record)
    accuracies = {name: [ACCURACY.value(run) for run in runs] for name, runs in groups.items()}
    for name in sorted(groups, key=lambda name: (-len(groups[name]), -float(np.mean(accuracies[name])))):
        best = np.argmax(np.nanmean(ACCURACY.curves(groups[name]), 0))
        time = METRICS["seconds"].text([run["seconds"] for run in groups[name]])
        worst = f"{100 * min(accuracies[name]):.2f}"
        table.add_row(name, str(len(groups[name])), ACCURACY.text(accuracies[name]), worst, str(best + 1), time)
    return table
