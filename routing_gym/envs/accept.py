"""What goes in and out: checks of networks, data and options of a reset; spaces of observations and actions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from routing_gym.networks import RoutedNetwork
from routing_gym.tasks import MultiTaskDataset
from routing_gym.tasks.checking import to_tensor

if TYPE_CHECKING:
    from routing_gym.envs.config import EnvConfig
    from routing_gym.envs.vector import RoutingVectorEnv

Splits = Mapping[str, MultiTaskDataset] | MultiTaskDataset


def accept_network(given: Any) -> RoutedNetwork:
    """A finished network; anything else is refused, with what makes one of it."""
    if isinstance(given, RoutedNetwork):
        return given
    kind = given.__name__ if isinstance(given, type) else type(given).__name__
    mend = "give a name, or a network that is built already"
    if isinstance(given, nn.Module):
        mend = f"routing_gym.route(module, layers, num_blocks) makes one of a {kind}"
    raise ValueError(f"network must be a name or a RoutedNetwork, got {kind}: {mend}")


def accept_splits(given: Any, what: str = "data") -> dict[str, MultiTaskDataset]:
    """Finished splits by name, given so or as one split; anything else is refused, as `what` it is called."""
    if isinstance(given, MultiTaskDataset):
        return {given.split: given}
    if isinstance(given, Mapping) and given and all(isinstance(split, MultiTaskDataset) for split in given.values()):
        forms = {name: (split.num_tasks, split.input_shape, split.images.dtype) for name, split in given.items()}
        if len(set(forms.values())) > 1:
            raise ValueError(f"splits must have the same tasks and images of one shape and type, got {forms}")
        names = {name: split.task_names for name, split in given.items() if split.task_names}
        if len(set(names.values())) > 1:
            raise ValueError(
                f"splits must have the same tasks in the same order, got {names}: make the others like=train"
            )
        scales = {name: [*split.mean.tolist(), *split.std.tolist()] for name, split in given.items()}
        if any(scale != scales[next(iter(scales))] for scale in scales.values()):
            shown = {name: [round(number, 3) for number in scale] for name, scale in scales.items()}
            raise ValueError(
                f"splits must be normalised alike, by one mean and deviation, got {shown}: make the others like=train"
            )
        classes = max(split.num_classes for split in given.values())  # one of few rows may not show all of them
        return {
            name: split if split.num_classes == classes else dataclasses.replace(split, num_classes=classes)
            for name, split in given.items()
        }
    kinds = {split: type(part).__name__ for split, part in given.items()} if isinstance(given, Mapping) else given
    got = kinds if isinstance(kinds, Mapping | str | int | float | None) else type(given).__name__
    raise ValueError(
        f"{what} must be splits by name, or one split, each a MultiTaskDataset, or the name of registered data, got "
        f"{got!r}: MultiTaskDataset.from_arrays makes a split of arrays"
    )


def accept_pair(network: Any, data: Splits) -> tuple[RoutedNetwork, dict[str, MultiTaskDataset]]:
    """Network and splits; data with more classes than the network has logits for, or other images, is refused."""
    network, splits = accept_network(network), accept_splits(data)
    kinds = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    if any(parameter.is_meta for parameter in network.parameters()):
        raise ValueError("the network has weights without values, on the device 'meta': build it on a real one")
    if kinds and torch.get_default_dtype() not in kinds:
        raise ValueError(
            f"the network must have weights in {torch.get_default_dtype()}, got {kinds.pop()}: for products in "
            "bfloat16 give precision='bfloat16'"
        )
    told = any(getattr(network, name, False) for name in ("task_input", "readout_per_task"))
    most = getattr(network, "num_tasks", None) if told else None
    for split in splits.values():
        if most is not None and most < split.num_tasks:
            raise ValueError(f"{split.name} has {split.num_tasks} tasks, the network was built with num_tasks={most}")
        if network.num_classes < split.num_classes:
            raise ValueError(
                f"{split.name} has {split.num_classes} classes, but the network gives logits for {network.num_classes}"
            )
        has, own = f"{split.name} has images of shape {split.input_shape}", math.prod(split.input_shape)
        if network.input_shape not in (None, split.input_shape):
            raise ValueError(f"{has}, the network takes {network.input_shape}")
        numbers = getattr(network, "numbers_per_image", None)  # where it is these that matter, not the shape
        if numbers not in (None, own):
            raise ValueError(f"{has}, {own} numbers, the network takes {numbers}")
    return network, splits


def spaces_of(network: RoutedNetwork, num_tasks: int, config: EnvConfig) -> tuple[spaces.Dict, spaces.Space]:
    """Spaces of one instance: what is seen, and choices or weights, with a leading axis where M > 1 tensors choose."""
    seen: dict[str, spaces.Space] = {
        "activation": spaces.Box(-np.inf, np.inf, (network.observation_size,), np.float32),
        "task": spaces.Discrete(num_tasks),
        "depth": spaces.Discrete(len(network.decisions) + 1),
    }
    if config.price:
        seen["price"] = spaces.Box(0.0, np.inf, (1,), np.float32)
    tensors = (network.num_tensors,) if network.num_tensors > 1 else ()
    acted: spaces.Space = spaces.Discrete(network.num_choices)
    if config.action_type == "weights":
        shared_out = any(decision.mixing == "outcome" for decision in network.decisions)
        low, high = (0.0, 1.0) if shared_out else (-np.inf, np.inf)
        acted = spaces.Box(low, high, (*tensors, network.num_choices), np.float32)
    elif tensors:
        acted = spaces.MultiDiscrete([network.num_choices] * network.num_tensors)
    return spaces.Dict(seen), acted


def accept_reset_options(options: Mapping[str, Any], env: RoutingVectorEnv) -> tuple[Tensor | None, Tensor | None]:
    """Rows to restart, None for all, and rows of the data set to put there, None where they are drawn.

    Raises:
        ValueError: Options of `RoutingVectorEnv.reset` that are unknown, or a mask or instances of the wrong form.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"reset options are 'reset_mask' and 'instances' by name, got {options!r}")
    rows, count, augmentations = None, env.num_envs, env.config.augmentations
    if options.get("reset_mask") is not None:
        if augmentations > 1:
            raise ValueError(
                f"with augmentations={augmentations} rows belong together: reset all of them, without reset_mask"
            )
        mask = to_tensor("reset_mask", options["reset_mask"]).to(env.device)
        if mask.dtype != torch.bool or mask.shape != (count,):
            got = f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise ValueError(f"reset_mask must be bool of shape ({count},), got {got}")
        rows = mask.nonzero().flatten()
        if not (count := len(rows)):
            raise ValueError("reset_mask must name at least one row, got all False")
        if unfinished := (mask & env.state.active & env.keeps_graph).nonzero().flatten().tolist():
            raise ValueError(f"rows {unfinished} have not left the network: go on stepping, or reset all rows")
    instances = options.get("instances")
    if instances is not None:
        instances = accept_instances(instances, count, len(env.dataset), augmentations)
    if unknown := sorted(set(options) - {"reset_mask", "instances"}):
        raise ValueError(f"reset options are 'reset_mask' and 'instances', got {unknown}")
    return rows, instances


def accept_instances(given: Any, count: int, num_rows: int, augmentations: int) -> Tensor:
    """Rows of a data set of `num_rows` that are asked for; anything but `count` of them is refused."""
    instances = to_tensor("instances", given)
    if instances.is_floating_point() or instances.dtype == torch.bool or instances.shape != (count,):
        raise ValueError(f"instances must be {count} integers, got {instances.dtype} of shape {tuple(instances.shape)}")
    versions = instances.view(-1, augmentations)
    least, most, mixed = torch.stack([*instances.aminmax(), (versions != versions[:, :1]).any().to(instances)]).tolist()
    if not 0 <= least <= most < num_rows:
        raise ValueError(f"instances must lie in [0, {num_rows}), got {instances.tolist()}")
    if mixed:
        raise ValueError(
            f"with augmentations={augmentations} instances must name every row {augmentations} times in succession, "
            f"got {instances.tolist()}"
        )
    return instances.to(torch.int64).clone()  # the caller may go on using its own
