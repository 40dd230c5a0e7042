"""Expert choice (Zhou et al. 2022): blocks take rows, against a loop over blocks; top-k with other defaults."""

import pytest
import torch
from toys import of_family, small_env
from weighing import weights_env

from routing_gym.agents import make_agent, train_batch
from routing_gym.agents.parts.assignments import expert_choice
from routing_gym.envs import Context, Known, rollout
from routing_gym.ranks import Ranks

BLOCKS = 5


def slow_choice(scores, rows, k):
    """Weights of the rows at one decision by row and block, of scores without what is not legal."""
    chances = {row: scores[row].softmax(-1).tolist() for row in rows}
    blocks, taken = range(scores.shape[1]), {row: set() for row in rows}
    capacity = min(len(rows), (len(rows) * k + len(blocks) - 1) // len(blocks))
    for block in blocks:
        for row in sorted(rows, key=lambda row: -chances[row][block])[:capacity]:
            taken[row].add(block)
    for row in rows:
        taken[row] = taken[row] or {max(blocks, key=lambda block: chances[row][block])}
    return {row: {b: chances[row][b] / sum(chances[row][c] for c in taken[row]) for b in taken[row]} for row in rows}


@pytest.mark.parametrize("seed", range(6))
def test_blocks_take_the_rows_of_a_loop_over_blocks(seed):
    """Two decisions at once, of five and of three legal blocks; some rows have left."""
    numbers = torch.Generator().manual_seed(seed)
    scores = torch.randn(30, BLOCKS, generator=numbers) * 3
    depth = torch.randint(3, (30,), generator=numbers)
    legal, k = {0: [0, 1, 2, 3, 4], 1: [1, 2, 4]}, {0: 2, 1: 1, 2: 1}
    masked = scores.clone()
    masked[depth == 1] = masked[depth == 1].index_fill(1, torch.tensor([0, 3]), -torch.inf)
    known = Known(depth < 2, None)
    weights = expert_choice(masked, depth, torch.tensor([k[int(d)] for d in depth]), Context(known), 2)
    for number, choices in legal.items():
        rows = (depth == number).nonzero().flatten().tolist()
        for row, own in slow_choice(scores[:, choices], rows, k[number]).items():
            expected = torch.zeros(BLOCKS)
            for block, weight in own.items():
                expected[choices[block]] = weight
            torch.testing.assert_close(weights[row], expected)


def test_every_block_gets_as_many_rows_while_training_and_rows_choose_when_judged():
    env = weights_env()
    agent = make_agent("expert-choice", env)
    for step in rollout(agent, env).steps:
        used = (step.action != 0).sum(0)
        # ⌈24 · 2 / 5⌉ = 10, and rows that none took go where they like it best.
        nobody = (step.action != 0).sum(-1).eq(1).sum()
        assert int(used.min()) >= 10 and int((used - 10).sum()) <= int(nobody)
        torch.testing.assert_close(step.action.sum(-1), torch.ones(24))
    seen = env.reset()[0]
    everyone = Known(torch.ones(24).bool(), None)
    together = agent.act(seen, Context(everyone, deterministic=True))
    for row in range(0, 24, 5):
        own = {key: value[row : row + 1] for key, value in seen.items()}
        alone = agent.act(own, Context(Known(torch.ones(1).bool(), None), deterministic=True))
        assert torch.equal(alone[0][0], together[0][row])


def test_it_is_top_k_with_other_defaults():
    learned = []
    for name, options in (("expert-choice", {}), ("top-k", {"choice": "expert", "noise": False, "balance": 0.0})):
        env = weights_env()
        agent, losses = make_agent(name, env, seed=2, **options), []
        agent.learn(env, 24 * 3, lambda metrics, losses=losses: losses.append(float(metrics["loss"])))
        learned.append((losses, agent.spread, agent.balance))
    assert learned[0] == learned[1] and learned[0][1] is None


def test_what_it_cannot_do_is_said():
    env = weights_env()
    env.ranks = Ranks(0, 2)
    with pytest.raises(ValueError, match="'expert-choice' lets blocks choose among the rows .*: it trains in one proc"):
        make_agent("expert-choice", env)
    with pytest.raises(ValueError, match="shared=1 is for choice='row': all rows take shared blocks"):
        make_agent("expert-choice", weights_env(), shared=1)
    with pytest.raises(ValueError, match="'expert-choice' chooses for 1 tensor"):
        make_agent("expert-choice", small_env(of_family("columns"), action_type="weights"))
    tree = small_env(of_family("tree"), action_type="weights")
    train_batch(make_agent("expert-choice", tree), tree)
