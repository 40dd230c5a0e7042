"""The floors of the building: who may import whom, what is installed, how long a file may be."""

import ast
import re
import tomllib
from pathlib import Path

import routing_gym

ROOT = Path(__file__).parent.parent
# Each floor may import from those before it, and from itself.
FLOORS = [
    "routing_gym.ranks",
    "routing_gym.files",
    "routing_gym.forms",
    "routing_gym.options",
    "routing_gym.tasks",
    "routing_gym.blocks",
    "routing_gym.networks",
    "routing_gym.envs",
    "routing_gym",
    "routing_gym.agents",
    "routing_gym.experiments",
]
LONGEST_FILE = 400


def modules():
    """Yield the dotted name and the path of every module, each once (the links inside routing_gym are left out)."""
    for folder, package in (("routing_gym", "routing_gym"), ("agents", "routing_gym.agents"),
                            ("experiments", "routing_gym.experiments")):  # fmt: skip
        for path in sorted((ROOT / folder).rglob("*.py")):
            if folder == "routing_gym" and path.relative_to(ROOT).parts[1] in ("agents", "experiments"):
                continue
            dotted = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            yield ".".join(dotted).removesuffix(".__init__"), path


def floor_of(name):
    return max((floor for floor in FLOORS if name == floor or name.startswith(floor + ".")), key=len)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def test_no_import_runs_up_the_floors():
    seen = 0
    for name, path in modules():
        for target in imports_of(path):
            assert target.split(".")[0] not in ("agents", "experiments"), f"{name} imports {target}"
            if target.split(".")[0] == "routing_gym":
                seen += 1
                low, high = FLOORS.index(floor_of(target)), FLOORS.index(floor_of(name))
                assert low <= high, f"{name} imports {target}, which is above it"
    assert seen > 50


def test_no_import_cycles():
    graph = {name: {t for t in imports_of(path) if t.startswith("routing_gym")} for name, path in modules()}
    # `from package import name` through an __init__ is the package's own affair: look at modules only.
    leaves = {name for name in graph if not any(other.startswith(name + ".") for other in graph)}
    done, open_ = set(), []

    def visit(name):
        if name in done or name not in leaves:
            return
        assert name not in open_, f"cycle: {' -> '.join([*open_[open_.index(name) :], name])}"
        open_.append(name)
        # Imports inside functions are how `Agent` reaches the loop and the files above it without a cycle at import.
        for target in top_level_imports(name):
            visit(target)
        open_.pop()
        done.add(name)

    paths = dict(modules())

    def top_level_imports(name):
        for node in ast.parse(paths[name].read_text()).body:
            if isinstance(node, ast.ImportFrom):
                yield node.module

    for name in leaves:
        visit(name)
    assert len(done) > 25


def test_every_folder_is_installed():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in modules()}
    assert set(config["tool"]["setuptools"]["packages"]) == packages


def test_a_release_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    version, date = (re.search(rf"^{key}: (\S+)$", citation, flags=re.M)[1] for key in ("version", "date-released"))
    assert version == routing_gym.__version__
    releases = re.findall(r"^## (\S+)(?: \((\S+)\))?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert releases[:2] == [("Unreleased", ""), (version, date)]


def test_no_file_is_about_too_much():
    for name, path in modules():
        lines = len(path.read_text().splitlines())
        assert lines <= LONGEST_FILE, f"{name} has {lines} lines"
