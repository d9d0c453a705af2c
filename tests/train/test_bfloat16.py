"""Training in bf16 on a CPU, where bf16 is nobody's first choice: it runs, and learns what fp32
learns.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.ops.cross_entropy import LossOptions, cross_entropy
from maxlm.ops.grouped_matmul import grouped_matmul
from maxlm.ops.linear import linear
from tests.train.program import make_config, run

MIXTURE = {"kind": "moe", "num_experts": 4, "experts_per_token": 2, "expert_dim": 32}
MODELS = {
    "plain": {},
    "every feature": {
        "pattern": [
            {
                "mixer": {
                    "window": 5,
                    "softcap": 5.0,
                    "sinks": True,
                    "bias": "all",
                    "qk_norm": "rmsnorm",
                }
            }
        ],
        "norm": {"kind": "rmsnorm"},
    },
    "mixture": {"pattern": [{"ffn": MIXTURE}]},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [16, 256])
def test_five_steps(name, length):
    """256 tokens are several tiles of attention, and several chunks of the loss."""
    config = {"model": MODELS[name], "length": length}
    size = {"batch_size": 16 if length == 16 else 2}
    lower, full = (
        run(make_config(**config, train={**size, "compute_dtype": x}))
        for x in ("bfloat16", "float32")
    )
    np.testing.assert_allclose(lower.losses, full.losses, rtol=2e-3)
    # A router that rounds chooses other experts here and there, which changes what the experts see.
    tolerance = 0.3 if name == "mixture" else 0.06
    for path, want in full.gradients.items():
        difference = np.linalg.norm(lower.gradients[path] - want)
        assert difference <= tolerance * np.linalg.norm(want), path


def gradients_close(function, *inputs):
    """Compare gradients in bf16 with those in fp32 of the same, rounded numbers."""
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    numbers = tuple(range(len(inputs)))

    def loss(*given):
        return (function(*given).astype(jnp.float32) ** 2).mean()

    got = jax.jit(jax.grad(loss, numbers))(*inputs)
    want = jax.jit(jax.grad(loss, numbers))(*(x.astype(jnp.float32) for x in inputs))
    for x, exact in zip(got, want, strict=True):
        assert x.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(x, np.float64) - exact) <= 0.02 * np.linalg.norm(exact)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_linear():
    gradients_close(linear, normal(0, 2, 300, 64), normal(1, 64, 96))


@pytest.mark.parametrize("sizes", [[100, 0, 500, 100], [1, 2, 3, 4]])
def test_grouped_matmul(sizes):
    rows = sum(sizes)
    gradients_close(
        lambda x, w: grouped_matmul(x, w, jnp.asarray(sizes)),
        normal(0, rows, 32),
        normal(1, 4, 32, 48),
    )


def test_cross_entropy():
    targets, weights = jnp.asarray(np.random.default_rng(2).integers(0, 256, 200)), jnp.ones(200)
    options = LossOptions(z_loss=1e-2, label_smoothing=0.1, chunk_tokens=64)

    def loss(x, output):
        return cross_entropy(x, output, targets, weights, options)[0] / 200

    mesh = jax.make_mesh((1,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()

    def in_mesh(x, output):
        return jax.shard_map(
            loss, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False
        )(x, output)

    gradients_close(in_mesh, normal(0, 200, 64), normal(1, 64, 256))
