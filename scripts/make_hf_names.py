"""List the tensors of each family's largest published model, as transformers would write them.

    .venv/bin/pip install '.[parity]'
    .venv/bin/python scripts/make_hf_names.py

Writes tests/checkpoint/hf/parity/full_size.json: by model its sizes, as its authors published them,
and its tensors: names with `*` for numbers, the shape, and which numbers (from, to, step of each `*`).
Nothing is allocated or downloaded.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

TARGET = Path(__file__).parents[1] / "tests/checkpoint/hf/parity/full_size.json"
_COLUMNS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def _sizes(*values: int, **others: Any) -> dict[str, Any]:
    return {**dict(zip(_COLUMNS, values, strict=True)), **others}


_MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_DEEPSEEK_V3: dict[str, Any] = {
    **_LATENT,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3.1 405B": ("llama", _sizes(16384, 53248, 126, 128, 8, 128256)),
    "Mistral Large 2": ("mistral", _sizes(12288, 28672, 88, 96, 8, 32768, head_dim=128)),
    "Mixtral 8x22B": ("mixtral", _sizes(6144, 16384, 56, 48, 8, 32000, **_MIXTRAL)),
    "Qwen2.5 72B": ("qwen2", _sizes(8192, 29568, 80, 64, 8, 152064)),
    "Qwen2 57B-A14B": (
        "qwen2_moe",
        _sizes(
            *(3584, 18944, 28, 28, 4, 151936),
            num_experts=64,
            num_experts_per_tok=8,
            moe_intermediate_size=2560,
            shared_expert_intermediate_size=20480,
        ),
    ),
    "Qwen3 32B": ("qwen3", _sizes(5120, 25600, 64, 64, 8, 151936, head_dim=128)),
    "Qwen3 235B-A22B": (
        "qwen3_moe",
        _sizes(
            *(4096, 12288, 94, 64, 4, 151936),
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=1536,
        ),
    ),
    "Gemma 7B": ("gemma", _sizes(3072, 24576, 28, 16, 16, 256000, head_dim=256)),
    "Gemma 2 27B": (
        "gemma2",
        _sizes(4608, 36864, 46, 32, 16, 256000, head_dim=128, query_pre_attn_scalar=144),
    ),
    "Gemma 3 27B": (
        "gemma3_text",
        _sizes(5376, 21504, 62, 32, 16, 262208, head_dim=128, query_pre_attn_scalar=168),
    ),
    "OLMo 2 32B": ("olmo2", _sizes(5120, 27648, 64, 40, 8, 100352)),
    "SmolLM3 3B": ("smollm3", _sizes(2048, 11008, 36, 16, 4, 128256, tie_word_embeddings=True)),
    "Phi-3 medium": ("phi3", _sizes(5120, 17920, 40, 40, 10, 32064)),
    "Granite 3.1 8B": ("granite", _sizes(4096, 12800, 40, 32, 8, 49155, tie_word_embeddings=True)),
    "GPT-NeoX 20B": (
        "gpt_neox",
        {key: n for key, n in _sizes(6144, 24576, 44, 64, 0, 50432).items() if n},
    ),
    "GPT-OSS 120B": (
        "gpt_oss",
        _sizes(
            *(2880, 2880, 36, 64, 8, 201088),
            head_dim=64,
            num_local_experts=128,
            num_experts_per_tok=4,
        ),
    ),
    "Llama 4 Maverick": (
        "llama4_text",
        _sizes(
            *(5120, 8192, 48, 40, 8, 202048),
            head_dim=128,
            intermediate_size_mlp=16384,
            num_local_experts=128,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
        ),
    ),
    "DeepSeek-V2": (
        "deepseek_v2",
        _sizes(
            *(5120, 12288, 60, 128, 128, 102400),
            **_LATENT,
            moe_intermediate_size=1536,
            n_routed_experts=160,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            n_group=8,
            topk_group=3,
            topk_method="group_limited_greedy",
            routed_scaling_factor=16.0,
        ),
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        _sizes(
            *(7168, 18432, 61, 128, 128, 129280),
            **_DEEPSEEK_V3,
            n_routed_experts=256,
            first_k_dense_replace=3,
            n_group=8,
            topk_group=4,
            routed_scaling_factor=2.5,
        ),
    ),
    "Kimi K2": (
        "deepseek_v3",
        _sizes(
            *(7168, 18432, 61, 64, 64, 163840),
            **_DEEPSEEK_V3,
            n_routed_experts=384,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=2.827,
        ),
    ),
    "GPT-2 XL": (
        "gpt2",
        {"n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257, "n_positions": 1024},
    ),
}


def main() -> None:
    """Write the list."""
    listed = {}
    for name, (model_type, sizes) in MODELS.items():
        shapes = shapes_of(model_type, sizes)
        listed[name] = {
            "config": {"model_type": model_type, **sizes},
            "count": len(shapes),
            "tensors": factored(shapes),
        }
        print(f"{name}: {len(shapes)} tensors in {len(listed[name]['tensors'])} lines", flush=True)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in listed.items())
    TARGET.write_text("{\n" + lines.replace(', ["', ',\n ["') + "\n}\n")


def shapes_of(model_type: str, sizes: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return every tensor's shape by its published name."""
    config = AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tensors = revert_weight_conversion(model, model.state_dict())
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def factored(shapes: Mapping[str, list[int]]) -> list[list[Any]]:
    """Return [name with `*`, shape, [[from, to, step] of each `*`]] for all names."""
    groups: dict[tuple[str, tuple[int, ...]], list[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        numbers = tuple(map(int, re.findall(r"(?<=\.)\d+(?=\.)", name)))
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        groups.setdefault((pattern, tuple(shape)), []).append(numbers)
    lines = []
    for (pattern, shape), found in groups.items():
        ranges = [_range(sorted(set(column))) for column in zip(*found, strict=True)]
        every = itertools.product(*(range(*one) for one in ranges))
        assert sorted(found) == sorted(every), f"{pattern}: the numbers are no product of ranges"
        lines.append([pattern, list(shape), ranges])
    return lines


def _range(numbers: list[int]) -> list[int]:
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    return [numbers[0], numbers[-1] + 1, step]


if __name__ == "__main__":
    main()
