"""The card's charts: what each step lets through, lengths, languages and scores, clusters of copies,
how often tokens come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from data_pipeline.card.tokens import TokenCounts
from data_pipeline.storage.tally import COUNTED_TEXTS
from maxlm.pages import visible
from maxlm.pages.chart import Chart

KEPT, GONE = "#4c72b0", "#c44e52"
MOST_TEXTS = 15  # languages and the like, the most frequent ones
FEW_NUMBERS = 6  # such as a curriculum's buckets
BINS = 30


def draw_all(report: Mapping[str, Any], found: TokenCounts) -> list[Chart]:
    """Return every chart of a report's steps and decisions, and of its tokens."""
    steps = report["steps"]
    # Names in the data are names, whatever mathematics they look like.
    with rc_context({"text.parse_math": False}):
        charts = [_funnel(steps), _lengths(steps), *_values(steps)]
        for step, decision in report["decisions"].items():
            if decision.get("clusters"):
                charts.append(_clusters(step, decision["clusters"]))
        charts.append(_frequencies(found))
    return charts


def _funnel(steps: Sequence[Mapping[str, Any]]) -> Chart:
    figure, axes = _axes(height=max(2.2, 0.4 * len(steps) + 1.0))
    places = np.arange(len(steps))
    for shift, name, color in ((-0.2, "documents", KEPT), (0.2, "bytes", "#8fa9cf")):
        left = [step[f"{name}_out"] for step in steps]
        shares = [100 * one / max(left[0], 1) for one in left]
        axes.barh(places + shift, shares, height=0.38, color=color, label=name)
    axes.set_yticks(places, [visible(step["step"]) for step in steps])
    axes.invert_yaxis()
    axes.set_xlabel("% of what was read")
    figure.legend(fontsize=8, loc="outside upper right", ncols=2)  # bars reach every corner
    return Chart("funnel", "What is left after each step.", figure)


def _lengths(steps: Sequence[Mapping[str, Any]]) -> Chart:
    figure, axes = _axes()
    kept = _by_bits(steps[-1]["length_bits"])
    gone: dict[int, int] = {}
    for step in steps:
        for bits, count in _by_bits(step["dropped_length_bits"]).items():
            gone[bits] = gone.get(bits, 0) + count
    ends = min([*kept, *gone], default=1), max([*kept, *gone], default=1)
    places = list(range(ends[0], ends[1] + 1))
    for shift, counts, color, name in ((-0.2, kept, KEPT, "kept"), (0.2, gone, GONE, "dropped")):
        heights = [counts.get(one, 0) for one in places]
        axes.bar([one + shift for one in places], heights, width=0.38, color=color, label=name)
    every = places[:: max(1, len(places) // 8)]
    axes.set_xticks(every, [_size(2 ** (one - 1)) for one in every])
    axes.set(xlabel="bytes, from", ylabel="documents")
    axes.legend(fontsize=8)
    text = "Lengths of what is left in the end, and of what any step dropped."
    return Chart("lengths", text, figure)


def _values(steps: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Yield a chart of everything that is known of the documents that a step lets through, as the
    last step has it.
    """
    for name, counts in steps[-1]["values"].items():
        if name in COUNTED_TEXTS:
            yield _texts(name, counts)
        elif (chart := _numbers(name, counts)) is not None:
            yield chart


def _texts(name: str, counts: Mapping[str, int]) -> Chart:
    most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST_TEXTS]
    more = f", the first {len(most)} of {len(counts)}" if len(most) < len(counts) else ""
    return _bars(name, most, f"Documents by {visible(name)}{more}.")


def _bars(name: str, counts: Sequence[tuple[str, int]], caption: str) -> Chart:
    figure, axes = _axes(height=max(2.2, 0.25 * len(counts) + 1.0))
    names = [visible(text) for text, _ in counts]
    axes.barh(names, [count for _, count in counts], height=0.6, color=KEPT)
    axes.set_ylim(max(len(counts), 3) - 0.5, -0.5)
    axes.set_xlabel("documents")
    return Chart(f"value-{name}", caption, figure)


def _numbers(name: str, counts: Mapping[str, int]) -> Chart | None:
    """Return a histogram; numbers over several decades on a logarithmic axis, few numbers as bars."""
    pairs = sorted((float(text), count) for text, count in counts.items() if _is_number(text))
    if not pairs:
        return None
    if len(pairs) <= FEW_NUMBERS:
        bars = [(f"{value:g}", count) for value, count in pairs]
        return _bars(name, bars, f"Documents by {visible(name)}.")
    values, weights = map(np.array, zip(*pairs, strict=True))
    figure, axes = _axes()
    wide = values[0] > 0 and values[-1] > 30 * values[0]
    edges = np.geomspace if wide else np.linspace
    bins = edges(values[0], values[-1], min(BINS, len(pairs)) + 1).tolist()
    axes.hist(values, bins=bins, weights=weights, color=KEPT)
    axes.set(xlabel=visible(name), ylabel="documents", xscale="log" if wide else "linear")
    return Chart(f"value-{name}", f"Documents by {visible(name)}.", figure)


def _clusters(step: str, clusters: Sequence[Mapping[str, int]]) -> Chart:
    figure, axes = _axes()
    places = np.arange(len(clusters))
    for shift, name, color in ((-0.2, "members", KEPT), (0.2, "removed", GONE)):
        axes.bar(
            places + shift, [one[name] for one in clusters], width=0.38, color=color, label=name
        )
    axes.set_xticks(places, [_size(one["from_size"]) for one in clusters])
    axes.set(xlabel="documents in a cluster, from", ylabel="documents", yscale="symlog", ylim=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(fontsize=8)
    return Chart(
        f"clusters-{step}", "Clusters of near copies: their documents, and those removed.", figure
    )


def _frequencies(found: TokenCounts) -> Chart:
    figure, axes = _axes()
    counts = found.descending
    ranks = np.unique(np.geomspace(1, max(counts.size, 1), 200).astype(int)) - 1
    if counts.size:
        axes.plot(ranks + 1, counts[ranks], color=KEPT)
    axes.set(xlabel="rank", ylabel="times", xscale="log", yscale="log")
    return Chart("tokens", "How often tokens come, the most frequent first.", figure)


def _axes(height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, which="major", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _by_bits(counts: Mapping[str, int]) -> dict[int, int]:
    return {int(bits): count for bits, count in counts.items()}


def _size(number: int) -> str:
    """Return a power of two in units of 1,024."""
    for unit in ("", "k", "M", "G"):
        if number < 1024:
            return f"{number}{unit}"
        number //= 1024
    return f"{number}T"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
