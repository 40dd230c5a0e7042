"""Pages of which one part is generated: what people write around it stays."""

from __future__ import annotations

from pathlib import Path

from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.records import write_text

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"


def page_around(path: Path) -> tuple[str, str] | None:
    """Return what stands before and behind the generated part of a page; None where there is no page.

    Raises:
        UsageError: It does not say which part is generated.
    """
    try:
        with path.open(encoding="utf-8", newline="") as page:
            text = page.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not (begin and end) or text.count(BEGIN) + text.count(END) > 2:
        raise UsageError(
            f"{path} is there already and does not say which part of it is generated: write a line {BEGIN} and, where "
            f"that part ends, a line {END}, once each; or name another file"
        )
    return before, behind


def write_page(path: Path, title: str, generated: str) -> None:
    """Write the generated part of a page, whole or not at all; a page that is not there gets a title.

    Raises:
        UsageError: A page that does not say which part is generated.
    """
    before, behind = page_around(path) or (f"# {title}\n\n", "\n")
    text = f"{before}{BEGIN}\n\n{generated.strip()}\n\n{END}{behind}"
    write_text(path, text)
