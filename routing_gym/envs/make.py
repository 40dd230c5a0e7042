"""Building environments from plain configuration, as registered ids do."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium

import routing_gym.tasks as tasks
from routing_gym.blocks import construction, first_weights
from routing_gym.envs.accept import Splits, accept_network, accept_splits
from routing_gym.envs.config import EnvConfig
from routing_gym.envs.single import RoutingEnv
from routing_gym.envs.vector import RoutingVectorEnv
from routing_gym.networks import NETWORKS, NetworkSpec, RoutedNetwork, claim, make_network
from routing_gym.options import check_types, plain_value, type_hints, unexpected, unknown_name
from routing_gym.tasks import MultiTaskDataset
from routing_gym.tasks.checking import whole_number

DATASETS: dict[str, Callable[..., dict[str, MultiTaskDataset]]] = {
    "digits": tasks.digits_mtl,
    "mnist": tasks.mnist_mtl,
    "mnist-10": tasks.mnist_digits,
    "cifar-100": tasks.cifar100_mtl,
    "cifar-100-fine": tasks.cifar100,
    "cifar-10": tasks.cifar10,
    "cifar-5": tasks.cifar5,
    "cifar-2": tasks.cifar2,
    "hybrid": tasks.hybrid_mnist_cifar,
    "mini-imagenet": tasks.mini_imagenet_mtl,
    "omniglot": tasks.omniglot_mtl,
    "svhn": tasks.svhn,
    "synthetic": tasks.synthetic_mtl,
    "hidden-groups": tasks.hidden_groups,
    "compositions": tasks.compositions,
    "clusters": tasks.clusters,
    "credit": tasks.credit,
    "budget": tasks.budget,
}


PLANTED_DEPTH = {"compositions": "length", "credit": "depth"}
"""Data that plant as many computations in a row as an option says: networks have as many `layers` by default."""


def planted_depth(dataset: str, options: Mapping[str, Any]) -> int | None:
    """Number of `layers` by default, where data that are made with some options say so (`PLANTED_DEPTH`)."""
    if (option := PLANTED_DEPTH.get(dataset)) is None:
        return None
    return options.get(option, inspect.signature(DATASETS[dataset]).parameters[option].default)


def register_dataset(name: str, builder: Callable[..., dict[str, MultiTaskDataset]]) -> None:
    """Make data known under a name, for `register_env` and `make_routing_vector_env(dataset=name)`.

    Args:
        name: A name that does not belong to other data.
        builder: Returns the splits by name, at least `train` and `test`; its keyword-only parameters are options of the
            environments that use it.
    """
    for parameter in inspect.signature(builder).parameters.values() if callable(builder) else ():
        if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            raise ValueError(
                f"parameters of a function that makes data are options, by name: write *, before {parameter.name!r} in "
                f"that of data set {name!r}"
            )
    claim(DATASETS, "data set", name, builder)


OF_ENV = {field.name for field in dataclasses.fields(EnvConfig)}
OF_MAKING = {"network", "num_envs", "num_blocks", "num_tasks", "block_per_task", "network_per_task"}


def known_options(dataset: str | Splits, network: str | RoutedNetwork) -> set[str]:
    """Names of all options that an environment of this data and network takes."""
    return {*_options(dataset, DATASETS), *_options(network, NETWORKS), *OF_ENV, *OF_MAKING}


def default_options(dataset: str, network: str) -> dict[str, Any]:
    """Options that an environment of this data and network takes and that have defaults, by name."""
    of_network = NETWORKS[network].options if network in NETWORKS else {}
    parameters = {**inspect.signature(DATASETS[dataset]).parameters, **of_network}
    named = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    options = {name: default for name, default in named.items() if default is not inspect.Parameter.empty}
    return {"num_blocks": None, "num_tasks": None, **options, **vars(EnvConfig())}


@construction()
def make_routing_vector_env(
    *,
    dataset: str | Splits,
    network: str | RoutedNetwork = "mlp",
    num_envs: int = 1,
    num_blocks: int | Sequence[int] | None = None,
    num_tasks: int | None = None,
    block_per_task: bool = False,
    network_per_task: bool = False,
    seed: int = 0,
    **options: Any,
) -> RoutingVectorEnv:
    """Build data, network and vector environment.

    Args:
        dataset: One of `DATASETS`, or data of your own: splits by name, or one split.
        network: A name (`routing-gym list` prints them), or a network of your own, which is used as it is.
        num_envs: Instances routed together.
        num_blocks: Blocks per decision, or a number for each layer; by default one for every computation that the data
            has planted, else one per task. Where more than one is planted in a row, `layers` is as many by default.
        num_tasks: Keep the first tasks only; all by default.
        block_per_task: Raise `num_blocks` to the number of tasks where it is one smaller number: for agents that need a
            block of its own for every task. A number for each layer stays.
        network_per_task: Raise it and, where the network can, give every task a trunk of its own: for agents whose
            tasks are to share nothing.
        seed: Seed of the blocks' first weights and of the order of instances.
        options: Options of the data set, of the network and of the environment (`EnvConfig`).

    Raises:
        TypeError: An option that none of them takes.
        ValueError: A value that is refused.
    """
    options = {option: plain_value(value) for option, value in options.items()}
    num_blocks, num_tasks, seed = plain_value(num_blocks), plain_value(num_tasks), plain_value(seed)
    for kind, name, there in (("data set", dataset, DATASETS), ("network", network, NETWORKS)):
        if isinstance(name, str) and name not in there:
            raise ValueError(unknown_name(kind, name, sorted(there)))
    network = network if isinstance(network, str) else accept_network(network)
    of_data, of_network = _options(dataset, DATASETS), _options(network, NETWORKS)
    if twice := sorted(of_network.keys() & (of_data.keys() | OF_ENV | OF_MAKING | {"dataset"})):
        raise ValueError(f"option {twice[0]!r} of network {network!r} is one of the environment too: name it otherwise")
    known = known_options(dataset, network)
    for kind, given, builders in (("dataset", dataset, DATASETS), ("network", network, NETWORKS)):
        if not isinstance(given, str):
            options = _without_options_of_others(kind, builders, options, known)
    if unknown := sorted(set(options) - known):
        raise unexpected("this environment", unknown[0], known)
    per_task = {"block_per_task": block_per_task, "network_per_task": network_per_task}
    check_types("this environment", of_data, options)
    check_types("this environment", of_network, options)
    check_types("this environment", dict.fromkeys(per_task, bool), per_task)
    of_core = {"seed": seed, **{name: value for name, value in options.items() if name in OF_ENV}}
    if num_tasks is not None:
        num_tasks = whole_number("num_tasks", num_tasks)
        if "num_tasks" in of_data:
            options["num_tasks"] = num_tasks  # synthetic data is made for as many as are asked for
    EnvConfig.of("the environment", of_core)  # before anything is read or built
    data: Any = dataset
    if isinstance(dataset, str):
        data = DATASETS[dataset](**{name: value for name, value in options.items() if name in of_data})
    data = accept_splits(data, f"data set {dataset!r}" if isinstance(dataset, str) else "data")
    if num_tasks is not None and "num_tasks" not in of_data:
        data = accept_splits({split: part.select_tasks(range(num_tasks)) for split, part in data.items()})
    first = next(iter(data.values()))
    if isinstance(network, str):
        if first.planted is not None:
            if num_blocks is None and NETWORKS[network].takes_num_blocks:
                num_blocks = int(first.planted.max()) + 1
            deep = first.planted.shape[1]
            depth = planted_depth(dataset, options) if isinstance(dataset, str) else deep if deep > 1 else None
            if "layers" in of_network and depth is not None:
                options.setdefault("layers", depth)
        if any(per_task.values()) and type(num_blocks) is int:
            num_blocks = max(num_blocks, first.num_tasks)
        trunks = {"trunk_per_task": network_per_task} if "trunk_per_task" in NETWORKS[network].parameters else {}
        # The seed decides the first weights, and nothing outside is disturbed.
        with first_weights(seed):
            network = make_network(
                network,
                num_tasks=first.num_tasks,
                num_classes=first.num_classes,
                input_shape=first.input_shape,
                num_blocks=num_blocks,
                **{name: value for name, value in options.items() if name in of_network},
                **trunks,
            )
    elif num_blocks is not None:
        raise ValueError("num_blocks is for networks given by name; a network of your own has its blocks already")
    return RoutingVectorEnv(network, data, num_envs, **of_core)


def make_routing_env(**options: Any) -> RoutingEnv:
    """Build the view of one instance; options as in `make_routing_vector_env`."""
    return RoutingEnv(make_routing_vector_env(num_envs=1, **options))


def _without_options_of_others(
    kind: str, builders: Mapping[str, Any], options: dict[str, Any], known: set[str]
) -> dict[str, Any]:
    """Leave out what an id says about the data or network that has been replaced by a finished one."""
    others = {option for name in builders for option in _options(name, builders)} - known
    registered = [spec.kwargs for spec in gymnasium.registry.values() if kind in spec.kwargs]
    for option in sorted(others & set(options)):
        if not any(option in kwargs and kwargs[option] == options[option] for kwargs in registered):
            raise ValueError(
                f"{option}={options[option]!r}: a finished {kind} has no options, only one given by name does: leave "
                "it out, or build the like before"
            )
    return {option: value for option, value in options.items() if option not in others}


def _options(given: Any, builders: Mapping[str, Any]) -> dict[str, Any]:
    """Types by name of the options of data or a network given by name; what is there already has none."""
    if not isinstance(given, str):
        return {}
    builder = builders[given]
    if isinstance(builder, NetworkSpec):
        return {name: builder.hints.get(name, Any) for name in builder.options}
    parameters, hints = inspect.signature(builder).parameters.values(), type_hints(builder)
    return {option.name: hints.get(option.name, Any) for option in parameters if option.kind is option.KEYWORD_ONLY}
