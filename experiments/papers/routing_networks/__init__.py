"""Routing Networks: Adaptive Selection of Non-Linear Functions for Multi-Task Learning (Rosenbaum et al.)."""

from routing_gym.experiments.papers.reproduction import Measurement, Reproduction
from routing_gym.experiments.papers.routing_networks import cost, figures, results, rows

ROUTING_NETWORKS = Reproduction(
    name="routing-networks",
    title="Routing Networks (Rosenbaum, Klinger, Riemer; ICLR 2018)",
    settings=(rows.PAPER, rows.TUNED),
    rows=rows.ROWS,
    groups={
        "rl": "Fig. 4, CIFAR-MTL: algorithms",
        "architectures": "Fig. 5, CIFAR-MTL: architectures",
        "cifar": "Fig. 6, CIFAR-MTL: baselines",
        "stages": "Not in the paper, CIFAR-MTL: the last convolutional stages routed too, at equal MACs",
        "min": "Fig. 7, MIN-MTL",
        "mnist": "Fig. 8, MNIST-MTL",
        "rho": "Fig. 12, CIFAR-MTL: the collaboration reward",
        "first-tasks": "Fig. 15, CIFAR-MTL: the first tasks",
    },
    batch_size=128,
    about="Test accuracy in %, ± half of the 95 % interval over seeds.",
    table=results.accuracy_by_epoch,
    draw=figures.draw,
    judge=results.claims,
    measured={
        "cost": Measurement(
            title="Fig. 13: what a task's epoch costs",
            env=rows.CIFAR,
            measure=cost.cost_against_number_of_blocks,
            table=cost.cost_by_blocks,
            draw=cost.cost_against_blocks,
        )
    },
)
