"""Options every agent has."""

from __future__ import annotations

import dataclasses

from routing_gym.options import Options


@dataclasses.dataclass(frozen=True)
class AgentConfig(Options):
    """Options every agent has.

    Attributes:
        seed: Seed of the agent's own random choices.
    """

    seed: int = 0

    @classmethod
    def owner(cls) -> str:
        """Return whose options these are, as messages begin."""
        return f"{cls.__name__.removesuffix('Config')}: "
