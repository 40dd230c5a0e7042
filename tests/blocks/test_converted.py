"""Batch norms converted into ones of running statistics for small inputs, and back."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn

from routing_gym.blocks import ModuleBlocks, allow_small_groups, static_copy, subsample_first


def test_batch_norm_of_a_single_value_takes_running_statistics():
    """In copies too, each with its own; a static copy is PyTorch's again."""
    norm = nn.BatchNorm1d(2)
    assert allow_small_groups(allow_small_groups(norm)) is norm
    norm(torch.randn(9, 2) + 3)
    row = torch.randn(1, 2)
    expected = (row - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    for module in (norm, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        before = {key: value.clone() for key, value in module.state_dict().items()}
        torch.testing.assert_close(module(row), expected)
        assert module.training and all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
        others = {key: value.clone() for key, value in norm.state_dict().items()}
        module(torch.randn(9, 2))
        assert not torch.equal(module.running_mean, before["running_mean"])
        assert module is norm or torch.equal(norm.running_mean, others["running_mean"])
        norm.load_state_dict(before)
        with pytest.raises(ValueError):
            module(torch.randn(1, 3, 2, 2))
        assert module.training
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        static_copy(norm)(row)


class Doubled(nn.BatchNorm1d):
    """A user's own norm."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d(3), (3,)), (nn.BatchNorm2d(3), (3, 1, 1)), (nn.BatchNorm3d(3), (3, 1, 1, 1)), (Doubled(3), (3,))],
    ids=["1d", "2d", "3d", "own"],
)
def test_a_norm_of_any_class_keeps_all_it_has(norm, shape):
    plain, calls = copy.deepcopy(norm), []
    norm.register_forward_hook(lambda *_: calls.append(1))
    parts = dict(norm.named_parameters()) | dict(norm.named_buffers())
    module = allow_small_groups(nn.Sequential(norm))
    assert module[0] is norm and isinstance(norm, type(plain)) and list(norm.state_dict()) == list(plain.state_dict())
    assert all(value is parts[name] for name, value in [*norm.named_parameters(), *norm.named_buffers()])
    many, one = torch.randn(5, *shape), torch.randn(1, *shape)
    torch.testing.assert_close(module(many), plain(many))
    torch.testing.assert_close(module(one), plain.eval()(one))
    assert calls == [1, 1] and norm.training
    assert torch.equal(norm.running_mean, plain.running_mean)
    copied = static_copy(module)
    assert type(copied[0]) is type(plain) and type(norm) is not type(plain)
    torch.testing.assert_close(copied.eval()(one), plain(one))


def test_a_trace_takes_a_converted_norm_for_what_it_was():
    graph = fx.Tracer().trace(allow_small_groups(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))))
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["0", "1"]


def test_small_groups_use_running_statistics_of_batch_norm():
    blocks = ModuleBlocks([nn.BatchNorm1d(2), nn.BatchNorm1d(2)], (2,))
    x = torch.tensor([[3.0, 5.0], [1.0, 2.0], [3.0, 6.0]])
    y = blocks(x, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(y[0], x[0] / (1 + 1e-5) ** 0.5)  # fresh running statistics: mean 0, variance 1
    torch.testing.assert_close(y[1:], torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), rtol=1e-4, atol=1e-4)
    assert blocks.blocks[0].training and int(blocks.blocks[0].num_batches_tracked) == 0


def test_a_static_copy_knows_nothing_of_small_groups():
    blocks = ModuleBlocks([nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))], (3,))
    (module,) = blocks.as_modules(0)
    x = torch.randn(1, 3)
    torch.testing.assert_close(module.eval()(x), blocks.eval()(x, torch.tensor([0])))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module.train()(x)
    blocks.train()(x, torch.tensor([0]))


def test_lazy_modules_are_converted_when_they_are_what_they_become():
    lazy = nn.Sequential(nn.LazyConv2d(4, 1, 2), nn.LazyBatchNorm2d())
    allow_small_groups(subsample_first(lazy))
    blocks = ModuleBlocks([lazy, nn.Conv2d(3, 4, 1, 2)], (3, 6, 6))
    assert blocks.macs == (3 * 4 * 9.0,) * 2 and blocks.output_shape == (4, 3, 3)
    assert lazy[0].stride == (1, 1) and isinstance(lazy[0], nn.Conv2d)
    x = torch.randn(2, 3, 6, 6)
    expected = nn.functional.conv2d(x, lazy[0].weight, lazy[0].bias, 2) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(blocks.eval()(x, torch.tensor([0, 0])), expected)
