"""A table as rows of text, for the terminal, TensorBoard and pages."""

from __future__ import annotations

from typing import NamedTuple

from rich.table import Table
from rich.text import Text


class Rows(NamedTuple):
    """A table: its title, the names of its columns, and its rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """Return it for the terminal, without the title; text that looks like markup is text."""
        table = Table(box=None, pad_edge=False)
        for number, name in enumerate(self.columns):
            table.add_column(Text(name), justify="left" if number == 0 else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """Return it for TensorBoard."""
        lines = [f"| {' | '.join(self.columns)} |", f"|{'---|' * len(self.columns)}"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])
