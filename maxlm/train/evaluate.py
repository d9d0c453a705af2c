"""Validation: the loss on held-out text of every source, the same batches each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
from jax.sharding import NamedSharding

from maxlm.data.dataset import Dataset
from maxlm.data.loader import device_batch
from maxlm.models.decoder import Decoder
from maxlm.runtime import settle
from maxlm.train.loss import Batch, Sums


def evaluate(
    decoder: Decoder,
    datasets: Mapping[str, Dataset],
    losses: Callable[[Decoder, Batch], Sums],
    sharding: NamedSharding,
    *,
    max_batches: int,
) -> dict[str, float]:
    """Return `val/<source>/...` metrics over the first batches of each source.

    Args:
      decoder: parameters on their devices.
      datasets: validation data by source.
      losses: the compiled forward pass.
      sharding: layout of a batch.
      max_batches: batches per source, at most.
    """
    values: dict[str, float] = {}
    for source, dataset in datasets.items():
        size = dataset.batch_size
        starts = range(0, min(max_batches, dataset.num_batches) * size, size)
        # Dispatched without waiting: the device works on one batch while the host reads the next.
        sums = [settle(losses(decoder, device_batch(dataset, row, sharding))) for row in starts]
        host: list[Sums] = jax.device_get(sums)
        values |= {f"val/{source}/{name}": value for name, value in loss_metrics(host).items()}
    return values


def loss_metrics(sums: list[Sums]) -> dict[str, float]:
    """Return loss (nats per token), perplexity and bits per byte of batches together."""
    nats = math.fsum(float(batch.nats) for batch in sums)
    weight = sum(float(batch.weight) for batch in sums)
    target_bytes = sum(int(batch.target_bytes) for batch in sums)
    loss = nats / max(weight, 1.0)
    return {
        "loss": loss,
        # Finite for any loss that a float can hold; a diverged run must still be able to report.
        "perplexity": math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss,
        "bits_per_byte": nats / math.log(2) / max(target_bytes, 1),
    }
