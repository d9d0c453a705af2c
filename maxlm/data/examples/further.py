"""Names of the fields of further tokens, for modules that predict them (`model.mtp`)."""

from __future__ import annotations

import numpy as np


def further(name: str, depth: int) -> str:
    """Return the name of `targets` or `weights` of a depth: 0 is the next token."""
    return f"{name}_{depth}" if depth else name


def further_fields(depth: int) -> dict[str, np.dtype]:
    """Return names and types of the fields of depths 1 to `depth`."""
    types = {"targets": np.dtype(np.int32), "weights": np.dtype(np.float32)}
    return {further(name, k): dtype for k in range(1, depth + 1) for name, dtype in types.items()}
