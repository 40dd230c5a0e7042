"""Mistakes of an agent of one's own: named where they are made, before anything is lost."""

import gymnasium
import numpy as np
import pytest
import torch

import routing_gym
from routing_gym.agents import AGENTS, Agent, make_agent, register_agent
from routing_gym.experiments.cli import main


def make(**options):
    options = {"num_tasks": 2, "num_blocks": 2, "autoreset_mode": "disabled", **options}
    return gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=64, **options).unwrapped


class Plain(Agent):
    reports: object = None

    def act(self, observation, context):
        return observation["task"] % 2

    def update(self, trajectory):
        return self.reports


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ("hello", "update must return numbers by name, or None, got 'hello'"),
        (torch.zeros(2), "update must return numbers by name, or None, got tensor"),
        ({"x": "s"}, "update reports x as 's', expected one number"),
        ({"x": torch.zeros(2)}, r"update reports x as tensor\(\[0., 0.\]\), expected one number"),
        ({"loss": torch.tensor(7.0)}, "update reports 'loss'; names are texts other than loss, accuracy, reward, macs"),
        ({3: 1.0}, "update reports 3"),
    ],
)
def test_what_is_no_metric_is_refused(reports, message):
    env = make()
    agent = Plain(env)
    agent.reports = reports
    with pytest.raises(ValueError, match=f"agent 'Plain': {message}"):
        agent.learn(env, 64)


def test_plain_numbers_are_metrics_and_own_ones_stay():
    env, seen = make(), []
    agent = Plain(env)
    agent.reports = {"one": 1, "half": np.float64(0.5), "tensor": torch.tensor(3)}
    agent.learn(env, np.int64(64), seen.append)
    assert {name: float(seen[0][name]) for name in agent.reports} == {"one": 1.0, "half": 0.5, "tensor": 3.0}
    assert 0 < float(seen[0]["loss"]) < 10


@pytest.mark.parametrize("key", ["activation", "task", "depth"])
def test_observations_are_not_to_be_written_into(key):
    class Writing(Plain):
        def act(self, observation, context):
            observation[key].mul_(0)
            return super().act(observation, context)

    env = make()
    for use in (lambda: Writing(env).learn(env, 64), lambda: routing_gym.evaluate(Writing(env), env)):
        with pytest.raises(ValueError, match=f"act has written into its observation, '{key}'"):
            use()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hid", "a\nb", "a b", 3])
def test_names_that_no_folder_can_have_are_refused(name):
    with pytest.raises(ValueError, match="the name of an agent is made of letters, digits and"):
        register_agent(name, Plain)
    assert name not in AGENTS


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("wrong", ["macs", "policy", "loss"])
def test_one_bad_agent_costs_the_others_nothing(wrong, tmp_path, monkeypatch, capsys):
    class Bad(Plain):
        def macs(self, decision):
            return float("nan") if wrong == "macs" else 0.0

        def policy(self):
            return torch.zeros(3) if wrong == "policy" else None

        def auxiliary_loss(self, trajectory):
            return torch.zeros(2) if wrong == "loss" else None

    monkeypatch.setitem(AGENTS, "bad", Bad)
    small = ["--env-options", "num_tasks=2", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "out")]
    assert main(["compare", "--agents", "shared", "bad", *small]) == 1
    said = capsys.readouterr().out
    assert "bad fails in a trial on one batch" in said and "shared" in said and "accuracy" in said
    assert main(["compare", "--agents", "shared", *small, "--resume"]) == 0


@pytest.mark.parametrize("arguments", [["--out", ""], ["--out="]])
def test_a_folder_without_a_name_is_none(arguments, capsys):
    assert main(["compare", *arguments]) == 2
    assert "--out is empty" in capsys.readouterr().err


def test_what_has_the_wrong_form_for_the_network_is_refused_when_it_is_made():
    env = make()
    splits = env.datasets
    fewer = {"train": splits["train"], "test": splits["test"].select_tasks([0])}
    with pytest.raises(ValueError, match="splits must have the same tasks and images of one shape"):
        gymnasium.make_vec("routing_gym/DigitsMTL-v0", num_envs=2, dataset=fewer)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    network = routing_gym.route(module, layers=["1"], num_blocks=2)
    with pytest.raises(ValueError, match="64 numbers, the network takes 192"):
        make(network=network, num_blocks=None)
    network = routing_gym.route(module, layers=["1"], num_blocks=2, input_shape=(3, 8, 8))
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\), the network takes \(3, 8, 8\)"):
        make(network=network, num_blocks=None)


def test_a_file_that_is_none_is_not_replaced_and_a_link_is_followed(tmp_path):
    env = make()
    agent = make_agent("shared", env)
    with pytest.raises(OSError, match="/dev/null was not written: it is no regular file"):
        agent.save("/dev/null")
    link, target = tmp_path / "link.pt", tmp_path / "target.pt"
    link.symlink_to(target)
    agent.save(link)
    assert link.is_symlink() and target.is_file()
    assert make_agent("shared", env).load(link, env).name == "shared"


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(3), "an observation has 'activation', 'task' and 'depth' by name, got ndarray"),
        ({"task": 0, "depth": 0}, r"got \['depth', 'task'\]"),
        ({"activation": np.zeros(64), "task": 9, "depth": 0}, r"task must be one number in \[0, 2\) .* got \[9\]"),
        ({"activation": np.zeros(64), "task": 0, "depth": -1}, r"depth must be one number in \[0, 4\) .* got \[-1\]"),
        (
            {"activation": np.zeros((2, 64)), "task": np.zeros(3, int), "depth": np.zeros(2, int)},
            "task must be one number .* for each of 2 activations",
        ),
    ],
)
def test_observations_that_are_none_are_refused(observation, message):
    agent = make_agent("wpl", make())
    with pytest.raises(ValueError, match=message):
        agent.predict(observation)


def test_images_are_classified_in_whatever_form_they_come():
    env = make()
    agent = make_agent("wpl", env)
    images = env.dataset.images[:4]
    logits = agent.classify(images, torch.tensor([0, 1, 0, 1]))
    for form in (images.numpy(), env.dataset.normalized(images), env.dataset.normalized(images).double().numpy()):
        assert torch.equal(agent.classify(form, [0, 1, 0, 1]), logits)
    for wrong, task, message in (
        (images.long(), None, "images must be uint8, or floating point and normalised already, got torch.int64"),
        (images, torch.zeros(4), "task must be integers"),
        ("images", None, "images must be a tensor, a NumPy array or lists"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.classify(wrong, task)


EARLY = {
    "module": lambda self: setattr(self, "net", torch.nn.Linear(2, 2)),
    "look": lambda self: self.num_tasks,
    "nothing": lambda self: setattr(self, "count", 0),
}


@pytest.mark.parametrize("early", EARLY.values(), ids=EARLY)
def test_an_agent_that_is_not_begun_is_told_how(early, monkeypatch):
    class Unbegun(Plain):
        def __init__(self, env, config=None):
            early(self)

    monkeypatch.setitem(AGENTS, "unbegun", Unbegun)
    with pytest.raises(ValueError, match=r"'unbegun' .*Unbegun\): call super\(\).__init__\(env, config\) first in its"):
        make_agent("unbegun", make())


@pytest.mark.parametrize(
    ("name", "meant"), [("lr", "learning_rate"), ("n_blocks", "num_blocks"), ("kcpt", "k_cpt"), ("widht", "width")]
)
def test_abbreviations_are_understood(name, meant):
    with pytest.raises(TypeError, match=f"{name!r} .did you mean {meant!r}"):
        make(**{name: 3})
