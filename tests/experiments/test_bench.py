"""What `bench` measures, and how; how fast anything is, is left to those who look."""

import json

import pytest
import torch
from commands import run

from routing_gym.agents import make_agent
from routing_gym.envs import rollout
from routing_gym.experiments import bench
from routing_gym.experiments.bench import ratios_against_blocks, tables
from routing_gym.experiments.benchmarks import inference, parallel_paths, populations, public_layers, steps, timing

CPU = torch.device("cpu")
RATIOS = {
    "train_ratio", "inference_ratio", "train_samples_per_second", "inference_samples_per_second",
    "static_train_samples_per_second", "static_inference_samples_per_second", "peak_memory_bytes",
    "static_peak_memory_bytes", "memory_ratio", "macs_ratio",
}  # fmt: skip
PLACE = {"part", "blocks", "batch", "threads", "device", "dtype", "torch", "commit", "processor", "accelerator"}


@pytest.mark.long
def test_steps_are_recorded_tabled_and_drawn(tmp_path, capsys):
    out = tmp_path / "new" / "bench.json"
    agents = ("reinforce", "gumbel", "top-k")
    arguments = ("--blocks", 2, 3, "--batch", 16, 32, "--rounds", 1, "--out", out)
    options = ("--agent-options", "reinforce.representation=mlp", "top-k.noise=false")
    assert run("bench", *arguments, "--agents", *agents, *options) == 0
    records = json.loads(out.read_text())
    assert [(r["blocks"], r["batch"], r["agent"]) for r in records] == [
        (k, b, a) for k in (2, 3) for b in (16, 32) for a in agents
    ]
    for record in records:
        assert set(record) == PLACE | RATIOS | {
            "agent", "agent_options", "router_macs_ratio", "transitions_per_second"
        }  # fmt: skip
        assert all(record[key] > 0 for key in RATIOS) and record["transitions_per_second"] > 0
        assert (record["part"], record["device"], record["dtype"]) == ("steps", "cpu", "float32")
        assert record["torch"] == torch.__version__ and record["processor"] and record["accelerator"] is None
    options = {r["agent"]: r["agent_options"] for r in records}
    assert options == {"reinforce": ["representation=mlp"], "gumbel": [], "top-k": ["noise=false"]}
    printed = capsys.readouterr().out
    assert "reinforce representation=mlp" in printed and "bench.png" in printed.replace("\n", "")
    assert (tmp_path / "new" / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_steps_are_measured_in_several_precisions(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(steps, "BATCH", 8)
    out, seen = tmp_path / "bench.json", set()
    forward = torch.nn.Linear.forward  # of the static networks: the routed ones have stacks of blocks

    def noting(layer, x):
        y = forward(layer, x)
        seen.add((x.shape[0], y.dtype))
        return y

    monkeypatch.setattr(torch.nn.Linear, "forward", noting)
    arguments = ("--parts", "steps", "convnet", "--agents", "wpl", "top-k", "--batch", 16, "--rounds", 1)
    assert run("bench", *arguments, "--blocks", 3, "--dtype", "float32", "bfloat16", "--out", out) == 0
    records = json.loads(out.read_text())
    two = ["float32", "float32", "bfloat16", "bfloat16"]
    assert [r["dtype"] for r in records if r["part"] == "steps"] == two
    assert [r["dtype"] for r in records if r["part"] == "convnet"] == two
    assert {(16, torch.float32), (16, torch.bfloat16), (8, torch.float32), (8, torch.bfloat16)} <= seen
    macs = {(r["part"], r["agent"], r["macs_ratio"]) for r in records}
    assert len(macs) == 4  # they do not depend on it
    printed = capsys.readouterr().out
    assert "wpl bfloat16" in printed and "top-k bfloat16" in printed


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tmp_path):
    device = torch.device("cuda")

    def make():
        kept = torch.zeros(1024, device=device)

        def step():
            a = kept + 1
            b = torch.zeros(2048, device=device)
            del a
            return b

        return step

    assert timing.peak_memory(make, device) == 4 * 4096
    out = tmp_path / "bench.json"
    arguments = ("--parts", "steps", "experts", "convnet", "--device", "cuda", "--batch", 64, "--rounds", 1)
    agents = ("--agents", "wpl", "task-specific-all", "reinforce", "gumbel", "top-k")
    assert run("bench", *arguments, *agents, "--agent-options", "reinforce.representation=mlp", "--out", out) == 0
    records = json.loads(out.read_text())
    assert {r["device"] for r in records} == {"cuda"} and all(r["peak_memory_bytes"] > 0 for r in records)
    assert all(r["accelerator"] == torch.cuda.get_device_name() for r in records)


def test_steps_are_timed_in_turns():
    called = []
    times = timing.in_turns({name: lambda name=name: called.append(name) for name in "abc"}, 3)
    assert called == list("abc") * 6  # three rounds to warm up
    assert {name: len(own) for name, own in times.items()} == {"a": 3, "b": 3, "c": 3}
    called.clear()
    timing.in_turns({"a": lambda: called.append("a")}, 20)
    assert len(called) == 20 + timing.WARM_UP


def test_ratios_are_medians_of_pairs():
    case = timing.Case(lambda: None, 9.0, {"agent": "some"})
    routed = timing.Measured(case, {"train": [2.0, 4.0, 100.0], "inference": [1.0, 1.0, 2.0]}, 300)
    case = timing.Case(lambda: None, 2.0)
    static = timing.Measured(case, {"train": [1.0, 1.0, 10.0], "inference": [1.0, 2.0, 6.0]}, 100)
    assert timing.against(routed, static, 8) == {
        "agent": "some",
        "batch": 8,
        "train_ratio": 0.25,
        "inference_ratio": 2.0,
        "train_samples_per_second": 2.0,
        "inference_samples_per_second": 8.0,
        "static_train_samples_per_second": 8.0,
        "static_inference_samples_per_second": 4.0,
        "peak_memory_bytes": 300,
        "static_peak_memory_bytes": 100,
        "memory_ratio": 3,
        "macs_ratio": 4.5,
    }


def test_unlike_blocks_are_recorded():
    records = steps.measure_experts(1, CPU, batch=9, channels=2, size=7)
    assert [(r["case"], r["against"]) for r in records] == [
        ("seven unlike blocks", "conv 3x3"), ("seven unlike blocks", "mean"),
    ]  # fmt: skip
    # Kernel sizes 9, 25, 49, 7 + 7, and three that cost nothing.
    assert [r["macs_ratio"] for r in records] == [pytest.approx((9 + 25 + 49 + 14) / 7 / 9), 1]
    assert all(set(r) == RATIOS | {"case", "against", "blocks", "batch"} for r in records)
    x = torch.randn(2, 3, 26, 26)
    assert all(module(x).shape == x.shape for module in steps.experts(3).values())


@pytest.mark.long
def test_skipping_is_recorded():
    records = steps.measure_skipping(1, CPU, batch=4)
    assert [(r["case"], r["share"]) for r in records] == [
        (case, share) for case in ("PASS", "early exit") for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    layers = [128 * 512, *[512 * 512] * 4, 512 * 128]
    trunk, stage, head = 3 * 32 * 9 * 256, 2 * 32 * 32 * 9 * 256, 32 * 10
    for record in records:
        skipped, whole = (sum(layers[1:5]), sum(layers)) if record["case"] == "PASS" else (stage, trunk + stage + head)
        assert record["macs_saved"] == pytest.approx(record["share"] * skipped / whole)
        assert record["macs_ratio"] == pytest.approx(1 - record["macs_saved"])
        assert set(record) == RATIOS | {
            "case", "against", "share", "blocks", "batch", "macs_saved", "train_time_saved", "inference_time_saved"
        }  # fmt: skip
    assert [r["train_time_saved"] for r in records if r["share"] == 0] == [0, 0]


@pytest.mark.parametrize("network", [steps.with_pass, steps.early_exit])
def test_rows_skip_as_often_as_they_should(network):
    subject, never, always = network(CPU)
    for share in (0.0, 0.3, 1.0):
        chances = (1 - share) * never + share * always
        env = subject.make_env(400, "random")
        agent = make_agent("random", env)
        agent.table[0, :-1, 0] = chances
        macs, expected = rollout(agent, env).macs, steps.expected_macs(env.network, chances)
        env.train_blocks()
        if share in (0, 1):
            assert macs.tolist() == [pytest.approx(expected)] * 400
        else:
            assert abs(float(macs.mean()) - expected) < 4 * float(macs.std()) / 20
    whole = subject.static(subject.fresh())
    assert timing.peak_memory(lambda: lambda: whole(torch.zeros(2, *subject.data["train"].input_shape))) > 0


def test_the_convnet_is_recorded(monkeypatch):
    monkeypatch.setattr(steps, "BATCH", 8)
    subject = steps.convnet(CPU)
    images = subject.data["train"]
    assert images.images.shape[1:] == (3, 32, 32) and (images.num_tasks, images.num_classes) == (20, 5)
    assert torch.bincount(images.task * 5 + images.label).tolist() == [20] * 100
    (record,) = steps.measure_convnet(subject, {"task-specific-all": ()}, 1)
    assert record["blocks"] == 20 and record["batch"] == 8 and record["macs_ratio"] == 1
    for prefix in ("", "static_"):
        speed = record[f"{prefix}train_samples_per_second"]
        assert record[f"{prefix}seconds_per_50000"] == pytest.approx(50_000 / speed)


@pytest.mark.long
def test_every_face_is_measured(tmp_path):
    assert run("bench", "--parts", "faces", "--rounds", 1, "--out", tmp_path / "faces.json") == 0
    assert not (tmp_path / "faces.png").exists()
    records = json.loads((tmp_path / "faces.json").read_text())
    for train in (False, True):
        own = {r["face"]: r for r in records if r["train"] == train}
        assert {"core, 256 rows", "core, 1 rows", "ToNumpy", "Gymnasium single", "PettingZoo parallel",
                "Stable-Baselines3 RoutingVecEnv", "TorchRL GymWrapper, disabled"} <= set(own)  # fmt: skip
        assert own["core, 256 rows"]["share_of_core"] == own["core, 1 rows"]["share_of_core_of_as_many_rows"] == 1
        assert all(set(r) >= PLACE and r["transitions_per_second"] > 0 and r["blocks"] == 10 for r in own.values())


def test_all_parts_in_one_file(tmp_path, monkeypatch):
    """Every part is asked for what it was told, and what it says goes into one file and tables of its own."""
    asked, threads = [], torch.get_num_threads()

    def stand_in(record):
        return lambda *arguments, **options: asked.append(arguments) or [{**record, "had": torch.get_num_threads()}]

    ratios = dict.fromkeys(RATIOS, 1.0)
    step = {"agent": "shared", "agent_options": [], "blocks": 10, "batch": 8, "transitions_per_second": 1.0, **ratios}
    case = {"case": "some", "against": "others", "blocks": 7, "batch": 8, **ratios}
    skip = {**case, "share": 0.5, "macs_saved": 0.5, "train_time_saved": 0.4, "inference_time_saved": 0.3}
    monkeypatch.setattr(steps, "measure_agents", stand_in(step))
    monkeypatch.setattr(steps, "measure_experts", stand_in(case))
    monkeypatch.setattr(steps, "measure_skipping", stand_in(skip))
    convnet_record = {**step, "seconds_per_50000": 2.0, "static_seconds_per_50000": 1.0}
    monkeypatch.setattr(steps, "measure_convnet", stand_in(convnet_record))
    face = {"face": "core", "batch": 1, "blocks": 10, "train": True, "transitions_per_second": 1.0,
            "share_of_core": 1.0, "share_of_core_of_as_many_rows": 1.0}  # fmt: skip
    monkeypatch.setattr(bench, "measure_faces", stand_in(face))
    monkeypatch.setattr(public_layers, "measure_public_layers", stand_in({**case, "layer": "top-k"}))
    losses = {"layer": "top-k", "batch": 8, "loss": 2.0, "loss_error": 0.1}
    monkeypatch.setattr(
        public_layers, "measure_public_losses", lambda *case: [{**losses, "had": torch.get_num_threads()}]
    )
    told = {"agent": "shared", "agent_options": [], "seeds": 10, "batch": 8, "speedup": 2.0, "alone_ms": 2.0}
    monkeypatch.setattr(populations, "measure_population", stand_in({**told, "together_ms": 1.0}))
    exits = {"case": "some", "batch": 8, "macs_ratio": 0.5, "time_ratio": 0.6, "floor_ratio": None, "microseconds": 1.0,
             "static_microseconds": 2.0, "saving_arrived": 0.8, "possible_saving_arrived": None}  # fmt: skip
    monkeypatch.setattr(inference, "measure_inference", stand_in({**exits, "of_routed": None}))
    names = ("loop_train_ratio", "loop_inference_ratio", "loop_memory_ratio", "channels_first_loop_train_ratio",
             "channels_first_loop_inference_ratio")  # fmt: skip
    monkeypatch.setattr(
        parallel_paths, "measure_parallel_paths", stand_in({**case, "network": "n", **dict.fromkeys(names, 1)})
    )
    out = tmp_path / "bench.json"
    arguments = ("--agents", "shared", "--batch", 8, "--threads", 1, 2, "--rounds", 7, "--out", out)
    assert run("bench", "--parts", *arguments) == 0
    assert torch.get_num_threads() == threads
    records = json.loads(out.read_text())
    parts = ["steps", "public-layers", "public-losses", "population", *2 * ["faces"], *2 * ["experts"], "convnet",
             "early-exit", *2 * ["block-skip"],
             *4 * ["parallel-paths"]]  # fmt: skip
    assert [r["part"] for r in records] == 2 * parts
    assert [r["threads"] for r in records] == [r["had"] for r in records] == 16 * [1] + 16 * [2]
    assert all(7 in arguments for arguments in asked) and asked[0][1:3] == (8, {"shared": ()})
    assert len(tables(records)) == 11


def test_the_picture_has_a_panel_per_batch_and_a_line_per_agent(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **how: drawn.append(figure))
    place = {"processor": "a CPU", "accelerator": None, "torch": "2", "dtype": "float32"}
    records = [
        {"agent": a, "agent_options": [], "blocks": k, "batch": b, "threads": t, "train_ratio": 0.5 + k / 100,
         "inference_ratio": 1.5, **place}
        for t in (1, 2) for k in (2, 10) for b in (64, 256, 1024) for a in ("wpl", "top-k")
    ]  # fmt: skip
    records += [{**r, "dtype": "bfloat16"} for r in records if r["agent"] == "wpl"]
    ratios_against_blocks(records, tmp_path / "picture.png")
    (figure,) = drawn
    assert len(figure.axes) == 6
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert list(lines) == [
            f"{name}, {threads}" for name in ("wpl", "top-k", "wpl bfloat16") for threads in ("1 thread", "2 threads")
        ]
        assert list(lines["wpl, 1 thread"].get_xdata()) == [2, 10]
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.52, 0.6] and figure.axes[1].get_title() == "batch 256"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--blocks", "10", "0"], "--blocks must be at least 1, got 0"),
        (["--batch", "-1"], "--batch must be at least 1, got -1"),
        (["--batch"], "--batch needs at least one number"),
        (["--threads", "1", "0"], "--threads must be at least 1, got 0"),
        (
            ["--parts", "steps", "face"],
            "--parts: unknown name 'face' (did you mean 'faces'?); known are steps, public-layers",
        ),
        (
            ["--parts", "faces", "--dtype", "float16"],
            "--dtype: unknown name 'float16' (did you mean 'bfloat16'?); known are float32, bfloat16",
        ),
        (["--out", "b.png"], "--out b.png: that is where the picture goes, take an ending like .json for records"),
        (["--device", "gpu"], "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        (["--agents", "wlp"], "unknown agent 'wlp' (did you mean 'wpl'?); known are"),
        (["--agents", "wpl", "wpl"], "--agents names 'wpl' twice"),
        (["--agents", "wpl", "sb3:PPO"], "agent 'sb3:PPO' is trained by a loop of its own"),
        (["--agents", "cross-stitch"], "agent 'cross-stitch' needs an environment made with form='columns'"),
        (["--agents", "top-k", "--blocks", "10", "1"], "'top-k' mixes k=2 blocks, no decision of this network offers"),
        (["--agent-options", "top-k.k=3"], "--agent-options takes AGENT.NAME=VALUE, the agent one of wpl"),
        (["--agent-options", "wpl.rate=3"], "agent 'wpl' has no option 'rate'; it takes"),
        (["--parts", "convnet", "--agents", "shared-with-task"], "needs an environment made with task_input=True"),
        (["--parts", "population", "--agents", "wpl", "top-k"], "agent 'top-k' cannot learn side by side with others"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(populations, "measure_population", lambda *case: pytest.fail("it is measured"))
    assert run("bench", "--out", tmp_path / "bench.json", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_refused(tmp_path, capsys):
    assert run("bench", "--rounds", 1, "--out", tmp_path) == 2
    assert "--out must name a file" in capsys.readouterr().err


@pytest.mark.long
def test_layers_of_other_libraries_stand_beside_ours(tmp_path, monkeypatch):
    """Those that are installed, doing the same work: here one of theirs stands in for itself, one is not there."""

    def missing(blocks, relu):
        raise ModuleNotFoundError("no such layer")

    given = {"two static blocks": lambda blocks, relu: public_layers.TwoBlocks(relu), "of one's own": missing}

    class Theirs(torch.nn.Module):
        def forward(self, x):
            assert x.shape == (1, 5, 2)
            return x + 1, x.sum(), None

    y, loss = public_layers.OneSequence(Theirs())(torch.ones(5, 2))
    assert torch.equal(y, torch.full((5, 2), 2.0)) and loss == 10
    bank, x = public_layers.EachItsOwn(3, 4, 4, relu=True), torch.randn(3, 7, 4)
    for number in range(3):
        torch.testing.assert_close(bank(x)[number], bank.run_block(x[number], number))
    monkeypatch.setattr(public_layers, "LAYERS_OF", given)
    out = tmp_path / "bench.json"
    assert run("bench", "--parts", "public-layers", "--blocks", 3, "--batch", 16, "--rounds", 1, "--out", out) == 0
    records = json.loads(out.read_text())
    assert [record["layer"] for record in records] == [*public_layers.GATES, "two static blocks"]
    assert all(record["macs_ratio"] >= 2 and record["train_ratio"] > 0 for record in records)
    for name, number in (("LEARNED", 150), ("LAST", 5), ("SEEDS", 2)):
        monkeypatch.setattr(public_layers, name, number)
    assert run("bench", "--parts", "public-losses", "--blocks", 3, "--batch", 64, "--out", out) == 0
    records = json.loads(out.read_text())
    assert [record["layer"] for record in records] == [*public_layers.GATES, "two static blocks"]
    assert all(0 < record["loss"] < 4.5 and 0 < record["loss_error"] < 0.2 for record in records)  # ln 128 is 4.85
