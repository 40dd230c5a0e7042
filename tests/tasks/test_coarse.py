"""Coarse classes as tasks: the images, labels and splits of the single task, told apart by the coarse class."""

import gymnasium
import pytest
import torch

from routing_gym.agents import make_agent
from routing_gym.tasks import cifar, cifar10, cifar100, files

REAL = files.data_folder()  # before the stand-ins take its place
VEHICLES = (0, 1, 8, 9)
CIFAR_10 = pytest.param(cifar10, lambda label: int(label not in VEHICLES), "CIFAR-10", id="cifar-10")
CIFAR_100 = pytest.param(cifar100, lambda label: label // 5, "CIFAR-100", id="cifar-100")  # as the stand-in has them


def real(source, *names):
    there = all((REAL / source.folder / name).is_file() for name in names)
    return pytest.mark.skipif(not there, reason=f"needs the files of {source.name}, which are not in {REAL}")


@pytest.mark.parametrize(("build", "coarse_of", "name"), [CIFAR_10, CIFAR_100])
def test_the_task_is_the_coarse_class_and_nothing_else_changes(build, coarse_of, name):
    options = {"held_out": 1, "shift": 2}
    plain, splits = build(**options), build(task="coarse", **options)
    assert set(plain) == set(splits) == {"train", "validation", "test"}
    for part, split in splits.items():
        assert split.task.tolist() == [coarse_of(label) for label in split.label.tolist()]
        assert split.num_tasks == len(split.task.unique()) == (2 if name == "CIFAR-10" else 20)
        assert split.num_classes == plain[part].num_classes == (10 if name == "CIFAR-10" else 100)
        for field in ("images", "image", "label", "mean", "std"):
            assert torch.equal(getattr(split, field), getattr(plain[part], field))
        assert split.augmentation == plain[part].augmentation
        assert (plain[part].name, split.name) == (name, f"{name} by coarse class") and plain[part].num_tasks == 1
    assert build(task="single")["train"].name == name


@pytest.mark.parametrize(("build", "coarse_of", "name"), [CIFAR_10, CIFAR_100])
@pytest.mark.parametrize("value", ["fine", "", None, 2, ["coarse"]])
def test_other_tasks_are_refused_before_anything_is_read(build, coarse_of, name, value, tmp_path):
    with pytest.raises(ValueError, match=rf"^{name}: task must be 'single' or 'coarse', got "):
        build(task=value, data_dir=str(tmp_path / "nowhere"))


def test_a_part_of_the_data_is_named_as_well(copied):
    (copied / "cifar-10-batches-bin/data_batch_5.bin").unlink()
    train = cifar10(data_dir=str(copied), task="coarse", allow_partial=True)["train"]
    assert train.name == "CIFAR-10 by coarse class (partial: 160 of 200 train, 40 of 40 test images)"
    assert train.task.bincount().tolist() == [64, 96]


@pytest.mark.parametrize(("env_id", "tasks", "classes"), [("Cifar10", 2, 10), ("Cifar100", 20, 100)])
def test_environments_take_it_and_tables_tell_the_tasks_apart(env_id, tasks, classes):
    options = {"network": "mlp", "num_blocks": 3, "k_cpt": 0.0, "num_envs": 20, "device": "cpu", "held_out": 1}
    made = gymnasium.make_vec(f"routing_gym/{env_id}BlockSkip-v0", task="coarse", autoreset_mode="disabled", **options)
    env = made.unwrapped
    assert env.network.num_classes == classes and set(env.datasets) == {"train", "validation", "test"}
    assert made.observation_space["task"].nvec.tolist() == [tasks] * 20
    agent = make_agent("wpl", env, arrangement="per_task")
    agent.learn(env, 40)
    assert agent.policy().shape == (tasks, 3, 3)
    assert gymnasium.make_vec(f"routing_gym/{env_id}BlockSkip-v0", **options).unwrapped.dataset.num_tasks == 1
    with pytest.raises(ValueError, match="task must be 'single' or 'coarse', got 'fine'"):
        gymnasium.make_vec(f"routing_gym/{env_id}BlockSkip-v0", task="fine", **options)


@real(files.CIFAR100, "train.bin", "test.bin")
def test_the_superclasses_of_cifar_100(monkeypatch):
    monkeypatch.setattr(cifar, "ROWS", {"train": 50_000, "test": 10_000})
    splits = cifar100(data_dir=str(REAL), task="coarse", shift=0, flip=False)
    for name, of_each in (("train", 2500), ("test", 500)):
        split = splits[name]
        assert split.task.bincount().tolist() == [of_each] * 20
        # Of https://www.cs.toronto.edu/~kriz/cifar.html, classes numbered by the alphabet.
        for task, fine in {
            0: [4, 30, 55, 72, 95],  # aquatic mammals: beaver, dolphin, otter, seal, whale
            1: [1, 32, 67, 73, 91],  # fish: aquarium fish, flatfish, ray, shark, trout
            17: [47, 52, 56, 59, 96],  # trees: maple, oak, palm, pine, willow
            19: [41, 69, 81, 85, 89],  # vehicles 2: lawn mower, rocket, streetcar, tank, tractor
        }.items():
            assert split.label[split.task == task].unique().tolist() == fine


@real(files.CIFAR10, "data_batch_1.bin", "test_batch.bin")
def test_vehicles_and_animals_of_cifar_10(monkeypatch):
    monkeypatch.setattr(cifar, "ROWS_PER_FILE", 10_000)
    test = cifar10(data_dir=str(REAL), task="coarse", allow_partial=True)["test"]
    assert test.num_classes == 10 and test.name.startswith("CIFAR-10 by coarse class")
    assert [test.label[test.task == task].unique().tolist() for task in (0, 1)] == [[0, 1, 8, 9], [2, 3, 4, 5, 6, 7]]
