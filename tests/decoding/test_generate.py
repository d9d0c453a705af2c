"""Decoding with experts and a prefix: token by token as all at once."""

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.decoding.generate import empty_states, make_advance
from maxlm.sharding.parameters import initialise
from maxlm.train.setup import build_program
from tests.train.program import make_config

MOE = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 16, "balance": {"bias_update": 0.1}}


def test_one_by_one_as_all_at_once():
    model = {"num_layers": 3, "prefix": [{}], "pattern": [{"ffn": MOE}], "init_std": 0.3}
    program = build_program(make_config(model=model), jax.devices()[:1])
    decoder = initialise(program.declared, 0, program.mesh)
    advance = make_advance(program.declared, program.mesh, jnp.float32)
    tokens = np.random.default_rng(0).integers(0, 64, (1, 6)).astype(np.int32)
    states = lambda: empty_states(decoder, program.mesh, 1, 8, jnp.float32)  # noqa: E731
    one = np.ones(1, np.int32)
    want, _ = advance(decoder, tokens, states(), 0 * one, 6 * one)
    kept = states()
    for place in range(6):
        got, kept = advance(decoder, tokens[:, place : place + 1], kept, place * one, one)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.abs(want).max() > 0.1
