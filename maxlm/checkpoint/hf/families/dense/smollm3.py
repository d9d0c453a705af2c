"""SmolLM3: every fourth layer knows no position but the mask; arXiv:2501.18795 is the idea's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family
from maxlm.checkpoint.hf.families.keys import Reading
from maxlm.checkpoint.hf.families.positions import Rope
from maxlm.config.model import ModelConfig


@dataclass(frozen=True)
class NoRope:
    """Layers without rotary positions: a 0 in `no_rope_layers`, or each so manieth layer."""

    def read(self, reading: Reading) -> None:
        """Take the positions of single layers away; those of all are read before."""
        for layer, rope in enumerate(like.layers_with_rope(reading)):
            if not rope:
                reading.of_block(layer, "mixer", {"position": {"kind": "none"}})

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write all layers."""
        mixers: list[Any] = [block.mixer for block in model.layers]
        kinds = [mixer.position.kind for mixer in mixers]
        return {"no_rope_layers": [int(kind != "none") for kind in kinds]}


SMOLLM3 = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    keys=(
        *like.SHAPE,
        *like.heads(),
        *like.GATED_MLP,
        *like.BIASES,
        like.LayerTypes(),
        Rope(theta=2_000_000.0),
        NoRope(),
        like.rms_norm(),
        like.tied(default=True),
    ),
    rows=like.ROWS,
    unused=like.ROTARY_BUFFERS,
)
