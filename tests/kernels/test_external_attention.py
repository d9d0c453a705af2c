"""Other libraries' kernels under our contract: their values, gradients and masks against fp64, and
under shard_map.

Splash attention is interpreted. cuDNN and tokamax' kernels need a GPU: here the same calls run on
their plain versions.
"""

import dataclasses
import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.kernels import external_attention
from maxlm.kernels.external_attention import (
    Library,
    attend_with_cudnn,
    attend_with_splash,
    attend_with_tokamax,
    results_of,
)
from maxlm.kernels.mask import causal, with_least
from maxlm.kernels.shape import PLAIN, AttentionShape, Scoring
from maxlm.ops.attention import CHUNKED, Kernel, attention
from tests.kernels.oracle import MASKS, attention_fp64, make_inputs, relative_error

has_tokamax = importlib.util.find_spec("tokamax") is not None
needs_tokamax = pytest.mark.skipif(
    not has_tokamax, reason="tokamax is not installed: scripts/setup tokamax"
)
LIBRARIES = {
    "splash": Library(
        functools.partial(attend_with_splash, interpret=True), "cpu", external_attention.KEEP_SPLASH
    ),
    "cudnn": Library(
        functools.partial(attend_with_cudnn, implementation="xla"), "cpu", results_of("dot_general")
    ),
    "tokamax": Library(
        functools.partial(attend_with_tokamax, implementation="xla"),
        "cpu",
        results_of("dot_general"),
    ),
}
WITH_TOKAMAX = ["splash", "cudnn", pytest.param("tokamax", marks=needs_tokamax)]
SHAPE = AttentionShape("NVIDIA H200", "bfloat16", 8, 2, 128, 128, 4096, 4096)


def inputs(seed, *, filling=0, **case):
    """Return a whole sequence's inputs, with `filling` tokens of no document at its end."""
    q, k, v, d_out, mask = make_inputs(seed, of_none=0, **case)
    segments = mask.q_segments_BT.at[:, mask.q_segments_BT.shape[1] - filling :].set(0)
    return (
        q,
        k,
        v,
        d_out,
        dataclasses.replace(mask, q_segments_BT=segments, kv_segments_BS=segments),
    )


def both_passes(library, q, k, v, d_out, mask, scoring=PLAIN):
    out, kept = library.forward(q, k, v, mask, scoring=scoring)
    return out, *library.backward(q, k, v, out, kept, d_out, mask, scoring=scoring)


@pytest.mark.parametrize("name", WITH_TOKAMAX)
@pytest.mark.parametrize(
    ("case", "softcap"),
    [
        ({"length": 150, "window": 40, "filling": 7}, None),
        ({"length": 130, "heads": 4, "kv_heads": 1, "documents": 1, "head_dim": 80}, None),
        ({"length": 60, "causal": False, "filling": 3}, None),
        ({"length": 140, "window": 1, "batch": 1}, None),
        ({"length": 70, "v_dim": 24, "window": 9}, 0.7),
    ],
    ids=str,
)
def test_equals_fp64(name, case, softcap):
    if name == "cudnn" and softcap is not None:
        pytest.skip("cuDNN has neither a softcap nor values of another size")
    if name == "splash" and not case.get("causal", True):
        pytest.skip(
            "splash attention compiles causal masks in; see test_splash_refuses_what_is_not_causal"
        )
    given = *inputs(3, **case), Scoring(0.3 if softcap else None, softcap)
    want = attention_fp64(*given)
    got = jax.jit(functools.partial(both_passes, LIBRARIES[name]))(*given)
    for what, x, exact in zip(("out", "d_q", "d_k", "d_v"), got, (want[0], *want[2:]), strict=True):
        assert relative_error(x, exact) < 1e-5, what


@pytest.mark.parametrize("length", [40, 37])
@pytest.mark.parametrize("mask_name", MASKS)
@pytest.mark.parametrize("name", WITH_TOKAMAX[1:])
def test_every_mask_equals_fp64(name, mask_name, length):
    q, k, v, d_out, _ = make_inputs(6, length=length)
    mask = MASKS[mask_name](np.random.default_rng(3), (2, length))
    want = attention_fp64(q, k, v, d_out, mask)
    got = jax.jit(functools.partial(both_passes, LIBRARIES[name]))(q, k, v, d_out, mask)
    for what, x, exact in zip(("out", "d_q", "d_k", "d_v"), got, (want[0], *want[2:]), strict=True):
        assert relative_error(x, exact) < 1e-5, what


@pytest.mark.parametrize("name", WITH_TOKAMAX)
def test_masks_with_least_equal_fp64(name):
    q, k, v, d_out, mask = inputs(8, length=70, window=20, filling=3)
    short = with_least(dataclasses.replace(mask, causal=True), mask.q_segments_BT)
    assert short.q_least_BT is not None
    want = attention_fp64(q, k, v, d_out, mask)
    got = jax.jit(functools.partial(both_passes, LIBRARIES[name]))(q, k, v, d_out, short)
    for what, x, exact in zip(("out", "d_q", "d_k", "d_v"), got, (want[0], *want[2:]), strict=True):
        assert relative_error(x, exact) < 1e-5, what


