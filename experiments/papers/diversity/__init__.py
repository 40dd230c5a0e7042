"""Diversity and Depth in Per-Example Routing Models (Ramachandran and Le)."""

from routing_gym.experiments.papers.diversity import rows
from routing_gym.experiments.papers.diversity.figures import draw
from routing_gym.experiments.papers.diversity.results import across, claims, classes_and_experts, depth, errors
from routing_gym.experiments.papers.reproduction import Reproduction

DIVERSITY = Reproduction(
    name="diversity",
    title="Diversity and Depth in Per-Example Routing Models (Ramachandran, Le; ICLR 2019)",
    settings=(rows.PAPER,),
    rows=rows.ROWS,
    groups={
        "omniglot": "Tables 1 and 2, Omniglot: diverse experts",
        "few-steps": "Table 2 in few steps: k = 2",
        "mnist": "Fig. 4, MNIST: specialisation of experts",
        "depth": "Table 4, CIFAR-10: routing depth",
        "agents": "Not in the paper: all agents on both kinds of experts",
    },
    batch_size=32,
    about="± is half of the 95 % interval over seeds; multiply-accumulates (MACs) are per instance, the router's own "
    "included.",
    table=errors,
    tables={
        "mnist": classes_and_experts,
        "depth": depth,
        "agents": across,
    },
    draw=draw,
    judge=claims,
)
