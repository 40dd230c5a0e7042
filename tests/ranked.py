"""What every process of a group does in the tests of `distributed=True`: train agents, and write down what came of it.

`python -m torch.distributed.run --nproc-per-node N ranked.py FOLDER CASE...`; or in one process, with whole batches.
"""

import json
import os
import sys
import weakref
from pathlib import Path

import torch
import torch.distributed as dist

from routing_gym.agents import make_agent, needs
from routing_gym.envs import RoutingVectorEnv, evaluate
from routing_gym.networks import make_network
from routing_gym.tasks import synthetic_mtl

ROWS, BATCHES = 24, 10  # more than an epoch, and than anything here takes to fall
CASES = {
    "wpl": ("wpl", "mlp", {}, {}),
    "wpl-mlp": ("wpl", "mlp", {"representation": "mlp"}, {"optimizer": "sgd"}),
    "reinforce": ("reinforce", "mlp", {}, {"rho": 0.3, "collaboration": "frequency"}),
    "reinforce-mlp": ("reinforce", "mlp", {"representation": "mlp"}, {"optimizer": "sgd", "momentum": 0.9}),
    "q-learning": ("q-learning", "mlp", {"td_lambda": 1.0, "epsilon_episodes": 120}, {"schedule": "cosine"}),
    "gumbel": ("gumbel", "mlp", {"temperature_episodes": 180}, {"max_grad_norm": 0.5}),
    "top-k": ("top-k", "mlp", {}, {"label_smoothing": 0.1}),
    "sparsemixer": ("gumbel", "mlp", {"estimator": "sparsemixer"}, {}),
    "loss-free": ("loss-free", "mlp", {"bias_rate": 0.01, "z_loss": 0.1, "shared": 1, "k": 1, "softmax": "all"}, {}),
    "remoe": ("remoe", "mlp", {"penalty": 0.01, "balance": True}, {}),
    "trunk": ("wpl", "simple-convnet", {}, {"optimizer": "sgd", "learning_rate": 0.01}),
    "random-fixed": ("random-fixed", "mlp", {}, {}),
    "codinet": ("codinet", "resnet32-skip", {"alpha": 0.3, "beta": 0.3, "gamma": 0.1}, {"augmentations": 2}),
    "codinet-drawn": ("codinet", "resnet32-skip", {"alpha": 0.3, "relaxation": "sampling"}, {"augmentations": 2}),
    "skipping": ("wpl", "resnet32-skip", {}, {"optimizer": "sgd", "learning_rate": 0.01}),
    "critic": ("optimistic-critic-sampled", "mlp", {}, {}),
    "nan": ("wpl", "mlp", {}, {}),
    "gone": ("wpl", "mlp", {}, {}),
}  # fmt: skip


def trained(name):
    """Train one case; give losses, weights, tables and the evaluation as plain numbers."""
    agent_name, network, agent_options, options = CASES[name]
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    size = 16 if network != "mlp" else 4
    data = synthetic_mtl(num_tasks=3, image_size=size, images_per_class=20, shift=1)
    torch.manual_seed(0)
    small = {"stages": [1, 1, 1], "width": 2} if network == "resnet32-skip" else {"num_blocks": 3, "width": 8}
    form = {"num_tasks": 3, "num_classes": 3, **small}
    built = make_network(network, input_shape=data["train"].input_shape, **form)
    known = ("action_type", "autoreset_mode", "differentiable")
    own = {key: value for key, value in needs(agent_name).items() if key in known}
    env = RoutingVectorEnv(built, data, ROWS // ranks, distributed=ranks > 1, seed=3, **{**own, **options})
    agent = make_agent(agent_name, env, seed=5, **agent_options)
    losses = []

    def note(metrics):
        losses.append(float(metrics["loss"]))
        if len(losses) == 3 and ranks > 1 and dist.get_rank() == 1:
            if name == "nan":
                env.network.banks[0].weight.data.fill_(torch.nan)
            if name == "gone":
                os._exit(7)

    batches = 4 if network != "mlp" else BATCHES
    agent.learn(env, batches * ROWS, note)
    judged = evaluate(agent, env)
    state = {f"agent {key}": value for key, value in agent.state_dict().items()}
    state |= {f"blocks {key}": value for key, value in env.network.state_dict().items()}
    numbers = {"losses": losses, "episodes": agent.episodes, "instances": env.trainer.instances, "loss": judged.loss}
    numbers |= {"accuracy": judged.accuracy, "task_accuracy": judged.task_accuracy, "routes": judged.routes.tolist()}
    numbers |= {"route": judged.taken[judged.route].tolist()}
    return {**numbers, **{key: value.tolist() for key, value in state.items()}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder, *cases = sys.argv[1:]
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    number = dist.get_rank() if dist.is_initialized() else 0
    for case in cases:
        try:
            found = trained(case)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        part = Path(folder, f"{case}-{number}.part")  # the launcher may end this process at any time
        part.write_text(json.dumps(found))
        part.rename(part.with_suffix(".json"))
    if dist.is_initialized():
        group = weakref.ref(dist.group.WORLD)
        dist.destroy_process_group()
        assert group() is None, "the group is held by somebody: its threads run while Python ends, which may abort it"
