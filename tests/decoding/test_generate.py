"""Decoding: token by token as all at once, texts together as each alone, and on two devices as on
one.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.decoding.generate import Generator, make_advance, make_empty_states
from maxlm.decoding.sampling import Sampling
from maxlm.decoding.weights import Weights
from maxlm.sharding.parameters import initialise
from maxlm.train.setup import build_program
from tests.train.program import make_config

MOE = {
    "kind": "moe",
    "num_experts": 4,
    "experts_per_token": 2,
    "expert_dim": 16,
    "balance": {"bias_update": 0.1},
}


NONE = {"kind": "none"}
BOTH = {
    "kind": "parallel",
    "mixers": [{"kind": "attention", "num_heads": heads, "head_dim": 4} for heads in (8, 4)],
}
NARROW = {
    "kind": "attention",
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "window": 5,
    "sinks": True,
}
CHUNKED = {
    "kind": "attention",
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "chunk": 5,
    "qk_norm": "l2",
    "position": {"kind": "rope", "rotary_dim": 4, "layout": "interleaved"},
}
BY_DISTANCE = {
    "kind": "attention",
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "qk_norm": "rmsnorm_all",
    "scale": 0.6,
    "temperature": {"floor": 4},
}
POSITIONS = [
    CHUNKED,
    {**BY_DISTANCE, "position": {"kind": "alibi"}},
    {**BY_DISTANCE, "position": {"kind": "relative", "num_buckets": 8, "max_distance": 40}},
]
LATENT = {
    "kind": "mla",
    "num_heads": 4,
    "kv_rank": 8,
    "nope_dim": 6,
    "rope_dim": 4,
    "value_dim": 5,
    "position": {"layout": "interleaved"},
}
MODELS = {
    "experts": {"num_layers": 3, "prefix": [{}], "pattern": [{"ffn": MOE}], "init_std": 0.3},
    "parallel": {
        "num_layers": 3,
        "pattern": [{"mixer": NONE}, {"mixer": BOTH}, {"ffn": NONE}],
        "init_std": 0.3,
    },
    "positions": {
        "num_layers": 3,
        "position": {"kind": "sinusoidal"},
        "pattern": [{"mixer": mixer} for mixer in POSITIONS],
        "init_std": 0.3,
    },
    "latent": {
        "num_layers": 2,
        "pattern": [{"mixer": {**LATENT, "query_rank": 12}}, {"mixer": {**LATENT, "scale": 0.6}}],
        "init_std": 0.4,
    },
    "window": {"num_layers": 2, "pattern": [{"mixer": NARROW}, {}], "init_std": 0.3},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_one_by_one_as_all_at_once(model):
    program = build_program(make_config(model=model), jax.devices()[:1])
    decoder = initialise(program.declared, 0, program.mesh)
    advance = make_advance(program.declared, program.mesh, jnp.float32, 8)
    tokens = np.random.default_rng(0).integers(0, 64, (1, 6)).astype(np.int32)
    states = make_empty_states(decoder, program.mesh, 1, 8, jnp.float32)
    one = np.ones(1, np.int32)
    want, _ = advance(decoder, tokens, states(), 0 * one, 6 * one)
    kept = states()
    for place in range(6):
        got, kept = advance(decoder, tokens[:, place : place + 1], kept, place * one, one)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.abs(want).max() > 0.1


def speaker(model, **mesh):
    """Return texts(prompts): the likeliest continuations of prompts of token ids."""
    config = make_config(model=model, mesh=mesh)
    program = build_program(config, jax.devices()[: math.prod(mesh.values())])
    decoder = initialise(program.declared, 0, program.mesh)
    generator = Generator(
        Weights(decoder, program.mesh), program.mesh, num_ids=64, compute_dtype=jnp.float32
    )

    def texts(prompts):
        steps = generator(prompts, max_tokens=8, sampling=Sampling(temperature=0), stop_ids={63})
        rows = zip(*steps, strict=True)
        return [[token for token in row if token is not None] for row in rows]

    return texts


# One of them fills a whole block of the prefill, and one needs two.
PROMPTS = [np.random.default_rng(0).integers(0, 63, length).tolist() for length in (3, 64, 70)]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_prompts_of_any_length_get_together_the_texts_they_get_alone(model):
    texts = speaker(model)
    together = texts(PROMPTS)
    assert together == [texts([prompt])[0] for prompt in PROMPTS]
    assert len({tuple(text) for text in together}) == len(PROMPTS)
    assert speaker(model, tensor=2)(PROMPTS) == together


def test_texts_that_devices_do_not_divide_are_filled_up():
    model = MODELS["experts"]
    assert speaker(model, expert=2)(PROMPTS[:1]) == speaker(model)(PROMPTS[:1])
