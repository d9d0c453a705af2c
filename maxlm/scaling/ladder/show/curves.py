"""A ladder in TensorBoard: every rung's loss over FLOPs and the fitted frontier in one chart."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.image import imread
from tensorboardX import summary
from tensorboardX.proto.summary_pb2 import Summary

from maxlm.metrics.writers.curves import EventFile, scalar_or_text
from maxlm.pages import Rows
from maxlm.pages.chart import Chart
from maxlm.scaling.ladder.fitted import FittedLadder
from maxlm.scaling.ladder.results import Gathered, Result
from maxlm.scaling.ladder.show.charts import frontier

LOSS_CURVES = "ladder/loss_over_1000_log10_flops"
FRONTIER = ("law", "law_5_percent", "law_95_percent")


def write_curves(
    folder: Path,
    fitted: FittedLadder,
    gathered: Gathered,
    *,
    charts: Sequence[Chart],
    tables: Sequence[Rows],
) -> None:
    """Write the event files anew, beside the old ones first, then in their place.

    The horizontal axis, whole numbers that TensorBoard draws at equal distances, is 1,000 x log10 of
    FLOPs: over FLOPs all rungs would be one line at the left edge of the frontier's chart.
    """
    fresh = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(fresh, ignore_errors=True)
    budgets, losses = frontier(fitted)
    for result in gathered.results:
        _curve(fresh / "rungs" / result.rung.name, _points(result), _hparams(result))
    for name, column in zip(FRONTIER, losses.T, strict=True):
        _curve(fresh / name, zip(budgets, column, strict=True))
    _rest(fresh / "fit", charts, tables)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _points(result: Result) -> list[tuple[float, float]]:
    """Return the rung's evaluations, at the FLOPs that they were reached with."""
    rung = result.rung
    per_step = rung.flops / rung.config.train.num_steps
    return [(step * per_step, loss) for step, loss in result.curve]


def _curve(
    folder: Path, points: Iterable[tuple[float, float]], first: Sequence[Summary] = ()
) -> None:
    file = EventFile(folder, 0)
    file.write(0, first)
    for flops, value in points:
        file.write(round(1000 * math.log10(flops)), [scalar_or_text(LOSS_CURVES, float(value))])
    file.close()


def _hparams(result: Result) -> list[Summary]:
    rung = result.rung
    settings = {
        "size": rung.size,
        "parameters": rung.parameters,
        "tokens": rung.tokens,
        "flops": rung.flops,
        "learning_rate": rung.config.optimizer.learning_rate,
        "batch_size": rung.config.train.batch_size,
        "seed": rung.seed,
    }
    experiment, start, end = summary.hparams(settings, {"ladder/final_loss": 0.0})
    final = scalar_or_text("ladder/final_loss", float(result.loss or np.nan))
    return [experiment, start, final, end]


def _rest(folder: Path, charts: Sequence[Chart], tables: Sequence[Rows]) -> None:
    file = EventFile(folder, 0)
    for chart in charts:
        file.write(0, [_picture(f"ladder/{chart.name}", chart.png())])
    for number, table in enumerate(tables):
        text = f"**{table.title}**\n\n{table.markdown()}"
        file.write(0, [summary.text(f"ladder/table_{number}", text)])
    file.close()


def _picture(tag: str, png: bytes) -> Summary:
    height, width = imread(io.BytesIO(png)).shape[:2]
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
