"""The engine that a run's settings ask for."""

from __future__ import annotations

import os

from data_pipeline.engine.cluster import ClusterEngine
from data_pipeline.engine.engine import Engine
from data_pipeline.engine.isolation.limits import Limits
from data_pipeline.engine.local import LocalEngine
from maxlm.config.pipeline.engine import LocalEngineConfig, RayEngineConfig


def build_engine(config: LocalEngineConfig | RayEngineConfig) -> Engine:
    """Return the engine; it has not started anything yet.

    Raises:
      UserError: the library that it needs is not installed.
    """
    limits = Limits(config.memory_mb * 2**20, config.document_seconds)
    if isinstance(config, RayEngineConfig):
        return ClusterEngine(config, limits)
    return LocalEngine(config.workers or len(os.sched_getaffinity(0)), limits)
