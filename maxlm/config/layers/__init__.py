"""What a block can be made of: a file for each kind of layer, with the name of the one that builds
it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maxlm.config.layers.attention import AttentionConfig
from maxlm.config.layers.mla import MlaConfig
from maxlm.config.layers.mlp import MlpConfig
from maxlm.config.layers.moe import MoeConfig
from maxlm.config.layers.none import NoneConfig
from maxlm.config.layers.parallel import ParallelConfig

Mixer = Annotated[
    AttentionConfig | MlaConfig | ParallelConfig | NoneConfig,
    Field(discriminator="kind"),
]
"""What moves information between tokens."""

Ffn = Annotated[
    MlpConfig | MoeConfig | NoneConfig,
    Field(discriminator="kind"),
]
"""What works on each token alone."""

ParallelConfig.model_rebuild(_types_namespace={"Mixer": Mixer})
