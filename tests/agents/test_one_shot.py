"""One-shot search against a loop that judges every architecture anew; what is drawn, counted; and resuming it."""

import gymnasium
import pytest
import torch

import routing_gym
from routing_gym.agents import Agent, add_task, make_agent, needs
from routing_gym.envs import Context, Known, rollout

PASSES, DRAWS, BATCH, TASKS, BLOCKS = 2, 5, 24, 6, 4
OPTIONS = {"draws": DRAWS, "passes": PASSES, "seed": 3, "keep": 0.4}


def env_of(**options):
    options = {"num_tasks": TASKS, "num_blocks": BLOCKS, "width": 8, **needs("one-shot"), **options}
    return gymnasium.make_vec("routing_gym/HiddenGroups-v0", num_envs=BATCH, seed=1, **options)


def blocks(env):
    return {name: value.clone() for name, value in env.unwrapped.network.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class Constant(Agent):
    """Takes given weights `(T, N, A)`."""

    action_type = "weights"

    def act(self, observation, context):
        return self.weights[observation["task"], observation["depth"].clamp(max=self.num_decisions - 1)]


def drawn(generator, shape, keep):
    """An architecture by a loop: every choice with a chance, and of none the one that came nearest."""
    numbers = torch.rand(shape, generator=generator)[:, :-1, 0]
    found = torch.zeros(numbers.shape, dtype=torch.bool)
    for task in range(len(numbers)):
        for decision, row in enumerate(numbers[task]):
            found[task, decision] = row < keep
            if not found[task, decision].any():
                found[task, decision, row.argmin()] = True
    return found


def weights_of(architecture):
    return architecture.float() / architecture.sum(-1, keepdim=True)


def test_each_task_takes_the_best_of_what_is_drawn_and_the_blocks_begin_anew():
    env = env_of(optimizer="adam", schedule="cosine", schedule_epochs=3)
    agent = make_agent("one-shot", env, **OPTIONS)
    first, epoch = blocks(env), agent.env.trainer.optimization.epoch
    agent.learn(env, PASSES * epoch - BATCH)
    assert agent.architecture.all() and agent.first is not None and not same(first, blocks(env))

    before, generator = {}, torch.Generator()
    update = agent.update

    def watched(trajectory):  # the blocks that architectures are judged with
        before.update(blocks(env))
        generator.set_state(agent.generator.get_state())
        return update(trajectory)

    agent.update = watched
    agent.learn(env, BATCH)
    assert agent.first is None and same(first, blocks(env)) and agent.env.trainer.instances == 0
    judged, shape = env_of(), (TASKS, agent.num_decisions + 1, 1, BLOCKS)
    judged.unwrapped.network.load_state_dict(before)
    constant, tried = Constant(judged), []
    for _ in range(DRAWS):
        architecture = drawn(generator, shape, OPTIONS["keep"])
        constant.weights = weights_of(architecture)
        accuracy = routing_gym.evaluate(constant, judged, split="validation").task_accuracy
        tried.append((accuracy, architecture))
    assert len({tuple(accuracy) for accuracy, _ in tried}) > 1
    for task in range(TASKS):
        best = max(range(DRAWS), key=lambda draw: tried[draw][0][task])
        assert torch.equal(agent.architecture[task, :, 0], tried[best][1][task])

    # From here on it is a static network: the same as one that is given its weights from the beginning.
    other = env_of(optimizer="adam", schedule="cosine", schedule_epochs=3)
    constant = Constant(other)
    constant.weights = weights_of(agent.architecture[:, :, 0])
    other.unwrapped.stream.draw(PASSES * epoch)
    agent.learn(env, 2 * epoch)
    constant.learn(other, 2 * epoch)
    assert same(blocks(env), blocks(other))


def test_all_are_on_at_first_and_ever_more_left_out():
    env = env_of()
    agent = make_agent("one-shot", env, passes=10, keep=0.25)
    seen = []
    for progress in (0.0, 0.5, 1.0):
        agent.trained = round(progress * 10 * agent.env.trainer.optimization.epoch)
        acts = [rollout(agent, env.unwrapped) for _ in range(60)]
        weights = torch.stack([torch.stack([step.action.squeeze() for step in batch.steps]) for batch in acts])
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        seen.append((weights > 0).float().mean().item())
        for batch in acts[:5]:  # one architecture for a whole batch
            task = batch.task
            for step in batch.steps:
                kept = {(int(t), tuple((of > 0).tolist())) for t, of in zip(task, step.action.squeeze(), strict=True)}
                assert len(kept) == len(set(task.tolist()))
    # Of 4 choices, each with a chance of 1 - 0.75 progress, and one where there would be none.
    expected = [1.0, 0.625 + 0.375**4 / 4, 0.25 + 0.75**4 / 4]
    assert seen == pytest.approx(expected, abs=0.02)
    deterministic = rollout(agent, env.unwrapped, deterministic=True).steps[0].action
    torch.testing.assert_close(deterministic, torch.full_like(deterministic, 1 / BLOCKS))


def test_what_is_not_legal_is_never_on():
    env = env_of(num_blocks=[4, 2])
    agent = make_agent("one-shot", env, passes=1, draws=2, keep=0.9)
    agent.learn(env, agent.env.trainer.optimization.epoch)
    legal = agent.env.network.masks
    assert agent.first is None and not (agent.architecture & ~legal).any() and agent.architecture.any(-1).all()
    known = Known(torch.ones(1, dtype=torch.bool), legal[1])
    seen = {"activation": torch.zeros(1, agent.env.network.observation_size), "task": torch.zeros(1, dtype=torch.int64),
            "depth": torch.ones(1, dtype=torch.int64)}  # fmt: skip
    assert agent.act(seen, Context(known))[..., 2:].count_nonzero() == 0


def test_it_goes_on_bit_for_bit_from_every_batch(tmp_path):
    env = env_of()
    whole = make_agent("one-shot", env, **OPTIONS)
    batches = (PASSES + 1) * whole.env.trainer.optimization.epoch // BATCH
    whole.learn(env, batches * BATCH)
    agent = make_agent("one-shot", env_of(), **OPTIONS)
    for _ in range(batches):
        agent.save(tmp_path / "agent.pt")
        agent = Agent.load(tmp_path / "agent.pt", env_of())
        agent.learn(agent.env, BATCH)
    assert same(blocks(agent.env), blocks(env)) and torch.equal(agent.architecture, whole.architecture)


def test_tasks_are_added_when_the_search_is_over():
    env, other = env_of(), env_of(data_seed=1).unwrapped.datasets
    agent = make_agent("one-shot", env, draws=2, passes=1)
    new = {name: of.select_tasks([0]) for name, of in other.items()}
    agent.learn(env, BATCH)
    with pytest.raises(ValueError, match="'one-shot' is still searching: tasks can be added when all draws"):
        add_task(agent, new)
    agent.learn(env, agent.env.trainer.optimization.epoch)
    grown = add_task(agent, new)
    assert torch.equal(grown.architecture[:TASKS], agent.architecture) and grown.first is None
    grown.learn(grown.env, BATCH)


def test_it_wants_something_to_judge_by():
    data = env_of().unwrapped.datasets
    with_none = {name: data[name] for name in ("train", "test")}
    env = gymnasium.make_vec("routing_gym/HiddenGroups-v0", dataset=with_none, **needs("one-shot"))
    with pytest.raises(ValueError, match="'one-shot' judges its draws on a validation split, .* has only train, test"):
        make_agent("one-shot", env)
    with pytest.raises(ValueError, match=r"keep must lie in \(0, 1\]"):
        make_agent("one-shot", env_of(), keep=0.0)
