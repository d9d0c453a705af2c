"""A parameter is one line: shape, PartitionSpec over mesh axes, initialiser. This file reads those lines.

Modules are built without memory: every parameter starts as a `jax.ShapeDtypeStruct`, from which come shardings,
counts and, last, values (`initialise`). A stacked parameter has one more leading dimension, the layers, than its
spec has entries; that dimension is split over `stage`.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Module = TypeVar("Module")


@dataclasses.dataclass(frozen=True)
class Normal:
    """Draw from a normal distribution with mean 0."""

    std: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Return fresh values."""
        return self.std * jax.random.normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Constant:
    """Fill with one value."""

    value: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Return the value everywhere."""
        del key
        return jnp.full(shape, self.value, dtype)


Initializer = Normal | Constant


def with_value(parameter: nnx.Param, value: Any) -> nnx.Param:
    """Return the parameter around another value."""
    return cast(nnx.Param, parameter.replace(value))


def weight(shape: tuple[int, ...], spec: P, init: Initializer, *, use: str = "cast") -> nnx.Param:
    """Declare an fp32 parameter: its global shape, one spec entry per dimension, its initialiser.

    `use="fp32"` keeps it from being cast to the compute dtype.
    """
    assert len(shape) == len(spec), f"{shape} needs one spec entry per dimension, not {spec}"
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), spec=spec, init=init, use=use)


def stays_fp32(parameter: nnx.Param) -> bool:
    """Return whether a parameter is used in fp32 whatever the compute dtype is."""
    return bool(parameter.get_metadata("use") == "fp32")


def is_parameter(node: Any) -> bool:
    """Return whether a tree node is a parameter (for `is_leaf=`)."""
    return isinstance(node, nnx.Param)


def map_parameters(function: Callable[..., Any], *modules: Module) -> Module:
    """Apply a function to every parameter of a module; give back the same module around the results."""
    result: Module = jax.tree.map(function, *modules, is_leaf=is_parameter)
    return result


def named_parameters(module: Any) -> list[tuple[str, nnx.Param]]:
    """List (path, parameter), the path as in `stack/0/mixer/query`."""
    leaves = jax.tree_util.tree_flatten_with_path(module, is_leaf=is_parameter)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def partition_spec(parameter: nnx.Param) -> P:
    """Return the layout of a parameter; the leading dimension of a stacked one lies over `stage`."""
    spec = parameter.get_metadata("spec")
    stacked = parameter.get_value().ndim > len(spec)
    return P("stage", *spec) if stacked else spec


def partition_specs(module: Module) -> Module:
    """Return the module with each parameter replaced by its PartitionSpec."""
    return map_parameters(partition_spec, module)


def shardings(module: Module, mesh: Mesh) -> Module:
    """Return the module with each parameter replaced by its NamedSharding."""
    return map_parameters(lambda parameter: NamedSharding(mesh, partition_spec(parameter)), module)


def stack_layers(module: Module, num_layers: int) -> Module:
    """Give every declared parameter a leading dimension of `num_layers`."""

    def stacked(parameter: nnx.Param) -> nnx.Param:
        value = parameter.get_value()
        return with_value(parameter, jax.ShapeDtypeStruct((num_layers, *value.shape), value.dtype))

    return map_parameters(stacked, module)


def parameter_count(module: Any) -> int:
    """Count the elements of all parameters."""
    return sum(math.prod(parameter.get_value().shape) for _, parameter in named_parameters(module))


def initialise(module: Module, seed: int, mesh: Mesh, layer_order: Sequence[int] | None = None) -> Module:
    """Fill declared parameters with values, each born on its devices.

    Args:
      module: declared parameters.
      seed: of all values.
      mesh: where they lie.
      layer_order: which layer each row of a stacked parameter holds; row by row unless given.

    A value depends on the seed, the parameter's path and its layer, never on the mesh: threefry bits are the same
    however an array is split (jax_threefry_partitionable).
    """

    def values(seed_key: jax.Array) -> Module:
        named = iter(named_parameters(module))

        def value(parameter: nnx.Param) -> nnx.Param:
            path, _ = next(named)
            key = jax.random.fold_in(seed_key, zlib.crc32(path.encode()))
            return with_value(parameter, _initial_value(key, parameter, layer_order))

        return map_parameters(value, module)

    filled: Module = jax.jit(values, out_shardings=shardings(module, mesh))(jax.random.key(seed))
    return filled


def _initial_value(key: jax.Array, parameter: nnx.Param, layer_order: Sequence[int] | None) -> jax.Array:
    declared, init = parameter.get_value(), parameter.get_metadata("init")
    if declared.ndim == len(parameter.get_metadata("spec")):
        return init(key, declared.shape, declared.dtype)
    layers = jnp.arange(declared.shape[0]) if layer_order is None else jnp.asarray(layer_order)
    keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(layers)
    return jax.vmap(lambda layer_key: init(layer_key, declared.shape[1:], declared.dtype))(keys)
