"""The Hopper kernels on Pallas' simulated GPU (threads, shared memory, barriers) against attention in fp64.

The simulation has no wgmma from registers and no layouts of registers: these are replaced by what they compute. That
the real ones compile is checked by scripts/compile_attention_gpu.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import PartitionSpec as P

from maxlm.jax_versions import varying_axes
from maxlm.kernels import hopper_attention
from maxlm.kernels.mask import Mask
from maxlm.kernels.shape import AttentionShape
from tests.kernels.oracle import attention_fp64

interpret_params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call")


def product(x, y):
    return jnp.dot(x[...].astype(jnp.float32), y[...].astype(jnp.float32).T, precision="highest")


def multiply(x, y, then=lambda: None):
    then()
    return product(x, y)


@pytest.fixture
def simulated(monkeypatch):
    monkeypatch.setattr(plgpu, "layout_cast", lambda x, layout: x)
    monkeypatch.setattr(
        plgpu, "broadcasted_iota", lambda dtype, shape, axis, layout: lax.broadcasted_iota(dtype, shape, axis)
    )
    monkeypatch.setattr(hopper_attention, "_load", lambda ref, axis: ref[...])
    monkeypatch.setattr(hopper_attention, "_multiply", multiply)
    monkeypatch.setattr(
        hopper_attention, "_multiply_both", lambda one, two, weigh: (weigh(product(*one)), product(*two))
    )
    monkeypatch.setattr(
        hopper_attention,
        "_accumulate",
        lambda sums, x, y: sums + jnp.dot(x.astype(jnp.float32), y[...].astype(jnp.float32), precision="highest"),
    )
    yield interpret_params.InterpretGPUParams(detect_races=True)
    interpreter.reset_gpu_interpret_mode_state()


def make(
    length=128, kv_length=None, heads=(1, 1), sizes=(64, 64), starts=(0, 0), causal=True, window=None, documents=()
):
    rng = np.random.default_rng(0)
    kv_length = kv_length or length
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.bfloat16)  # noqa: E731
    q, k = draw(1, length, heads[0], sizes[0]), draw(1, kv_length, heads[1], sizes[0])
    v, d_out = draw(1, kv_length, heads[1], sizes[1]), draw(1, length, heads[0], sizes[1])
    segments = lambda n: jnp.asarray(1 + np.searchsorted(documents, np.arange(n), "right")[None], jnp.int32)  # noqa: E731
    mask = Mask(segments(length), segments(kv_length), *map(jnp.int32, starts), causal=causal, window=window)
    return q, k, v, d_out, mask


def check(given, simulated, softcap=None, *, backward=True):
    q, k, v, d_out, mask = given
    want = attention_fp64(q, k, v, d_out, mask, softcap)
    out, lse = hopper_attention.forward(q, k, v, mask, softcap=softcap, interpret=simulated)
    got = [out, lse]
    if backward:
        given = q, k, v, jnp.asarray(want[0], q.dtype), jnp.asarray(want[1], jnp.float32), d_out, mask
        got += hopper_attention.backward(*given, softcap=softcap, interpret=simulated)
    assert not interpreter.get_races().races_found
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), got, want, strict=False):
        error = np.sqrt(np.mean(np.square(np.asarray(x, np.float64) - y)))
        # p and ds are rounded to 8 bits before they are multiplied; lse is not.
        allowed = (1e-5 if name == "lse" else 2**-8) * max(1.0, np.sqrt(np.mean(np.square(y))))
        assert error <= allowed, f"{name}: {error} > {allowed}"


@pytest.mark.slow
def test_one_block_of_everything(simulated):
    check(make(), simulated)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "softcap"),
    [
        ({"length": 256, "heads": (2, 1), "documents": (100,)}, None),
        ({"length": 256, "window": 70}, 2.0),
        ({"length": 384, "documents": (64, 200)}, None),
        ({"length": 128, "kv_length": 384, "starts": (256, 0)}, None),
        ({"length": 256, "starts": (0, 128)}, None),
        ({"length": 256, "causal": False, "sizes": (128, 128)}, None),
    ],
)
def test_many_blocks(simulated, options, softcap):
    check(make(**options), simulated, softcap)


def test_results_in_a_shard_map_vary_as_the_arguments():
    q, k, v, d_out, mask = make(length=200, heads=(4, 2), sizes=(128, 128), window=40)
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    heads = P(None, None, "tensor", None)

    def program(q, k, v, d_out, mask):
        out, lse = hopper_attention.forward(q, k, v, mask, softcap=2.0)
        gradients = hopper_attention.backward(q, k, v, out, lse, d_out, mask, softcap=2.0)
        assert all(varying_axes(x) == {"tensor"} for x in (out, lse, *gradients))
        return out, lse, *gradients

    specs = (heads, P(None, "tensor", None), heads, heads, heads)
    mask_spec = Mask(P(), P(), P(), P(), mask.causal, mask.window)
    sharded = jax.jit(jax.shard_map(program, mesh=mesh, in_specs=(heads,) * 4 + (mask_spec,), out_specs=specs))
    results = jax.eval_shape(sharded, q, k, v, d_out, mask)
    assert [(x.shape, x.dtype) for x in results[2:]] == [(x.shape, x.dtype) for x in (q, k, v)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"device_kind": "NVIDIA A100-SXM4-80GB"}, "flash_triton"),
        ({"dtype": "float32"}, "flash_triton"),
        ({"key_size": 192}, "192 (keys), 128 (values)"),
        ({"key_size": 80, "value_size": 80}, "head sizes 64, 96 and 128"),
    ],
)
def test_says_what_it_cannot_do(changes, words):
    shape = AttentionShape("NVIDIA H200", "bfloat16", 8, 2, 128, 128, 4096, 4096)
    reason = hopper_attention.unsupported(shape._replace(**changes))
    assert (words in reason) if words else reason is None
