"""Families of published models, each a table; a file for those that are alike.

The order is that in which `maxlm export` looks for one that can say a model.
"""

from __future__ import annotations

from maxlm.checkpoint.hf.families.dense.gemma import GEMMA, GEMMA2, GEMMA3
from maxlm.checkpoint.hf.families.dense.gpt2 import GPT2
from maxlm.checkpoint.hf.families.dense.gpt_neox import GPT_NEOX
from maxlm.checkpoint.hf.families.dense.granite import GRANITE
from maxlm.checkpoint.hf.families.dense.llama import LLAMA
from maxlm.checkpoint.hf.families.dense.olmo2 import OLMO2
from maxlm.checkpoint.hf.families.dense.phi3 import PHI3
from maxlm.checkpoint.hf.families.dense.smollm3 import SMOLLM3
from maxlm.checkpoint.hf.families.family import Family
from maxlm.checkpoint.hf.families.mixtures.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, KIMI_K2
from maxlm.checkpoint.hf.families.mixtures.gpt_oss import GPT_OSS
from maxlm.checkpoint.hf.families.mixtures.llama4 import LLAMA4
from maxlm.checkpoint.hf.families.mixtures.mistral import MISTRAL, MIXTRAL
from maxlm.checkpoint.hf.families.mixtures.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE

_ATTENTION = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, OLMO2, SMOLLM3, GRANITE, PHI3)
_MIXTURES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, GPT_OSS, LLAMA4, DEEPSEEK_V2, DEEPSEEK_V3, KIMI_K2)
FAMILIES: dict[str, Family] = {
    family.name: family for family in (*_ATTENTION, *_MIXTURES, GPT2, GPT_NEOX)
}
