"""From weights, sizes, caps and stages to the mixture of a run.

Weights are those of the stage or of the sources, by `mix.temperature` times a power of the sources'
sizes. Where a source would be read more often than it may be, it is read as often as that, and the
others share the rest by their weights (UniMax, arXiv:2304.09151, with weights).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from maxlm.config.errors import UserError
from maxlm.config.mixture.stages import StageConfig
from maxlm.config.schema import DataConfig
from maxlm.data.mixture.rows import Mixture, Stage, rows_of_sources

# Plain shares are integers whose smallest is this, so a share is at most 0.5 % off its weight.
SMALLEST_SHARE = 100


@dataclass(frozen=True)
class Reading:
    """How much a run reads.

    Attributes:
      batch_size: rows of a step, over all hosts.
      num_steps: of the whole run; None where it is not known, and nothing depends on it.
    """

    batch_size: int
    num_steps: int | None = None

    @property
    def rows(self) -> int | None:
        """Rows of the whole run."""
        return None if self.num_steps is None else self.num_steps * self.batch_size


def mixture_shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Return integer shares in proportion to the positive weights, the smallest 100."""
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    smallest = min(weights.values())
    return {name: round(SMALLEST_SHARE * (weight / smallest)) for name, weight in weights.items()}


def plan_mixture(data: DataConfig, windows: Mapping[str, int], reading: Reading) -> Mixture:
    """Return the mixture of a run.

    Args:
      data: the sources' settings, stages and mix.
      windows: rows that one pass over each source has; the mixture has their order.
      reading: how long the run is.

    Raises:
      UserError: the sources have too few tokens for what is asked, or more is asked than is read.
    """
    configs = data.stages or (StageConfig(),)
    starts = [0, *(_end(stage, data, reading) for stage in configs[:-1])]
    for number, (before, start) in enumerate(itertools.pairwise(starts)):
        if start <= before:
            raise UserError(
                f"data.stages.{number} ends at row {start} of {data.sequence_length} tokens, and begins at row "
                f"{before}; give it a later until_tokens or until_share"
            )
    used, stages = dict.fromkeys(windows, 0), []
    for number, (config, start) in enumerate(zip(configs, starts, strict=True)):
        end = starts[number + 1] if number + 1 < len(starts) else reading.rows
        if end is not None and reading.rows is not None:
            end = min(end, reading.rows)
        limits = _Limits(
            data, windows, used, reading, f"data.stages.{number}" if data.stages else ""
        )
        shares = limits.shares(
            _weights(config, data, windows), None if end is None else end - start
        )
        stages.append(Stage(start, shares))
        if end is not None and end > start:
            own = rows_of_sources(end - start, shares)
            used = {name: count + own.get(name, 0) for name, count in used.items()}
    return Mixture(stages)


def _end(stage: StageConfig, data: DataConfig, reading: Reading) -> int:
    """Return the row after a stage's last."""
    if stage.until_tokens is not None:
        return math.ceil(stage.until_tokens / data.sequence_length)
    assert stage.until_share is not None
    assert reading.rows is not None, "a share of a run needs its length"
    return round(stage.until_share * reading.rows)


def _weights(stage: StageConfig, data: DataConfig, windows: Mapping[str, int]) -> dict[str, float]:
    """Return the positive weights of the sources in a stage, in the order of `windows`."""
    own = {name: data.sources[name].weight for name in windows}
    weights = own if stage.weights is None else stage.weights
    power = 0.0 if data.mix.temperature is None else 1 / data.mix.temperature
    most = max(windows.values())
    scaled = {
        name: weights.get(name, 0.0) * (count / most) ** power for name, count in windows.items()
    }
    return {name: weight for name, weight in scaled.items() if weight > 0}


