"""Bring the layers of a checkpoint into the rows where this mesh's stages want them."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from maxlm.sharding.host import to_device, to_place_of
from maxlm.sharding.parameters import is_parameter, layers_of, with_value
from maxlm.sharding.stages import EMPTY

Tree = TypeVar("Tree")


def rearrange_layers(tree: Tree, wanted: Tree) -> Tree:
    """Bring the rows of every stacked parameter from one layout of layers on stages into another.

    Args:
      tree: any tree with parameters in it: a state, a decoder.
      wanted: the same tree as `jax.ShapeDtypeStruct`s with shardings, declared for the layout that
        is wanted.
    """
    old, new = (jax.tree.leaves(part, is_leaf=is_parameter) for part in (tree, wanted))
    if all(layers_of(a) == layers_of(b) for a, b in zip(old, new, strict=True) if is_parameter(a)):
        return tree

    def moved(tree: Tree) -> Tree:
        result: Tree = jax.tree.map(_with_rows_of, tree, wanted, is_leaf=is_parameter)
        return result

    shardings = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    rearranged: Tree = jax.jit(moved, out_shardings=shardings, donate_argnums=0)(tree)
    return rearranged


def _with_rows_of(leaf: Any, wanted: Any) -> Any:
    """Return a parameter's values in the rows in which `wanted` has its layers; zeros in rows that
    hold none.
    """
    if not is_parameter(leaf) or layers_of(leaf) is None:
        return leaf
    value, places = (
        leaf.get_value(),
        {layer: row for row, layer in enumerate(layers_of(leaf) or ())},
    )
    layers = layers_of(wanted) or ()
    rows = jnp.asarray([0 if layer == EMPTY else places[layer] for layer in layers])
    held = jnp.asarray([layer != EMPTY for layer in layers]).reshape(-1, *[1] * (value.ndim - 1))
    taken = jnp.where(held, to_device(value)[rows], 0)
    return with_value(wanted, to_place_of(taken, value))
