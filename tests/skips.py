"""A small ResNet whose blocks are skipped or run, and CoDiNet on it, for tests."""

import gymnasium

from routing_gym.agents import make_agent, needs

M = 2


def skip_env(num_envs=8, *, stages=(1, 1, 1), augmentations=M, **options):
    """Three blocks for images of 8x8 pixels, of 36 images of three classes."""
    data = {"num_tasks": 1, "num_classes": 3, "image_size": 8, "images_per_class": 12, "shift": 1}
    own = {"network": "resnet32-skip", "width": 2, "stages": list(stages), "learning_rate": 0.01}
    forms = {**needs("codinet"), "augmentations": augmentations, "num_envs": num_envs}
    return gymnasium.make_vec("routing_gym/SyntheticMTL-v0", **{**data, **own, **forms, **options}).unwrapped


def codinet(env=None, **options):
    return make_agent("codinet", skip_env() if env is None else env, **options)
