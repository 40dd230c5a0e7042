"""What is classified: multi-task data sets, sampling and augmentation."""

from routing_gym.tasks.augmentation import Shift
from routing_gym.tasks.dataset import MultiTaskDataset, pixel_statistics
from routing_gym.tasks.digits import digits_mtl
from routing_gym.tasks.sampling import ShuffledStream
from routing_gym.tasks.synthetic import synthetic_mtl

__all__ = ["MultiTaskDataset", "Shift", "ShuffledStream", "digits_mtl", "pixel_statistics", "synthetic_mtl"]
