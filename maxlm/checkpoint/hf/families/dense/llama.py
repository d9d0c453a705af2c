"""Llama 2, 3, 3.1, 3.2 and what is built like them; arXiv:2307.09288, arXiv:2407.21783."""

from __future__ import annotations

from maxlm.checkpoint.hf.families import fragments as like
from maxlm.checkpoint.hf.families.family import Family
from maxlm.checkpoint.hf.families.positions import Rope

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    keys=(
        *like.SHAPE,
        *like.heads(),
        *like.GATED_MLP,
        *like.BIASES,
        Rope(),
        like.rms_norm(),
        like.tied(),
    ),
    rows=like.ROWS,
    unused=like.ROTARY_BUFFERS,
)
