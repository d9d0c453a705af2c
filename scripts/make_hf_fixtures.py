"""Make small published models with random weights, and what transformers computes with them.

    .venv/bin/pip install '.[parity]'
    .venv/bin/python scripts/make_hf_fixtures.py [NAME ...]

Each is a folder of tests/checkpoint/hf/fixtures as its authors would publish it, with
expected.safetensors beside it: prompts (`tokens_...`) and their logits in fp32 (`logits_...`). The
tests need neither torch nor transformers. No parameter is at its initial value: a bias that is
forgotten must show.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).parents[1] / "tests/checkpoint/hf/fixtures"
LENGTHS = {"short": 12, "other": 9, "long": 48}
"""Of the prompts: short and other are packed together too, long is longer than any window and any
original context below.
"""

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
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
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


def main(names: list[str]) -> None:
    for name in names or MODELS:
        make(name, dict(MODELS[name]))


def make(name: str, settings: dict[str, Any]) -> None:
    """Write one model and what it computes."""
    torch.manual_seed(sorted(MODELS).index(name))
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    expected = {}
    for prompt, length in LENGTHS.items():
        tokens = torch.randint(0, config.get_text_config().vocab_size, (1, length))
        with torch.no_grad():
            expected[f"logits_{prompt}"] = model(tokens, use_cache=False).logits[0].contiguous()
        expected[f"tokens_{prompt}"] = tokens[0].to(torch.int32)
    save_file(expected, folder / "expected.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size / 1e3:.0f} kB, {sorted(path.name for path in folder.iterdir())}")


if __name__ == "__main__":
    main(sys.argv[1:])
