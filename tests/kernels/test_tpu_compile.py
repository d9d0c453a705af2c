"""The TPU kernels compile ahead of time for every generation, within its vector memory, without a
TPU.
"""

import functools
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from maxlm.devices import MIB, find_device
from maxlm.kernels import tpu_attention
from maxlm.kernels.block_sizes import vmem_limit
from maxlm.kernels.mask import Mask, causal
from maxlm.ops.attention import Kernel
from maxlm.ops.context_attention import context_attention
from maxlm.sharding.context import places
from tests.kernels.oracle import make_scoring

GENERATIONS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
HEADS = {
    "64": (8, 2, 64, 64),
    "128": (8, 2, 128, 128),
    "256": (4, 1, 256, 256),
    "80": (4, 2, 80, 80),
    "latent": (4, 4, 192, 128),
}

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the TPU's compiler"
    ),
]


@pytest.fixture(autouse=True)
def compiler_alone(monkeypatch):
    """No metadata server is asked where the TPUs are, and other processes may have loaded the
    library.
    """
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def compile_both(
    generation, heads, length, *, kv_length=None, dtype=jnp.bfloat16, window=None, **how
):
    """Compile both passes for shapes alone, and print what vector memory they take (pytest -rP
    shows it).
    """
    device = topologies.get_topology_desc(
        platform="tpu", topology_name=GENERATIONS[generation]
    ).devices[0]
    chip = find_device(device.device_kind).chip
    num_heads, num_kv_heads, size, v_size = HEADS[heads]
    kv_length = kv_length or length

    def array(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    q, k, v, d_out = (
        array(1, length, num_heads, size),
        array(1, kv_length, num_kv_heads, size),
        array(1, kv_length, num_kv_heads, v_size),
        array(1, length, num_heads, v_size),
    )
    of_queries, of_keys = array(1, length, dtype=jnp.int32), array(1, kv_length, dtype=jnp.int32)
    scoring = jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), make_scoring(num_heads, **how))

    def both(q, k, v, d_out, mask, scoring):
        options = {"scoring": scoring, "device_kind": device.device_kind}
        out, lse = tpu_attention.forward(q, k, v, mask, **options)
        return out, tpu_attention.backward(q, k, v, out, lse, d_out, mask, **options)

    mask = Mask(of_queries, of_keys, of_queries, of_keys, of_keys, reach=window)
    text = jax.jit(both).lower(q, k, v, d_out, mask, scoring).compile().as_text()
    used = vector_memory(text)
    assert used.keys() == {"forward", "backward"}
    assert max(used.values()) <= vmem_limit(device.device_kind)
    taken = ", ".join(f"{which} {size / MIB:.1f}" for which, size in used.items())
    print(f"{generation}: {taken} of {chip.vector_memory / MIB:.0f} MiB")


def vector_memory(text):
    """Return the bytes of vector memory that each of our kernels in a compiled program takes, as
    the compiler says.
    """
    used = {}
    for line in text.splitlines():
        kernel = re.search(r"/flash_attention_(forward|backward)_\d+_\d+/pallas_call", line)
        if kernel and "tpu_custom_call" in line:
            found = re.search(
                r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"',
                line,
            )
            used[kernel[1]] = int(found[1])
    return used


@pytest.mark.parametrize("by_distance", [None, "slopes"])
def test_compiles(by_distance):
    compile_both("v6e", "128", 2048, by_distance=by_distance)


@pytest.mark.slow
@pytest.mark.parametrize("length", [2048, 8192, 32768, 131072])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_compiles_for_every_generation_head_size_and_length(generation, heads, length):
    compile_both(generation, heads, length)


@pytest.mark.slow
@pytest.mark.parametrize("length", [8192, 131072])
@pytest.mark.parametrize("heads", ["64", "128", "256", "latent"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_compiles_in_float32(generation, heads, length):
    compile_both(generation, heads, length, dtype=jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize(
    "case",
    [
        {"length": 1, "kv_length": 8192},
        {"length": 2088, "window": 1024, "softcap": 30.0},
        {"length": 3000, "kv_length": 70000, "window": 4096},
        {"length": 1, "kv_length": 8192, "by_distance": "slopes"},
        {"length": 8192, "scale": 0.1, "by_distance": "slopes"},
    ],
    ids=str,
)
def test_compiles_with_every_feature(generation, case):
    compile_both(generation, "128", **case)


@pytest.mark.slow
def test_compiles_in_a_ring():
    """Under shard_map with its checks of what varies over the mesh."""
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=GENERATIONS["v6e"]
    ).devices[:4]
    pair = tpu_attention.forward, tpu_attention.backward
    kernel = Kernel(
        *(functools.partial(function, device_kind=devices[0].device_kind) for function in pair)
    )
    mesh, sequence = Mesh(np.array(devices), ("context",)), P(None, "context")

    def both(q, k, v, d_out, segments):
        mask = causal(segments, places(segments))
        attend = functools.partial(
            context_attention, mask=mask, sink_N=None, kernel=kernel, kind="ring"
        )
        out, pullback = jax.vjp(attend, q, k, v)
        return out, *pullback(d_out)

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, sequence))

    q, k, segments = array(1, 8192, 4, 128), array(1, 8192, 1, 128), array(1, 8192, dtype=jnp.int32)
    spread = jax.shard_map(both, mesh=mesh, in_specs=(sequence,) * 5, out_specs=(sequence,) * 4)
    assert "tpu_custom_call" in jax.jit(spread).lower(q, k, k, q, segments).compile().as_text()
