from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Model(nnx.Module):
    def __init__(self, weights: jax.Array, scale: jax.Array) -> None:
        self.weights = nnx.Param(weights)
        self.scale = nnx.Param(scale)


@pytest.fixture
def make_state() -> Callable[..., Any]:
    """Return a function (step, devices, spec) -> a state of several dtypes, different in every
    element and step.
    """

    def make(
        step: int, devices: int = 8, spec: tuple[Any, ...] = ("a", "b"), rows: int = 1024
    ) -> Any:
        mesh = Mesh(
            np.array(jax.devices()[:devices]).reshape(-1, 2 if devices > 1 else 1), ("a", "b")
        )
        generator = np.random.default_rng(step)

        def put(array: np.ndarray, *axes: Any) -> jax.Array:
            return jax.device_put(jnp.asarray(array), NamedSharding(mesh, PartitionSpec(*axes)))

        weights = generator.standard_normal((rows, 8))
        return {
            "model": Model(
                put(weights.astype(np.float32), *spec), put(weights[0].astype(jnp.bfloat16), "b")
            ),
            "moments": (
                put(generator.integers(0, 2**32, (16, 2), np.uint32), "a"),
                put(weights[1] > 0),
            ),
            "step": put(np.int32(step)),
        }

    return make


@pytest.fixture
def abstract() -> Callable[[Any], Any]:
    """Return a function that keeps shapes, dtypes and shardings of a state."""
    return lambda state: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture
def assert_equal() -> Callable[[Any, Any], None]:
    """Return a function that compares two states bit by bit."""

    def compare(left: Any, right: Any) -> None:
        assert jax.tree.structure(left) == jax.tree.structure(right)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            assert a.dtype == b.dtype
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return compare


@pytest.fixture
def small_disk(make_disk: Callable[[int], Path]) -> Path:
    """Return a file system of 4 MiB."""
    return make_disk(4)