@dataclass(frozen=True)
class _Limits:
    """What a stage may read of each source, and must.

    Attributes:
      used: rows of each source in the stages before.
      stage: the path of its settings, "" where the run has no stages.
    """

    data: DataConfig
    windows: Mapping[str, int]
    used: Mapping[str, int]
    reading: Reading
    stage: str

    def shares(self, weights: Mapping[str, float], rows: int | None) -> dict[str, int]:
        """Return the integer shares of a stage of so many rows; None or none: of no known end."""
        plain = mixture_shares(weights)
        most = {name: self._most(name) for name in weights}
        asked = {name: self.data.sources[name].tokens for name in weights}
        if not any(math.isfinite(limit) for limit in most.values()) and not any(asked.values()):
            return plain
        assert self.reading.rows is not None, "caps need the length of the run"
        if rows is None or rows <= 0:  # the run ends before it
            return plain
        fixed = {
            name: round(tokens / self.data.sequence_length)
            for name, tokens in asked.items()
            if tokens
        }
        self._check_fixed(fixed, most, rows, others=len(weights) > len(fixed))
        if not fixed and all(
            count <= most[name] for name, count in rows_of_sources(rows, plain).items()
        ):
            return plain
        rest = {name: weight for name, weight in weights.items() if name not in fixed}
        left = rows - sum(fixed.values())
        room = sum(most[name] for name in rest)
        if rest and room < left:
            raise UserError(self._too_few(left, room, rest))
        counts = {**fixed, **share_out(left, rest, most)}
        return {name: counts[name] for name in weights if counts[name]}

    def _most(self, name: str) -> float:
        """Return how many rows of a source are left under its cap."""
        own, general = self.data.sources[name].max_epochs, self.data.mix.max_epochs
        cap = own if own is not None else general
        return (
            math.inf
            if cap is None
            else max(math.floor(cap * self.windows[name]) - self.used[name], 0)
        )

    def _check_fixed(
        self, fixed: Mapping[str, int], most: Mapping[str, float], rows: int, *, others: bool
    ) -> None:
        length, total = self.data.sequence_length, sum(fixed.values())
        for name, count in fixed.items():
            asked = f"data.sources.{name}.tokens={self.data.sources[name].tokens or 0:,.0f}"
            if not count:
                raise UserError(
                    f"{asked} is no row of data.sequence_length={length}, so nothing would be read of it; use "
                    f"tokens: {length} or more, or leave the source out"
                )
            if count > most[name]:
                raise UserError(
                    f"{asked}, in whole rows {count * length:,}, is {count / self.windows[name]:.2f} times what it "
                    f"has, more than its max_epochs allow; use tokens: {int(most[name]) * length}, or more max_epochs"
                )
        if total > rows or (fixed and not others and total < rows):
            listed = " + ".join(f"{name} {count * length:,}" for name, count in fixed.items())
            than = "more" if total > rows else "less"
            cure = f"use train.num_steps={max(total // self.reading.batch_size, 1)}, or other data.sources.*.tokens"
            more = "" if total > rows else ", or leave one source without, which then has the rest"
            raise UserError(
                f"data.sources.*.tokens: {listed} = {total * length:,} tokens in whole rows, {than} than the "
                f"{rows * length:,} that the run reads; {cure}{more}"
            )

    def _too_few(self, left: int, room: float, rest: Mapping[str, float]) -> str:
        """Say that a stage reads more than caps allow, and what would do."""
        length = self.data.sequence_length
        listed = ", ".join(
            f"{name} {self.windows[name] * length:,} tokens, {int(self._most(name)) * length:,} left to read"
            for name in rest
        )
        rows_per_pass = sum(self.windows[name] for name in rest)
        needed = (left + sum(self.used[name] for name in rest)) / rows_per_pass
        cures = [f"max_epochs of {math.ceil(100 * needed) / 100:g}", "more text"]
        if not self.stage:
            assert self.reading.rows is not None, "caps need the length of the run"
            steps = (self.reading.rows - left + int(room)) // self.reading.batch_size
            cures.insert(1, f"train.num_steps={steps}" if steps else "a smaller train.batch_size")
        what = f"{self.stage} reads" if self.stage else "the run reads"
        return (
            f"data.mix: {what} {left * length:,} tokens of sources that may give {int(room) * length:,} under their "
            f"max_epochs ({listed}); use {', '.join(cures[:-1])}, or {cures[-1]}"
        )


def share_out(rows: int, weights: Mapping[str, float], most: Mapping[str, float]) -> dict[str, int]:
    """Share rows out by weights, none more than its most; together they have room for all.

    What a full one cannot take goes to the others, by their weights; fractions of rows go to the
    largest ones first.
    """
    exact: dict[str, float] = {}
    open_ = dict(weights)
    while open_:
        left, total = rows - sum(exact.values()), sum(open_.values())
        full = [name for name, weight in open_.items() if left * weight / total >= most[name]]
        if not full:
            exact |= {name: left * weight / total for name, weight in open_.items()}
            break
        exact |= {name: most[name] for name in full}
        open_ = {name: weight for name, weight in open_.items() if name not in full}
    counts = {name: math.floor(exact[name]) for name in weights}
    order = sorted(weights, key=lambda name: counts[name] - exact[name])
    for name in itertools.cycle(order):
        if sum(counts.values()) >= rows:
            return counts
        if counts[name] < most[name]:
            counts[name] += 1
    return counts