def test_splash_refuses_what_is_not_causal():
    reason = external_attention.splash_unsupported(SHAPE._replace(causal=False))
    assert "knows causal ones" in reason
    assert external_attention.splash_unsupported(SHAPE) is None
    with pytest.raises(ValueError, match="causality and window"):
        LIBRARIES["splash"].forward(*inputs(0, causal=False)[:3], inputs(0, causal=False)[4])


def test_only_what_the_kernel_computes_is_kept():
    """Not its copies of q, k and v, nor what it makes of the mask."""
    q, k, v, _, mask = inputs(5, length=100, heads=4, head_dim=16)
    _, kept = jax.eval_shape(LIBRARIES["splash"].forward, q, k, v, mask)
    # The others are its tables of blocks.
    floats = [x.shape for x in kept if jnp.issubdtype(x.dtype, jnp.floating)]
    assert sorted(floats) == [(2, 4, 128), (2, 4, 128, 16)]


@pytest.mark.parametrize("name", WITH_TOKAMAX)
def test_in_a_shard_map_and_through_the_custom_gradient(name):
    """The checks of what varies are on, which these libraries' kernels do not pass by themselves."""
    q, k, v, d_out, mask = inputs(4, length=40, window=20, filling=4)
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def program(kernel, q, k, v, d_out, mask):
        remembered = jax.checkpoint(lambda *qkv: attention(*qkv, mask, None, kernel))
        out, pullback = jax.vjp(remembered, q, k, v)
        return out, *pullback(d_out)

    heads = P("data", None, "tensor")
    places = (*(heads,) * 4, jax.tree.map(lambda _: P("data"), mask))
    library = LIBRARIES[name]
    results = []
    for kernel in (Kernel(library.forward, library.backward), CHUNKED):
        step = jax.shard_map(
            functools.partial(program, kernel), mesh=mesh, in_specs=places, out_specs=(heads,) * 4
        )
        results.append(jax.jit(step)(q, k, v, d_out, mask))
    real = np.asarray(mask.q_segments_BT > 0)[:, :, None, None]
    for x, want in zip(*results, strict=True):
        assert relative_error(x, np.where(real, want, 0)) < 1e-5


@pytest.mark.tpu_aot
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU's compiler"
)
def test_splash_compiles_for_a_mesh_of_tpus(monkeypatch):
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setitem(os.environ, name, "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2").devices[:4]
    mesh, sequences = Mesh(np.array(devices), ("data",)), P("data")

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, sequences))

    def program(q, k, v, d_out, segments):
        mask = causal(segments, jnp.broadcast_to(jnp.arange(1000, dtype=jnp.int32), segments.shape))
        return both_passes(external_attention.SPLASH, q, k, v, d_out, mask)

    step = jax.shard_map(program, mesh=mesh, in_specs=(sequences,) * 5, out_specs=(sequences,) * 4)
    q, k = array(4, 1000, 4, 64), array(4, 1000, 2, 64)
    text = jax.jit(step).lower(q, k, k, q, array(4, 1000, dtype=jnp.int32)).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2


@pytest.mark.parametrize(
    ("reason_of", "changes", "words"),
    [
        (external_attention.unsupported, {"softcap": 3.0, "value_size": 64}, None),
        (external_attention.unsupported, {"dtype": "float32"}, "float32"),
        (external_attention.unsupported, {"spread": True}, "mesh.context_kind=ulysses"),
        (external_attention.unsupported, {"sinks": True}, "no sinks"),
        (external_attention.unsupported, {"by_distance": "slopes"}, "position.kind=alibi"),
        (external_attention.cudnn_unsupported, {"by_distance": "table"}, "position.kind=relative"),
        (external_attention.cudnn_unsupported, {"causal": False}, None),
        (external_attention.cudnn_unsupported, {"softcap": 3.0}, "no softcap"),
        (external_attention.cudnn_unsupported, {"value_size": 64}, "128 and 64"),
        (external_attention.cudnn_unsupported, {"key_size": 256, "value_size": 256}, None),
        (
            external_attention.cudnn_unsupported,
            {"key_size": 256, "value_size": 256, "device_kind": "NVIDIA L40S"},
            "to 128, not 256",
        ),
        (
            external_attention.cudnn_unsupported,
            {"key_size": 100, "value_size": 100},
            "multiples of 8, to 256, not 100",
        ),
        (external_attention.cudnn_unsupported, {"query_length": 4095}, "4095"),
        (external_attention.cudnn_unsupported, {"sinks": True}, "no sinks"),
        (
            external_attention.tokamax_unsupported,
            {},
            None if has_tokamax else "scripts/setup tokamax",
        ),
    ],
)
def test_says_what_it_cannot_do(reason_of, changes, words):
    reason = reason_of(SHAPE._replace(**changes))
    assert (words in reason) if words else reason is None
