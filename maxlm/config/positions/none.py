"""Settings of having no positions."""

from __future__ import annotations

from typing import Literal

from maxlm.config.section import Section


class NoPosition(Section):
    """No positions: they are known elsewhere, or the causal mask is enough."""

    kind: Literal["none"] = "none"
