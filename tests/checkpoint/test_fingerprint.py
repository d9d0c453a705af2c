import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.checkpoint import fingerprint as fingerprint_module
from maxlm.checkpoint.fingerprint import fingerprint_blocks, fingerprint_values


def fingerprint(array):
    """Add up the blocks of an array."""
    blocks = fingerprint_blocks({"x": array})["x"]
    return sum(block.fingerprint for block in blocks) % 2**32


def reference(array: np.ndarray, places: np.ndarray | None = None) -> int:
    """The definition, one element at a time; of the elements at some places alone."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return x ^ (x >> 16)

    bits = array.reshape(-1).view(f"uint{8 * array.dtype.itemsize}").tolist()
    counted = range(array.size) if places is None else np.flatnonzero(places).tolist()
    return sum(mix(bits[index] ^ mix(index)) for index in counted) % 2**32


@pytest.mark.parametrize(
    "dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.uint32, np.int32, np.int8, np.bool_]
)
def test_equals_its_definition(dtype):
    array = (np.random.default_rng(0).standard_normal((3, 5, 7)) * 50).astype(dtype)
    assert fingerprint(jnp.asarray(array)) == reference(array)


@pytest.mark.parametrize("explicit", [False, True])
def test_is_the_same_on_every_sharding(explicit):
    array = np.random.default_rng(1).standard_normal((16, 8, 4)).astype(np.float32)
    kinds = (jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto,) * 2
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"), axis_types=kinds)
    for spec in (P(), P("a"), P("b", "a"), P(("a", "b")), P(None, "b", "a")):
        assert (fingerprint(jax.device_put(array, NamedSharding(mesh, spec)))) == reference(
            array
        ), spec


def test_notices_every_bit_and_every_exchange():
    generator = np.random.default_rng(2)
    array = generator.standard_normal((64, 32)).astype(np.float32)
    good = fingerprint(jnp.asarray(array))
    for _ in range(100):
        flipped = array.copy()
        flipped.reshape(-1).view(np.uint32)[generator.integers(array.size)] ^= np.uint32(
            1 << generator.integers(32)
        )
        assert (fingerprint(jnp.asarray(flipped))) != good
        swapped = array.copy().reshape(-1)
        i, j = generator.choice(array.size, 2, replace=False)
        swapped[[i, j]] = swapped[[j, i]]
        assert (fingerprint(jnp.asarray(swapped.reshape(array.shape)))) != good
        signs = array.copy().reshape(-1)
        signs[[i, j]] *= -1
        assert (fingerprint(jnp.asarray(signs.reshape(array.shape)))) != good


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.bool_])
def test_blocks_are_the_array_once_and_have_the_numbers_of_what_they_read_as(dtype):
    array = (np.random.default_rng(3).standard_normal((16, 8, 4)) * 50).astype(dtype)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    for spec in (P(), P("a"), P(None, ("b", "a")), P("b", None, "a")):
        covered = np.zeros(array.shape, int)
        placed = jax.device_put(array, NamedSharding(mesh, spec))
        for block in fingerprint_blocks({"x": placed})["x"]:
            covered[block.place] += 1
            part = array[block.place]
            assert (block.nbytes, block.finite) == (part.nbytes, True)
            assert fingerprint_values(part, block.place, array.shape) == block.fingerprint
        assert (covered == 1).all()


def test_large_blocks_are_taken_row_by_row(monkeypatch):
    array = np.random.default_rng(4).standard_normal((7, 6, 5)).astype(np.float32)
    monkeypatch.setattr(fingerprint_module, "_ELEMENTS_AT_A_TIME", 70)
    index = (slice(2, 6), slice(None), slice(0, 5))
    inside = np.zeros(array.shape, bool)
    inside[index] = True
    assert fingerprint_values(array[index], index, array.shape) == reference(array, inside)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_tells_which_blocks_are_finite(value):
    array = np.zeros((8, 4), np.float32)
    array[5, 1] = value
    mesh = Mesh(np.array(jax.devices()), ("a",))
    blocks = fingerprint_blocks({"x": jax.device_put(array, NamedSharding(mesh, P("a")))})["x"]
    assert [block.finite for block in blocks] == [row != 5 for row in range(8)]


def test_takes_scalars_and_empty_arrays():
    assert (fingerprint(jnp.uint32(7))) == reference(np.uint32([7]))
    assert (fingerprint(jnp.zeros((0, 3)))) == 0
