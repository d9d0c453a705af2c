"""Libraries that only some steps need: loaded when a step is made, and asked for by name if they are
not there.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from maxlm.config.errors import UserError


def load_library(name: str, *, extra: str, user: str) -> Any:
    """Import a module of an optional dependency.

    Args:
      name: its dotted name.
      extra: the extra of this package that installs it.
      user: the setting that needs it.

    Raises:
      UserError: it is not installed.
    """
    package = name.split(".")[0]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{user} needs the package {package}; run: pip install 'maxlm[{extra}]'")
    return importlib.import_module(name)
