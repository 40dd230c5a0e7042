"""Multipath early exit as a run: seeds, checkpoints, growing, predicting, schedules, what is refused, and learning."""

import copy
import math

import numpy as np
import pytest
import torch
from by_hand import CHAIN, exit_env, undecided
from resuming import assert_goes_on, learned
from toys import CLASSES, IMAGE, TREE, ExitTree, toy_data

import routing_gym
from routing_gym.agents import Agent, add_task, make_agent
from routing_gym.envs import rollout
from routing_gym.networks import EXIT, Decision
from routing_gym.networks.state import legal_table
from routing_gym.tasks import MultiTaskDataset

EXACT = ["actor", "pragmatic-critic", "optimistic-critic"]
ALL = [*EXACT, "pragmatic-critic-sampled", "optimistic-critic-sampled"]
RUN = {
    "k_cpt": (0.0, 1e-7, 2e-7),
    "price": True,
    "talr": True,
    "momentum": 0.9,
    "learning_rate": 0.1,
    "schedule": "halving",
    "schedule_epochs": 0.5,
}


def run_env(name, num_envs=8, *, seed=0, **options):
    torch.manual_seed(0)
    return exit_env(ExitTree(TREE, batch_norm=True), name, num_envs, seed=seed, **{**RUN, **options})


# ------------------------------------------------------------------------------------------- seeds and checkpoints


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_curves_bit_for_bit_also_after_a_resume(name, tmp_path):
    other = run_env(name, seed=9)
    half, _, course = assert_goes_on(lambda: make_agent(name, run_env(name), seed=4), (5, 7), tmp_path, lambda: other)
    assert half.temperature < half.config.temperature and len({metrics["loss"] for metrics in course}) == 12


@pytest.mark.parametrize("name", ALL)
def test_judging_and_predicting_change_nothing(name):
    curves = []
    for looked_at in (False, True):
        agent = make_agent(name, run_env(name), seed=4)
        losses = learned(agent, 3)
        if looked_at:
            state = copy.deepcopy(agent.state_dict())
            for deterministic in (True, False) if name in EXACT else (True,):
                routing_gym.evaluate(agent, agent.env, deterministic=deterministic)
                agent.predict(agent.env.sibling(8, train=False).reset(seed=3)[0], deterministic=deterministic)
            assert agent.training and all(part.training for part in agent.modules())
            assert all(torch.equal(state[key], value) for key, value in agent.state_dict().items())
        curves.append(losses + learned(agent, 3))
    assert curves[0] == curves[1]


@pytest.mark.parametrize("name", ALL)
def test_a_new_task_begins_where_the_old_ones_stand(name):
    agent = make_agent(name, run_env(name, schedule="constant"), temperature_epochs=1.0)
    learned(agent, 6)
    new = {split: part.select_tasks([1]) for split, part in toy_data().items()}
    before = rollout(agent.eval(), agent.env.sibling(24, train=False), deterministic=True, instances=torch.arange(24))
    grown = add_task(agent, new).eval()
    after = rollout(grown, grown.env.sibling(24, train=False), deterministic=True, instances=torch.arange(24))
    for old, now in zip(before.steps, after.steps, strict=True):
        torch.testing.assert_close(now.action, old.action)
    assert grown.temperature == agent.temperature
    learned(grown, 9)
    # A pass is over the old tasks' and the new one's instances now.
    expected = agent.temperature * 0.5 ** (9 * 8 / len(grown.env.dataset))
    assert grown.temperature == pytest.approx(expected) and len(grown.env.dataset) > len(agent.env.dataset)


# ------------------------------------------------------------------------------------------------------ predicting


@pytest.mark.parametrize("name", ALL)
def test_one_observation_is_decided_like_a_batch(name):
    agent = undecided(make_agent(name, run_env(name, train=False)))
    env = agent.env
    observation, _ = env.reset(seed=3)
    for _ in range(3):
        actions, _ = agent.predict(observation, deterministic=True)
        rows = env.state.active.nonzero().flatten().tolist()
        for row in rows:
            for convert in (lambda value: value, lambda value: value.numpy()):
                one = {key: convert(value[row]) for key, value in observation.items()}
                action, state = agent.predict(one, deterministic=True)
                assert state is None and np.array_equal(np.asarray(action), actions[row].numpy())
        # Further on by a path that all can take.
        onward = torch.full((8,), 2) if int(env.state.at.min()) == 0 else torch.ones(8, dtype=torch.int64)
        onward = onward if "sampled" in name else torch.nn.functional.one_hot(onward, 3).float()
        observation = env.step(onward)[0]
        if not env.state.waiting:
            break


