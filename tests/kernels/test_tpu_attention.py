"""The TPU kernels, interpreted on a CPU: all features together against fp64, races, skipped blocks,
and in a ring.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig
from maxlm.kernels import block_sizes, chunked_attention, tpu_attention
from maxlm.kernels.block_sizes import BlockSizes
from maxlm.kernels.mask import Mask, causal, with_least
from maxlm.kernels.shape import PLAIN, AttentionShape
from maxlm.ops.attention import CHUNKED, Kernel, attention
from maxlm.ops.context_attention import context_attention
from maxlm.sharding.context import places, zigzag
from maxlm.sharding.mesh import build_mesh
from tests.kernels.oracle import (
    MASKS,
    attention_fp64,
    make_inputs,
    make_scoring,
    place_mask,
    relative_error,
)

INTERPRETED = Kernel(
    *(functools.partial(f, interpret=True) for f in (tpu_attention.forward, tpu_attention.backward))
)
NAMES = ("out", "lse", "d_q", "d_k", "d_v")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 8, four to a stretch: every loop and every edge is met by short sequences."""
    for choose in ("tpu_forward", "tpu_backward"):
        monkeypatch.setattr(block_sizes, choose, lambda shape: BlockSizes(8, 8, 32))


def both_passes(q, k, v, d_out, mask, scoring=PLAIN, *, module=tpu_attention, **options):
    options = {"scoring": scoring, **options}
    options = {"interpret": True, **options} if module is tpu_attention else options
    out, lse = module.forward(q, k, v, mask, **options)
    return out, lse, *module.backward(q, k, v, out, lse, d_out, mask, **options)


def make(case, **more):
    """Return the inputs of a case, with how its scores are made."""
    names = "softcap", "scale", "by_distance"
    how = {name: case[name] for name in names if name in case}
    others = {name: value for name, value in case.items() if name not in names}
    inputs = make_inputs(**others, **more)
    return *inputs, make_scoring(inputs[0].shape[2], **how)


def check_fp32(**case):
    inputs = make(case)
    got = jax.jit(both_passes)(*inputs)
    for name, x, want in zip(NAMES, got, attention_fp64(*inputs), strict=True):
        assert relative_error(x, want) < 1e-5, name


def check_bfloat16(**case):
    """Compare root mean squares of the errors; 1e-7 is for what bf16 has exactly, but for sums in
    fp32.
    """
    inputs = make(case, dtype=jnp.bfloat16)
    want = attention_fp64(*inputs)
    # Without the option XLA leaves out roundings to bf16.
    jit = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    ours, plain = (
        jit(functools.partial(both_passes, module=module))(*inputs)
        for module in (tpu_attention, chunked_attention)
    )
    for name, x, y, exact in zip(NAMES, ours, plain, want, strict=True):
        errors = [np.sqrt(np.mean((np.asarray(z, np.float64) - exact) ** 2)) for z in (x, y)]
        assert errors[0] <= 1.2 * errors[1] + 1e-7, (name, errors)
        assert x.dtype == y.dtype


FEATURES = {
    "seed": st.integers(0, 2**20),
    "length": st.sampled_from([1, 5, 16, 37, 130]),
    "kv_length": st.sampled_from([None, 8, 45]),
    "heads": st.sampled_from([4, 2]),
    "kv_heads": st.sampled_from([2, 1]),
    "head_dim": st.sampled_from([8, 16, 80]),
    "v_dim": st.sampled_from([None, 8, 24]),
    "documents": st.sampled_from([1, 3]),
    "of_none": st.sampled_from([0, 0.05]),
    "q_start": st.sampled_from([0, 3, 16]),
    "kv_start": st.sampled_from([0, 8]),
    "window": st.sampled_from([None, 1, 9, 20]),
    "causal": st.booleans(),
    "softcap": st.sampled_from([None, 0.7]),
    "scale": st.sampled_from([None, 0.3]),
    "by_distance": st.sampled_from([None, "slopes"]),
}
CASES = st.fixed_dictionaries(FEATURES)
# Enough numbers that the ratio of two root mean squares says something.
LONG_CASES = st.fixed_dictionaries(
    FEATURES
    | {"length": st.sampled_from([37, 64, 130]), "kv_length": st.sampled_from([None, 45, 90])}
)


