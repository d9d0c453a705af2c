"""What an operation gives back: the files it wrote, and what it counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Product(NamedTuple):
    """The files that a task wrote, with what is to be known of each, and its figures."""

    outputs: Mapping[Path, Mapping[str, Any]]
    figures: Mapping[str, Any]
