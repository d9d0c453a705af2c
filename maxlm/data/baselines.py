"""Bits per byte that simple models reach on a source's validation text, as `maxlm prepare` measured them."""

from __future__ import annotations

import json
from pathlib import Path

from maxlm.config.errors import UserError

MANIFEST_NAME = "manifest.json"


def read_baselines(source_path: Path | str) -> dict[str, float]:
    """Return {name: bits per byte} of a source's folder; empty where none were measured.

    Raises:
      UserError: the manifest cannot be read.
    """
    path = Path(source_path) / MANIFEST_NAME
    if not path.exists():
        return {}
    try:
        baselines = json.loads(path.read_bytes()).get("baselines", {})
        return {str(name): float(value) for name, value in baselines.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; run: maxlm prepare RUN.yaml --force") from None