@pytest.mark.parametrize(
    "case",
    [
        {"seed": 0, "length": 37, "window": 20, "softcap": 0.7, "kv_heads": 1, "v_dim": 24},
        {"seed": 1, "length": 130, "documents": 2, "head_dim": 80, "batch": 1},
        {"seed": 2, "length": 1, "kv_length": 45, "q_start": 40, "heads": 8, "documents": 1},
        {"seed": 4, "length": 130, "documents": 1, "of_none": 0, "batch": 1, "heads": 2},
        {
            "seed": 5,
            "length": 130,
            "documents": 1,
            "of_none": 0,
            "batch": 1,
            "heads": 2,
            "window": 45,
            "head_dim": 8,
        },
        {"seed": 3, "length": 16, "kv_length": 24, "causal": False, "q_start": 16, "window": 9},
        {"seed": 6, "length": 37, "heads": 4, "kv_heads": 2, "by_distance": "slopes", "scale": 0.3},
        {"seed": 7, "length": 3, "kv_length": 45, "q_start": 40, "by_distance": "slopes"},
    ],
)
def test_all_features_equal_fp64(case):
    check_fp32(**case)


@pytest.mark.parametrize("length", [1, 37, 130])
@pytest.mark.parametrize("name", MASKS)
def test_every_mask_equals_fp64(name, length):
    q, k, v, d_out, _ = make_inputs(0, length=length, head_dim=8, heads=2, kv_heads=1)
    mask = MASKS[name](np.random.default_rng(1), (2, length))
    got = jax.jit(both_passes)(q, k, v, d_out, mask)
    for result, x, want in zip(NAMES, got, attention_fp64(q, k, v, d_out, mask), strict=True):
        assert relative_error(x, want) < 1e-5, result


@pytest.mark.parametrize(
    "case",
    [
        {"length": 130, "window": 20, "softcap": 2.0},
        {"length": 37, "heads": 4, "kv_heads": 1, "v_dim": 24},
        {"length": 5, "window": 3},
        {"length": 130, "window": 100, "by_distance": "slopes"},
    ],
)
def test_masks_with_least_equal_fp64(case):
    """Documents of each case, with keys that are of none and filling behind them."""
    q, k, v, d_out, mask, scoring = make({"seed": 7, **case})
    filled = mask.q_segments_BT.at[1, -case["length"] // 4 :].set(0)
    kv_segments = jnp.minimum(mask.kv_segments_BS, filled)
    mask = dataclasses.replace(mask, q_segments_BT=filled, kv_segments_BS=kv_segments, causal=True)
    short = with_least(mask, filled)
    assert short.q_least_BT is not None
    got = jax.jit(both_passes)(q, k, v, d_out, short, scoring)
    for name, x, want in zip(
        NAMES, got, attention_fp64(q, k, v, d_out, mask, scoring), strict=True
    ):
        assert relative_error(x, want) < 1e-5, name


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=CASES)
def test_any_features_equal_fp64(case):
    check_fp32(**case)


@pytest.mark.parametrize(
    "case",
    [
        {"seed": 4, "length": 64, "head_dim": 64},
        {
            "seed": 5,
            "length": 130,
            "head_dim": 80,
            "v_dim": 24,
            "kv_heads": 1,
            "window": 20,
            "softcap": 0.7,
        },
        {"seed": 6, "length": 37, "kv_length": 90, "q_start": 16, "causal": False, "documents": 2},
    ],
)
def test_bfloat16_loses_no_more_than_plain_bfloat16(case):
    check_bfloat16(**case)


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=LONG_CASES)
def test_any_features_in_bfloat16_lose_no_more_than_plain_bfloat16(case):
    check_bfloat16(**case)


def test_no_races_and_the_same_bits_in_any_order():
    """Memory starts as nan, blocks of parallel dimensions run in a random order, copies happen
    early or late.
    """
    inputs = make_inputs(
        5, batch=2, length=9, kv_length=40, heads=2, kv_heads=1, q_start=31, window=12, documents=2
    )
    results = []
    for seed, mode in enumerate(("on_wait", "eager")):
        options = pltpu.InterpretParams(
            dma_execution_mode=mode, detect_races=True, random_seed=seed, uninitialized_memory="nan"
        )
        results.append(jax.block_until_ready(both_passes(*inputs, interpret=options)))
        assert interpret_pallas_call.races is not None
        assert not interpret_pallas_call.races.races_found
    for name, one, other in zip(NAMES, *results, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
    for name, x, want in zip(NAMES, results[0], attention_fp64(*inputs), strict=True):
        assert relative_error(x, want) < 1e-5, name


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_that_nobody_sees_are_not_computed(causal):
    """Queries at 32..47 of document 2, 16..63: keys before the window, in the future or of other
    documents are nan.
    """
    q, k, v, d_out, _ = make_inputs(6, batch=1, length=16, kv_length=80)
    document = jnp.repeat(jnp.asarray([[1, 2, 2, 2, 3]], jnp.int32), 16, axis=1)
    places = 32 + np.arange(16), np.arange(80)
    mask = place_mask(document[:, 32:48], document, *places, causal=causal, window=8)
    hidden = (np.arange(80) < 24) | (np.arange(80) >= (48 if causal else 64))
    bad_k, bad_v = (jnp.where(hidden[None, :, None, None], jnp.nan, x) for x in (k, v))
    want = attention_fp64(q, jnp.nan_to_num(bad_k), jnp.nan_to_num(bad_v), d_out, mask)
    for name, x, exact in zip(
        NAMES, jax.jit(both_passes)(q, bad_k, bad_v, d_out, mask), want, strict=True
    ):
        assert relative_error(x, exact) < 1e-5, name


def test_segments_in_any_order():
    q, k, v, d_out, mask = make_inputs(7, length=40)
    segments = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 40)), jnp.int32)
    mask = dataclasses.replace(mask, q_segments_BT=segments, kv_segments_BS=segments)
    got = jax.jit(both_passes)(q, k, v, d_out, mask)
    for name, x, want in zip(NAMES, got, attention_fp64(q, k, v, d_out, mask), strict=True):
        assert relative_error(x, want) < 1e-5, name


