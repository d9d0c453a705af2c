"""Granite 3: factors on embeddings, scores, residual additions and logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family
from maxlm.checkpoint.hf.families.keys import Key, Reading
from maxlm.checkpoint.hf.families.positions import Rope
from maxlm.config.model import ModelConfig


@dataclass(frozen=True)
class LogitsScaling:
    """Logits are divided by `logits_scaling`."""

    def read(self, reading: Reading) -> None:
        """Set the factor."""
        reading.set("model.logit_scale", 1 / float(reading.get("logits_scaling", 1.0)))

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the divisor."""
        return {"logits_scaling": 1 / model.logit_scale}


GRANITE = Family(
    name="granite",
    architecture="GraniteForCausalLM",
    keys=(
        *like.SHAPE,
        *like.heads(),
        *like.GATED_MLP,
        Key("embedding_multiplier", "model.embed_scale", 1.0),
        Key("residual_multiplier", "model.residual_scale", 1.0),
        Key("attention_multiplier", "attention.scale", 1.0),
        LogitsScaling(),
        *like.BIASES,
        Rope(),
        like.rms_norm(),
        like.tied(),
    ),
    rows=like.ROWS,
    unused=like.ROTARY_BUFFERS,
)
