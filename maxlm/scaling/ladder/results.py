"""What has become of a ladder's rungs: read from their run directories, never written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maxlm.config.errors import ConfigError, Problem, UserError
from maxlm.config.ladder import LadderConfig
from maxlm.config.reading.loader import load_run
from maxlm.config.resume import compare_runs
from maxlm.config.schema import RunConfig
from maxlm.data.shards import TokenShards
from maxlm.metrics.writers.lines import FILE, read_metrics
from maxlm.scaling.ladder.rung import Rung
from maxlm.scaling.runs import Runs

ROSE = 1.05
"""A loss that ends above its least by this factor has diverged. Data that are read again and again
can do so too, which is for the law to say."""
_CURE = "set them back, or name another run_dir"


class Result(NamedTuple):
    """A rung and how far it is.

    Attributes:
      rung: the run.
      step: the last one that it logged; 0 if it has not begun.
      curve: (step, loss) of its evaluations, with those of the rungs whose steps are its own.
      epochs: how often it has read the source that it reads most often.
      failure: the last line of its log, if the last try failed.
    """

    rung: Rung
    step: int
    curve: tuple[tuple[int, float], ...]
    epochs: float
    failure: str | None

    @property
    def state(self) -> str:
        """done, diverged, failed, begun or to do."""
        if self.loss is not None:
            return "done" if math.isfinite(self.loss) else "diverged"
        if self.failure:
            return "failed"
        return "begun" if self.step else "to do"

    @property
    def loss(self) -> float | None:
        """The loss after the last step, None before that."""
        steps = self.rung.config.train.num_steps
        return next((loss for step, loss in self.curve if step == steps), None)


def loss_name(ladder: LadderConfig, config: RunConfig) -> str:
    """Return the metric that is predicted.

    Raises:
      UserError: there are several sources and the ladder names none.
    """
    names = [f"val/{source}/loss" for source in config.data.sources]
    if ladder.fit.loss is None and len(names) == 1:
        return names[0]
    if ladder.fit.loss not in names:
        raise UserError(
            f"fit.loss={ladder.fit.loss} is not a validation loss of {ladder.base}; use one of {', '.join(names)}"
        )
    return ladder.fit.loss


def read_results(ladder: LadderConfig, rungs: list[Rung]) -> list[Result]:
    """Read how far each rung is.

    Raises:
      UserError: a metrics file cannot be read, or a rung that has losses was trained with other
        settings.
    """
    name = loss_name(ladder, rungs[0].config)
    results = [_read(rung, name, Path(ladder.run_dir)) for rung in rungs]
    problems = [problem for result in results for problem in _changed(ladder, result)]
    if problems:
        what = f"the ladder: rungs in run_dir={ladder.run_dir} were trained with other settings (then -> now); {_CURE}"
        raise ConfigError(problems, what)
    return results


def settings_of(ladder: LadderConfig, rung: Rung) -> Path:
    """Return the file of a rung's settings, which is there once it has been started."""
    return Path(ladder.run_dir).absolute() / "rungs" / f"{rung.name}.yaml"


def _changed(ladder: LadderConfig, result: Result) -> Iterator[Problem]:
    """Yield what a rung that has losses was trained with and would not be now."""
    path = settings_of(ladder, result.rung)
    if not result.curve or not path.is_file():
        return
    now = result.rung.config
    then = load_run(path).config
    changes = compare_runs(then.model_dump(mode="json"), now, steps_done=result.step)
    # A larger budget, added later, moves where a rung starts from, and none of its steps.
    for change in [*changes.matter, *changes.mixture]:
        if not change.key.startswith("train.init_from"):
            yield Problem("base", f"{result.rung.name}: {change}")
    # Free for a run, but losses of other rows are not to be compared.
    if then.train.eval_batches != now.train.eval_batches:
        rows = f"{then.train.eval_batches} -> {now.train.eval_batches}"
        yield Problem("base", f"{result.rung.name}: train.eval_batches: {rows}")


