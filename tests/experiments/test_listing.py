"""`routing-gym list`, the reference of all options, and `--version`."""

import io

import pytest
from rich.console import Console

import routing_gym
from routing_gym.agents import AGENTS
from routing_gym.experiments.cli import main
from routing_gym.experiments.listing import List, options_of, owners_of
from routing_gym.networks import NETWORKS
from routing_gym.registration import env_ids

EVERYTHING = [*env_ids(), *AGENTS, *NETWORKS]


def test_every_option_of_everything_has_a_type_a_default_and_a_description():
    for name in EVERYTHING:
        for owner in owners_of(name):
            for option in options_of(owner, {}):
                assert all(option) and option.type != "Any" and len(option.description) > 5, (name, option)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sb3:PPO", "│ gae_lambda | 1.0 | float | How far advantages look ahead"),  # of a class between
        ("codinet", "│ router | 'linear' | 'linear' or 'rnn' or 'cnn' | What scores"),
        ("pragmatic-critic-sampled", "│ temperature | "),
        ("resnet32-skip", "│ stages | "),
        ("routing_gym/DigitsMTL-v0", "│ num_blocks | None | int or list of int or None | Blocks per decision"),
        ("routing_gym/DigitsMTL-v0", "│ optimizer | 'adam' | 'adam' or 'adamw' or 'sgd' | Optimiser of the blocks"),
        (
            "routing_gym/DigitsMTL-v0",
            "│ illegal | None | 'raise' or 'first_legal' or None | A masked choice is an error",
        ),
    ],
)
def test_list_shows_types_choices_defaults_and_descriptions(name, shown, capsys):
    assert main(["list", name]) == 0
    lines = [" ".join(line.replace(" │", " |").split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith(shown) for line in lines)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_ids_are_whole_on_narrow_terminals_too(width):
    console = Console(width=width, record=True, force_terminal=True, file=io.StringIO())
    assert List().execute(console) == 0
    printed = console.export_text()
    assert all(f" {name} " in printed for name in EVERYTHING) and "…" not in printed


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"routing-gym {routing_gym.__version__}\n"
