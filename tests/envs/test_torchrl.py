"""TorchRL's wrappers around our environments: tensors all the way."""

import gymnasium
import pettingzoo
import pytest
import torch
from toys import TREE, ExitTree, planted_env, quick, toy_env

import routing_gym
from routing_gym.envs.pettingzoo import RoutingParallelEnv

pytest.importorskip("torchrl", reason="TorchRL is not installed: pip install 'routing_gym[torchrl]'")

from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, GymWrapper, PettingZooWrapper, check_env_specs
from torchrl.modules import MaskedCategorical
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

pytestmark = pytest.mark.filterwarnings("ignore")
DISABLED = {"autoreset_mode": "disabled", "replay": True}


def wrapped(env):
    wrapper = GymWrapper(env, categorical_action_encoding=True, convert_actions_to_numpy=False)
    if env.autoreset_mode is gymnasium.vector.AutoresetMode.DISABLED:
        # In the other mode TorchRL reads all infos by itself.
        wrapper.auto_register_info_dict()
    return wrapper


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, DISABLED], ids=["same-step", "disabled"])
@pytest.mark.parametrize("env_id", routing_gym.env_ids())
def test_every_id_passes_the_check(env_id, options):
    check_env_specs(wrapped(gymnasium.make_vec(env_id, num_envs=5, **quick(env_id), **options)))


def test_an_id_is_enough():
    """`GymEnv` tries every environment with `frameskip`, and goes on without it when Python's own words refuse it."""
    env = GymEnv("routing_gym/SyntheticMTL-v0", width=8)
    check_env_specs(env)
    assert env.rollout(3)["next", "done"][-1]
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        GymEnv("routing_gym/SyntheticMTL-v0", widht=8)


@pytest.mark.long
@pytest.mark.parametrize("env_id", routing_gym.env_ids())
def test_the_faces_of_every_id_pass_the_check(env_id):
    check_env_specs(PettingZooWrapper(pettingzoo.make("parallel", env_id, **quick(env_id))))
    check_env_specs(PettingZooWrapper(pettingzoo.make("aec", env_id, **quick(env_id)), use_mask=True))


def test_agents_that_leave_one_by_one_pass_the_check():
    env = PettingZooWrapper(RoutingParallelEnv(toy_env()), use_mask=True)
    check_env_specs(env)
    env.rollout(20, break_when_any_done=False)


@pytest.mark.parametrize("options", [{}, DISABLED], ids=["same-step", "disabled"])
def test_actions_stay_tensors_and_rows_begin_anew(options, monkeypatch):
    core = toy_env(ExitTree(TREE), 6, **options)
    taken, step = [], core.step
    monkeypatch.setattr(core, "step", lambda actions: taken.append(actions) or step(actions))
    steps = wrapped(core).rollout(12, break_when_any_done=False)
    assert all(isinstance(action, torch.Tensor) for action in taken) and steps.shape == (6, 12)
    done = steps["next", "done"][:, :-1, 0]
    assert done.any() and (steps["depth"][:, 1:][done] == 0).all()
    assert (steps["next", "depth"][:, :-1][~done] == steps["depth"][:, 1:][~done]).all()
    if options:  # in mode "same_step" TorchRL 0.14 puts zeros where the last observation of a Dict should be
        assert (steps["next", "depth"][:, :-1][done] == 4).all()


@pytest.mark.long
def test_proximal_policy_optimisation_learns_the_routes_together_with_the_blocks():
    torch.manual_seed(0)
    core = planted_env(32, replay=True, seed=0)
    env = wrapped(core)
    keys, cells = ["task", "depth"], 3 * 3

    class Table(torch.nn.Module):
        """Numbers for each task and decision."""

        def __init__(self, width):
            super().__init__()
            self.numbers = torch.nn.Embedding(cells, width)
            torch.nn.init.zeros_(self.numbers.weight)

        def forward(self, task, depth):
            return self.numbers(3 * task + depth)

    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(Table(4), in_keys=keys, out_keys=["logits"]),
        ProbabilisticTensorDictModule(
            in_keys={"logits": "logits", "mask": "action_mask"},
            out_keys=["action"],
            distribution_class=MaskedCategorical,
            return_log_prob=True,
        ),
    )
    critic = TensorDictModule(Table(1), in_keys=keys, out_keys=["state_value"])
    loss_of = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
    advantage = GAE(gamma=1.0, lmbda=1.0, value_network=critic)
    optimizer = torch.optim.Adam(loss_of.parameters(), lr=0.05)
    rewards = []
    for data in Collector(env, actor, frames_per_batch=32 * 8, total_frames=32 * 8 * 60):
        rewards.append(float(data["next", "reward"][data["next", "done"]].mean()))
        for _ in range(4):
            advantage(data)
            losses = loss_of(data)
            loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert rewards[0] < -0.7 and rewards[-1] > 0.7, rewards
    assert core.trainer.instances == 60 * 8 // 2 * 32
