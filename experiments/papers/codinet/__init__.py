"""CoDiNet: Path Distribution Modeling with Consistency and Diversity for Dynamic Routing (Wang et al.)."""

from routing_gym.experiments.papers.codinet import rows
from routing_gym.experiments.papers.codinet.figures import draw
from routing_gym.experiments.papers.codinet.results import claims, paths_and_cost
from routing_gym.experiments.papers.reproduction import Reproduction

CODINET = Reproduction(
    name="codinet",
    title="CoDiNet: Path Distribution Modeling with Consistency and Diversity for Dynamic Routing (Wang et al.)",
    settings=(rows.PAPER,),
    rows=rows.ROWS,
    groups={
        "regularization": "Table 2: consistency and diversity",
        "cost": "Table 5 and Fig. 7: cost and accuracy",
        "depth": "Table 6: ResNets of three depths",
        "margins": "Table 8: margin of diversity",
        "relaxations": "Table 9: relaxations of a decision, without the losses on paths",
        "routers": "Table 10: kinds of routers",
        "svhn": "Table 4: SVHN",
        "agents": "Not in the paper: other agents, k_cpt = 2e-9 (gamma = 0.01)",
    },
    batch_size=256,
    about="Test accuracy in %, ± half of the 95 % interval over seeds, the paper's in italics behind ours; GFLOPs are "
    "twice the multiply-accumulates, routers included; K is the mean number of blocks run; kept is the share of test "
    "images whose path stays the same when they are cropped, mirrored both ways and rotated, as in section 4.4.1 (it "
    "gives no angle, here up to 15 degrees), or moved and mirrored as in training; KL is how far the predicted classes "
    "then are from what they were, in nats.",
    table=paths_and_cost,
    draw=draw,
    judge=claims,
)
