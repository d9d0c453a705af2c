"""The added kernel: chosen by its name, refused by its reason, equal to the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.errors import UserError
from maxlm.kernels import dense_attention
from maxlm.kernels.mask import causal
from maxlm.kernels.shape import Scoring
from maxlm.ops.attention import CHUNKED, Kernel, attention
from maxlm.train.setup import build_program

DENSE = Kernel(dense_attention.forward, dense_attention.backward)


def test_it_is_chosen_by_name_and_not_by_itself(load):
    for override, name in (
        ("runtime.seed=0", "dense"),
        ("runtime.kernels.attention=auto", "chunked"),
    ):
        program = build_program(load("kernel", override, "mesh.fsdp=1"), jax.devices()[:1])
        assert program.kernels == {"attention": name}


def test_what_it_cannot_do_is_said(load):
    config = load("kernel", "mesh.fsdp=1", "data.sequence_length=8192")
    with pytest.raises(
        UserError, match=r"attention=dense holds all scores at once.*; use chunked, .*or auto"
    ):
        build_program(config, jax.devices()[:1])


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_values_and_gradients_are_the_references(softcap):
    rng = np.random.default_rng(0)
    q, k, v, d = (rng.normal(size=(2, 16, heads, 8)).astype(np.float32) for heads in (4, 2, 2, 4))
    segments = np.repeat([[1, 1, 2, 3], [1, 2, 2, 2]], 4, axis=1).astype(np.int32)
    mask = causal(
        jnp.asarray(segments), jnp.broadcast_to(jnp.arange(16, dtype=jnp.int32), (2, 16)), 5
    )

    def results(kernel):
        out, pull = jax.vjp(
            lambda q, k, v: attention(q, k, v, mask, None, kernel, Scoring(0.3, softcap)), q, k, v
        )
        return out, *pull(d)

    for got, want in zip(results(DENSE), results(CHUNKED), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)
