"""Planted problems: what is planted is really there, tasks' numbers say nothing, and bad values are refused."""

import itertools

import gymnasium
import pytest
import torch

import routing_gym
from routing_gym.agents import make_agent
from routing_gym.experiments.engine.training import few_of
from routing_gym.tasks import budget, clusters, compositions, credit, hidden_groups
from routing_gym.tasks.planted.parts import LOCK_CLASSES, label_maps, lock_order

LOADERS = {
    "hidden groups": hidden_groups,
    "compositions": compositions,
    "clusters": clusters,
    "credit": credit,
    "budget": budget,
}


def bytes_of(split):
    """Every image as bytes, by row."""
    return [split.images[number].numpy().tobytes() for number in split.image.tolist()]


def labels_by_image(split, rows):
    """Label of every image, and that it is the same in all the rows."""
    known = {}
    for image, label in zip(split.image[rows].tolist(), split.label[rows].tolist(), strict=True):
        assert known.setdefault(image, label) == label
    return known


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_data_seed_makes_the_data_and_no_image_is_in_two_splits(loader):
    one, same, other = loader(data_seed=1), loader(data_seed=1), loader(data_seed=2)
    assert list(one) == ["train", "validation", "test"]
    for name, split in one.items():
        again = same[name]
        for field in ("images", "image", "task", "label", "planted", "mean", "std"):
            assert torch.equal(getattr(split, field), getattr(again, field)), field
        assert bytes_of(split) != bytes_of(other[name])
        assert len(split.planted) == len(split) and split.num_classes == one["train"].num_classes
        # What is planted in a task is the same in all splits.
        if loader not in (clusters, budget):
            by_task = {(task, *word) for task, word in zip(split.task.tolist(), split.planted.tolist(), strict=True)
                       for word in [map(int, word)]}  # fmt: skip
            assert len(by_task) == split.num_tasks
    for a, b in itertools.combinations(one.values(), 2):
        assert not set(bytes_of(a)) & set(bytes_of(b))
        if loader is not compositions:
            assert not set(a.image.tolist()) & set(b.image.tolist())


