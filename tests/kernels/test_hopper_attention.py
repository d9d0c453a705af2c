"""The Hopper kernels on Pallas' simulated GPU (threads, shared memory, barriers, races) against
attention in fp64.

The simulation has no wgmma from registers and no layouts of registers: these are replaced by what
they compute. That the real ones compile is checked by scripts/compile_attention_gpu.py. Nor does it
copy beyond an array's end as TMA does, which reads zeros and writes nothing there: it is taught to.
Shared memory starts as nan.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import PartitionSpec as P

from maxlm.jax_versions import varying_axes
from maxlm.kernels import block_sizes, chunked_attention, hopper
from maxlm.kernels.hopper import blocks, wgmma
from maxlm.kernels.mask import NOTHING_SEEN, Mask
from maxlm.kernels.shape import AttentionShape, Scoring
from tests.kernels.oracle import MASKS, attention_fp64, make_inputs

interpret_params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call")
callbacks = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks")
memory = pytest.importorskip("jax._src.pallas.mosaic.interpret.shared_memory")

NAMES = ("out", "lse", "dq", "dk", "dv")


def product(x, y, dot=lambda x, y: x @ y.T):
    with jax.default_matmul_precision("highest"):
        products = dot(*(z[...].astype(jnp.float32) for z in (x, y)))
    # wgmma reads as TMA writes. To the simulator this was a thread: what it reads needs a fence.
    plgpu.commit_smem()
    return products


def accumulate(sums, x, y):
    return sums + product(x, y, dot=jnp.matmul)


def multiply(x, y, then=lambda: None):
    then()
    return product(x, y)


def accumulate_beside(sums, state, y, factors, then, weigh, beside):
    del beside
    sums, products = accumulate(sums, state[-1], y), multiply(*factors, then)
    return sums, *weigh(products, state)


def zeros_beyond_the_end(inside, read_shape, shape, dtype, *_):
    del shape
    read = np.zeros(read_shape, dtype)
    if inside is not None:
        read[tuple(map(slice, inside.shape))] = inside
    return read


@pytest.fixture
def simulated(monkeypatch):
    replaced = {
        (plgpu, "layout_cast"): lambda x, layout: x,
        (blocks, "load"): lambda ref, axis: ref[...],
        (wgmma, "multiply"): multiply,
        (wgmma, "multiply_both"): lambda one, two, weigh: (
            weigh(product(*one)),
            product(*two),
        ),
        (wgmma, "accumulate"): accumulate,
        (wgmma, "accumulate_beside"): accumulate_beside,
        (callbacks, "_handle_out_of_bounds_read"): zeros_beyond_the_end,
        (memory.Buffer, "__setitem__"): memory.Buffer.set_in_bounds_portion,
    }
    for (owner, name), replacement in replaced.items():
        monkeypatch.setattr(owner, name, replacement)
    yield interpret_params.InterpretGPUParams(detect_races=True)
    interpreter.reset_gpu_interpret_mode_state()


def make(softcap=None, scale=None, masks=(), **options):
    """Return q, k, v, d_out, mask and how scores are made; small unless said otherwise.

    The mask is one of places or, by name, one of the oracle's for each batch row: of a sequence
    that holds the queries and the keys.
    """
    small = {
        "batch": len(masks) or 1,
        "length": 128,
        "heads": 1,
        "kv_heads": 1,
        "head_dim": 64,
        "documents": 1,
    }
    *arrays, mask = make_inputs(0, **small | {"of_none": 0, "dtype": jnp.bfloat16} | options)
    if masks:
        starts = [options.get(name, 0) for name in ("q_start", "kv_start")]
        queries, keys = (slice(x, x + y.shape[1]) for x, y in zip(starts, arrays, strict=False))
        rng = np.random.default_rng(0)
        rows = [MASKS[name](rng, (1, max(queries.stop, keys.stop))) for name in masks]
        parts = [jnp.concatenate(x) for x in ([x.queries for x in rows], [x.keys for x in rows])]
        mask = Mask.of(parts[0][:, :, queries], parts[1][:, :, keys])
    return *arrays, mask, Scoring(scale, softcap)


def simulate(arrays, simulated):
    q, k, v, d_out, mask, scoring = arrays
    options = {"scoring": scoring, "interpret": simulated}
    out, lse = hopper.forward(q, k, v, mask, **options)
    gradients = hopper.backward(q, k, v, out, lse, d_out, mask, **options)
    assert not interpreter.get_races().races_found
    return out, lse, *gradients


def check(arrays, simulated):
    """Compare with fp64: at most 1.2 times as far from it as the plain computation, in bf16 too."""
    q, k, v, d_out, mask, scoring = arrays
    # Without the option XLA leaves out roundings to bf16.
    jit = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    plain = jit(chunked_attention.forward)(q, k, v, mask, scoring=scoring)
    plain = *plain, *jit(chunked_attention.backward)(q, k, v, *plain, d_out, mask, scoring=scoring)
    for name, x, y, exact in zip(
        NAMES, simulate(arrays, simulated), plain, attention_fp64(*arrays), strict=True
    ):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        nothing = exact == NOTHING_SEEN
        np.testing.assert_array_equal(np.asarray(x) == np.float32(NOTHING_SEEN), nothing)
        errors = [np.where(nothing, 0, np.asarray(z, np.float64) - exact) for z in (x, y)]
        error, plain_error = (np.sqrt(np.mean(np.square(z))) for z in errors)
        assert error <= 1.2 * plain_error + 1e-6, f"{name}: {error} > 1.2 * {plain_error}"


ALL_AT_ONCE = {
    "length": 150,
    "heads": 2,
    "head_dim": 80,
    "v_dim": 64,
    "documents": 2,
    "of_none": 0.05,
    "window": 70,
    "softcap": 2.0,
    "scale": 0.2,
}


@pytest.mark.parametrize("apart", [False, True])
def test_all_features_at_once(simulated, monkeypatch, apart):
    """Small blocks, quick ones, and both ways to sum dk and dv: `apart` is for large heads."""
    monkeypatch.setattr(
        block_sizes, "hopper", lambda *_: block_sizes.HopperBlocks(64, 32, 32, apart)
    )
    check(
        make(**ALL_AT_ONCE | {"length": 100, "head_dim": 40, "v_dim": 32, "window": 40}), simulated
    )


@pytest.mark.parametrize(
    ("masks", "length"),
    [(("any", "block diffusion"), 100), pytest.param(tuple(MASKS), 150, marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_every_kind_of_mask(simulated, monkeypatch, masks, length):
    """The last tile is not whole; the blocks of the forward pass do not divide a tile."""
    monkeypatch.setattr(
        block_sizes, "hopper", lambda *_: block_sizes.HopperBlocks(96, 32, 32, False)
    )
    check(make(length=length, head_dim=32, masks=masks), simulated)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length": 256, "heads": 2, "documents": 2},
        {"length": 256, "window": 70, "softcap": 2.0},
        {"length": 384, "documents": 3},
        {"length": 128, "kv_length": 384, "q_start": 256},
        {"length": 256, "kv_start": 128},
        {"length": 256, "causal": False, "head_dim": 128},
        {"length": 1, "kv_length": 200, "q_start": 190, "heads": 4},
        {"length": 300, "kv_length": 170, "causal": False, "documents": 2},
        {"length": 300, "kv_length": 170, "kv_start": 60, "masks": ("any", "block diffusion")},
        {"length": 384, "masks": tuple(MASKS)},
        {"length": 300, "head_dim": 192, "masks": tuple(MASKS)},
        *(
            ALL_AT_ONCE
            | {"length": 330, "head_dim": size, "v_dim": v_size, "documents": 3, "window": 150}
            for size, v_size in ((64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256))
        ),
    ],
    ids=str,
)
def test_many_blocks(simulated, options):
    check(make(**options), simulated)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    options=st.fixed_dictionaries(
        {
            "length": st.sampled_from([1, 64, 130, 200]),
            "kv_length": st.sampled_from([None, 70, 192, 260]),
            "heads": st.sampled_from([2, 4]),
            "kv_heads": st.sampled_from([1, 2]),
            "head_dim": st.sampled_from([64, 72, 80, 96, 128, 192, 256]),
            "v_dim": st.sampled_from([None, 64, 128, 256]),
            "documents": st.sampled_from([1, 3]),
            "of_none": st.sampled_from([0, 0.05]),
            "q_start": st.sampled_from([0, 100]),
            "kv_start": st.sampled_from([0, 64]),
            "window": st.sampled_from([None, 1, 50, 150]),
            "causal": st.booleans(),
            "masks": st.sampled_from([()] * len(MASKS) + [(mask,) for mask in MASKS]),
            "softcap": st.sampled_from([None, 2.0]),
        }
    )
)
def test_any_features(simulated, options):
    check(make(**options), simulated)


@pytest.mark.slow
def test_blocks_that_nobody_sees_are_not_computed(simulated):
    # Two documents of 128 tokens: the second's queries must not touch the first's keys, nor the
    # first's the second's.
    q, k, v, d_out, mask, scoring = make(length=256)
    documents = jnp.repeat(jnp.asarray([[1, 2]], jnp.int32), 128, axis=1)
    mask = dataclasses.replace(mask, q_segments_BT=documents, kv_segments_BS=documents)
    clean = simulate((q, k, v, d_out, mask, scoring), simulated)
    for kept, spoilt in ((slice(0, 128), slice(128, 256)), (slice(128, 256), slice(0, 128))):
        bad = [x.at[:, spoilt].set(jnp.nan) for x in (q, k, v, d_out)]
        for name, got, want in zip(
            NAMES, simulate((*bad, mask, scoring), simulated), clean, strict=True
        ):
            index = (slice(None), slice(None), kept) if name == "lse" else (slice(None), kept)
            np.testing.assert_array_equal(got[index], want[index], err_msg=name)


@pytest.mark.slow
def test_parts_of_a_larger_softmax_add_up(simulated):
    # What ring attention does: the whole out and lse, the keys in two parts.
    q, k, v, d_out, mask, _ = make(length=200, heads=2)
    out, lse, *want = simulate((q, k, v, d_out, mask, None), simulated)
    parts = []
    for start in (0, 100):
        part = slice(start, start + 100)
        part_mask = Mask.of(mask.queries, mask.keys[:, :, part])
        given = q, k[:, part], v[:, part], out, lse, d_out, part_mask
        parts.append(hopper.backward(*given, interpret=simulated))
    got = (
        parts[0][0] + parts[1][0],
        *(jnp.concatenate(x, axis=1) for x in list(zip(*parts, strict=True))[1:]),
    )
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=2e-2, atol=2e-2
        )


@pytest.mark.parametrize("key_size", range(32, 257, 32))
@pytest.mark.parametrize("value_size", range(32, 257, 32))
def test_blocks_fit_into_shared_memory(key_size, value_size):
    blocks, both = block_sizes.hopper(key_size, value_size), key_size + value_size
    rows = 64 if blocks.apart else 128
    needed = {
        "forward": 2 * (128 * key_size + 2 * blocks.forward * both),
        "dq": 2 * (128 + 2 * blocks.d_q) * both,
        "dk and dv": 2 * (rows + 2 * blocks.d_kv) * both + blocks.apart * 4 * 64 * blocks.d_kv,
    }
    # What is left is for vectors and barriers.
    assert max(needed.values()) <= (227 - 4) * 1024, needed


@pytest.mark.parametrize(("head_dim", "v_dim"), [(128, 128), (80, 80), (192, 128)])
def test_results_in_a_shard_map_vary_as_the_arguments(head_dim, v_dim):
    q, k, v, d_out, mask, _ = make(
        length=200, heads=4, kv_heads=2, head_dim=head_dim, v_dim=v_dim, window=40
    )
    scoring = Scoring(softcap=2.0)
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    heads = P(None, None, "tensor", None)

    def program(q, k, v, d_out, mask):
        out, lse = hopper.forward(q, k, v, mask, scoring=scoring)
        gradients = hopper.backward(q, k, v, out, lse, d_out, mask, scoring=scoring)
        assert all(varying_axes(x) == {"tensor"} for x in (out, lse, *gradients))
        return out, lse, *gradients

    specs = (heads, P(None, "tensor", None), heads, heads, heads)
    mask_spec = jax.tree.map(lambda _: P(), mask)
    sharded = jax.jit(
        jax.shard_map(program, mesh=mesh, in_specs=(heads,) * 4 + (mask_spec,), out_specs=specs)
    )
    results = jax.eval_shape(sharded, q, k, v, d_out, mask)
    assert [(x.shape, x.dtype) for x in results[2:]] == [(x.shape, x.dtype) for x in (q, k, v)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"device_kind": "NVIDIA A100-SXM4-80GB"}, "flash_triton"),
        ({"dtype": "float32"}, "flash_triton"),
        ({"key_size": 192}, None),
        ({"key_size": 80, "value_size": 80}, None),
        ({"by_distance": "slopes"}, "position.kind=alibi"),
        ({"by_distance": "table"}, "position.kind=relative"),
        ({"key_size": 320}, "320 (keys), 128 (values); chunked"),
    ],
)
def test_says_what_it_cannot_do(changes, words):
    shape = AttentionShape("NVIDIA H200", "bfloat16", 8, 2, 128, 128, 4096, 4096)
    reason = hopper.unsupported(shape._replace(**changes))
    assert (words in reason) if words else reason is None
