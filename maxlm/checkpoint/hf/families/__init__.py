"""Families of published models, each a table; a file for those that are alike.

The order is that in which `maxlm export` looks for one that can say a model.
"""

from __future__ import annotations

from maxlm.checkpoint.hf.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, KIMI_K2
from maxlm.checkpoint.hf.families.gemma import GEMMA, GEMMA2, GEMMA3
from maxlm.checkpoint.hf.families.gpt2 import GPT2
from maxlm.checkpoint.hf.families.gpt_neox import GPT_NEOX
from maxlm.checkpoint.hf.families.gpt_oss import GPT_OSS
from maxlm.checkpoint.hf.families.granite import GRANITE
from maxlm.checkpoint.hf.families.llama import LLAMA
from maxlm.checkpoint.hf.families.llama4 import LLAMA4
from maxlm.checkpoint.hf.families.mistral import MISTRAL, MIXTRAL
from maxlm.checkpoint.hf.families.olmo2 import OLMO2
from maxlm.checkpoint.hf.families.phi3 import PHI3
from maxlm.checkpoint.hf.families.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from maxlm.checkpoint.hf.families.smollm3 import SMOLLM3
from maxlm.checkpoint.hf.family import Family

_ATTENTION = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, OLMO2, SMOLLM3, GRANITE, PHI3)
_MIXTURES = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, GPT_OSS, LLAMA4, DEEPSEEK_V2, DEEPSEEK_V3, KIMI_K2)
FAMILIES: dict[str, Family] = {
    family.name: family for family in (*_ATTENTION, *_MIXTURES, GPT2, GPT_NEOX)
}
