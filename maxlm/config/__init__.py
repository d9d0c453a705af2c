"""The settings of a run: YAML in, one frozen RunConfig out. Nothing here imports jax."""

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
