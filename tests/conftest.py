"""One thread per test process (the tests are many and small), and stand-ins for data that has to be downloaded."""

import pytest
import torch
from standins import omniglot_stand_in, write_cifar10, write_cifar100, write_mini_imagenet, write_mnist

from routing_gym.envs import DATASETS
from routing_gym.tasks import cifar, cifar_classes, files, mini_imagenet, mnist

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def stand_in_data(tmp_path_factory):
    """Small files of the official layouts, so that every id can be made without a download."""
    root = tmp_path_factory.mktemp("data")
    patch = pytest.MonkeyPatch()
    patch.setenv(files.DATA_VARIABLE, str(root))
    patch.setattr(mnist, "TRAIN_PER_DIGIT", 12)
    patch.setattr(mnist, "HELD_OUT_PER_DIGIT", 4)
    patch.setattr(cifar, "ROWS", {"train": 300, "test": 100})
    patch.setattr(cifar_classes, "ROWS_PER_FILE", 40)
    patch.setattr(mini_imagenet, "IMAGES_PER_LABEL", 4)
    patch.setattr(mini_imagenet, "TEST_PER_LABEL", 1)
    published = dict(files.MNIST.files)
    files.MNIST.files.update(dict.fromkeys(published))  # stand-ins have other md5 sums
    write_mnist(root / files.MNIST.folder, per_digit=20)
    write_cifar100(root / files.CIFAR100.folder, cifar.ROWS)
    write_cifar10(root / files.CIFAR10.folder, cifar_classes.ROWS_PER_FILE)
    write_mini_imagenet(root / files.MINI_IMAGENET.folder, per_label=mini_imagenet.IMAGES_PER_LABEL)
    if "omniglot" not in DATASETS:
        patch.setitem(DATASETS, "omniglot", omniglot_stand_in)
    yield root
    files.MNIST.files.update(published)
    patch.undo()