@pytest.mark.parametrize("name", EXACT)
def test_chances_are_predicted_along_the_way_and_in_the_middle_of_it(name):
    agent = undecided(make_agent(name, run_env(name, train=False, k_cpt=1e-4))).eval()
    env = agent.env
    observation, _ = env.reset(seed=3)
    steps = rollout(agent, env, instances=env.state.instance).steps
    env.reset(options={"instances": env.state.instance})
    observation, state = env.observe(), None
    for step in steps:
        in_the_middle, _ = agent.predict(observation)
        torch.testing.assert_close(in_the_middle.sum(1), torch.ones(8))
        chances, state = agent.predict(observation, state)
        torch.testing.assert_close(chances, step.action)
        # Who does not say how it came there is taken to be there for certain; the floor alone hangs on that.
        likely = step.reach > 0.01
        torch.testing.assert_close(in_the_middle[likely], chances[likely], rtol=0, atol=1e-4)
        observation = env.step(chances)[0]


# ----------------------------------------------------------------------------------------------------- learning rates


def rates(agent, batches):
    seen = []
    for _ in range(batches):
        learned(agent, 1)
        seen.append((agent.env.trainer.optimizer.param_groups[0]["lr"], agent.optimizer.param_groups[0]["lr"]))
    return seen


def test_halving_by_hand_and_the_routers_follow(tmp_path):
    """72 rows in batches of 12 are 6 steps to a pass: halved smoothly in 3 passes, that is in 18 steps."""
    options = {"schedule_epochs": 3, "learning_rate": 0.4}
    agent = make_agent("actor", run_env("actor", 12, **options))
    seen = rates(agent, 19)
    # 0.4 at first, 0.4 / √2 after 9 steps, 0.2 after 18.
    assert [seen[i][0] for i in (0, 9, 18)] == pytest.approx([0.4, 0.2828427, 0.2])
    assert all(blocks == routers for blocks, routers in seen)
    agent.save(tmp_path / "agent.pt")
    later = Agent.load(tmp_path / "agent.pt", run_env("actor", 12, **options))
    assert rates(later, 2) == [(0.4 * 0.5 ** (n / 18),) * 2 for n in (19, 20)]


def test_a_rate_of_their_own_stays(tmp_path):
    agent = make_agent("actor", run_env("actor"), learning_rate=0.03)
    assert [routers for _, routers in rates(agent, 3)] == [0.03] * 3


def test_a_resumed_constant_rate_is_that_of_the_blocks(tmp_path):
    """Both go on with the rate the environment was asked for, else with the one they were saved with."""
    agent = make_agent("actor", run_env("actor", schedule="constant", learning_rate=0.1))
    assert rates(agent, 1) == [(0.1, 0.1)]
    agent.save(tmp_path / "agent.pt")
    with pytest.warns(UserWarning, match=r"learning_rate=0\.9, as asked for here, instead of 0\.1"):
        later = Agent.load(tmp_path / "agent.pt", run_env("actor", schedule="constant", learning_rate=0.9))
    assert rates(later, 1) == [(0.9, 0.9)]


# ---------------------------------------------------------------------------------------- networks of another kind


class Masked(ExitTree):
    """Choices (decision, choice) that are not legal."""

    def __init__(self, tree, forbidden):
        super().__init__(tree)
        masks = torch.ones(len(self.decisions), 1, self.num_choices, dtype=torch.bool)
        for place in forbidden:
            masks[place[0], 0, place[1]] = False
        self._masks = legal_table(self.decisions, masks)
        self.nothing_masked = False


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_legal_is_not_run_and_what_cannot_be_reached_is_no_loss(name):
    torch.manual_seed(0)
    network = Masked(TREE, [(0, 1), (2, 1)])  # so that nobody comes to decision 1
    agent = undecided(make_agent(name, exit_env(network, name, 6, k_cpt=1e-3)))
    assert all(math.isfinite(metrics["loss"]) for metrics in learned(agent, 4))
    assert network.rows_run[1] == network.rows_run[3] == network.rows_run[4] == 0
    trajectory = rollout(agent, agent.env)
    if name in EXACT:
        weight = torch.stack([exit.weight.detach() for exit in trajectory.exits])
        assert len(weight) == 4 and bool((weight > 0.99e-6 / 4).all())
        torch.testing.assert_close(weight.sum(0), torch.ones(6))


