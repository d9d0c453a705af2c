"""Train language models from one YAML file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxlm.config.errors import UserError
    from maxlm.decoding.model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "UserError", "load"]

# Looked up at their first use: `import maxlm` loads neither jax nor anything else.
_HOMES = {
    "Model": "maxlm.decoding.model",
    "UserError": "maxlm.config.errors",
    "load": "maxlm.decoding.model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maxlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
