import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.checkpoint.fingerprint import fingerprint


def reference(array: np.ndarray) -> int:
    """The definition, one element at a time."""
    width = array.dtype.itemsize
    total = 0
    for index, bits in enumerate(array.reshape(-1).view(f"uint{8 * width}").tolist()):
        x = index
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        total += bits * ((x ^ (x >> 16)) | 1)
    return total % 2**32


@pytest.mark.parametrize(
    "dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.uint32, np.int32, np.int8, np.bool_]
)
def test_equals_its_definition(dtype):
    array = (np.random.default_rng(0).standard_normal((3, 5, 7)) * 50).astype(dtype)
    assert int(fingerprint(jnp.asarray(array))) == reference(array)


@pytest.mark.parametrize("explicit", [False, True])
def test_is_the_same_on_every_sharding(explicit):
    array = np.random.default_rng(1).standard_normal((16, 8, 4)).astype(np.float32)
    kinds = (jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto,) * 2
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"), axis_types=kinds)
    for spec in (P(), P("a"), P("b", "a"), P(("a", "b")), P(None, "b", "a")):
        assert int(fingerprint(jax.device_put(array, NamedSharding(mesh, spec)))) == reference(
            array
        ), spec


def test_notices_every_bit_and_every_exchange():
    generator = np.random.default_rng(2)
    array = generator.standard_normal((64, 32)).astype(np.float32)
    good = int(fingerprint(jnp.asarray(array)))
    for _ in range(100):
        flipped = array.copy()
        flipped.reshape(-1).view(np.uint32)[generator.integers(array.size)] ^= np.uint32(
            1 << generator.integers(32)
        )
        assert int(fingerprint(jnp.asarray(flipped))) != good
        swapped = array.copy().reshape(-1)
        i, j = generator.choice(array.size, 2, replace=False)
        swapped[[i, j]] = swapped[[j, i]]
        assert int(fingerprint(jnp.asarray(swapped.reshape(array.shape)))) != good


def test_takes_scalars_and_empty_arrays():
    assert int(fingerprint(jnp.uint32(7))) == 7
    assert int(fingerprint(jnp.zeros((0, 3)))) == 0
