"""Sequences of commands, drawn at random: nothing that is finished is lost."""

import signal

import pytest
from commands import registered, run
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from records import strict, untimed

from routing_gym.agents import AGENTS

pytestmark = pytest.mark.usefixtures("no_pictures")


class Killed(BaseException):
    """What kill -9 does, as far as a process can do it to itself."""


class Clock:
    """Counts batches of all runs, and does something to the process when the last is reached."""

    left, act = -1, staticmethod(lambda: None)

    def tick(self):
        self.left -= 1
        if self.left == 0:
            self.act()


CLOCK = Clock()


def ticking(base):
    class Ticking(AGENTS[base]):
        def update(self, trajectory):
            CLOCK.tick()
            return super().update(trajectory)

    return Ticking


def fails():
    raise RuntimeError("as it happens")


def kills():
    raise Killed


ACTS = {"nothing": lambda: None, "fails": fails, "kills": kills, "stops": lambda: signal.raise_signal(signal.SIGTERM)}
HEEDED = ["--env", "routing_gym/SyntheticMTL-v0", "--epochs", "2", "--batch-size", "512"]


@pytest.mark.long
def test_sequences_of_commands_lose_nothing(tmp_path):
    names = {"ticking-wpl": ticking("wpl"), "ticking-reinforce": ticking("reinforce")}

    class Sequences(RuleBasedStateMachine):
        count = 0

        @initialize()
        def anew(self):
            Sequences.count += 1
            self.out = tmp_path / str(Sequences.count)

        def records(self, folder):
            found = [*folder.glob("[!.]*/seed-*/results.json"), *folder.glob("seed-*/results.json")]
            return {(r["agent"], r["seed"]): untimed(r) for path in found for r in strict(path)}

        @rule(
            agents=st.lists(st.sampled_from(sorted(names)), min_size=1, unique=True),
            seeds=st.integers(1, 2),
            mode=st.sampled_from([(), ("--resume",), ("--resume",), ("--overwrite",)]),
            act=st.sampled_from(sorted(ACTS)),
            batch=st.integers(1, 14),
        )
        def compare(self, agents, seeds, mode, act, batch):
            before = self.records(self.out)
            occupied = bool(list(self.out.glob("*/seed-*")))
            CLOCK.left, CLOCK.act = batch, ACTS[act]
            try:
                status = run("compare", *HEEDED, "--agents", *agents, "--seeds", seeds, "--out", self.out, *mode)
            except Killed:
                status = "killed"
            CLOCK.left = -1
            assert (status == 2) == (occupied and not mode)
            now = self.records(self.out)
            assert all(record == whole[key] for key, record in now.items())  # bit for bit, however it came about
            aside = {key for folder in self.out.glob(".old-*") for key in self.records(folder)}
            assert before.keys() <= now.keys() | aside
            if status == 0:
                asked = {(agent, seed) for agent in agents for seed in range(seeds)}
                assert now.keys() == asked | (before.keys() if mode == ("--resume",) else set())
                assert not aside & now.keys()
                assert {(r["agent"], r["seed"]) for r in strict(self.out / "results.json")} == now.keys()

    with registered(**names):
        assert run("compare", *HEEDED, "--agents", *names, "--seeds", 2, "--out", tmp_path / "whole") == 0
        whole = {(r["agent"], r["seed"]): untimed(r) for r in strict(tmp_path / "whole" / "results.json")}
        quick = settings(max_examples=6, stateful_step_count=5, deadline=None, suppress_health_check=list(HealthCheck))
        run_state_machine_as_test(Sequences, settings=quick)
