"""Pages that are written while the site is built: of every agent and id, and formulas as MathML.

What an agent is and what can be given to it is read off its class, how it does off the records of the suite; when it
works, and its equation, stand in `agents/NAME.text.md`, without which the build fails.
"""

from __future__ import annotations

import gzip
import inspect
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import docstring_parser
import latex2mathml.converter
from docutils.nodes import SkipNode
from sphinx.application import Sphinx

from routing_gym.agents import AGENTS, Agent, needs
from routing_gym.experiments.engine.settings import folder_name
from routing_gym.experiments.listing import Option, in_a_line, options_of, owners_of
from routing_gym.experiments.suite.leaderboard import cell, problems_of, stands, told_iqm
from routing_gym.experiments.suite.problems import PROBLEMS, Problem
from routing_gym.experiments.suite.scoring import Score
from routing_gym.registration import ENV_IDS

DOCS = Path(__file__).parent
PAPERS = {
    "Rosenbaum": "[Rosenbaum, Klinger and Riemer 2018](https://arxiv.org/abs/1711.01239)",
    "McGill": "[McGill and Perona 2017](https://arxiv.org/abs/1703.06217)",
    "Ramachandran": "[Ramachandran and Le 2019](https://openreview.net/forum?id=BkxWJnC9tX)",
    "CoDiNet": "[Wang, Qin, Li and Li 2021](https://arxiv.org/abs/2005.14439)",
    "Teerapittayanon": "[Teerapittayanon, McDanel and Kung 2016](https://arxiv.org/abs/1709.01686)",
    "MSDNet": "[Huang et al. 2018](https://arxiv.org/abs/1703.09844)",
    "PABEE": "[Zhou et al. 2020](https://arxiv.org/abs/2006.04152)",
    "Tissera": "[Tissera et al. 2023](https://arxiv.org/abs/2107.02450)",
    "Schulman et al. 2017": "[Schulman et al. 2017](https://arxiv.org/abs/1707.06347)",
    "Shao": "[Shao et al. 2024](https://arxiv.org/abs/2402.03300)",
    "Grathwohl": "[Grathwohl et al. 2018](https://arxiv.org/abs/1711.00123)",
    "Tucker": "[Tucker et al. 2017](https://arxiv.org/abs/1703.07370)",
    "Kirsch": "[Kirsch, Kunze and Barber 2018](https://arxiv.org/abs/1811.05249)",
    "Shazeer": "[Shazeer et al. 2017](https://arxiv.org/abs/1701.06538)",
    "Zhou et al. 2022": "[Zhou et al. 2022](https://arxiv.org/abs/2202.09368)",
    "Balance without a loss (Wang": "[Wang et al. 2024](https://arxiv.org/abs/2408.15664)",
    "Clark": "[Clark et al. 2022](https://arxiv.org/abs/2202.01169)",
    "ReMoE": "[Wang et al. 2024](https://arxiv.org/abs/2412.14711)",
    "Hazimeh": "[Hazimeh et al. 2021](https://arxiv.org/abs/2106.03760)",
    "Raposo": "[Raposo et al. 2024](https://arxiv.org/abs/2404.02258)",
    "Roller": "[Roller et al. 2021](https://arxiv.org/abs/2106.04426)",
    "Muqeeth": "[Muqeeth, Liu and Raffel 2024](https://arxiv.org/abs/2306.03745)",
}
"""Papers by what a module or docstring says of them."""


def setup(app: Sphinx) -> dict[str, bool]:
    """Have Sphinx write the pages before it reads, and write formulas without scripts."""
    app.connect("builder-inited", lambda app: write_pages())
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True}


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise SkipNode


def _block(translator: Any, node: Any) -> None:
    text = latex2mathml.converter.convert(node.astext(), display="block")
    translator.body.append(f'<div class="math">{text}</div>')
    raise SkipNode


def write_pages(docs: Path = DOCS) -> None:
    """Write a page of every agent and of every id, and of each kind a page that lists them."""
    scores = json.loads(gzip.decompress((docs / "results/suite/scores.json.gz").read_bytes()))
    for folder, pages in (("agents", agent_pages(docs / "agents", scores)), ("ids", id_pages())):
        for name, text in pages.items():
            path = docs / folder / f"{name}.md"
            if not path.exists() or path.read_text(encoding="utf-8") != text:  # else Sphinx would read it again
                path.write_text(text, encoding="utf-8")


