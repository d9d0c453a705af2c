"""A state as a flat dictionary of arrays, named by their paths: what a checkpoint stores, and its
manifest.

Names do not depend on the kinds of nodes (module, dataclass, tuple, dict), so `{"model": model}`
selects the model out of a saved train state that has a field `model`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maxlm.checkpoint.fingerprint import Block, fingerprint_blocks
from maxlm.config.errors import UserError

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


def make_manifest(
    leaves: dict[str, jax.Array], blocks: dict[str, list[Block]]
) -> tuple[Manifest, list[str]]:
    """Describe every leaf: shape, dtype, fingerprint. Return the names of those that are not finite
    too.

    All processes must call it together.

    Args:
        leaves: the state by path.
        blocks: of every leaf, those of this process, as `fingerprint_blocks` says.
    """
    totals = _totals(blocks)
    manifest = {
        name: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "fingerprint": f"{totals[name][0]:08x}",
        }
        for name, leaf in leaves.items()
    }
    return manifest, [name for name, (_, finite) in totals.items() if not finite]


def fingerprints(leaves: dict[str, jax.Array]) -> dict[str, str]:
    """Return the fingerprint of every leaf as 8 hexadecimal digits; all processes must call it
    together.
    """
    totals = _totals(fingerprint_blocks(leaves))
    return {name: f"{number:08x}" for name, (number, _) in totals.items()}


def _totals(blocks: dict[str, list[Block]]) -> dict[str, tuple[int, bool]]:
    """Return the fingerprint of every leaf, and whether it is finite, from the blocks of all
    processes.
    """
    mine = np.array(
        [
            [sum(b.fingerprint for b in part) % 2**32, sum(not b.finite for b in part)]
            for part in blocks.values()
        ],
        np.uint32,
    ).reshape(len(blocks), 2)
    several = jax.process_count() > 1
    parts = np.asarray(multihost_utils.process_allgather(mine)) if several else mine[None]
    sums = parts.sum(axis=0, dtype=np.uint64) % 2**32
    return {name: (int(n), bad == 0) for name, (n, bad) in zip(blocks, sums.tolist(), strict=True)}


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
