"""One thread per test process (the tests are many and small), and stand-ins for data that has to be downloaded."""

import gc
import os
import shutil
import signal

import gymnasium
import hypothesis
import pettingzoo
import pytest
import torch
from commands import forget_plugins
from matplotlib.figure import Figure
from standins import (
    omniglot_characters,
    write_cifar10,
    write_cifar100,
    write_mini_imagenet,
    write_mnist,
    write_omniglot,
    write_svhn,
)

from routing_gym.agents import AGENTS
from routing_gym.envs import DATASETS, REWARDS
from routing_gym.experiments.engine.callbacks import CALLBACKS
from routing_gym.experiments.engine.metrics import METRICS
from routing_gym.networks import NETWORKS
from routing_gym.registration import ENV_IDS
from routing_gym.tasks import cifar, digits, files, mini_imagenet, omniglot

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell begins in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
gc.disable()  # until all tests are imported
# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

REGISTRIES = (
    *(AGENTS, NETWORKS, DATASETS, REWARDS, ENV_IDS, METRICS, CALLBACKS),
    *(gymnasium.registry, pettingzoo.parallel_registry, pettingzoo.aec_registry),
)
WITHOUT_XDIST = ("--numprocesses", "--maxprocesses", "--dist")


def pytest_addoption(parser, pluginmanager):
    """Let `pytest -p no:xdist` take the default options all the same."""
    if not pluginmanager.has_plugin("xdist"):
        for option in WITHOUT_XDIST:
            parser.addoption(option, help="of pytest-xdist, which is not there: ignored")


def pytest_collection_modifyitems(items):
    """Begin with tests of the whole, which are last by name and take longest, so that workers end at about one time."""
    items.sort(key=lambda item: item.path, reverse=True)


def pytest_collection_finish():
    """Look for garbage less often, and not among what has been imported: that takes a tenth of the time otherwise."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Run a single file or test in the process itself: workers take seconds to start."""
    one = len(config.args) == 1 and config.args[0].partition("::")[0].endswith(".py")
    return 0 if one else (os.cpu_count() or 1) + 1  # one more than cores: some tests wait for others' processes


@pytest.fixture(scope="session", autouse=True)
def stand_in_data(tmp_path_factory):
    """Small files of the official layouts, so that every id can be made without a download."""
    root = tmp_path_factory.mktemp("data")
    patch = pytest.MonkeyPatch()
    patch.setenv(files.DATA_VARIABLE, str(root))
    patch.setattr(digits, "TRAIN_PER_DIGIT", 12)
    patch.setattr(digits, "HELD_OUT_PER_DIGIT", 4)
    patch.setattr(cifar, "ROWS", {"train": 300, "test": 100})
    patch.setattr(cifar, "ROWS_PER_FILE", 40)
    patch.setattr(mini_imagenet, "IMAGES_PER_LABEL", 4)
    patch.setattr(mini_imagenet, "TEST_PER_LABEL", 1)
    patch.setattr(omniglot, "CHARACTERS", omniglot_characters(omniglot.CHARACTERS))
    patch.setattr(digits, "SVHN_ROWS", {"train": 130, "test": 50})
    for published in (files.MNIST.files, files.SVHN.files):
        for name in published:
            patch.setitem(published, name, None)  # stand-ins have other md5 sums
    write_mnist(root / files.MNIST.folder, per_digit=20)
    write_cifar100(root / files.CIFAR100.folder, cifar.ROWS)
    write_cifar10(root / files.CIFAR10.folder, cifar.ROWS_PER_FILE)
    write_mini_imagenet(root / files.MINI_IMAGENET.folder, per_label=mini_imagenet.IMAGES_PER_LABEL)
    write_omniglot(root / files.OMNIGLOT.folder, omniglot.CHARACTERS)
    write_svhn(root / files.SVHN.folder, digits.SVHN_ROWS)
    yield root
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def seeds_of_the_cpu_alone():
    """`torch.manual_seed` formats a traceback for every kind of device that is not there: milliseconds, each time."""
    patch = pytest.MonkeyPatch()
    if not torch.cuda.is_available():
        patch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def pictures_packed_loosely():
    """The same pixels in larger files: half of the time of a picture goes into packing it."""
    patch, savefig = pytest.MonkeyPatch(), Figure.savefig

    def loosely(figure, file, **options):
        return savefig(figure, file, **{"pil_kwargs": {"compress_level": 1}, **options})

    patch.setattr(Figure, "savefig", loosely)
    yield
    patch.undo()


@pytest.fixture
def no_pictures(monkeypatch):
    """Let `compare` draw none: they take longer than small runs, and are tested in tests/experiments/test_cli.py."""
    drawing = {"compare": ("import_what_draws", "write_report"), "engine.figures": ("learning_curves", "routing_maps")}
    for module, names in drawing.items():
        for name in names:
            monkeypatch.setattr(f"routing_gym.experiments.{module}.{name}", lambda *arguments: None)


@pytest.fixture(autouse=True)
def nothing_stays():
    """Forget what a test has registered, so that no other test meets it."""
    kept = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, before in zip(REGISTRIES, kept, strict=True):
        if registry != before:
            registry.clear()
            registry.update(before)
            forget_plugins()


@pytest.fixture(autouse=True)
def same_numbers():
    """Begin every test with the same random numbers, so that none depends on what ran before it, or on luck."""
    torch.manual_seed(0)


@pytest.fixture
def copied(stand_in_data, tmp_path):
    """A copy of the stand-in folder that a test may break, without the larger ones, whose tests have copies of them."""
    large = shutil.ignore_patterns(files.MINI_IMAGENET.folder, files.OMNIGLOT.folder)
    return shutil.copytree(stand_in_data, tmp_path / "data", ignore=large)