def agent_pages(texts: Path, scores: Sequence[Score]) -> dict[str, str]:
    """Pages of agents by their file names, and `index`; a `FileNotFoundError` where one lacks its text."""
    standing = stands(scores)
    problems = problems_of(scores)
    pages, rows = {}, []
    for name, cls in AGENTS.items():
        own = [of for of in standing if of.agent.partition("(")[0] == name]
        parts = [f"# {name}", prose(cls), (texts / f"{folder_name(name)}.text.md").read_text(encoding="utf-8").strip()]
        said = " ".join([str(getattr(inspect.getmodule(cls), "__doc__", "")), *parts])
        cited = [paper for author, paper in PAPERS.items() if author in said]
        parts += ["## Source", ", ".join(cited)] if cited else []
        parts += ["## What it asks of the environment", demands(name, cls)]
        parts += ["## Options", options_table(options_of(cls.Config, {}))]
        if own:
            heads = ("setting", "all (IQM)", *problems)
            shown = [
                (f"`{of.agent}`", told_iqm(of, problems), *(cell(of, problem) for problem in problems)) for of in own
            ]
            board = "[The leaderboard](../results/suite/leaderboard.md): 0 is random frozen paths, 1 the oracle."
            parts += ["## On the suite", board, table(heads, shown)]
        best = next((of for of in own if of.agent == name), None)
        rows.append((f"[{name}]({folder_name(name)}.md)", in_a_line(cls), told_iqm(best, problems) if best else "–"))
        pages[folder_name(name)] = page(parts)
    intro = (texts / "index.text.md").read_text(encoding="utf-8").strip()
    heads = ("agent", "what it is", "on the suite (IQM)")
    pages["index"] = page(["# Agents", intro, table(heads, rows), toctree(pages)])
    return pages


def id_pages() -> dict[str, str]:
    """Pages of ids by their names without the namespace, and `index`."""
    pages, rows = {}, []
    for env_id, chosen in ENV_IDS.items():
        name = env_id.partition("/")[2]
        call, data, network, config = owners_of(env_id)
        own = [f"`{key}={value!r}`" for key, value in chosen.items() if key not in ("dataset", "network")]
        parts = [f"# {name}", f'```python\nenv = gymnasium.make_vec("{env_id}", num_envs=256)\n```']
        parts += [f"## Data: {chosen['dataset']}", prose(data), f"## Network: {chosen['network']}", in_a_line(network)]
        parts += [f"Set by the id: {', '.join(own)}."] if own else []
        asked = [(key, of) for key, of in PROBLEMS.items() if of.env == env_id]
        if asked:
            knobs = [(f"`{key}`", of.ability, *map(_knobs, [of] * 3, range(3)), of.scored) for key, of in asked]
            parts += ["## In the suite", table(("problem", "ability", "easy", "default", "hard", "scored"), knobs)]
        for heading, owner in (("the data", data), ("the network", network), ("the environment", config)):
            options = options_of(owner, chosen)
            parts += [f"## Options of {heading}", options_table(options)] if options else []
        rows.append((f"[{name}]({name}.md)", chosen["dataset"], chosen["network"]))
        pages[name] = page(parts)
    intro = (DOCS / "ids/index.text.md").read_text(encoding="utf-8").strip()
    pages["index"] = page(["# Environments", intro, table(("id", "data", "network"), rows), toctree(pages)])
    return pages


def _knobs(problem: Problem, at: int) -> str:
    return ", ".join(f"{knob}={values[at]}" for knob, values in problem.knobs.items())


def demands(name: str, cls: type[Agent]) -> str:
    """What an agent's environment must be made with, and what the agent sees."""
    needed = ", ".join(f"`{option}={value!r}`" for option, value in needs(name).items())
    made = f"Made with {needed}, as `needs({name!r})` says." if needed else "Nothing: any environment will do."
    tensors = "" if cls.max_tensors is None else f" It routes networks with {cls.max_tensors} tensor at a decision."
    return made + tensors


def options_table(options: Iterable[Option]) -> str:
    """Table of options with types and defaults."""
    rows = [(f"`{of.name}`", f"`{of.default}`", f"`{of.type}`", of.description) for of in options]
    return table(("option", "default", "type or choices", "what it is"), rows) if rows else "None."


def prose(owner: Any) -> str:
    """What a class or function says of itself, without its arguments."""
    said = docstring_parser.parse(inspect.getdoc(owner) or "")
    return "\n\n".join(filter(None, (said.short_description, said.long_description)))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def toctree(pages: Iterable[str]) -> str:
    """The pages' order for the site's navigation, not shown."""
    return "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])


def page(parts: Iterable[str]) -> str:
    """Parts one below the other."""
    return "\n\n".join(parts) + "\n"
