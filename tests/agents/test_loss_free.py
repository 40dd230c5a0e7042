"""Balance without a loss (Wang et al. 2024): the biases by hand."""

import torch
from resuming import assert_goes_on
from weighing import weights_env

from routing_gym.agents import make_agent, train_batch
from routing_gym.envs import rollout

BLOCKS = 5


def moved(bias, steps, rate, open_to):
    """Biases after a batch: a block that rows took less often than the mean of those they may choose rises."""
    for number, step in enumerate(steps):
        count = [0] * BLOCKS
        for row in step.action[0].tolist():
            for block in row:
                count[block] += 1
        mean = sum(count[block] for block in open_to[number]) / len(open_to[number])
        for block in open_to[number]:
            bias[number][block] += rate * ((count[block] < mean) - (count[block] > mean))


def test_biases_by_hand_also_where_some_blocks_always_run():
    masks = torch.ones(2, 1, BLOCKS, dtype=torch.bool)
    masks[1, 0, 1] = False
    for options, open_to in (({}, [[0, 1, 2, 3, 4], [0, 2, 3, 4]]), ({"shared": 1}, [[1, 2, 3, 4], [2, 3, 4]])):
        env = weights_env(masks=masks)
        agent, bias = make_agent("loss-free", env, bias_rate=0.3, **options), [[0.0] * BLOCKS for _ in range(2)]
        for _ in range(5):
            trajectory, _, _ = train_batch(agent, env)
            moved(bias, trajectory.steps, 0.3, open_to)
            torch.testing.assert_close(agent.bias[:2], torch.tensor(bias))
        assert min(bias[0]) < 0 < max(bias[0])


def test_by_default_there_is_neither_noise_nor_a_loss():
    env = weights_env()
    agent = make_agent("loss-free", env)
    assert (agent.config.bias_rate, agent.balance, agent.spread) == (0.001, 0.0, None)
    assert agent.auxiliary_loss(rollout(agent, env)) is None
    losses = []
    options = {"noise": False, "balance": 0.0, "bias_rate": 0.001}
    for name, own in (("loss-free", {}), ("top-k", options)):
        env = weights_env()
        make_agent(name, env, **own).learn(env, 24 * 3, lambda metrics: losses.append(float(metrics["loss"])))
    assert losses[:3] == losses[3:]


def test_the_bias_goes_on_where_it_stopped(tmp_path):
    half, *_ = assert_goes_on(lambda: make_agent("loss-free", weights_env(), bias_rate=0.5), (3, 3), tmp_path)
    assert bool(half.bias[:2].any())
