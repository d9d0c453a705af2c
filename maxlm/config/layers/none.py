"""The settings of no layer."""

from __future__ import annotations

from typing import Literal

from maxlm.config.section import LayerSection


class NoneConfig(LayerSection):
    """Nothing: the block has one layer less, and one norm less."""

    kind: Literal["none"] = "none"
