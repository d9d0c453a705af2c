"""The settings of a run: YAML in, one frozen RunConfig out. Nothing here imports jax."""

from maxlm.config.errors import ConfigError, UserError
from maxlm.config.reading.loader import LoadedRun, load_run
from maxlm.config.schema import RunConfig

__all__ = ["ConfigError", "LoadedRun", "RunConfig", "UserError", "load_run"]