def test_digits_under_scrambles_are_not_in_two_splits_either():
    """Sorted pixels are the same under every scramble; two digits that are anagrams would show here, there are none."""
    seen = [{tuple(sorted(image)) for image in bytes_of(split)} for split in compositions().values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def group_of_task(split):
    group = torch.full((split.num_tasks,), -1)
    group[split.task] = split.planted[:, 0]
    assert torch.equal(group[split.task], split.planted[:, 0])
    return group


@pytest.mark.parametrize("groups, tasks", [(3, 24), (2, 5), (7, 7)])
def test_tasks_of_a_group_label_alike_and_groups_disagree(groups, tasks):
    splits = hidden_groups(num_groups=groups, num_tasks=tasks)
    test, train = splits["test"], splits["train"]
    group = group_of_task(test)
    assert torch.equal(group, group_of_task(train))
    assert torch.bincount(group).tolist() == sorted((len(range(g, tasks, groups)) for g in range(groups)), reverse=True)
    by_group = [labels_by_image(test, test.planted[:, 0] == g) for g in range(groups)]
    assert all(len(known) == 400 for known in by_group)
    for one, other in itertools.combinations(by_group, 2):
        # Two kinds of ten: 20 % by chance; no kind is more than 12.5 % of the images.
        assert sum(one[image] == other[image] for image in one) < 0.25 * 400
    assert (torch.bincount(train.task) == 12).all()
    assert len(train.image.unique()) == len(train)  # every task's own


def test_groups_agree_in_no_more_than_chance_would_have_it():
    maps = label_maps(8, 10, torch.Generator().manual_seed(0))
    assert (maps.sort(1).values == torch.arange(5).repeat_interleave(2)).all()
    agreed = (maps.unsqueeze(1) == maps).sum(2)
    assert (agreed.triu(1) <= 2).all()
    many = label_maps(128, 10, torch.Generator().manual_seed(0))
    assert len(many.unique(dim=0)) == 128


def test_numbers_of_tasks_say_nothing_about_groups():
    """Over seeds task 0 is in every group equally often, and so is its neighbour beside it."""
    pairs = torch.zeros(3, 3)
    for data_seed in range(60):
        group = group_of_task(hidden_groups(num_tasks=6, images_per_task=5, data_seed=data_seed)["train"])
        pairs[group[0], group[1]] += 1
    # 20 each on either side, deviation 3.7; one pair of six tasks is of one group in a fifth of all cases.
    assert (abs(pairs.sum(1) - 20) < 12).all() and (abs(pairs.sum(0) - 20) < 12).all()
    assert 3 <= pairs.diagonal().sum() <= 24


def test_labels_are_wrong_in_training_only_and_tasks_of_many_images_are_there_too():
    clean = hidden_groups(num_tasks=10, images_per_task=40)
    noisy = hidden_groups(num_tasks=10, images_per_task=40, label_noise=0.25)
    assert torch.equal(clean["train"].image, noisy["train"].image)
    assert (clean["train"].label != noisy["train"].label).sum() == 100
    for split in ("validation", "test"):
        assert torch.equal(clean[split].label, noisy[split].label)
    counts = torch.bincount(hidden_groups(num_tasks=10, images_per_task=40, imbalance=8)["train"].task)
    assert counts.sum() == 400 and 7 < counts.max() / counts.min() < 9
    assert counts.tolist() != counts.sort().values.tolist()


def test_more_images_than_there_are_are_used_equally_often():
    train = hidden_groups(num_tasks=30, images_per_task=100)["train"]
    used = torch.bincount(train.image)[train.image.unique()]
    assert used.sum() == 3000 and used.min() >= 2 and used.max() <= 3
    assert all(len(train.image[train.task == task].unique()) == 100 for task in range(30))


@pytest.mark.parametrize("recurrence, different", [(0, 9), (0.5, 6), (1, 3)])
def test_words_share_parts_or_recur(recurrence, different):
    splits = compositions(recurrence=recurrence)
    test = splits["test"]
    words = torch.empty(test.num_tasks, 2, dtype=torch.int64)
    words[test.task] = test.planted
    assert torch.equal(words[test.task], test.planted) and len(words.unique(dim=0)) == different
    assert words.amax(0).tolist() == [2, 2]
    if recurrence == 1:
        assert all(len(column.unique()) == 3 for column in words.unique(dim=0).T)
    # Rows of a task are the same images in all: the n-th of one is the n-th of another, scrambled and labelled anew.
    images = test.images[test.image].flatten(1).view(test.num_tasks, 400, -1)
    labels = test.label.view(test.num_tasks, 400)
    for one, other in itertools.combinations(range(test.num_tasks), 2):
        assert torch.equal(images[one], images[other]) == bool(words[one, 0] == words[other, 0])
        assert torch.equal(labels[one], labels[other]) == bool(words[one, 1] == words[other, 1])


def test_longer_words_permute_labels_again():
    test = compositions(length=3, num_tasks=8, num_operators=2, recurrence=0)["test"]
    words, labels = test.planted.view(8, 400, 3)[:, 0], test.label.view(8, 400)
    assert len(words.unique(dim=0)) == 8
    third = {}
    for one, other in itertools.permutations(range(8), 2):
        if words[one, 1] == words[other, 1] and words[one, 2] != words[other, 2]:
            # The same permutation turns one into the other, whatever came before.
            turned = third.setdefault(int(words[one, 2]), {})
            for before, after in zip(labels[one].tolist(), labels[other].tolist(), strict=True):
                assert turned.setdefault(before, after) == after
    assert len(third) == 2


def test_clusters_conflict_and_are_as_far_apart_as_said():
    told, untold = clusters(told=True, separation=8.0), clusters(separation=8.0)
    for name, split in told.items():
        assert torch.equal(split.images, untold[name].images) and torch.equal(split.label, untold[name].label)
        assert torch.equal(split.task, split.planted[:, 0]) and torch.equal(split.planted, untold[name].planted)
        assert not untold[name].task.any() and untold[name].num_tasks == 1
    test = told["test"]
    cue = test.images[test.image][:, 0, 8]
    centres = torch.stack([cue[test.task == cluster].mean(0) for cluster in range(6)])
    apart = torch.cdist(centres, centres)
    assert torch.allclose(apart[~torch.eye(6, dtype=torch.bool)], torch.tensor(8.0), atol=0.5)
    assert abs(float((cue - centres[test.task]).std()) - 1) < 0.05
    labels = test.label.view(6, 400)
    for one, other in itertools.combinations(labels, 2):
        assert (one == other).float().mean() < 0.25


def test_only_the_right_block_at_every_depth_of_a_lock_gives_the_class():
    test = credit(depth=3, num_tasks=4, num_operators=2)["test"]
    x, words = test.images[test.image].flatten(1), test.planted
    for route in itertools.product(range(2), repeat=3):
        y = x
        for depth, block in enumerate(route):
            y = y[:, lock_order(depth, block, LOCK_CLASSES)]
        right = (y.argmax(1) == test.label).view(4, 200).float().mean(1)
        planted = (words == torch.tensor(route)).all(1).view(4, 200)[:, 0]
        assert (right[planted] == 1).all() and (right[~planted] < 0.25).all()


def test_hard_instances_are_inverted_half_the_time_and_as_many_as_wanted():
    splits = budget(noise=0.0, images=2500)
    train = splits["train"]
    assert len(train) == 2500 and len(train.image.unique()) == 2500
    assert [len(splits[name]) for name in ("validation", "test")] == [600, 1200]
    means = train.images[train.image].float().mean((1, 2, 3))[train.planted[:, 0] == 1]
    # Digits are dark: without noise a mean of 70 to 85 in 255, or of what is missing to 255.
    assert 0.45 < (means > 127).float().mean() < 0.55 and (abs(means - 127.5) > 20).all()
    assert len(budget(images=700)["train"]) == 700


def test_difficulty_is_in_the_image_alone():
    told, untold = budget(told=True), budget()
    for name, split in told.items():
        assert torch.equal(split.images, untold[name].images) and not untold[name].task.any()
        assert torch.equal(split.task, split.planted[:, 0]) and int(split.task.sum()) == len(split) // 2
        easy = split.task == 0
        assert split.label[easy].unique().tolist() == [0, 1, 2] and len(split.label[~easy].unique()) == 10
        for label in range(3):
            own = split.images[split.image[(split.label == label) & easy]].float()
            assert own.std(0).mean() < 6  # a mean digit with noise of deviation 5, cut off at 0


def test_the_class_of_a_hard_instance_is_another_where_it_is_black_on_white():
    train = budget(noise=0.0)["train"]
    hard = train.planted[:, 0] == 1
    image, label = train.images[train.image].float()[hard].flatten(1), train.label[hard]
    inverted = image.mean(1) > 127
    digit = torch.where(inverted.unsqueeze(1), 255 - image, image)
    of = {
        (kind, turned): digit[(label == kind) & (inverted == turned)].mean(0) for kind in range(10) for turned in (0, 1)
    }
    for kind in range(10):
        nearest = min(range(10), key=lambda other: (of[other, 1] - of[kind, 0]).norm())
        assert nearest == (kind + 5) % 10


WRONG = [
    (hidden_groups, {"num_groups": 5, "num_tasks": 4}, "each of 5 groups needs a task"),
    (hidden_groups, {"images_per_task": 4}, "5 classes, images_per_task must be at least as many, got 4"),
    (hidden_groups, {"images_per_task": 2000}, "2000 training images, there are 1197: lower images_per_task"),
    (hidden_groups, {"num_tasks": 0}, "num_tasks must be an integer of at least 1"),
    (hidden_groups, {"label_noise": 1.0}, r"label_noise must lie in \[0, 1\)"),
    (hidden_groups, {"label_noise": True}, "label_noise must lie"),
    (hidden_groups, {"imbalance": 0.5}, r"imbalance must lie in \[1, inf\)"),
    (hidden_groups, {"source": "svhn"}, "source must be 'digits' or 'mnist' or 'cifar-100', got 'svhn'"),
    (hidden_groups, {"data_seed": 0.5}, "data_seed must be an integer"),
    (hidden_groups, {"data_seed": 2**64}, "data_seed must lie in"),
    (compositions, {"recurrence": 1.5}, r"recurrence must lie in \[0, 1\]"),
    (compositions, {"length": 1}, "at least 2 letters"),
    (compositions, {"num_operators": 5, "num_tasks": 4}, "no more than there are tasks"),
    (compositions, {"images_per_task": 3}, "5 classes"),
    (clusters, {"separation": -1}, r"separation must lie in \[0, inf\)"),
    (clusters, {"separation": float("nan")}, "separation must lie"),
    (clusters, {"num_clusters": 9}, "at most 8"),
    (clusters, {"told": 1}, "told must be True or False"),
    (clusters, {"images_per_cluster": 4}, "5 classes"),
    (credit, {"depth": 0}, "depth must be an integer of at least 1"),
    (credit, {"depth": 9}, r"depth must lie in \[1, 8\]"),
    (credit, {"num_operators": 9}, r"num_operators must lie in \[2, num_tasks\]"),
    (budget, {"hard_share": 1.0}, r"hard_share must lie in \[0, 1\)"),
    (budget, {"images": 5}, "10 classes, images must be at least as many, got 5"),
    (budget, {"noise": -1.0}, r"noise must lie in \[0, 255\]"),
    (budget, {"told": "yes"}, "told must be True or False"),
]


@pytest.mark.parametrize("loader, options, message", WRONG)
def test_bad_values_are_refused(loader, options, message):
    with pytest.raises(ValueError, match=message):
        loader(**options)


def test_what_is_planted_is_checked_and_carried_along():
    split = hidden_groups(num_tasks=6)["train"]
    some = split.select_tasks([4, 1])
    assert torch.equal(some.planted, split.planted[(split.task == 4) | (split.task == 1)])
    both = some.with_tasks(split.select_tasks([0]))
    assert torch.equal(both.planted, torch.cat([some.planted, split.planted[split.task == 0]]))
    plain = split.select_tasks([0])
    object.__setattr__(plain, "planted", None)
    assert some.with_tasks(plain).planted is None and plain.with_tasks(some).planted is None
    columns = {name: getattr(split, name) for name in ("images", "image", "task", "label", "mean", "std")}
    columns |= {"name": "own", "split": "train", "num_tasks": 6, "num_classes": 5}
    assert routing_gym.MultiTaskDataset(**columns, planted=split.planted.tolist()).planted.dtype == torch.int64
    for wrong in (split.planted[:-1], split.planted.flatten(), split.planted.float(), split.planted - 1):
        with pytest.raises(ValueError, match=r"planted must be integers of at least 0, of shape \(72, L\)"):
            routing_gym.MultiTaskDataset(**columns, planted=wrong)


def test_a_trial_on_some_rows_knows_what_is_planted():
    test = hidden_groups(num_tasks=6)["test"]
    some = few_of(test)
    assert len(some) < len(test) and torch.equal(group_of_task(some), group_of_task(test))


def test_there_is_a_block_for_everything_planted_and_a_layer_for_every_depth():
    def form(name, **options):
        env = gymnasium.make_vec(f"routing_gym/{name}-v0", num_envs=4, **options).unwrapped
        return [decision.n for decision in env.network.decisions]

    assert form("HiddenGroups") == [3, 3]
    assert form("HiddenGroups", num_groups=5, num_tasks=10) == [5, 5]
    assert form("HiddenGroups", num_blocks=4, layers=3) == [4, 4, 4]
    assert form("Compositions", length=3) == [3, 3, 3]
    assert form("Clusters", num_clusters=2) == [2, 2]
    assert form("Credit", depth=1) == [3] and form("Credit", depth=6, num_operators=2) == [2] * 6
    assert form("Budget") == [2, 2]


def test_mnist_and_cifar_give_hidden_groups_too():
    """On files of the form of the published ones, see `conftest`."""
    for source, shape in (("mnist", (1, 28, 28)), ("cifar-100", (3, 32, 32))):
        splits = hidden_groups(source=source, num_tasks=4, num_groups=2, images_per_task=5)
        assert splits["train"].input_shape == shape and len(splits["train"]) == 20
        assert not set(splits["train"].image.tolist()) & set(splits["validation"].image.tolist())
        by_group = [labels_by_image(splits["test"], splits["test"].planted[:, 0] == g) for g in range(2)]
        assert by_group[0].keys() == by_group[1].keys()


def test_the_oracle_opens_every_lock():
    env = gymnasium.make_vec("routing_gym/Credit-v0", num_envs=16, autoreset_mode="disabled", depth=5)
    assert routing_gym.evaluate(make_agent("oracle", env), env).accuracy == 1
    assert routing_gym.evaluate(make_agent("random-fixed", env), env).accuracy < 0.3


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_that_no_generator_takes_are_refused_by_name(seed):
    with pytest.raises(ValueError, match="seed must lie in"):
        gymnasium.make_vec("routing_gym/Credit-v0", num_envs=2, seed=seed)
    with pytest.raises(ValueError, match="seed must lie in"):
        make_agent("random", gymnasium.make_vec("routing_gym/Credit-v0", num_envs=2), seed=seed)
