"""Libraries that only some steps need: loaded when a step is made, and asked for by name if they are
not there; and the versions of those that what is written depends on.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from maxlm.config.errors import UserError

# Whose versions may change what is written.
LIBRARIES = (
    *(
        "numpy",
        "scipy",
        "pyarrow",
        "sentencepiece",
        "tiktoken",
        "tokenizers",
        "zstandard",
        "orjson",
    ),
    *("fsspec", "resiliparse", "trafilatura", "py3langid", "ftfy"),
    *("jax", "flax"),  # of trained models that judge or write
)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of what may change the output, as far as it is installed."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


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
