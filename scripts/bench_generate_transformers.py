"""The side of bench_generate.py that is transformers, which writes the weights, too."""

from __future__ import annotations

import json
import sys

import torch
from bench_generate import NEW, PROMPT, Texts, serve
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def write_weights(folder: str, shape: dict[str, int]) -> None:
    """Write random weights of a shape; no token ends a text."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)


def main() -> None:
    folder, *shape = sys.argv[1:]
    if shape:
        write_weights(folder, json.loads(shape[0]))
        return
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(prompts: Texts) -> Texts:
        ids = torch.tensor(prompts)
        done = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW,
            pad_token_id=0,
        )
        return done[:, PROMPT:].tolist()

    serve(generate)


if __name__ == "__main__":
    main()
