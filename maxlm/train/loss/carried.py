"""What mixers carry over from step to step, cut into microbatches as the batch is."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from maxlm.jax_versions import varying_axes
from maxlm.layers.stack import Carried
from maxlm.sharding.parameters import map_parameters, partition_spec, with_value


def split_carried(carried: Carried, count: int) -> Carried:
    """Give each microbatch its sequences, every M-th: parameters (L, B, ...) -> arrays (M, L, B /
    M, ...).
    """

    def split(parameter: Any) -> jax.Array:
        rows = parameter.get_value()
        parted = rows.reshape(rows.shape[0], -1, count, *rows.shape[2:])
        return lax.stop_gradient(parted.swapaxes(0, 2).swapaxes(1, 2))

    result: Carried = map_parameters(split, carried)
    return result


def join_carried(pieces: Any, carried: Carried) -> Carried:
    """Undo `split_carried`."""

    def join(parameter: Any, piece: jax.Array) -> Any:
        rows = lax.stop_gradient(piece.swapaxes(1, 2).swapaxes(0, 2))
        # Devices that hold the same sequences hold the same numbers, but a branch may have made the
        # types forget it.
        entries = (axes for axes in partition_spec(parameter) if axes is not None)
        split = {name for axes in entries for name in ((axes,) if isinstance(axes, str) else axes)}
        copies = tuple(sorted(varying_axes(rows) - split))
        rows = lax.pmax(rows, copies) if copies else rows
        return with_value(parameter, rows.reshape(parameter.get_value().shape))

    result: Carried = map_parameters(join, carried, pieces)
    return result
