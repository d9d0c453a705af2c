"""Grouped matmul against a loop over groups: values, gradients, memory, and what other platforms
get.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.ops import grouped_matmul as implementations
from maxlm.ops.grouped_matmul import add_per_group, grouped_matmul

SIZES = {
    "even": [40, 40, 40, 40],
    "uneven": [3, 0, 100, 57],
    "one takes all": [0, 160, 0, 0],
    "rows of no group": [1, 64, 30, 5],
    "nothing": [0, 0, 0, 0],
}


def plain(x, w, sizes):
    starts = np.cumsum([0, *sizes])
    parts = [x[a:b] @ w_DF for a, b, w_DF in zip(starts[:-1], starts[1:], w, strict=True)]
    return jnp.concatenate([*parts, jnp.zeros((x.shape[0] - starts[-1], w.shape[2]))])


def arrays(num_rows, dim=5, hidden=7):
    rng = np.random.default_rng(0)
    shapes = (num_rows, dim), (4, dim, hidden), (num_rows, hidden)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@jax.jit
def product_and_gradients(x, w, g, sizes):
    product, transpose = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, w)
    return product, *transpose(g)


@pytest.mark.parametrize("num_rows", [160, 171])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_values_and_gradients(sizes, num_rows):
    x, w, g = arrays(num_rows)
    want, want_transpose = jax.vjp(lambda x, w: plain(x, w, sizes), x, w)
    got, *gradients = product_and_gradients(x, w, g, jnp.asarray(sizes))
    np.testing.assert_allclose(got, want, atol=1e-5)
    for array, reference in zip(gradients, want_transpose(g), strict=True):
        np.testing.assert_allclose(array, reference, atol=1e-4)


@pytest.mark.parametrize("tile_rows", [16, 512])
@pytest.mark.parametrize("num_rows", [160, 171])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_every_platform_computes_the_same(sizes, num_rows, tile_rows):
    """What the CPU runs is `test_values_and_gradients`'s; here the TPU's instruction, and the GPU's
    loops, which visit some tiles for nothing.
    """
    x, w, g = arrays(num_rows)
    sizes = jnp.asarray(sizes)
    used = int(sizes.sum())
    cpu = implementations.by_group(x, w, sizes, tile_rows=tile_rows)
    np.testing.assert_array_equal(cpu[used:], 0)
    gpu = implementations.tiled(x, w, sizes, tile_rows=tile_rows)
    tpu = implementations.ragged(x, w, sizes)
    for other in (gpu, tpu):
        np.testing.assert_allclose(other[:used], cpu[:used], atol=1e-5)
    cpu = implementations.by_group(g, w, sizes, tile_rows=tile_rows, turned=True)
    gpu = implementations.tiled(g, w, sizes, tile_rows=tile_rows, turned=True)
    tpu = implementations.ragged_turned(g, w, sizes)
    for other in (gpu, tpu):
        np.testing.assert_allclose(other[:used], cpu[:used], atol=1e-5)
    cpu = implementations.by_group_transpose(x, g, sizes, tile_rows=tile_rows)
    gpu = implementations.tiled_transpose(x, g, sizes, tile_rows=tile_rows)
    for other in (gpu, implementations.ragged_transpose(x, g, sizes)):
        np.testing.assert_allclose(other, cpu, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_each_group_has_its_own_vector_added(sizes, weighted):
    _, w, g = arrays(171, hidden=7)
    bias, rows = w[:, 0], np.repeat(np.arange(4), sizes)
    used = len(rows)
    weights = np.random.default_rng(1).normal(size=(171, 1)).astype(np.float32)
    each = weights[:used] if weighted else np.ones((used, 1), np.float32)
    weights[used:] = np.nan  # nobody's

    def add(x, b, weights):
        return add_per_group(x, b, jnp.asarray(sizes), weights if weighted else None)

    got, transpose = jax.vjp(add, g, bias, weights)
    want = np.array(g)
    want[:used] += each * np.asarray(bias)[rows]
    np.testing.assert_allclose(got, want, rtol=1e-6 if weighted else 0)
    d_x, d_bias, d_weights = transpose(g.at[used:].set(jnp.nan))
    np.testing.assert_array_equal(d_x[:used], g[:used])
    sums = np.zeros(bias.shape)
    np.add.at(sums, rows, each * np.asarray(g, np.float64)[:used])
    np.testing.assert_allclose(d_bias, sums, atol=1e-5)
    if weighted:
        products = (np.asarray(g, np.float64)[:used] * np.asarray(bias)[rows]).sum(axis=1)
        np.testing.assert_allclose(d_weights[:used, 0], products, atol=1e-5)


def gradients(matmul):
    return jax.jit(jax.grad(lambda x, w, sizes: (matmul(x, w, sizes) ** 2).sum(), argnums=(0, 1)))


def test_memory_does_not_grow_with_the_number_of_groups():
    x, w, sizes = jnp.ones((1024, 64)), jnp.ones((16, 64, 64)), jnp.full((16,), 64, jnp.int32)
    rows, weights = x.nbytes, w.nbytes
    ours, plain_jax = (
        gradients(matmul).lower(x, w, sizes).compile().memory_analysis().temp_size_in_bytes
        for matmul in (grouped_matmul, jax.lax.ragged_dot)
    )
    # the product, its gradient and the fp32 gradient of the matrices, and what else is small
    assert ours < 4 * rows + 2 * weights
    # 16 masked copies of the rows: the reason for the custom gradient and the loop
    assert plain_jax > 16 * rows


def test_a_cpu_does_nothing_for_groups_without_rows():
    """One token of a text meets few of the experts: others' matrices are not read."""
    x, w, sizes = jnp.ones((2, 8)), jnp.ones((64, 8, 8)), jnp.zeros(64, jnp.int32).at[5].set(2)
    text = str(jax.make_jaxpr(implementations.by_group)(x, w, sizes))
    assert text.count("while[") == 2
    assert "scan[" not in text  # 64 turns, whatever the sizes are


def test_a_tpu_gets_the_instruction_and_a_gpu_a_loop():
    x, w, sizes = jnp.ones((64, 8)), jnp.ones((4, 8, 8)), jnp.full((4,), 16, jnp.int32)
    traced = gradients(grouped_matmul).trace(x, w, sizes)
    gpu, tpu = (
        traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)
        for platform in ("cuda", "tpu")
    )
    # there the instruction is E products of all rows
    assert "ragged_dot" not in gpu
    assert gpu.count("stablehlo.while") == 3
    # its gradient of the matrices is the loop's
    assert tpu.count('"chlo.ragged_dot"') == 2
    assert "tiles_of_one_in_4/while" in tpu
    assert "tiles_of_one_in_4" not in gpu
