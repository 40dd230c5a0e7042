"""Whatever is called in whatever order, an environment can be used afterwards."""

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ExitTree, Gates, toy_env

from routing_gym.networks import RoutedMLP
from routing_gym.testing import legal_actions


def snapshot(env):
    """Everything a refused call must leave as it is, as one comparable value."""
    outcome, log = env.batch, env._log
    tensors = [
        *env.network.state_dict().values(),
        *env.stream.state_dict().values(),
        *(getattr(env.state, name) for name in ("task", "instance", "price", "macs", "at")),
        *(tensor for group in env.state.waiting.values() for tensor in (*group.activation, group.reach)),
        *(outcome.loss, outcome.correct, outcome.final_reward, outcome.label),
        env.rewards.share.total,
        *(() if log is None else (log.action, log.choosing, log.visited)),
    ]
    routes = sum(map(len, env._replayer.waiting))
    return [t.tolist() if isinstance(t, torch.Tensor) else t for t in tensors], routes, env.trainer.instances


calls = st.lists(
    st.tuples(
        st.sampled_from(["step", "reset", "restart", "train", "bad-step", "bad-reset", "early-train"]),
        st.integers(0, 10**6),
    ),
    max_size=14,
)


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(
    calls=calls,
    mode=st.sampled_from(["same_step", "next_step", "disabled"]),
    family=st.sampled_from(["tree", "gates", "mlp"]),
    action_type=st.sampled_from(["discrete", "weights"]),
    illegal=st.sampled_from(["raise", None]),
)
def test_any_sequence_of_calls_leaves_it_usable(calls, mode, family, action_type, illegal):
    """Legal calls succeed; refused ones raise one of the documented errors and change nothing."""
    networks = {"tree": ExitTree([[1, 2], [], [3], []]), "gates": Gates(2), "mlp": RoutedMLP((1, 2, 3), 3, 2, width=4)}
    env = toy_env(networks[family], 3, autoreset_mode=mode, replay_batch=4, illegal=illegal, action_type=action_type)
    env.reset(seed=0)
    for call, number in calls:
        good = legal_actions(env, torch.Generator().manual_seed(number))
        trainable = env.keeps_graph and not env.state.waiting and bool(env.batch.exits)
        if call == "step" and (env.state.waiting or env._due is not None):
            env.step(good)
        elif call == "reset":
            env.reset(seed=number)
        elif call == "restart" and not bool(env.state.active.all()):
            env.reset(options={"reset_mask": ~env.state.active})
        elif call == "train" and trainable:
            env.train_blocks()
        else:
            before = snapshot(env)
            if call == "bad-reset":
                wrong = [
                    {"reset_mask": np.zeros(3, dtype=bool)},
                    {"reset_mask": np.ones(4, dtype=bool)},
                    {"reset_mask": [1, 1, 1]},
                    {"instances": [0, 1]},
                    {"instances": [0, 1, 10**6]},
                    {"instances": [0.5, 1.0, 2.0]},
                    {"anything": 1},
                ]
                with pytest.raises(ValueError):
                    env.reset(seed=number, options=wrong[number % len(wrong)])
            elif call in ("train", "early-train"):
                if trainable:
                    continue
                with pytest.raises(RuntimeError):
                    env.train_blocks()
            else:
                wrong = [good + 7, good - 9, good[:-1], good.bool(), None, good.unsqueeze(0), good[:-1].tolist()]
                other = good.long() if action_type == "weights" else good.float()
                wrong += [other, torch.full_like(good.float(), float("nan"))]
                with pytest.raises((ValueError, ResetNeeded)):
                    # Weights that only mix activations may be any finite number; where all rows are about to begin
                    # anew nothing is done with the values.
                    at = number % len(wrong)
                    bad = wrong[at]
                    free = action_type == "weights" and family != "tree" and at < 2
                    free = free or (not env.state.waiting and at in (0, 1, len(wrong) - 1))
                    env.step(None if free else bad)
            assert snapshot(env) == before
    env.reset()
    for _ in range(8):
        if env.state.waiting:
            env.step(legal_actions(env, torch.Generator().manual_seed(0)))
