"""A small model with random weights and a byte-level tokenizer, as published weights are."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import maxlm
from data_pipeline.tokenizers.hf_json import train_byte_bpe
from maxlm.config.pipeline.tokenizer import ByteBpeConfig

FIXTURE = Path(__file__).parents[2] / "checkpoint/hf/fixtures/llama2"
VOCAB = 320


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    config = json.loads((FIXTURE / "config.json").read_text())
    config |= {"vocab_size": VOCAB, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(FIXTURE / "model.safetensors")
    generator = np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = generator.normal(size=(VOCAB, 32)).astype(np.float32) / 3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["theorem", "proof", "buy", "cheap"], k=40)) for _ in range(20)]
    for name, data in train_byte_bpe(ByteBpeConfig(), texts, VOCAB).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def model(published):
    return maxlm.load(published)
