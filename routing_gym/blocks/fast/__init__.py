"""Fast execution of what `routing_gym.blocks.base` defines, held equal to it by the tests in `tests/blocks/fast`."""
