"""A parameter is one line: shape, PartitionSpec over mesh axes, initialiser, and what it is.

This file reads them.

Modules are built without memory: every parameter starts as a `jax.ShapeDtypeStruct`, from which
come shardings, counts and, last, values (`initialise`). A stacked parameter has one more leading
dimension, the layers, than its spec has entries; that dimension is split over `stage`.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.sharding.stages import EMPTY

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


Role = Literal["matrix", "router", "head", "embedding", "norm", "bias", "state"]
"""What a parameter is: a matrix that tokens are multiplied with, one of a router, the output
projection, a table that tokens are looked up in, the scale or shift of a norm, a vector that is
added, or what a layer's own rule moves after a step and no optimizer does."""


def weight(
    shape: tuple[int, ...],
    spec: P,
    init: Initializer,
    *,
    role: Role,
    inputs: tuple[int, ...] = (),
    used: float | None = None,
    fp32: bool = False,
) -> nnx.Param:
    """Declare an fp32 parameter; everything that is asked of it later is read from this line.

    Args:
      shape: of the whole array, on all devices together.
      spec: mesh axes of each dimension.
      init: draws the first values.
      role: what it is, which decides about weight decay and which optimizer takes it.
      inputs: the dimensions that a product with a token sums over: those before them count
        matrices, those after them are the output. None for what is no matrix.
      used: the share of it that a token is multiplied with, or that is added to it (role bias),
        for parameter and FLOP counts; by default all of a matrix or bias, and nothing of the rest.
      fp32: it is used in fp32, whatever the compute dtype.
    """
    assert len(shape) == len(spec), f"{shape} needs one spec entry per dimension, not {spec}"
    used = float(bool(inputs) or role == "bias") if used is None else used
    facts: dict[str, Any] = {
        "spec": spec,
        "init": init,
        "role": role,
        "inputs": inputs,
        "used": used,
        "fp32": fp32,
    }
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), **facts)


class Widths(NamedTuple):
    """How many times as many numbers a product with a parameter sums over, and makes, as in a model
    of the base width (`model.parametrisation`).
    """

    fan_in: float
    fan_out: float


def widths_of(parameter: nnx.Param) -> Widths | None:
    """Return how a parameter's sizes follow the width; None in a model that does not ask."""
    widths: Widths | None = parameter.get_metadata().get("widths")
    return widths


def role_of(parameter: nnx.Param) -> Role:
    """Return what a parameter is."""
    role: Role = parameter.get_metadata("role")
    return role


def layers_of(parameter: nnx.Param) -> tuple[int, ...] | None:
    """Return the number in the model of the layer that each row of a stacked parameter holds,
    `EMPTY` for none.

    None where a parameter is not stacked.
    """
    layers: tuple[int, ...] | None = parameter.get_metadata().get("layers")
    return layers


def stays_fp32(parameter: nnx.Param) -> bool:
    """Return whether a parameter is used in fp32 whatever the compute dtype is."""
    return bool(parameter.get_metadata("fp32"))


def is_parameter(node: Any) -> bool:
    """Return whether a tree node is a parameter (for `is_leaf=`)."""
    return isinstance(node, nnx.Param)


def map_parameters(function: Callable[..., Any], *modules: Module) -> Module:
    """Apply a function to every parameter of a module; give back the same module around the
    results.
    """
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


def stack_layers(module: Module, layers: Sequence[int]) -> Module:
    """Give every declared parameter a leading dimension, a row for each of `layers` (see
    `layers_of`).
    """

    def stacked(parameter: nnx.Param) -> nnx.Param:
        value, facts = parameter.get_value(), dict(parameter.get_metadata())
        shape = jax.ShapeDtypeStruct((len(layers), *value.shape), value.dtype)
        return nnx.Param(shape, **{**facts, "layers": tuple(layers)})

    return map_parameters(stacked, module)


def parameter_count(module: Any) -> int:
    """Count the elements of all parameters."""
    return sum(math.prod(parameter.get_value().shape) for _, parameter in named_parameters(module))


def initialise(module: Module, seed: int, mesh: Mesh) -> Module:
    """Fill declared parameters with values, each born on its devices.

    A value depends on the seed, the parameter's path and its layer, never on the mesh: threefry
    bits are the same however an array is split (jax_threefry_partitionable). Of a stacked
    parameter, the path within its block and the layer's number in the model count, not how the
    model's layers are written as patterns.
    """

    def values(seed_key: jax.Array) -> Module:
        named = iter(named_parameters(module))

        def value(parameter: nnx.Param) -> nnx.Param:
            path, _ = next(named)
            return with_value(parameter, _initial_value(seed_key, path, parameter))

        return map_parameters(value, module)

    filled: Module = jax.jit(values, out_shardings=shardings(module, mesh))(jax.random.key(seed))
    return filled


def _initial_value(seed_key: jax.Array, path: str, parameter: nnx.Param) -> jax.Array:
    declared, init, layers = (
        parameter.get_value(),
        parameter.get_metadata("init"),
        layers_of(parameter),
    )
    if layers is None:
        return init(_path_key(seed_key, path), declared.shape, declared.dtype)
    key = _path_key(seed_key, path_in_block(path))
    keys = jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.asarray(layers))
    rows = jax.vmap(lambda layer_key: init(layer_key, declared.shape[1:], declared.dtype))(keys)
    if EMPTY not in layers:
        return rows
    held = jnp.asarray(layers) != EMPTY
    return jnp.where(held.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)


def path_in_block(path: str) -> str:
    """Return the path of a stacked parameter within its block, stack/0/1/mixer/query ->
    mixer/query, or within its module, mtp/0/block/mixer/query -> block/mixer/query.
    """
    return path.split("/", 3)[3] if path.startswith("stack/") else path.split("/", 2)[2]


def _path_key(seed_key: jax.Array, path: str) -> jax.Array:
    return jax.random.fold_in(seed_key, zlib.crc32(path.encode()))
