"""Soft merging of experts with adaptive routing (Muqeeth et al. 2024)."""

from __future__ import annotations

from routing_gym.agents.parts.gates import ScoredGate


class SMEAR(ScoredGate):
    """SMEAR: the blocks' parameters are averaged by the router's probabilities, and the one merged block runs.

    Its output is f(x; Σ_c π_c θ_c), not Σ_c π_c f(x; θ_c) (Muqeeth et al. 2024, section 3): every probability has an
    exact gradient, as in a mixture of all blocks, at the cost of one block and of mixing parameters. Blocks must have
    the same parameters. Needs an environment made with `merge_blocks=True`, as `needs` says.
    """

    env_kwargs = {"merge_blocks": True}
