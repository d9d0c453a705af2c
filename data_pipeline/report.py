"""What `maxlm prepare` shows: bars in a terminal, lines elsewhere, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


class Report:
    """Tell the user what is being done and what came out."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show a stage of `total` units while it runs; yields a function that is told units done."""
        began = time.perf_counter()
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(name, total=total)
                yield lambda done: bars.advance(task, done)
        else:
            yield lambda _: None
        self.line(f"{name}: {time.perf_counter() - began:.1f} s")

    def summary(self, manifests: Mapping[str, Mapping[str, Any]]) -> None:
        """Print one column of figures per source."""
        table = Table(title="Prepared text", title_justify="left")
        table.add_column("")
        for name in manifests:
            table.add_column(name, justify="right")
        columns = [_figures(manifest) for manifest in manifests.values()]
        for row in dict.fromkeys(key for column in columns for key in column):
            table.add_row(row, *(column.get(row, "") for column in columns))
        self._console.print(table)
        for name, manifest in manifests.items():
            for reason, skipped in manifest["reading"]["skipped"].items():
                self.line(
                    f"{name}: skipped {skipped['count']:,}: {reason}, such as {skipped['example']}"
                )


def _figures(manifest: Mapping[str, Any]) -> dict[str, str]:
    reading, splits = manifest["reading"], manifest["splits"]
    figures = {"documents read": f"{reading['documents']:,}"}
    figures["skipped"] = f"{sum(skipped['count'] for skipped in reading['skipped'].values()):,}"
    figures["exact duplicates dropped"] = f"{reading['exact_duplicates']:,}"
    figures["near duplicates dropped"] = f"{reading['near_duplicates']:,}"
    for split, counts in splits.items():
        figures[f"{split} documents"] = f"{counts['documents']:,}"
        figures[f"{split} tokens"] = f"{counts['tokens']:,}"
    text_bytes = sum(counts["bytes"] for counts in splits.values())
    pieces = sum(counts["tokens"] - 2 * counts["documents"] for counts in splits.values())
    figures["bytes per token"] = f"{text_bytes / max(pieces, 1):.2f}"
    figures["validation tokens predicted"] = f"{manifest['baselines']['targets']:,}"
    for name, bits in manifest["baselines"]["bits_per_byte"].items():
        figures[f"{name} (bits per byte)"] = f"{bits:.3f}"
    return figures
