"""Apply an optimizer; where its slots lie in host memory, a few parameters at a time.

Left to itself the compiler fetches all slots first, even while gradients are still computed. So
parameters take turns: the slots of a turn are fetched once those of the turn before are back, and
the first ones once all gradients are there. The device holds the old and new slots of one turn.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax

from maxlm.sharding.host import is_on_host, to_device, to_place_of
from maxlm.sharding.parameters import named_parameters

Tree = TypeVar("Tree")

_MAX_TURNS = 16


def update(
    optimizer: optax.GradientTransformation,
    gradients: Tree,
    slots: Any,
    parameters: Tree,
    done: jax.Array,
) -> tuple[Tree, Any]:
    """Return the optimizer's directions, and its new slots where the old ones lie; inside a jit.

    Args:
      optimizer: its slots for a parameter have paths that end in the parameter's.
      gradients: laid out as the parameters.
      slots: the optimizer's state.
      parameters: what it moves.
      done: whether the step is to be done; if not, the slots stay as they were.
    """
    on_host = any(map(is_on_host, jax.tree.leaves(slots)))
    turns = _turns(parameters) if on_host else {}
    results: list[tuple[Tree, Any]] = []
    ready: Any = done
    for number in range(max(turns.values(), default=0) + 1):
        # What this turn has no use for is dead code: neither fetched nor computed.
        held = to_device(_after(ready, slots)) if on_host else slots
        directions, new = optimizer.update(gradients, held, parameters)
        new = to_place_of(
            jax.tree.map(lambda new, old: jnp.where(done, new, old), new, held), slots
        )
        results.append((directions, new))
        leaves = jax.tree_util.tree_leaves_with_path(new)
        ready = [
            leaf for path, leaf in leaves if is_on_host(leaf) and _turn_of(path, turns) == number
        ]
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: leaves[_turn_of(path, turns)], *results
    )


def _turns(parameters: Any) -> dict[str, int]:
    """Deal the parameters out, in their order, to turns of about the same size; a number for each
    path.
    """
    sizes = {
        path: math.prod(parameter.get_value().shape)
        for path, parameter in named_parameters(parameters)
    }
    total, before, shares = sum(sizes.values()), 0, {}
    for path, size in sizes.items():
        shares[path] = _MAX_TURNS * (2 * before + size) // (2 * total)
        before += size
    numbers = sorted(set(shares.values()))
    return {path: numbers.index(share) for path, share in shares.items()}


def _turn_of(path: tuple[Any, ...], turns: dict[str, int]) -> int:
    """Return the turn of the parameter in whose path a slot's path ends; the first for what is no
    parameter's.
    """
    # An nnx.Param is a node with one leaf, `value`.
    name = "/" + jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    owners = [owner for owner in turns if name.endswith(f"/{owner}")]
    return turns[max(owners, key=len)] if owners else 0


def _after(done: Any, tree: Tree) -> Tree:
    """Return arrays that the compiler cannot touch before others are computed, each by itself."""
    result: Tree = jax.tree.map(lambda leaf: lax.optimization_barrier((leaf, done))[0], tree)
    return result
