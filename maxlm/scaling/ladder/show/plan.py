"""The table of a ladder's runs: what each costs, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from maxlm.pages import Rows
from maxlm.scaling.ladder.results import Result
from maxlm.scaling.ladder.rung import Rung


def plan_rows(
    results: Sequence[Result],
    unique_tokens: float | None,
    speed: float | None,
    most_epochs: float | None,
) -> Rows:
    """Return what is to be run.

    Args:
      results: every rung and how far it is.
      unique_tokens: training tokens of the data, where it is prepared.
      speed: FLOP/s of the machine, for hours.
      most_epochs: runs that read data more often are not fitted to; None if they are.
    """
    sizes = ("rung", "N", "N without embeddings", "tokens", "D/N", "epochs", "steps", "FLOPs")
    branches = any(result.rung.after for result in results)
    columns = (*sizes, *(("from",) if branches else ()), *(("hours",) if speed else ()), "state")
    rows = []
    for result in results:
        rung = result.rung
        start = (f"{rung.after.name}, step {rung.start:,}" if rung.after else "",)
        hours = (f"{rung.own_flops / speed / 3600:.3f}",) if speed else ()
        cells = (*_rung_cells(rung, unique_tokens), *(start if branches else ()), *hours)
        rows.append((*cells, _state(result)))
    total = sum(result.rung.own_flops for result in results)
    summary = f"{len(results)} runs, {total:.2e} FLOPs"
    summary += f", {total / speed / 3600:.1f} hours" if speed else ""
    if unique_tokens is not None and most_epochs is not None:
        often = sum(result.rung.tokens > most_epochs * unique_tokens for result in results)
        summary += (
            f"; {often} repeat data (fit.most_epochs={most_epochs:g}): the fit leaves them out"
            if often
            else ""
        )
    return Rows(summary, columns, tuple(rows))


def _rung_cells(rung: Rung, unique_tokens: float | None) -> tuple[str, ...]:
    epochs = "?" if unique_tokens is None else f"{rung.tokens / unique_tokens:.2f}"
    return (
        rung.name,
        f"{rung.parameters:,}",
        f"{rung.parameters - rung.embedding:,}",
        f"{rung.tokens:.3g}",
        f"{rung.tokens / rung.parameters:.1f}",
        epochs,
        f"{rung.config.train.num_steps:,}",
        f"{rung.flops:.2e}",
    )


def _state(result: Result) -> str:
    if result.state == "begun":
        return f"step {result.step}"
    if result.state == "done":
        return f"loss {result.loss:.4f}"
    return result.state
