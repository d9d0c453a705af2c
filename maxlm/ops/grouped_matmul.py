"""Rows sorted by group, each group multiplied with its own matrix: the experts of a mixture, and
nothing is dropped.

For rows x_RD of which the first sizes_E[0] belong to group 0, the next sizes_E[1] to group 1 and so
on:

  y_r = x_r w_e(r),     dx_r = g_r w_e(r)^T,     dw_e = sum over the rows r of group e of x_r^T g_r

Rows behind the last group belong to none; what comes out for them is undefined, and never read by
the caller. The custom gradient keeps x and w and nothing else. `lax.ragged_dot` runs where it is
one instruction: on the TPU it is a kernel whose number of tiles is read from the sizes, so rows
behind the last group cost nothing. On CPU and GPU it is E matmuls over all rows, masked, with E
copies of x in memory (58 GiB for 65,536 rows, 64 groups and two layers); there a loop over tiles
does only the work that is needed. So it does
for dw on the TPU, whose compiler (libtpu 0.0.42, 2026-11-23) masks as well: for 65,536 rows, half
of them in use, 7,168 x 2,048 and 4 groups on v5p that is 8 times the FLOPs, the loop about half of
the peak. Which of them runs is decided when the program is lowered, so one compiled for another
platform gets that platform's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import vary_over, varying_axes
from maxlm.products import einsum_fp32

TILE_ROWS = 64
"""Rows that the loop multiplies at once: a tile with two groups in it is multiplied twice."""
TPU_TILE_ROWS = 1024
"""On the TPU each tile reads and writes the fp32 sum of a whole matrix: few large ones."""
GPU_TILE_ROWS = 512
"""Large enough to fill a GPU, small enough that groups of a thousand rows waste little."""


@jax.custom_vjp
def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Multiply each group of rows with its matrix; (R, D) x (E, D, F) -> (R, F), int32 sizes (E,)."""
    return lax.platform_dependent(x_RD, w_EDF, sizes_E, cpu=tiled, tpu=ragged, default=_GPU)


def _forward(x, w, sizes):  # type: ignore[no-untyped-def]
    return grouped_matmul(x, w, sizes), (x, w, sizes)


def _backward(saved, g):  # type: ignore[no-untyped-def]
    x, w, sizes = saved
    turned = w.swapaxes(1, 2)
    dx = lax.platform_dependent(g, turned, sizes, cpu=tiled, tpu=ragged, default=_GPU)
    dw = lax.platform_dependent(
        x, g, sizes, cpu=tiled_transpose, tpu=_TPU_TRANSPOSE, default=_GPU_TRANSPOSE
    )
    return dx.astype(x.dtype), dw.astype(w.dtype), None


grouped_matmul.defvjp(_forward, _backward)


