"""What processes of runs have in common, imported once by the server that they are forked from, and by nothing else."""

import gc
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a word while it imports, later the command does
gc.disable()  # nothing here is garbage, and looking for it takes a quarter of the time

import sklearn.model_selection  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401  # the first optimizer imports it

import routing_gym.experiments.engine.launchers  # noqa: E402, F401

gc.freeze()  # a collection in a forked process would copy all this
