"""What agents demand of a network, beyond what their classes declare."""

from __future__ import annotations

from routing_gym.agents.base.agent import Agent

SKIP, RUN = 0, 1
"""Choices of networks whose blocks are skipped or run."""


def takes_skips(agent: Agent) -> None:
    """Refuse a network whose decisions are not to skip (0) or run (1) a block."""
    for decision in agent.env.network.decisions:
        skips = decision.n == 2 and decision.macs[SKIP] < decision.macs[RUN]
        if not skips or decision.m != 1 or decision.mixing != "activation":
            raise ValueError(
                f"agent {agent.name!r} says whether a block is skipped (0) or run (1), but decision {decision.name!r} "
                "of this network is another: take one of the networks ...-skip"
            )


def offers(agent: Agent, k: float) -> None:
    """Refuse a network none of whose decisions offers as many blocks as are to be mixed."""
    if k > agent.num_choices:
        raise ValueError(
            f"agent {agent.name!r} mixes k={k:g} blocks, no decision of this network offers more than "
            f"{agent.num_choices}"
        )
