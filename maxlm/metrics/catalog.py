"""Every metric a run can report: its name, its unit, what it means.

`scripts/write_lists.py` makes the table in docs/metrics.md from it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from maxlm.config.layers import Ffn, Mixer
from maxlm.config.objectives import Objective
from maxlm.config.reading.paths import sections
from maxlm.config.section import Metrics
from maxlm.metrics.history.goodput import LOSSES


class Metric(NamedTuple):
    """One metric.

    `<source>` in a name stands for the name of a data source, `<layer>` for a layer's number from
    0, with the place of a mixer among parallel ones behind it: `3/1`.
    """

    name: str
    unit: str
    meaning: str


def _of_layers() -> Iterator[Metric]:
    """Yield what the kinds of layers say that they report."""
    for name, (unit, meaning) in _said_by(Mixer, Ffn).items():
        yield Metric(name, unit, meaning)


def _of_objectives(group: str, where: str) -> Iterator[Metric]:
    """Yield what the kinds of objectives say that they report, by the names that it has in a group."""
    said = _said_by(Objective)
    if group == "train/":
        for kind in sections(Objective):
            said |= kind.TRAINING_METRICS  # type: ignore[attr-defined]
    for name, (unit, meaning) in said.items():
        yield Metric(f"{group}{name}", unit, f"{meaning}; {where}")


def _of_losses() -> Iterator[Metric]:
    """Yield what the rest of a run's time is lost to."""
    for cause, meaning in LOSSES.items():
        yield Metric(f"goodput/{cause}_seconds", "s", f"lost of that time: {meaning}")


def _said_by(*unions: Any) -> Metrics:
    kinds: list[Any] = [kind for union in unions for kind in sections(union)]
    return {name: said for kind in kinds for name, said in kind.METRICS.items()}


METRICS = (
    *_of_objectives("train/", "on the step's batch"),
    Metric("train/flops", "FLOP", "spent since step 0, by the formula in `maxlm/models/cost.py`"),
    *_of_objectives("val/<source>/", "on held-out text of the source"),
    Metric(
        "predicted/<source>/expected",
        "nats/token",
        "what `metrics.prediction` expects of val/<source>/loss at this step",
    ),
    Metric("predicted/<source>/low", "nats/token", "lower end of its 90 % interval"),
    Metric("predicted/<source>/high", "nats/token", "upper end of its 90 % interval"),
    Metric("optim/learning_rate", "", "of this step, before scales of `optimizer.overrides`"),
    Metric("optim/gradient_norm", "", "global norm of the gradient before clipping"),
    Metric("optim/parameter_norm", "", "global norm of the parameters after the step"),
    Metric("optim/update_ratio", "", "norm of the update / norm of the parameters"),
    Metric(
        "optim/skipped_steps",
        "steps",
        "steps skipped so far: loss or gradient not finite, a spike, or taken back by a roll-back",
    ),
    Metric(
        "optim/spikes",
        "steps",
        "steps so far whose loss or gradient norm was far above those before (`train.spikes`)",
    ),
    *_of_layers(),
    Metric(
        "throughput/tokens_per_second", "tokens/s", "over the whole mesh in `time/step_seconds`"
    ),
    Metric("throughput/tokens_per_second_per_device", "tokens/s", "the same for one device"),
    Metric("throughput/tflops_per_device", "TFLOP/s", "model FLOPs: recomputation does not count"),
    Metric(
        "throughput/mfu",
        "fraction",
        "TFLOP/s per device / peak of the device; absent where the peak is unknown",
    ),
    Metric(
        "time/step_seconds",
        "s",
        "mean wall time of a step since the last logged one, without the two below",
    ),
    Metric("time/input_wait_fraction", "fraction", "share of that time spent waiting for data"),
    Metric(
        "time/checkpoint_stall_seconds",
        "s",
        "time checkpoints have held up training since the process started",
    ),
    Metric("time/evaluation_seconds", "s", "time evaluations have taken since the process started"),
    Metric("time/compile_seconds", "s", "compiling the step, once per process"),
    Metric(
        "goodput/fraction",
        "fraction",
        "share of the time since the run was created, over restarts, that went into steps that count",
    ),
    *_of_losses(),
    Metric(
        "data/rows", "rows", "sequences consumed since step 0: the next step reads from this row on"
    ),
    Metric("data/tokens", "tokens", "in these rows"),
    Metric(
        "data/epoch/<source>",
        "epochs",
        "how often the source was read, by the rows so far",
    ),
    Metric(
        "data/token_hash",
        "hex",
        "hash of all tokens so far, chained step by step: equal on every mesh and number of hosts, not for other "
        "batch sizes",
    ),
    Metric(
        "run/resumed_from",
        "steps",
        "metrics.jsonl only, first line after a restart: the step of the checkpoint that it went on from",
    ),
    Metric(
        "run/gap_after",
        "steps",
        "metrics.jsonl only, likewise: the last step before it that has a line, where lines are missing",
    ),
    Metric(
        "mflop/train_loss",
        "nats/token",
        "TensorBoard only: train/loss against FLOPs spent, in whole MFLOP; of points within one MFLOP the first",
    ),
    Metric(
        "mflop/val_<source>_loss",
        "nats/token",
        "TensorBoard only: val/<source>/loss against FLOPs spent",
    ),
    Metric(
        "gflop/train_loss",
        "nats/token",
        "the same in GFLOP, from 9e24 FLOP on, where MFLOP exceed 64 bits",
    ),
    Metric("gflop/val_<source>_loss", "nats/token", "the same for val/<source>/loss"),
)

FLOPS_CURVES = {"mflop": 1e6, "gflop": 1e9}
"""FLOPs in a step of the horizontal axis of the curves over FLOPs, by their group: the first one
that fits is drawn.
"""


@functools.cache
def find(name: str) -> Metric:
    """Return the catalogue's entry for a metric.

    Raises:
      KeyError: the catalogue has no such metric.
    """
    for metric in METRICS:
        pattern = (
            re.escape(metric.name)
            .replace("<source>", "[A-Za-z0-9_.-]+")
            .replace("<layer>", "[0-9]+(/[0-9]+)*")
        )
        if re.fullmatch(pattern, name):
            return metric
    raise KeyError(f"{name} is not in maxlm/metrics/catalog.py")


def is_loss(name: str) -> bool:
    """Return whether a metric is a loss, whose every bit is worth keeping."""
    return name.endswith("/loss")


def flops_curve(name: str, group: str) -> str:
    """Return the tag of a loss drawn against FLOPs: val/books/loss -> mflop/val_books_loss."""
    return f"{group}/" + name.replace("/", "_")


def markdown_table() -> str:
    """Return the catalogue as a Markdown table."""
    rows = (f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in METRICS)
    return "\n".join(("| name | unit | meaning |", "|---|---|---|", *rows))
