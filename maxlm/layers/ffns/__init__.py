"""What works on each token alone: a file for each kind, called like the one that has its settings."""

from __future__ import annotations

from collections.abc import Callable

from maxlm.config.model import ModelConfig
from maxlm.config.section import LayerSection
from maxlm.layers.ffns.mlp import Mlp
from maxlm.layers.ffns.moe import Moe
from maxlm.layers.layer import Layer

FFNS: dict[str, Callable[..., Layer]] = {
    "mlp": Mlp,
    "moe": Moe,
}


def build_ffn(model: ModelConfig, config: LayerSection) -> Layer:
    """Build the ffn that a section describes."""
    return FFNS[config.kind](model, config)
