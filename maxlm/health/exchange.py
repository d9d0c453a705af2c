"""What every process knows, told to all."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def exchange(value: Any) -> list[Any]:
    """Return what each process gave, by its index; a barrier for all of them.

    Args:
      value: anything that JSON can hold.
    """
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(text.size))).reshape(-1)
    # A power of two: few sizes, so that few programs are compiled.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: text.size] = text
    gathered = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    return [
        json.loads(row[:size].tobytes())
        for row, size in zip(gathered.reshape(len(sizes), -1), sizes, strict=True)
    ]