def _read(rung: Rung, name: str, folder: Path) -> Result:
    path = Path(rung.config.run_dir) / FILE
    curve, step, epochs = list[tuple[int, float]](), 0, 0.0
    try:
        records = read_metrics(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    for record in records:
        step = record["step"]
        if name in record:
            curve.append((step, _number(record[name], math.nan)))
        passes = [v for key, v in record.items() if key.startswith("data/epoch/")]
        epochs = max([epochs, *(_number(one, 0.0) for one in passes)])
    if rung.after is not None:
        before = _read(rung.after, name, folder).curve
        # It may have begun before that: budgets between were added later.
        own = (point for point in curve if point[0] > rung.start)
        curve = [*(point for point in before if point[0] <= rung.start), *own]
    failed = folder / "logs" / f"{rung.name}.failed"
    failure = failed.read_text(encoding="utf-8").strip() if failed.is_file() else None
    return Result(rung, step, tuple(curve), epochs, failure)


def _number(value: Any, otherwise: float) -> float:
    """Return a value of a line of metrics; null stands for one that was not finite."""
    return float(value) if isinstance(value, float | int) else otherwise


def unique_tokens(config: RunConfig) -> float | None:
    """Return the tokens that a run can read before a source repeats, None if its data are not
    prepared.
    """
    sources = config.data.sources.values()
    total = sum(source.weight for source in sources)
    lengths = []
    for source in sources:
        folder = Path(source.path) / "train"
        if not folder.is_dir():
            return None
        lengths.append(TokenShards(folder).num_tokens * total / source.weight)
    return min(lengths)


class Gathered(NamedTuple):
    """What a law is fitted to, and what is not.

    Attributes:
      results: those that are used, in the order of `runs`.
      runs: their sizes, tokens and losses.
      flops: what each has spent.
      budgets: of each, the budget's number, so that equal ones are one budget.
      left_out: the others, each with the reason.
    """

    results: tuple[Result, ...]
    runs: Runs
    flops: np.ndarray
    budgets: np.ndarray
    left_out: tuple[tuple[Result, str], ...]

    def only(self, chosen: np.ndarray) -> Gathered:
        """Select runs by an array of indices."""
        results = tuple(self.results[place] for place in chosen)
        arrays = self.runs.only(chosen), self.flops[chosen], self.budgets[chosen]
        return Gathered(results, *arrays, self.left_out)


def gather(ladder: LadderConfig, results: list[Result]) -> Gathered:
    """Take the rungs that say something about the law; name the others."""
    used, left_out = list[Result](), list[tuple[Result, str]]()
    for result in results:
        reason = _reason(ladder, result)
        if reason is None:
            used.append(result)
        else:
            left_out.append((result, reason))
    rungs = [result.rung for result in used]
    tokens = np.array([rung.tokens for rung in rungs], np.float64)
    runs = Runs.of(
        [rung.counted(ladder.fit.count) for rung in rungs],
        tokens,
        [result.loss for result in used],
        tokens / np.maximum([result.epochs for result in used], 1),
    )
    flops = np.array([rung.flops for rung in rungs])
    budgets = np.array([rung.budget for rung in rungs])
    return Gathered(tuple(used), runs, flops, budgets, tuple(left_out))


def _reason(ladder: LadderConfig, result: Result) -> str | None:
    if result.state != "done":
        return result.state if result.state != "begun" else f"not finished (step {result.step})"
    most = ladder.fit.most_epochs
    if result.epochs > most and "repeated" not in ladder.fit.laws:
        return f"repeats data ({result.epochs:.1f} epochs, fit.most_epochs={most:g})"
    least = min(loss for _, loss in result.curve if math.isfinite(loss))
    if result.epochs <= max(most, 1.0) and result.loss is not None and result.loss > ROSE * least:
        return f"diverged: its loss rose from {least:.4f} to {result.loss:.4f}"
    return None
