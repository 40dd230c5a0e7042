"""End-to-End Data-Dependent Routing in Multi-Path Neural Networks (Tissera et al.)."""

from routing_gym.experiments.papers.parallel_paths import rows
from routing_gym.experiments.papers.parallel_paths.figures import draw
from routing_gym.experiments.papers.parallel_paths.results import claims, cnns, hard_routes, resnets
from routing_gym.experiments.papers.reproduction import Reproduction

PARALLEL_PATHS = Reproduction(
    name="parallel-paths",
    title="End-to-End Data-Dependent Routing in Multi-Path Neural Networks (Tissera et al.)",
    settings=(rows.PAPER,),
    rows=rows.ROWS,
    groups={
        "cnn": "Table 2: parallel paths against wider, deeper and other networks",
        "hard": "Not in the paper: every tensor goes to one path",
        "resnet": "Table 3 and Fig. 7: ResNets of parallel paths",
    },
    batch_size=128,
    about="Test error in %, ± half of the 95 % interval over seeds; behind our figures in italics the paper's, of "
    "which errors are those of the best of three trials. Parameters and multiply-accumulates are those of network and "
    "gates together; gates', and agent's, is the agent's own share of the latter.",
    table=cnns,
    draw=draw,
    judge=claims,
    tables={"resnet": resnets, "hard": hard_routes},
)
