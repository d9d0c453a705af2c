"""What a checkpoint says besides its arrays: the run, its circumstances and what it has consumed."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from maxlm.config.schema import RunConfig
from maxlm.train.setup import Datasets, Program
from maxlm.train.state import Consumed

_VERSIONED = ("maxlm", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def record_of(
    config: RunConfig, program: Program, datasets: Datasets, consumed: Consumed
) -> dict[str, Any]:
    """Return what the record of a checkpoint says of its run, as JSON can hold it."""
    return {
        "consumed": consumed._asdict(),
        **program.execution.layout.record(),
        "mesh": program.mesh_sizes.sizes,
        "config": config.model_dump(mode="json"),
        "data": datasets.train.fingerprint,
        "mixture": datasets.train.mixture.until(consumed.rows),
        "tokenizer": datasets.train.tokenizer.fingerprint,
        "versions": {name: version(name) for name in _VERSIONED}
        | {"python": platform.python_version()},
    }
