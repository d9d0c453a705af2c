"""What `maxlm prepare` shows: bars in a terminal, lines elsewhere, and a table at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LINE_SECONDS = 30.0  # between the lines about a step, where there is no terminal


class _Meter:
    """How much of a step is done, and how fast."""

    def __init__(self, name: str, documents: int, size: int):
        self._name, self._all = name, (documents, size)
        self._documents = self._bytes = 0
        self._began = self._told = time.perf_counter()

    def add(self, documents: int, size: int) -> None:
        """Count what was done."""
        self._documents, self._bytes = self._documents + documents, self._bytes + size

    def is_due(self) -> bool:
        """Tell whether the last line is long ago, and start counting anew if it is."""
        now = time.perf_counter()
        if now - self._told < LINE_SECONDS:
            return False
        self._told = now
        return True

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._began

    @property
    def part(self) -> float:
        """The share that is done: of bytes, or of documents where bytes are not known."""
        documents, size = self._all
        if size:
            return self._bytes / size
        return self._documents / documents if documents else 0.0

    @property
    def rates(self) -> str:
        """Documents and megabytes per second, as far as they are known."""
        seconds = max(self.seconds, 1e-9)
        rates = {
            f"{self._documents / seconds:,.0f} documents/s": self._documents,
            f"{self._bytes / 1e6 / seconds:.1f} MB/s": self._bytes,
        }
        return ", ".join(rate for rate, done in rates.items() if done)

    @property
    def progress(self) -> Iterator[str]:
        """How far it is, how fast, and the time that is left at this rate, as far as they are known."""
        part = self.part
        yield f"{part:.0%}" if part else f"{self._documents:,} documents"
        if rates := self.rates:
            yield rates
        if part:
            seconds = self.seconds * (1 / part - 1)
            yield f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"


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

    @contextmanager
    def progress(
        self, name: str, documents: int, size: int
    ) -> Iterator[Callable[[int, int], None]]:
        """Show how far a step is; yields a function that is told documents and bytes done.

        In a terminal it is a bar with the time that is left, elsewhere a line every half minute;
        in either case a line at the end.
        """
        meter = _Meter(name, documents, size)
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rates]}"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(name, total=1.0, rates="")

                def draw(more_documents: int, more_bytes: int) -> None:
                    meter.add(more_documents, more_bytes)
                    bars.update(task, completed=meter.part, rates=meter.rates)

                yield draw
        else:

            def tell(more_documents: int, more_bytes: int) -> None:
                meter.add(more_documents, more_bytes)
                if meter.is_due():
                    self.line(f"{name}: {', '.join(meter.progress)}")

            yield tell
        self.line(f"{name}: {', '.join(filter(None, (f'{meter.seconds:.1f} s', meter.rates)))}")

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
    dropped: Counter[str] = Counter()  # two steps may drop for one reason
    for step in manifest["steps"]:
        dropped.update(step["reasons"])
    figures |= {f"dropped: {reason}": f"{count:,}" for reason, count in dropped.items()}
    for split, counts in splits.items():
        figures[f"{split} documents"] = f"{counts['documents']:,}"
        figures[f"{split} tokens"] = f"{counts['tokens']:,}"
        if counts.get("masked_tokens"):
            figures[f"{split} tokens without loss"] = f"{counts['masked_tokens']:,}"
    text_bytes = sum(counts["bytes"] for counts in splits.values())
    pieces = sum(counts["tokens"] - 2 * counts["documents"] for counts in splits.values())
    figures["bytes per token"] = f"{text_bytes / max(pieces, 1):.2f}"
    figures["validation tokens predicted"] = f"{manifest['baselines']['targets']:,}"
    for name, bits in manifest["baselines"]["bits_per_byte"].items():
        figures[f"{name} (bits per byte)"] = f"{bits:.3f}"
    return figures
