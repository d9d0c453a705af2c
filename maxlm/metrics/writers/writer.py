"""A run's metrics go to two places: RUN_DIR/metrics.jsonl, the record, and RUN_DIR/tensorboard, the
curves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maxlm.config.errors import UserError, make_possible
from maxlm.metrics import catalog
from maxlm.metrics.writers.curves import Curves
from maxlm.metrics.writers.lines import FILE, MetricsLines


class MetricsWriter:
    """Write a run's metrics; on resume, go on from the checkpoint's step and hide what was logged
    after it.

    A run has one, in its first process.
    """

    def __init__(
        self, run_dir: str | Path, *, tensorboard: bool, resume_step: int, log_every: int = 1
    ):
        """Open the files.

        Args:
          run_dir: the run directory; it exists.
          tensorboard: whether to write event files too.
          resume_step: steps already done, whose metrics are kept; 0 starts anew.
          log_every: steps between two lines, at most.

        Raises:
          UserError: the files cannot be written.
        """
        self._run_dir = Path(run_dir)
        self._curves: Curves | None = None
        with _writing(self._run_dir):
            self._lines = MetricsLines(
                self._run_dir / FILE, resume_step=resume_step, log_every=log_every
            )
            if tensorboard:
                flops = self._lines.flops
                self._curves = Curves(self._run_dir / "tensorboard", resume_step, flops)

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Log metrics of a step; several calls for one step make one line.

        Args:
          step: never less than in the call before.
          values: by their names in the catalogue. With `train/flops` among them, losses are drawn
            over FLOPs too.

        Raises:
          KeyError: the catalogue has no such metric.
          UserError: the disk is full or not writable.
        """
        for name in values:
            catalog.find(name)
        with _writing(self._run_dir):
            self._lines.write(step, values)
            if self._curves is not None:
                self._curves.write(step, values, self._lines.line_flops)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Show text in TensorBoard exactly as it is, whatever characters it contains."""
        if self._curves is not None:
            with _writing(self._run_dir):
                self._curves.text(tag, text, step)

    def hparams(self, config: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Enter the run in TensorBoard's HPARAMS tab.

        Args:
          config: nested settings, shown as `section.key`.
          metrics: names of the curves whose last values stand beside them.
        """
        if self._curves is not None:
            with _writing(self._run_dir):
                self._curves.hparams(config, metrics)

    def charts(self, charts: Mapping[str, Sequence[str]]) -> None:
        """Draw several curves in one chart of TensorBoard's CUSTOM SCALARS tab.

        Args:
          charts: names of the curves by the title of their chart.
        """
        if self._curves is not None:
            with _writing(self._run_dir):
                self._curves.charts(charts)

    def close(self) -> None:
        """Close the files; everything written is on disk then."""
        with _writing(self._run_dir):
            self._lines.close()
            if self._curves is not None:
                self._curves.close()


@contextlib.contextmanager
def _writing(run_dir: Path) -> Iterator[None]:
    """Tell the user where and why a write failed, and the cure."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or run_dir}: cannot write metrics: {error.strerror or error}; {make_possible(error)}, "
            "then start the same command again to resume"
        ) from error
