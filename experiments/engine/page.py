"""Pages of results: generated from records, around a text of conclusions that people write in a file of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from routing_gym.experiments.engine.command import UsageError
from routing_gym.experiments.engine.records import write_text

MARK = "<!-- Generated from records: what people have to say stands in "
BEHIND = "<!-- From here on of records alone. -->"


def text_of(page: Path) -> Path:
    """Where the conclusions of a page are written: page.md has page.text.md."""
    return page.with_suffix(".text.md")


def check_page(page: Path) -> None:
    """Refuse, by a `UsageError`, to replace a page that was written by someone, or cannot be read."""
    for path in (page, text_of(page)):
        try:
            there = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        if path == page and not there.startswith(MARK):
            raise UsageError(
                f"{page} is there already and was not generated: move what is written in it to {text_of(page)}, which "
                "becomes part of it, or name another file"
            )


def write_page(page: Path, title: str, generated: str, pictures: Sequence[Path] = ()) -> None:
    """Write a page, whole or not at all: title, conclusions, what is generated, as Markdown, and pictures below it.

    The title is another where the conclusions begin with one; a page that was not generated is refused, see
    `check_page`.
    """
    check_page(page)
    text = text_of(page).read_text(encoding="utf-8") if text_of(page).exists() else ""
    if text.startswith("# "):
        title, _, text = text[2:].partition("\n")
    shown = [f"![{picture.stem}]({_seen_from(page.parent, picture)})" for picture in pictures]
    parts = [f"{MARK}{text_of(page).name}. -->", f"# {title}", text.strip(), BEHIND, generated.strip(), *shown]
    write_text(page, "\n\n".join(part for part in parts if part) + "\n")


def _seen_from(folder: Path, picture: Path) -> str:
    try:
        return Path(os.path.relpath(picture, folder)).as_posix()
    except ValueError:  # on another drive
        return picture.resolve().as_uri()
