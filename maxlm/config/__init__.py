"""The settings of a run: YAML in, one frozen RunConfig out. Nothing here imports jax."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxlm.config.errors import ConfigError, UserError
    from maxlm.config.reading.loader import LoadedData, LoadedRun, load_data, load_run
    from maxlm.config.schema import DataFileConfig, RunConfig

__all__ = [
    "ConfigError",
    "DataFileConfig",
    "LoadedData",
    "LoadedRun",
    "RunConfig",
    "UserError",
    "load_data",
    "load_run",
]

# Looked up at their first use: a process that works on text asks for a section or two, and not for
# all settings of a run, which take longer to load than the work on a small text.
_HOMES = {
    "ConfigError": "errors",
    "DataFileConfig": "schema",
    "LoadedData": "reading.loader",
    "LoadedRun": "reading.loader",
    "RunConfig": "schema",
    "UserError": "errors",
    "load_data": "reading.loader",
    "load_run": "reading.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maxlm.config' has no attribute {name!r}")
    return getattr(importlib.import_module(f"maxlm.config.{_HOMES[name]}"), name)
