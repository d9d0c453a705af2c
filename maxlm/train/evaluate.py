"""Validation: the loss on held-out text of every source, the same batches each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
from jax.sharding import NamedSharding

from maxlm.data.dataset import Dataset
from maxlm.data.loader import device_batch
from maxlm.models.decoder import Decoder
from maxlm.process.phases import beat, waiting
from maxlm.runtime import settle
from maxlm.train.loss.gradients import Batch, Sums
from maxlm.train.objectives import Objective

_AHEAD = 2


def evaluate(
    decoder: Decoder,
    datasets: Mapping[str, Dataset],
    losses: Callable[[Decoder, Batch], Sums],
    objective: Objective,
    sharding: NamedSharding,
    *,
    max_batches: int,
    stop: Callable[[], bool],
) -> dict[str, float] | None:
    """Return `val/<source>/...` metrics over the first batches of each source; None if it was told to
    stop.

    Args:
      decoder: parameters on their devices.
      datasets: validation data by source.
      losses: the compiled forward pass.
      objective: what it computes the loss of.
      sharding: layout of a batch.
      max_batches: batches per source, at most.
      stop: asked before each batch, by all processes alike.
    """
    values: dict[str, float] = {}
    for source, dataset in datasets.items():
        size = dataset.batch_size
        starts = range(0, min(max_batches, dataset.num_batches) * size, size)
        sums: list[Sums] = []
        for row in starts:
            if stop():
                return None
            sums.append(settle(losses(decoder, device_batch(dataset, row, sharding))))
            # The device works on one batch while the host reads the next. Of more in its queue, a
            # stop would have to wait for all.
            with waiting():
                jax.block_until_ready(sums[-_AHEAD:][0])
            beat()
        with waiting():
            host: list[Sums] = jax.device_get(sums)
        values |= {
            f"val/{source}/{name}": value for name, value in loss_metrics(objective, host).items()
        }
    return values


def loss_metrics(objective: Objective, sums: list[Sums]) -> dict[str, float]:
    """Return the objective's metrics of batches together."""
    totals = {
        name: math.fsum(float(batch.metrics[name]) for batch in sums) for name in sums[0].metrics
    }
    return objective.metrics(math.fsum(float(batch.weight) for batch in sums), totals)
