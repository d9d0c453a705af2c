"""What moves information between tokens: a file for each kind, called like the one that has its
settings.
"""

from __future__ import annotations

from collections.abc import Callable

from maxlm.config.model import ModelConfig
from maxlm.config.section import LayerSection
from maxlm.layers.layer import Mixer
from maxlm.layers.mixers.attention import Attention
from maxlm.layers.mixers.mla import Mla
from maxlm.layers.mixers.parallel import Parallel

MIXERS: dict[str, Callable[..., Mixer]] = {
    "attention": Attention,
    "mla": Mla,
    "parallel": Parallel,
}


def build_mixer(model: ModelConfig, config: LayerSection) -> Mixer:
    """Build the mixer that a section describes."""
    return MIXERS[config.kind](model, config)
