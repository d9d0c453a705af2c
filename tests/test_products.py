"""Products of bf16 arrays with fp32 sums: exact on the CPU in every layout, bf16 still where
hardware has them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.products import einsum_fp32

LAYOUTS = [
    "TD,DV->TV",
    "TD,TV->DV",
    "BKGTH,BKSH->BKGTS",
    "BKGTH,BKGTS->BKHS",
    "BTNH,BTNH->BTN",
    "TV,DV->TD",
]


def arrays(letters, dtype, size=24):
    rng = np.random.default_rng(0)
    given = letters.split("->")[0].split(",")
    # Multiples of 1/8 below 16: products and sums of them are exact in fp32.
    return [
        jnp.asarray(rng.integers(-127, 128, (size if len(x) < 3 else 6,) * len(x)) / 8, dtype)
        for x in given
    ]


@pytest.mark.parametrize("letters", LAYOUTS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_exact_in_a_scan(letters, dtype):
    """In a loop nothing is fused away, and the CPU runs each product as it stands."""
    x, y = arrays(letters, dtype)

    def step(total, scale):
        return total + einsum_fp32(letters, x * scale, y), None

    want = np.einsum(letters, *(np.asarray(z, np.float64) for z in (x, y)))
    got, _ = jax.jit(
        lambda: jax.lax.scan(step, jnp.zeros(want.shape, jnp.float32), jnp.ones(2, dtype))
    )()
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, 2 * want)


@pytest.mark.parametrize(
    ("platform", "operands"), [("cpu", "f32"), ("tpu", "bf16"), ("cuda", "bf16")]
)
def test_products_of_each_platform(platform, operands):
    traced = jax.jit(lambda x, y: einsum_fp32("TD,DV->TV", x, y)).trace(
        *arrays("TD,DV->TV", jnp.bfloat16)
    )
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert f"(tensor<24x24x{operands}>, tensor<24x24x{operands}>) -> tensor<24x24xf32>" in text
