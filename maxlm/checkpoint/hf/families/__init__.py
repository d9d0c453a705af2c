"""Families of published models, each a table; a file for those that are alike.

The order is that in which `maxlm export` looks for one that can say a model.
"""

from __future__ import annotations

from maxlm.checkpoint.hf.families.gpt2 import GPT2
from maxlm.checkpoint.hf.families.llama import LLAMA
from maxlm.checkpoint.hf.families.mistral import MISTRAL, MIXTRAL
from maxlm.checkpoint.hf.families.qwen import QWEN2, QWEN3
from maxlm.checkpoint.hf.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, MIXTRAL, GPT2)
}
