"""Tuned settings: options of an agent on an environment, in a file each, as a sweep has found them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routing_gym.experiments.engine.command import Command, UsageError
from routing_gym.experiments.engine.records import write_text
from routing_gym.experiments.engine.settings import TrainingSettings, config_text, filled_up, folder_name, read_config

SHIPPED = Path(__file__).parent.parent / "tuned"
"""Settings that come with the library."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tunable(Command):
    """A command that can use tuned settings.

    Attributes:
        tuned: Use tuned settings of every agent on the environment, where there are some; options that are given count
            more.
        tuned_dir: Where they are; by default those that come with the library.
    """

    tuned: bool = False
    tuned_dir: Path = SHIPPED

    def settings_of(
        self, training: TrainingSettings, agent: str, agent_options: tuple[str, ...]
    ) -> tuple[TrainingSettings, tuple[str, ...]]:
        """Settings and options of an agent, with what was tuned if it is asked for.

        Raises:
            UsageError: There is no such folder, or a file in it is damaged.
        """
        if not self.tuned:
            if self.tuned_dir != SHIPPED:
                raise UsageError(f"--tuned-dir {self.tuned_dir} is for --tuned: give both")
            return training, agent_options
        if not self.tuned_dir.is_dir():
            raise UsageError(f"--tuned-dir {self.tuned_dir} is no folder: a sweep writes one, OUT/tuned")
        path = tuned_path(self.tuned_dir, training.env, agent)
        if not path.parent.is_dir():
            raise UsageError(f"--tuned: nothing was tuned for {training.env}, there is no {path.parent}")
        try:
            found = read_config(path) if path.exists() else {}
            of_env, of_agent = (found.get(name, []) for name in ("env_options", "agent_options"))
            if not (isinstance(of_env, list) and isinstance(of_agent, list)):
                raise ValueError("expected the tables env_options and agent_options")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        training = dataclasses.replace(training, env_options=filled_up(training.env_options, of_env))
        return training, filled_up(agent_options, of_agent)


def tuned_path(folder: Path, env: str, agent: str) -> Path:
    """File of an agent's settings on an environment."""
    return folder / env.rpartition("/")[2] / f"{folder_name(agent)}.toml"


def write_tuned(
    folder: Path, env: str, agent: str, of_env: Mapping[str, Any], of_agent: Mapping[str, Any], how: str
) -> Path:
    """Write the options of an environment and of an agent on it, and in a line how they were found; return the file."""
    path = tuned_path(folder, env, agent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"# {how}\n" + config_text({"env_options": dict(of_env), "agent_options": dict(of_agent)}))
    return path
