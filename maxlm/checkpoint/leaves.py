"""A state as a flat dictionary of arrays, named by their paths: what a checkpoint stores, and its
manifest.

Names do not depend on the kinds of nodes (module, dataclass, tuple, dict), so `{"model": model}`
selects the model out of a saved train state that has a field `model`.
"""

from __future__ import annotations

from typing import Any

import jax

from maxlm.checkpoint.fingerprint import fingerprint
from maxlm.config.errors import UserError
from maxlm.runtime import settle

Manifest = dict[str, dict[str, Any]]

_SHOWN = 10


def flatten(state: Any) -> dict[str, Any]:
    """Return the leaves of `state` by path, like `model/stack/0/mixer/query`."""
    # An nnx.Param is a node with one leaf, `value`: how flax calls it is no part of the name.
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    assert len(leaves) == len(jax.tree.leaves(state)), "two leaves of the state have the same path"
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            raise TypeError(
                f"state leaf {name} is a {type(leaf).__name__}; checkpoints store jax.Array only"
            )
    return leaves


def unflatten(abstract_state: Any, leaves: dict[str, jax.Array]) -> Any:
    """Return a tree shaped like `abstract_state` with the arrays of `leaves`."""
    return jax.tree.unflatten(
        jax.tree.structure(abstract_state), [leaves[name] for name in flatten(abstract_state)]
    )


def make_manifest(leaves: dict[str, jax.Array]) -> Manifest:
    """Describe every leaf: shape, dtype, fingerprint."""
    numbers = fingerprints(leaves)
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "fingerprint": numbers[name]}
        for name, leaf in leaves.items()
    }


def fingerprints(leaves: dict[str, jax.Array]) -> dict[str, str]:
    """Return the fingerprint of every leaf as 8 hexadecimal digits."""
    numbers = jax.device_get({name: settle(fingerprint(leaf)) for name, leaf in leaves.items()})
    return {name: f"{int(number):08x}" for name, number in numbers.items()}


def check_fits(
    manifest: Manifest, wanted: dict[str, jax.ShapeDtypeStruct], *, partial: bool, where: str
) -> None:
    """Check that the saved leaves are the wanted ones, shape and dtype included; nothing is ever
    cast or reshaped.

    Raises:
        UserError: they are not; names the leaves.
    """
    problems = []
    for name, leaf in wanted.items():
        saved = manifest.get(name)
        if saved is None:
            problems.append(f"{name}: not in the checkpoint")
        elif (tuple(saved["shape"]), saved["dtype"]) != (leaf.shape, str(leaf.dtype)):
            problems.append(
                f"{name}: saved as {saved['dtype']}{saved['shape']}, this run needs {leaf.dtype}{list(leaf.shape)}"
            )
    if not partial:
        problems += [
            f"{name}: in the checkpoint, but this run has no such array"
            for name in manifest.keys() - wanted
        ]
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise UserError(
            f"{where} holds another model or optimizer than this run:\n  "
            + "\n  ".join(sorted(problems)[:_SHOWN] + more)
            + "\nset model and optimizer back to what the checkpoint was trained with, or choose another run_dir"
        )
