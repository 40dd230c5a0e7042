"""What the part parallel-paths of `bench` measures; how fast anything is, is left to those who look."""

import copy
import json

import pytest
import torch
from stepping import step

from routing_gym.experiments.bench import tables
from routing_gym.experiments.benchmarks import parallel_paths, timing
from routing_gym.experiments.benchmarks.parallel_paths import LoopOverPaths, logits_of
from routing_gym.experiments.cli import main
from routing_gym.networks import make_network

CPU = torch.device("cpu")


def tiny(name, **options):
    return make_network(name, **{"width": 2, "hidden": 3, "form": "columns", **options})


@pytest.fixture
def small(monkeypatch):
    """Two channels."""
    monkeypatch.setattr(parallel_paths, "make_network", tiny)


def drawn(name):
    """A network all of whose numbers are drawn, in double precision, 7 images of 8x8 pixels, and gates."""
    network = tiny(name, num_tasks=1, num_classes=4, input_shape=(3, 8, 8)).double()
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in (*network.parameters(), *network.buffers()):
            if values.is_floating_point() and values.ndim > 1 and values is not network.costs:
                values.copy_(0.5 + torch.rand(values.shape, generator=numbers, dtype=torch.float64))
        for weight in network.parameters():
            weight -= 1
    images = torch.randn(7, 3, 8, 8, generator=numbers, dtype=torch.float64)
    form = 7, len(network.decisions), network.paths, network.paths
    return network, images, torch.randn(form, generator=numbers, dtype=torch.float64).softmax(3)


@pytest.mark.parametrize("name", parallel_paths.NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_loop_and_network_agree(name, training):
    network, images, gates = drawn(name)
    loop = LoopOverPaths(network)
    own, other = (gates.clone().requires_grad_() for _ in range(2))
    network.train(training)
    loop.train(training)
    logits, looped = logits_of(network, images, own), loop(images, other)
    torch.testing.assert_close(logits, looped)
    assert not torch.allclose(logits[0], logits[1])
    for result in (logits, looped):
        result.square().sum().backward()
    of_network = copy.deepcopy(network)
    for parameter, like in zip(of_network.parameters(), network.parameters(), strict=True):
        parameter.data = like.grad
    found = [(own.grad, other.grad)]
    for a, b in zip(LoopOverPaths(of_network).parameters(), loop.parameters(), strict=True):
        found.append((a.detach(), b.grad))
    for a, b in found:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert sum(bool(b.abs().max() > 1e-6) for _, b in found) > len(found) / 2
    # And afterwards, with what normalisation has kept of the batch.
    with torch.no_grad():
        torch.testing.assert_close(logits_of(network.eval(), images, gates), loop.eval()(images, gates))


def test_networks_that_differ_are_not_timed(monkeypatch):
    network, images, gates = drawn("basecnn-3-cc")
    network, images, gates = network.float(), images.float(), gates.float()
    parallel_paths.check_agreement(network, images, gates)
    forward = LoopOverPaths.forward

    def scaled(loop, images, gates):
        return 1.1 * forward(loop, images, gates)

    def steeper(loop, images, gates):
        return forward(loop, images, 2 * gates - gates.detach())

    for wrong, message in ((scaled, "logits of network"), (steeper, "gradients of the gates of network")):
        monkeypatch.setattr(LoopOverPaths, "forward", wrong)
        with pytest.raises(AssertionError, match=f"{message} and loop differ"):
            parallel_paths.check_agreement(network, images, gates)


@pytest.mark.parametrize(("together", "live"), [(1, 4), (2, 3), (4, 1)])
def test_tensors_that_have_met_stay_together_on_paths_used_alike(together, live):
    network = tiny("basecnn-4-cc", num_tasks=1, num_classes=4, input_shape=(3, 8, 8)).eval()
    choices = parallel_paths.merging(network, 8, together, CPU)
    state, runs = network.start(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)), []
    for action in choices.unbind(1):
        (waiting,) = state.waiting.values()
        alive = waiting.activation[1]
        runs.append(torch.nn.functional.one_hot(action, 4).mul(alive.unsqueeze(2)).any(1))
        state = step(network, state, action)
    for run in runs:
        assert run.sum(1).tolist() == 8 * [live] and run.sum(0).tolist() == 4 * [2 * live]
    behind = sum(decision.macs[0] for decision in network.decisions)
    assert state.macs.tolist() == pytest.approx(8 * [network.stem_macs + live * behind])


@pytest.mark.long
@pytest.mark.parametrize("name", parallel_paths.NETWORKS)
def test_records_add_up(small, name, monkeypatch):
    monkeypatch.setattr(timing, "peak_memory", lambda make, device: 7)  # takes as long as all the rest
    soft, *hard = parallel_paths.measure_parallel_paths(name, 20, 2, CPU)
    paths = int(name.split("-")[1])
    for record in (soft, *hard):
        assert (record["network"], record["blocks"], record["batch"]) == (name, paths, 20)
        assert record["train_ratio"] > 0 and record["inference_ratio"] > 0 and record["peak_memory_bytes"] == 7
    assert soft["agent"] == "soft gates" and {record["agent"] for record in hard} == {"hard choices"}
    for loop in ("loop", "channels_first_loop"):
        assert soft[f"{loop}_train_ratio"] > 0 and soft[f"{loop}_inference_ratio"] > 0
    assert soft["loop_peak_memory_bytes"] == 7
    assert [record["live_paths"] for record in hard] == {2: [2, 1], 3: [3, 2, 1], 4: [4, 3, 1]}[paths]
    if name.endswith("cc"):
        assert soft["macs_ratio"] == pytest.approx(paths) and hard[0]["macs_of_soft"] == 1
    else:
        assert soft["macs_ratio"] > paths and hard[0]["macs_of_soft"] < 1, (
            "not all that soft gates ask for is predicted"
        )
    shares = [record["macs_of_soft"] for record in hard]
    assert shares == sorted(set(shares), reverse=True)
    for record in hard:
        assert record["macs_of_soft"] == pytest.approx(record["macs_ratio"] / soft["macs_ratio"])
        assert record["train_time_of_soft"] > 0 and record["inference_time_of_soft"] > 0


@pytest.mark.long
def test_the_command_writes_what_it_measured(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parallel_paths, "NETWORKS", ("basecnn-2-cc",))
    out = tmp_path / "paths.json"
    assert main(["bench", "--parts", "parallel-paths", "--batch", "10", "20", "--rounds", "1", "--out", str(out)]) == 0
    records = json.loads(out.read_text())
    assert [(record["batch"], record.get("live_paths")) for record in records] == [
        (batch, live) for batch in (10, 20) for live in (None, 2, 1)
    ]
    assert {(record["part"], record["device"], record["dtype"]) for record in records} == {
        ("parallel-paths", "cpu", "float32")
    }
    assert all(record["peak_memory_bytes"] > 1000 for record in records)
    assert all(record["loop_peak_memory_bytes"] > 1000 for record in records if "live_paths" not in record)
    soft, hard = tables(records)
    assert "loop" in str(soft.title) and soft.row_count == 2 and "hard" in str(hard.title) and hard.row_count == 4
