"""Several augmentations of every image in a batch: rows iM to iM + M - 1 are one image (Wang et al., section 3.2.1)."""

import math

import gymnasium
import pytest
import torch
from torch.nn import functional

import routing_gym
from routing_gym.agents import make_agent
from routing_gym.envs import rollout
from routing_gym.experiments.engine.callbacks import Session
from routing_gym.experiments.engine.settings import TrainingSettings
from routing_gym.experiments.engine.training import Course, begun_curve, train
from routing_gym.testing import check_vector_env

SHIFT, SIZE, IMAGES = 2, 6, 36


def env_of(num_envs=12, **options):
    data = {"num_tasks": 1, "num_classes": 3, "image_size": SIZE, "images_per_class": IMAGES // 3, "shift": SHIFT}
    return gymnasium.make_vec(
        "routing_gym/SyntheticMTL-v0", num_envs=num_envs, **{**data, "autoreset_mode": "disabled", **options}
    ).unwrapped


def arriving(env):
    """The pixels that come in, batch by batch."""
    seen, start = [], env.network.start

    def noting(images, *arguments, **named):
        seen.append(images)
        return start(images, *arguments, **named)

    env.network.start = noting
    return seen


def moved(env, instance):
    """Every version of an image there can be."""
    dataset = env.dataset
    image = functional.pad(dataset.images[dataset.image[instance]], (SHIFT,) * 4)
    versions = [
        image[:, down : down + SIZE, right : right + SIZE]
        for down in range(2 * SHIFT + 1)
        for right in range(2 * SHIFT + 1)
    ]
    return (torch.stack(versions).float() - dataset.mean.view(-1, 1, 1)) / dataset.std.view(-1, 1, 1)


@pytest.mark.parametrize("versions", [1, 2, 3, 12])
def test_rows_that_belong_together_are_versions_of_one_image(versions):
    env = env_of(12, augmentations=versions)
    seen, different = arriving(env), 0
    for _ in range(3):
        env.reset()
        instances = env.state.instance.view(-1, versions)
        assert bool((instances == instances[:, :1]).all()) and len(instances.unique()) == 12 // versions
        assert torch.equal(env.batch.label, env.dataset.label[env.state.instance])
        for row, pixels in enumerate(seen[-1]):
            gaps = (moved(env, int(env.state.instance[row])) - pixels).abs().amax((1, 2, 3))
            assert float(gaps.min()) < 1e-5
        for group in seen[-1].view(-1, versions, *seen[-1].shape[1:]):
            different += len(group.flatten(1).unique(dim=0)) > 1
    assert different > 0 or versions == 1


def test_every_image_comes_once_before_any_comes_again():
    env = env_of(12, augmentations=4)
    for _ in range(2):
        drawn = []
        for _ in range(IMAGES * 4 // 12):
            env.reset()
            drawn += env.state.instance.tolist()
        assert sorted(drawn) == sorted(list(range(IMAGES)) * 4)


def test_the_same_seed_gives_the_same_versions():
    env = env_of(12, augmentations=4)
    seen = arriving(env)
    for seed in (3, 3, 4):
        env.reset(seed=seed)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_instances_that_are_named_come_in_versions_too():
    env = env_of(4, augmentations=2)
    agent = make_agent("shared", env)
    named = torch.tensor([5, 5, 9, 9])
    env.reset(options={"instances": named})
    assert torch.equal(env.state.instance, named)
    assert torch.equal(rollout(agent, env, instances=named).instance, named)
    for ask in (lambda rows: env.reset(options={"instances": rows}), lambda rows: rollout(agent, env, instances=rows)):
        with pytest.raises(ValueError, match=r"every row 2 times in succession, got \[5, 9, 5, 9\]"):
            ask(torch.tensor([5, 9, 5, 9]))
    assert torch.equal(env.state.instance, named)


def test_without_training_the_versions_are_the_image_itself():
    env = env_of(6, augmentations=3, train=False, shift=0)
    seen = arriving(env)
    env.reset()
    assert torch.equal(seen[0], env.dataset.pixels(env.state.instance))


def test_judging_knows_nothing_of_them():
    accuracies = []
    for versions in (1, 4):
        env = env_of(12, augmentations=versions)
        agent = make_agent("random-fixed", env)
        before = env.stream.state_dict()
        for split in ("test", "validation", "train"):
            judged = routing_gym.evaluate(agent, env, split=split, batch_size=7)
            assert int(judged.routes.sum()) == len(env.datasets[split]) * len(env.network.decisions)
            accuracies.append((judged.accuracy, judged.loss))
        after = env.stream.state_dict()
        assert before.keys() == after.keys() and all(
            torch.equal(torch.as_tensor(before[name]), torch.as_tensor(after[name])) for name in before
        )
    assert accuracies[:3] == accuracies[3:]
    assert env_of(12, augmentations=4).sibling(5).config.augmentations == 1


def test_a_pass_over_the_split_has_as_many_rows_as_there_are_versions(tmp_path):
    """36 images, 4 versions of each, 12 rows at once: 12 steps."""
    env = env_of(12, augmentations=4, learning_rate=0.1, schedule="cosine", schedule_epochs=2)
    agent, rates = make_agent("shared", env), []
    for _ in range(24):
        agent.learn(env, 12)
        rates.append(env.trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 24)) for step in range(24)])

    env = env_of(12, augmentations=4)
    agent = make_agent("shared", env)
    session = Session("shared", agent, tmp_path, 2, begun_curve(agent), {})
    train([Course(session, (), TrainingSettings())])
    assert env.trainer.instances == 2 * 4 * IMAGES
    assert session.curve["epoch"] == [1, 2]
    env = env_of(16, augmentations=4)
    assert env.trainer.optimization.epoch == 144  # whole batches: 9
    assert env_of(20, augmentations=4).trainer.optimization.epoch == 160  # and 8 for 7.2


def test_passes_the_checker():
    env = env_of(6, augmentations=3)
    check_vector_env(env)
    again = gymnasium.make_vec(env.spec)
    assert again.unwrapped.config.augmentations == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 10}, "num_envs must be a multiple of augmentations=4, .* got 10"),
        ({"num_envs": 2}, "num_envs must be a multiple of augmentations=4, .* got 2"),
        ({"shift": 0}, r"augmentations=4: SYNTHETIC-MTL, split 'train' has no augmentation; .*shift=4"),
        ({"split": "test"}, "augmentations=4: SYNTHETIC-MTL, split 'test' has no augmentation"),
        ({"autoreset_mode": "same_step"}, "augmentations=4 needs autoreset_mode='disabled': with autoreset_mode='same"),
        ({"replay": True}, "augmentations=4 needs autoreset_mode='disabled': with replay=True"),
        ({"augmentations": 0}, "augmentations must be an integer of at least 1, got 0"),
        ({"augmentations": 1.5}, "augmentations must be of type int, got 1.5"),
        ({"augmentations": True}, "augmentations must be of type int, got True"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        env_of(**{"num_envs": 8, "augmentations": 4, **options})


def test_rows_are_not_restarted_one_by_one():
    env = env_of(8, augmentations=4)
    env.reset(seed=1)
    before = env.state.instance.clone()
    with pytest.raises(ValueError, match="augmentations=4 rows belong together: reset all of them"):
        env.reset(options={"reset_mask": torch.tensor([True] * 4 + [False] * 4)})
    assert torch.equal(env.state.instance, before)


def test_one_instance_at_a_time_has_no_versions():
    with pytest.raises(ValueError, match="augmentations=2"):
        gymnasium.make("routing_gym/SyntheticMTL-v0", augmentations=2, shift=1)
