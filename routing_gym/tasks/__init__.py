"""What is classified: multi-task data sets, sampling and augmentation.

A loader (`cifar10`, `mnist_mtl`, ...) returns its splits by name: `train`, `test` and, where there is one or images are
held out, `validation`. It raises `DataError` where files are missing or damaged, and `ValueError` for a value that an
option does not take: a `held_out` that leaves a class without images to train on, say.
"""

from routing_gym.tasks.augmentation import Shift
from routing_gym.tasks.cifar import cifar2, cifar5, cifar10, cifar100, cifar100_mtl
from routing_gym.tasks.dataset import MultiTaskDataset, pixel_statistics
from routing_gym.tasks.digits import digits_mtl, mnist_digits, mnist_mtl, svhn
from routing_gym.tasks.files import SOURCES, DataError, download
from routing_gym.tasks.hybrid import hybrid_mnist_cifar
from routing_gym.tasks.mini_imagenet import mini_imagenet_mtl
from routing_gym.tasks.omniglot import omniglot_mtl
from routing_gym.tasks.planted.problems import budget, clusters, compositions, credit, hidden_groups
from routing_gym.tasks.sampling import BalancedStream, ShuffledStream
from routing_gym.tasks.synthetic import synthetic_mtl

__all__ = [
    "SOURCES", "BalancedStream", "DataError", "MultiTaskDataset", "Shift", "ShuffledStream", "budget", "cifar10",
    "cifar100", "cifar100_mtl", "cifar2", "cifar5", "clusters", "compositions", "credit", "digits_mtl", "download",
    "hidden_groups", "hybrid_mnist_cifar", "mini_imagenet_mtl", "mnist_digits", "mnist_mtl", "omniglot_mtl",
    "pixel_statistics", "svhn", "synthetic_mtl",
]  # fmt: skip
