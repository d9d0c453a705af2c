"""Collectives of attention over `context`, counted in compiled programs, against the docstrings'
formulas.
"""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig
from maxlm.kernels.mask import causal, in_chunks
from maxlm.ops.attention import CHUNKED
from maxlm.ops.context_attention import context_attention
from maxlm.sharding.context import places
from maxlm.sharding.mesh import build_mesh
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import batch_shapes, build_program
from tests.hlo import collectives, count
from tests.train.program import make_config

LAYERS, BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM, V_DIM = 2, 1, 64, 16, 8, 4, 6


def compile_gradients(kind, devices, *, window=None, chunk=None, length=LENGTH):
    """Compile the forward and backward pass of some layers' attention, as a scan over them; return
    it and its mesh.
    """
    mesh = build_mesh(MeshConfig(fsdp=1, context=devices), jax.devices()[:devices])
    how = {"kernel": CHUNKED, "kind": kind}

    def program(q, k, v, segments):
        place = places(segments)
        mask = causal(segments, place, window)
        mask = in_chunks(mask, place, chunk) if chunk else mask

        def layer(carry, qkv):
            return carry, context_attention(*qkv, mask, None, **how)

        out, pullback = jax.vjp(lambda *qkv: jax.lax.scan(layer, None, qkv)[1], q, k, v)
        return pullback(out)

    shapes = [(HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, V_DIM)]
    arrays = [jax.ShapeDtypeStruct((LAYERS, BATCH, length, *shape), np.float32) for shape in shapes]
    arrays.append(jax.ShapeDtypeStruct((BATCH, length), np.int32))
    stacked = P(None, None, "context")
    specs = (*(stacked,) * 3, P(None, "context"))
    mapped = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=(stacked,) * 3)
    return jax.jit(mapped).lower(*arrays).compile(), mesh


def per_layer(kind, devices, **options):
    """Return {collective of floats: (count, bytes of all results)} of one layer, and the count for
    segment ids.
    """
    found = collectives(*compile_gradients(kind, devices, **options))
    assert {c.axes for c in found} == {("context",)}
    floats = {}
    for c in found:
        if c.dtype == "f32":
            number, size = floats.get(c.kind, (0, 0))
            floats[c.kind] = (number + c.times / LAYERS, size + c.times * c.bytes / LAYERS)
    return floats, count(found, dtype="s32") / LAYERS


KEYS, VALUES = (4 * BATCH * LENGTH * KV_HEADS * dim for dim in (HEAD_DIM, V_DIM))
QUERIES, RESULT = (4 * BATCH * LENGTH * HEADS * dim for dim in (HEAD_DIM, V_DIM))


@pytest.mark.parametrize(
    ("devices", "narrowed", "hops", "journeys"),
    # 8 devices with 2 x 4 tokens: a window of 9 reaches back over two parts of 4, to 2 neighbours on
    # either side, and so do chunks of attention.
    [(4, {}, 3, 1), (8, {"window": 9}, 4, 2), (8, {"chunk": 5}, 2, 2)],
    ids=str,
)
def test_ring(devices, narrowed, hops, journeys):
    floats, integers = per_layer("ring", devices, **narrowed)
    # Keys and values forward and again backward, then their gradients, which also have to come
    # home.
    times = 3 * hops + journeys
    assert floats == {"collective-permute": (2 * times, times * (KEYS + VALUES) / devices)}
    assert integers <= 2 * hops  # what layers have in common need not be sent in each


def test_all_gather():
    floats, integers = per_layer("all_gather", 4)
    gathered, scattered = 2 * (KEYS + VALUES), (KEYS + VALUES) / 4
    assert floats == {"all-gather": (4, gathered), "reduce-scatter": (2, scattered)}
    assert integers <= 2


def test_ulysses():
    floats, integers = per_layer("ulysses", 4)
    assert floats == {"all-to-all": (8, 2 * (QUERIES + KEYS + VALUES + RESULT) / 4)}
    assert integers <= 1


def test_memory_of_the_ring_depends_on_tokens_per_device_alone():
    four, eight = (
        compile_gradients("ring", devices, length=4096 * devices)[0] for devices in (4, 8)
    )
    temp_bytes = [compiled.memory_analysis().temp_size_in_bytes for compiled in (four, eight)]
    # All segment ids, 4 bytes a token, may be there too; the rest is keys, values, queries and
    # scores of a block.
    assert temp_bytes[1] < 1.02 * temp_bytes[0]


def compile_model(mesh, length, *, remat="none", num_layers=2):
    """Compile the gradients of a whole model; return them and the mesh."""
    size = {"batch_size": 1, "remat": remat}
    config = make_config(
        mesh=mesh,
        model={"num_layers": num_layers},
        train=size,
        objective={"chunk_tokens": 64},
        length=length,
    )
    program = build_program(config, jax.devices()[: math.prod(config.mesh.sizes.values())])
    gradients = jax.jit(make_gradients(program.declared, program.mesh, program.execution))
    return gradients.lower(
        program.state.decoder, batch_shapes(config, program.mesh)
    ).compile(), program.mesh


@pytest.mark.slow
def test_ring_in_every_layer_of_a_model():
    layers, devices = 3, 4
    found = collectives(*compile_model({"context": devices, "tensor": 2}, 64, num_layers=layers))
    # Of the batch, only the weights are floats.
    forward, backward, zigzag = 2 * (devices - 1), 2 * (devices - 1) + 2 * devices, 2
    permutes = count(found, kind="collective-permute", axes=("context",), dtype="f32")
    assert permutes == layers * (forward + backward) + zigzag
    assert count(found, kind="collective-permute") == count(
        found, kind="collective-permute", axes=("context",)
    )


@pytest.mark.slow
def test_memory_of_a_model_grows_with_tokens_per_device():
    def temp_bytes(devices):
        compiled = {
            length: compile_model({"context": devices}, length, remat="full")[0]
            for length in lengths
        }
        return {length: c.memory_analysis().temp_size_in_bytes for length, c in compiled.items()}

    lengths = (4096, 8192, 16384, 32768, 65536)
    one, eight = temp_bytes(1), temp_bytes(8)
    for length in lengths:
        print(f"{length} tokens: {one[length]} bytes on one device, {eight[length]} on each of 8")
    # From there on, blocks of scores have their full size and are the constant part.
    assert eight[65536] - eight[16384] < 1.1 * (one[65536] - one[16384]) / 8
