"""Deciding How to Decide: Dynamic Routing in Artificial Neural Networks (McGill and Perona)."""

from routing_gym.experiments.papers.multipath import rows
from routing_gym.experiments.papers.multipath.figures import draw
from routing_gym.experiments.papers.multipath.results import claims, error_and_operations
from routing_gym.experiments.papers.reproduction import Reproduction

MULTIPATH = Reproduction(
    name="multipath",
    title="Deciding How to Decide (McGill, Perona; ICML 2017)",
    settings=(rows.PAPER,),
    rows=rows.ROWS,
    groups={
        "fig5": "Fig. 5, hybrid data: strategies",
        "variants": "Fig. 5, hybrid data: variants",
        "classes": "Fig. 9: difficulty of the decisions",
        "cifar-2": "Not in the paper, CIFAR-2: actors and critics",
        "skipping": "Not in the paper, CIFAR-10: leaving early beside skipping blocks (CoDiNet)",
        "width": "Fig. 10, CIFAR-10: capacity",
        "agents": "Not in the paper, hybrid data: other agents at the price 4e-9",
    },
    batch_size=128,
    about="Test error in %, ± half of the 95 % interval over seeds; millions of multiply-accumulates per instance, the "
    "routers' own included, and the routers' share of them; c_inf is cross-entropy plus k_cpt times those operations.",
    table=error_and_operations,
    draw=draw,
    judge=claims,
    judged_by="series",
    beside="codinet",
)
