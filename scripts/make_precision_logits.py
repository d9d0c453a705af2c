"""Make models with random weights, and what transformers computes with them in fewer bits.

    .venv/bin/pip install '.[parity]'
    .venv/bin/python scripts/make_precision_logits.py FOLDER [NAME ...]

The models are those of make_hf_fixtures.py, each with several weights: a folder of FOLDER for each,
with logits.safetensors beside it: `tokens` (prompts, T), and `logits_WHAT` (prompts, T, V), fp32
(`float32`) and of runs in fewer bits with two ways of attention (`bfloat16_eager`, ...), which differ
in the order of roundings alone. scripts/compare_precision.py reads them.
"""

from __future__ import annotations

import copy
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from make_hf_fixtures import MODELS, build
from safetensors.torch import save_file

SEEDS, PROMPTS, LENGTH = 4, 8, 48
ATTENTION = ("eager", "sdpa")


def main(folder: str, *names: str) -> None:
    for name in names or MODELS:
        for seed in range(SEEDS):
            make(
                Path(folder) / f"{name}-{seed}", MODELS[name], zlib.crc32(f"{name} {seed}".encode())
            )
        print(name, flush=True)


def make(folder: Path, settings: dict[str, Any], seed: int) -> None:
    """Write one model and its logits."""
    model = build(settings, seed=seed)
    model.save_pretrained(folder)
    tokens = torch.randint(0, model.config.get_text_config().vocab_size, (PROMPTS, LENGTH))
    found = {"tokens": tokens.to(torch.int32), "logits_float32": logits(model, tokens)}
    for dtype in (torch.bfloat16, torch.float16):
        low = copy.deepcopy(model).to(dtype)
        low.set_experts_implementation("eager")  # the others need larger experts in bf16
        for attention in ATTENTION:
            try:
                low.set_attn_implementation(attention)
            except ValueError:  # sinks and softcaps are in eager alone
                continue
            what = str(dtype).removeprefix("torch.")
            found[f"logits_{what}_{attention}"] = logits(low, tokens)
    save_file(found, folder / "logits.safetensors")


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return fp32 (prompts, T, V), prompts one by one as ours are."""
    with torch.no_grad():
        rows = [model(row[None], use_cache=False).logits[0].float() for row in tokens]
    return torch.stack(rows).contiguous()


if __name__ == "__main__":
    main(*sys.argv[1:])
