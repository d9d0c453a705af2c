"""Make small published models with random weights, and what transformers computes with them.

    .venv/bin/pip install '.[parity]'
    .venv/bin/python scripts/make_hf_fixtures.py [NAME ...]

Each is a folder of tests/checkpoint/hf/fixtures (of multimodal, if it sees images) as its authors
would publish it, with expected.safetensors beside it: prompts (`tokens_...`) and their logits in
fp32 (`logits_...`); the likeliest tokens after the start of one (`start`, `generated`); how far the
logits of a run in fewer bits are from those in fp32 (`divergence_DTYPE`, nats a token); and for
some the gradients of the long prompt's loss (`gradients`: of each tensor, by name, its norm and its
product with the direction that `direction` gives). The tests need neither torch nor transformers. No parameter is at
its initial value: a bias that is forgotten must show.
"""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

FOLDER = Path(__file__).parents[1] / "tests/checkpoint/hf/fixtures"
MULTIMODAL_FOLDER = FOLDER.parent / "multimodal"
LENGTHS = {"short": 12, "other": 9, "long": 48}
"""Of the prompts: short and other are packed together too, long is longer than any window and any
original context below.
"""
START, GENERATED = 6, 16
"""Tokens of a prompt's start, and of what follows: past the windows and chunks below, and on one
side of the original contexts, for what is cached is turned as it was when it was cached.
"""
WITH_GRADIENTS = ("llama3", "gemma3", "deepseek_v3")

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 0.8,
    "mscale_all_dim": 1.1,
    "original_max_position_embeddings": 24,
    "rope_theta": 10000.0,
}
LATENT: dict[str, Any] = {
    **SHAPE,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 20,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama2": {"model_type": "llama", **SHAPE, "num_key_value_heads": 4},
    "llama3": {
        "model_type": "llama",
        **SHAPE,
        "head_dim": 16,
        "rope_parameters": LLAMA3_ROPE,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "llama_biases": {"model_type": "llama", **SHAPE, "attention_bias": True, "mlp_bias": True},
    "llama_dynamic": {
        "model_type": "llama",
        **SHAPE,
        "num_hidden_layers": 1,
        "max_position_embeddings": 24,
        "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10000.0},
    },
    "mistral": {"model_type": "mistral", **SHAPE, "sliding_window": 7, "head_dim": 12},
    "mixtral": {
        "model_type": "mixtral",
        **SHAPE,
        "num_local_experts": 4,
        "intermediate_size": 24,
        "sliding_window": None,
    },
    "qwen2": {"model_type": "qwen2", **SHAPE, "tie_word_embeddings": True},
    "qwen2_windows": {
        "model_type": "qwen2",
        **SHAPE,
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **SHAPE, "head_dim": 16},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        **SHAPE,
        "num_hidden_layers": 3,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 28,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **SHAPE,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        "norm_topk_prob": True,
    },
    "gemma": {"model_type": "gemma", **SHAPE, "head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {
        "model_type": "gemma2",
        **SHAPE,
        "head_dim": 16,
        "sliding_window": 6,
        "query_pre_attn_scalar": 24,
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 3.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **SHAPE,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "sliding_window": 6,
        "query_pre_attn_scalar": 24,
        "layer_types": [*["sliding_attention"] * 2, "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        },
    },
    "olmo2": {"model_type": "olmo2", **SHAPE},
    "smollm3": {
        "model_type": "smollm3",
        **SHAPE,
        "num_hidden_layers": 5,
        "no_rope_layers": [1, 1, 1, 0, 1],
    },
    "phi3": {"model_type": "phi3", **SHAPE},
    "phi3_long": {
        "model_type": "phi3",
        **SHAPE,
        "num_attention_heads": 2,
        "original_max_position_embeddings": 24,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
            "long_factor": [1.0, 1.5, 2.5, 4.0, 6.0, 9.0],
            "original_max_position_embeddings": 24,
        },
    },
    "granite": {
        "model_type": "granite",
        **SHAPE,
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.1,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        **SHAPE,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 24,
        "sliding_window": 6,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 4.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 24,
            "rope_theta": 150000.0,
        },
    },
    "llama4": {
        "model_type": "llama4_text",
        **SHAPE,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "num_local_experts": 4,
        "intermediate_size": 24,
        "intermediate_size_mlp": 48,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 16,
        "floor_scale": 8,
    },
    "deepseek_v2": {
        "model_type": "deepseek_v2",
        **LATENT,
        "q_lora_rank": None,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "topk_method": "group_limited_greedy",
        "n_group": 3,
        "topk_group": 2,
        "routed_scaling_factor": 16.0,
        "rope_parameters": YARN,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **LATENT,
        "q_lora_rank": 24,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "rope_parameters": YARN,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}