class Diamond(ExitTree):
    """Both choices of the first decision lead to the second."""

    def __init__(self):
        super().__init__([[1, 2], [3], [4], [], []])
        first, second, third = self.decisions
        joined = Decision("first", (1.0, 1.0, 1.0), (EXIT, 1, 1), "outcome", width=4)
        width = {"num_classes": CLASSES, "input_shape": IMAGE}
        columns, heads = self.columns, self.heads
        super(ExitTree, self).__init__([joined, second], **width)
        self.columns, self.heads = columns, heads


@pytest.mark.parametrize("name", EXACT)
def test_paths_that_meet_are_refused_when_the_agent_is_made(name):
    with pytest.raises(ValueError, match=f"agent '{name}' .* paths of this network meet"):
        make_agent(name, exit_env(Diamond(), name))


# -------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", EXACT)
def test_training_is_that_of_the_cpu(name):
    torch.manual_seed(0)
    network, losses = ExitTree(TREE), []
    for device, own in (("cpu", network), ("cuda", copy.deepcopy(network))):
        agent = make_agent(name, exit_env(own, name, 16, device=device, k_cpt=1e-4, talr=True))
        losses.append([metrics["loss"] for metrics in learned(agent, 5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# -------------------------------------------------------------------------------------------------------- learning


class Planted(ExitTree):
    """Three columns of fixed use: every exit is right about easy images, only the last one about hard ones.

    Pixel 0 is bright in easy images, pixel 1 says the label, which is 0 or 1. Routers see the columns' features, which
    do learn; how much a mistake costs does not change.
    """

    def stem(self, images, task):
        return images.flatten(1), images.flatten(1)

    def enter(self, decision, activation):
        return self.run_column(decision, activation[0]), activation[1]

    def readout(self, decision, choice, activation, task):
        easy, label = activation[1][:, 0] > 0, (activation[1][:, 1] > 0).long()
        right = easy | (choice == 1)
        self.run_column(2, activation[0]) if choice else None
        return 4.0 * torch.nn.functional.one_hot(torch.where(right, label, 1 - label), CLASSES) + 0 * self.heads[0].bias


def judged(name, k_cpt):
    """Train for a moment; return each test instance's last column, what it costs on average, and what is easy.

    Costs are those of Eqs. 1 and 2, of the agent, with its routers, and of the static nets of one and of three columns.
    """
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (256, 6), generator=generator)
    images, task, label = (bits * 255).to(torch.uint8).view(-1, *IMAGE), torch.zeros(256, dtype=torch.int64), bits[:, 1]
    half = torch.full((1,), 0.5)
    data = {
        split: MultiTaskDataset("planted", split, images, torch.arange(256), task, label, 1, CLASSES, half, half)
        for split in ("train", "test")
    }
    torch.manual_seed(1)
    network = Planted(CHAIN[3], width=64)
    env = exit_env(network, name, 256, data=data, k_cpt=k_cpt, optimizer="adam", learning_rate=8e-3)
    options = {} if name == "actor" else {"regression": 0.1}  # a hundred times the paper's, for a hundredth of the time
    agent = make_agent(name, env, temperature_epochs=20.0, **options)
    agent.learn(env, 256 * 60)
    still = env.sibling(256, train=False, split="test")
    steps = rollout(agent.eval(), still, deterministic=True, instances=torch.arange(256)).steps
    column = sum((step.active & (step.action.argmax(1) == 1)).long() for step in steps)
    result = routing_gym.evaluate(agent, env)
    wrong = torch.nn.functional.cross_entropy(torch.tensor([[4.0, 0, 0]]), torch.tensor([1])).item()
    right = wrong - 4
    easy = bits[:, 0] == 1
    shallow = easy.float().mean().item() * right + (~easy).float().mean().item() * wrong + k_cpt * (6 * 64 + 192)
    deep = right + k_cpt * (6 * 64 + 2 * 64 * 64 + 192)
    return column, result, result.loss + k_cpt * result.macs, (shallow, deep), easy


@pytest.mark.parametrize("name", EXACT[:2])
def test_easy_instances_leave_early_and_hard_ones_go_on(name):
    column, result, cost, static, easy = judged(name, 6e-5)
    assert bool((column[easy] == 0).all()) and bool((column[~easy] == 2).all())
    assert result.accuracy == 1 and cost < 0.9 * min(static)


@pytest.mark.long
@pytest.mark.parametrize("name", EXACT)
def test_prices_decide_how_much_is_computed(name):
    column, result, *_ = judged(name, 1.0)
    assert bool((column == 0).all()) and result.macs == 6 * 64 + 192 + result.router_macs
    _, result, *_ = judged(name, 0.0)
    assert result.accuracy == 1