def test_a_part_of_a_larger_softmax():
    """Two halves of the keys, each given the whole's out and lse, yield the whole's gradients."""
    q, k, v, d_out, mask = make_inputs(8, length=32, documents=1)
    out, lse, *want = both_passes(q, k, v, d_out, mask, module=chunked_attention)
    halves = []
    for start in (0, 16):
        part = Mask.of(mask.queries, mask.keys[:, :, start : start + 16])
        keys = k[:, start : start + 16], v[:, start : start + 16]
        halves.append(jax.jit(INTERPRETED.backward)(q, *keys, out, lse, d_out, part))
    got = (
        halves[0][0] + halves[1][0],
        *(jnp.concatenate([x, y], 1) for x, y in zip(halves[0][1:], halves[1][1:], strict=True)),
    )
    for name, x, exact in zip(NAMES[2:], got, want, strict=True):
        assert relative_error(x, exact) < 1e-5, name


def test_in_a_ring_on_several_devices():
    """The kernels under shard_map with its checks of what varies, as parts of ring attention."""
    q, k, v, d_out, mask = make_inputs(9, batch=1, length=32, heads=2, kv_heads=1, documents=2)
    segments = mask.q_segments_BT

    def spread(kernel, q, k, v, d_out, segments):
        q, k, v, d_out, segments = map(zigzag, (q, k, v, d_out, segments))
        mask = causal(segments, places(segments), window=20)
        out, pullback = jax.vjp(
            lambda *qkv: context_attention(*qkv, mask, None, kernel=kernel, kind="ring"), q, k, v
        )
        return out, *pullback(d_out)

    mesh = build_mesh(MeshConfig(fsdp=1, context=2), jax.devices()[:2])
    sequence = P(None, "context")
    results = [
        jax.jit(
            jax.shard_map(
                functools.partial(spread, kernel),
                mesh=mesh,
                in_specs=(sequence,) * 5,
                out_specs=(sequence,) * 4,
            )
        )(q, k, v, d_out, segments)
        for kernel in (INTERPRETED, CHUNKED)
    ]
    for name, x, want in zip(("out", *NAMES[2:]), *results, strict=True):
        assert relative_error(x, want) < 1e-5, name


def test_through_the_custom_gradient_with_a_sink():
    q, k, v, d_out, mask = make_inputs(10, length=16)
    sink = jnp.asarray([-1.0, 0.0, 1.0, 3.0])
    results = []
    for kernel in (INTERPRETED, CHUNKED):

        def both(*x, kernel=kernel):
            out, pullback = jax.vjp(lambda *x: attention(*x[:3], mask, x[3], kernel), *x)
            return out, *pullback(d_out)

        results.append(jax.jit(both)(q, k, v, sink))
    for x, want in zip(*results, strict=True):
        assert relative_error(x, want) < 1e-5


def test_says_what_it_cannot_do():
    shape = AttentionShape("TPU v5", "bfloat16", 8, 2, 128, 128, 2048, 2048)
    assert tpu_attention.unsupported(shape) is None
    assert tpu_attention.unsupported(shape._replace(key_size=192)) is None
    assert "float16" in tpu_attention.unsupported(shape._replace(dtype="float16"))
    assert "320" in tpu_attention.unsupported(shape._replace(value_size=320))
    half = jnp.zeros((1, 8, 1, 8), jnp.float16)
    with pytest.raises(ValueError, match="float16"):
        tpu_attention.forward(half, half, half, make_inputs(0, length=8, batch=1)[4])