_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
MULTIMODAL: dict[str, dict[str, Any]] = {
    "gemma3_images": {
        "model_type": "gemma3",
        "text_config": MODELS["gemma3"],
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
        "mm_tokens_per_image": 4,
        "boi_token_index": 61,
        "eoi_token_index": 62,
        "image_token_index": 63,
    },
    "llama4_images": {
        "model_type": "llama4",
        "text_config": MODELS["llama4"],
        "vision_config": {
            "model_type": "llama4_vision_model",
            **_VISION,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
            "vision_output_dim": 16,
        },
        "boi_token_index": 61,
        "eoi_token_index": 62,
        "image_token_index": 63,
    },
}


def main(names: list[str]) -> None:
    folders = {name: FOLDER / name for name in MODELS}
    folders |= {name: MULTIMODAL_FOLDER / name for name in MULTIMODAL}
    every = MODELS | MULTIMODAL
    for name in names or every:
        make(folders[name], every[name])


def make(folder: Path, settings: dict[str, Any]) -> None:
    """Write one model and what it computes."""
    name = folder.name
    model = build(settings, seed=zlib.crc32(name.encode()))  # the same whatever others there are
    config = model.config
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    if config.model_type == "llama4":  # transformers 5.24 runs the whole with images alone
        model = model.language_model
    expected = {}
    for prompt, length in LENGTHS.items():
        tokens = torch.randint(0, config.get_text_config().vocab_size, (1, length))
        with torch.no_grad():
            expected[f"logits_{prompt}"] = model(tokens, use_cache=False).logits[0].contiguous()
        expected[f"tokens_{prompt}"] = tokens[0].to(torch.int32)
    prompts = {name: expected[f"tokens_{name}"].long()[None] for name in LENGTHS}
    expected |= likeliest(model, prompts.values())
    for dtype in (torch.bfloat16, torch.float16):
        key = f"divergence_{str(dtype).removeprefix('torch.')}"
        low = copy.deepcopy(model).to(dtype)
        low.set_experts_implementation("eager")  # the others need larger experts in bf16
        expected[key] = divergence(model, low, prompts)
    if folder.name in WITH_GRADIENTS:
        expected["gradients"] = gradients(model, prompts["long"])
    save_file(expected, folder / "expected.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size / 1e3:.0f} kB, {sorted(path.name for path in folder.iterdir())}")


def build(settings: dict[str, Any], *, seed: int) -> Any:
    """Return a model with random weights, and seed what is drawn after it."""
    torch.manual_seed(seed)
    kind = {key: value for key, value in settings.items() if key != "model_type"}
    config = AutoConfig.for_model(settings["model_type"], **kind)
    whole = AutoModelForImageTextToText if "text_config" in kind else AutoModelForCausalLM
    model = whole.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def likeliest(model: Any, prompts: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return int32 `start` (START,) of a prompt, and `generated` (GENERATED,), decoded with a cache.

    It is the first prompt with which no two tokens are about as likely, so that rounding decides.
    """
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = None
    for prompt in prompts:
        start = prompt[:, :START]
        given = {"attention_mask": torch.ones_like(start), "do_sample": False}
        whole = model.generate(start, max_new_tokens=GENERATED, **given)
        with torch.no_grad():
            logits = model(whole, use_cache=False).logits[0, START - 1 : -1]
        (best, second), tokens = logits.topk(2).values.T, whole[0, START:]
        if (best - second).min() > 1e-4 * logits.abs().max():
            assert torch.equal(tokens, logits.argmax(-1)), "its cache gives something else"
            return {"start": start[0].to(torch.int32), "generated": tokens.to(torch.int32)}
    raise ValueError("two tokens are about as likely, whatever the prompt: take other weights")


def divergence(model: Any, low: Any, prompts: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return KL(fp32 || low) in nats of each of all prompts' tokens."""
    terms = []
    for tokens in prompts.values():
        with torch.no_grad():
            p, q = (
                one(tokens, use_cache=False).logits[0].double().log_softmax(-1)
                for one in (model, low)
            )
        terms.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(terms).float()


def gradients(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return fp32 (N, 2), by the published tensors' names in order: norm and product."""
    # Else the row of pad_token_id has no gradient, although the prompt has the token.
    model.get_input_embeddings().padding_idx = None
    logits = model(tokens, use_cache=False).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).backward()
    moved = copy.deepcopy(model)  # a model of gradients, for those who publish rename and split
    with torch.no_grad():
        for buffer in moved.buffers():
            buffer.zero_()
        for own, parameter in zip(moved.parameters(), model.parameters(), strict=True):
            own.copy_(parameter.grad)
    with tempfile.TemporaryDirectory() as folder:
        moved.save_pretrained(folder)
        named = load_file(Path(folder) / "model.safetensors")
    return torch.tensor(
        [
            [gradient.norm(), (gradient * torch.from_numpy(direction(name, gradient.shape))).sum()]
            for name, gradient in sorted(named.items())
        ]
    )


def direction(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return fp32 numbers of one standard deviation, fixed by a tensor's name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(shape).astype(np.float32)


if __name__ == "__main__":
    main(sys.argv[1:])
