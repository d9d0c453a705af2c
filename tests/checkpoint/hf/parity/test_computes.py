"""What transformers computed with the fixtures, besides logits: what it generated with its cache, its
gradients, and how far its runs in fewer bits are from fp32.

Generation is of those whose attention, cache and positions differ, and of all in `slow`.
"""

import functools
import shutil
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import maxlm
from maxlm.checkpoint.hf.load import load
from maxlm.checkpoint.hf.published import open_published
from maxlm.checkpoint.hf.save import plan_export, write_export
from maxlm.config.schema import RunConfig
from maxlm.models.decoder import Decoder
from maxlm.sharding.mesh import batch_sharding
from maxlm.sharding.parameters import named_parameters
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import build_program

FOLDER = Path(__file__).parents[1] / "fixtures"
GENERATED = {"gemma3", "gpt_oss", "llama4", "deepseek_v3", "phi3_long"}
LOW = ("llama3", "gemma3", "olmo2", "gpt_neox")


def some(quick):
    """Return all fixtures, those that are not `quick` marked slow."""
    names = sorted(path.name for path in FOLDER.iterdir())
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(name, marks=marks[name in quick]) for name in names]


@functools.cache
def expected(name):
    return load_file(FOLDER / name / "expected.safetensors")


@pytest.mark.parametrize("name", some(GENERATED))
def test_the_likeliest_tokens_are_those_of_transformers(name, tmp_path):
    start, generated = expected(name)["start"].tolist(), expected(name)["generated"].tolist()
    assert len(generated) == 16
    folder = shutil.copytree(FOLDER / name, tmp_path / name)
    (folder / "generation_config.json").write_text('{"eos_token_id": []}')  # as it was generated
    model = maxlm.load(folder, dtype="float32")
    assert model.generate(start, max_tokens=16, temperature=0) == generated


@pytest.mark.parametrize("name", ["llama3", "gemma3", "deepseek_v3"])
def test_gradients_are_those_of_transformers(name, tmp_path):
    """Of every tensor: its norm, and its product with a fixed direction, which a transpose or an
    exchange of two rows would change.
    """
    published, tokens = open_published(FOLDER / name), expected(name)["tokens_long"]
    gradients = loss_gradients(published, tokens)
    export = plan_export(
        Decoder, published.model, vocab_size=64, about={}, family=published.family.name
    )
    write_export(
        export,
        tmp_path / "out",
        lambda paths: {path: gradients[path] for path in paths},
        dtype=np.dtype(np.float32),
        files=[],
        advance=lambda elements: None,
    )
    found = load_file(tmp_path / "out/model.safetensors")
    wanted = expected(name)["gradients"]
    assert len(found) == len(wanted)
    for (tensor, values), (norm, product) in zip(sorted(found.items()), wanted, strict=True):
        rng = np.random.default_rng(zlib.crc32(tensor.encode()))
        direction = rng.standard_normal(values.shape).astype(np.float32)
        own = np.linalg.norm(values), (values * direction).sum()
        np.testing.assert_allclose(own, (norm, product), rtol=0, atol=1e-4 * norm, err_msg=tensor)
    assert sum(norm > 0 for norm, _ in wanted) >= len(wanted) - 2  # all but routers' biases


def loss_gradients(published, tokens):
    """Return the gradients of the mean cross entropy of the next tokens, by path."""
    config = RunConfig.model_validate(
        {
            "run_dir": "unused",
            "model": published.model.model_dump(),
            "data": {
                "sources": {"none": {"path": "none"}},
                "tokenizer": "none",
                "sequence_length": len(tokens),
            },
            "mesh": {"fsdp": 1},
            "train": {"num_steps": 1, "batch_size": 1, "compute_dtype": "float32"},
        }
    )
    program = build_program(config, jax.devices()[:1])
    compute = make_gradients(
        program.declared, program.mesh, program.execution, program.state.carried
    )
    places = np.arange(len(tokens), dtype=np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1),
        "segment_ids": np.ones_like(tokens),
        "positions": places,
        "target_bytes": np.ones_like(tokens),
        "weights": (places < len(tokens) - 1).astype(np.float32),
    }
    batch = {
        name: jax.device_put(values[None], batch_sharding(program.mesh))
        for name, values in batch.items()
    }
    decoder = load(published, program.declared, program.mesh)
    gradients, _ = jax.jit(compute)(decoder, batch)
    return {path: np.asarray(value[...]) for path, value in named_parameters(gradients)}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", LOW)
def test_fewer_bits_lose_no_more_than_those_of_transformers(name, dtype):
    """KL to the logits that transformers has in fp32, the mean of all tokens.

    Not of mixtures, where it is chance whose rounding sends a token to another expert. How sums are
    rounded depends on the processor (0.93 and 1.01 of transformers' loss on two of them), so what is
    asked is that ours is not larger by more than twice the standard error of the difference, 10 to 18 %.
    """
    model = maxlm.load(FOLDER / name, dtype=dtype)
    terms = []
    for prompt in ("short", "other", "long"):
        wanted = log_softmax(expected(name)[f"logits_{prompt}"])
        found = log_softmax(model.logits(expected(name)[f"tokens_{prompt}"]))
        terms.append((np.exp(wanted) * (wanted - found)).sum(-1).ravel())
    beyond = np.concatenate(terms) - expected(name)[f"divergence_{dtype}"].ravel()
    assert beyond.mean() <= 2 * beyond.std() / len(beyond) ** 0.5


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