def add_per_group(x_RF: jax.Array, bias_EF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Add to each group of rows its own vector; (R, F), (E, F), int32 sizes (E,) -> (R, F).

    A product with zeros and ones: the gradient of the vectors is a product too, where that of a
    lookup would be a scatter, which a TPU sorts first. Its FLOPs are E / D of the group's matrices'.
    """
    ends_E, row_R1 = jnp.cumsum(sizes_E), jnp.arange(x_RF.shape[0])[:, None]
    own_RE = (row_R1 >= ends_E - sizes_E) & (row_R1 < ends_E)
    return x_RF + own_RE.astype(bias_EF.dtype) @ bias_EF


# --- one instruction ------------------------------------------------------------------------------

_PER_GROUP = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(),
)


def ragged(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Return the grouped product, as one `ragged_dot`."""
    return lax.ragged_dot(x_RD, w_EDF, sizes_E)


def ragged_transpose(x_RD: jax.Array, g_RF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Return the gradient of the matrices, fp32 (E, D, F), as one `ragged_dot_general`."""
    return lax.ragged_dot_general(
        x_RD, g_RF, sizes_E, _PER_GROUP, preferred_element_type=jnp.float32
    )


# --- a loop over tiles ----------------------------------------------------------------------------


class _Visits(NamedTuple):
    """The pairs of a group and a tile that have rows in common, in order; `total` of the entries
    are used.
    """

    group: jax.Array
    tile: jax.Array
    starts_E: jax.Array
    ends_E: jax.Array
    total: jax.Array

    def most(self, *, static: bool) -> Any:
        """Return how many to do: those that are used, or `static`, all entries."""
        return self.group.shape[0] if static else self.total


def tiled(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    sizes_E: jax.Array,
    *,
    tile_rows: int = TILE_ROWS,
    static: bool = False,
) -> jax.Array:
    """Return the grouped product, tile by tile; rows behind the last group are 0.

    `static`: a number of visits that the host knows, some of them for nothing. On a GPU it would
    wait for the number before each visit.
    """
    tile_rows = min(tile_rows, x_RD.shape[0])
    visits = _visits(sizes_E, x_RD.shape[0], tile_rows)

    def visit(index: jax.Array, y_RF: jax.Array) -> jax.Array:
        group, first, own = _tile(visits, index, tile_rows, x_RD.shape[0])
        product = lax.dynamic_slice_in_dim(x_RD, first, tile_rows) @ lax.dynamic_index_in_dim(
            w_EDF, group, 0, False
        )
        before = lax.dynamic_slice_in_dim(y_RF, first, tile_rows)
        return lax.dynamic_update_slice_in_dim(y_RF, jnp.where(own, product, before), first, axis=0)

    count = visits.most(static=static)
    return _loop(count, visit, (x_RD.shape[0], w_EDF.shape[2]), x_RD.dtype, x_RD, w_EDF, sizes_E)


def tiled_transpose(
    x_RD: jax.Array,
    g_RF: jax.Array,
    sizes_E: jax.Array,
    *,
    tile_rows: int = TILE_ROWS,
    static: bool = False,
) -> jax.Array:
    """Return the gradient of the matrices, fp32 (E, D, F), tile by tile; `static` as in `tiled`."""
    tile_rows = min(tile_rows, x_RD.shape[0])
    visits = _visits(sizes_E, x_RD.shape[0], tile_rows)

    def visit(index: jax.Array, dw_EDF: jax.Array) -> jax.Array:
        group, first, own = _tile(visits, index, tile_rows, x_RD.shape[0])
        x = jnp.where(own, lax.dynamic_slice_in_dim(x_RD, first, tile_rows), 0)
        g = lax.dynamic_slice_in_dim(g_RF, first, tile_rows)
        product = einsum_fp32("RD,RF->DF", x, jnp.where(own, g, 0))
        before = lax.dynamic_index_in_dim(dw_EDF, group, 0, False)
        return lax.dynamic_update_index_in_dim(dw_EDF, before + product, group, 0)

    shape = (sizes_E.shape[0], x_RD.shape[1], g_RF.shape[1])
    count = visits.most(static=static)
    return _loop(count, visit, shape, jnp.float32, x_RD, g_RF, sizes_E)


_TPU_TRANSPOSE = functools.partial(tiled_transpose, tile_rows=TPU_TILE_ROWS)
_GPU = functools.partial(tiled, tile_rows=GPU_TILE_ROWS, static=True)
_GPU_TRANSPOSE = functools.partial(tiled_transpose, tile_rows=GPU_TILE_ROWS, static=True)


def _visits(sizes_E: jax.Array, num_rows: int, tile_rows: int) -> _Visits:
    ends_E = jnp.cumsum(sizes_E)
    starts_E = ends_E - sizes_E
    first_tile_E = starts_E // tile_rows
    num_tiles_E = jnp.where(sizes_E > 0, (ends_E - 1) // tile_rows - first_tile_E + 1, 0)
    num_groups = sizes_E.shape[0]
    # Each tile is visited once, and once more for every group that begins inside it.
    most = -(-num_rows // tile_rows) + num_groups
    visits_before_E = jnp.cumsum(num_tiles_E) - num_tiles_E
    index = jnp.arange(most, dtype=jnp.int32)
    group = (index[:, None] >= jnp.cumsum(num_tiles_E)).sum(axis=1).clip(max=num_groups - 1)
    tile = first_tile_E[group] + index - visits_before_E[group]
    return _Visits(group, tile, starts_E, ends_E, num_tiles_E.sum())


def _tile(
    visits: _Visits, index: jax.Array, tile_rows: int, num_rows: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the visit's group, its first row, and which of the tile's rows are the group's,
    (tile_rows, 1); none in a visit behind the last.
    """
    group = visits.group[index]
    # The last tile is moved up where it would end behind the rows; it then meets some rows a second
    # time, and `own` with the tile's true first row keeps them from being counted twice.
    true_first = visits.tile[index] * tile_rows
    first = jnp.minimum(true_first, num_rows - tile_rows)
    row = first + jnp.arange(tile_rows)
    own = (row >= jnp.maximum(visits.starts_E[group], true_first)) & (row < visits.ends_E[group])
    return group, first, (own & (index < visits.total))[:, None]


def _loop(
    count: Any,
    visit: Callable[..., jax.Array],
    shape: tuple[int, ...],
    dtype: Any,
    *inputs: jax.Array,
) -> jax.Array:
    """Run the visits that there are, from zeros."""
    zeros = vary_over(jnp.zeros(shape, dtype), varying_axes(*inputs))
    start = 0 if isinstance(count, int) else jnp.zeros_like(count)
    return lax.fori_loop(start, count, visit, zeros)
