"""What is printed of documents: for people, with nothing in it that a terminal obeys, or as JSON lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from maxlm.config.errors import UserError
from maxlm.pages import Rows, visible

WIDEST = 500  # of a table: a terminal wraps lines, and nothing is cut


class Printer:
    """Prints to standard output; as JSON lines if asked to."""

    def __init__(self, *, as_json: bool = False):
        self.as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._wide = Console(highlight=False, width=WIDEST)

    def line(self, text: str = "") -> None:
        """Print a line."""
        self._console.print(visible(text))

    def record(self, content: Mapping[str, Any]) -> None:
        """Print a line of JSON; its strings are as they are, as JSON escapes what must be."""
        self._console.out(json.dumps(content), highlight=False)

    def facts(self, facts: Mapping[str, str], *, indent: str = "  ") -> None:
        """Print names and values, below each other; those without a value are left out."""
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            if value:
                self.line(f"{indent}{name:{width}}  {value}")

    def table(self, rows: Rows) -> None:
        """Print a table below its title."""
        self.line()
        self.line(rows.title)
        shown = tuple(tuple(map(visible, row)) for row in rows.rows)
        self._wide.print(rows._replace(rows=shown).rich())

    def text(self, text: str, most: int | None) -> None:
        """Print a text between lines, its first `most` characters."""
        cut = text if most is None else text[:most]
        for line in cut.splitlines() or [""]:
            self.line(f"  | {line}")
        if len(cut) < len(text):
            self.line(f"  | ... {len(text) - len(cut):,} more characters")


def refuse_negative(arguments: argparse.Namespace, *names: str) -> None:
    """Check that counts are none below zero.

    Raises:
      UserError: all that are.
    """
    wrong = [
        f"--{name} {getattr(arguments, name)}: give 0 or more"
        for name in names
        if getattr(arguments, name) < 0
    ]
    if wrong:
        raise UserError("\n  ".join(wrong))
