"""Rows sorted by group, each group multiplied with its own matrix: the experts of a mixture, and
nothing is dropped.

For rows x_RD of which the first sizes_E[0] belong to group 0, the next sizes_E[1] to group 1 and so
on:

  y_r = x_r w_e(r),     dx_r = g_r w_e(r)^T,     dw_e = sum over the rows r of group e of x_r^T g_r

Rows behind the last group belong to none: what comes out for them is undefined, in the product and
in the gradient of x, and what comes in for them may be anything. The custom gradient keeps x and w
and nothing else.

`lax.ragged_dot` runs where it is one instruction: on the TPU it is a kernel whose number of tiles
is read from the sizes, so rows behind the last group cost nothing. On CPU and GPU it is E matmuls
over all rows, masked, with E copies of x in memory (58 GiB for 65,536 rows, 64 groups and two
layers); loops over tiles do only the work that is needed there. One does so for dw on the TPU, too,
whose compiler masks as well (libtpu 0.0.42, 2026-11-23): for 65,536 rows, half of them in use,
7,168 x 2,048 and 4 groups on v5p that is 8 times the FLOPs, a loop about half of the peak. Which of
them runs is decided when the program is lowered, so one compiled for another platform gets that
platform's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import vary_over, varying_axes, varying_zeros
from maxlm.products import einsum_fp32

CPU_TILE_ROWS = 64
"""Rows that a loop multiplies at once: 32 and 128 were slower (benchmarks/README.md)."""
TPU_TILE_ROWS = 1024
"""On the TPU each tile reads and writes the fp32 sum of a whole matrix: few large ones."""
GPU_TILE_ROWS = 512
"""Large enough to fill a GPU, small enough that groups of a thousand rows waste little."""


@jax.custom_vjp
def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Multiply each group of rows with its matrix; (R, D) x (E, D, F) -> (R, F), int32 sizes (E,)."""
    return lax.platform_dependent(x_RD, w_EDF, sizes_E, cpu=by_group, tpu=ragged, default=tiled)


def _forward(x, w, sizes):  # type: ignore[no-untyped-def]
    return grouped_matmul(x, w, sizes), (x, w, sizes)


def _backward(saved, g):  # type: ignore[no-untyped-def]
    x, w, sizes = saved
    dx = lax.platform_dependent(
        g,
        w,
        sizes,
        cpu=functools.partial(by_group, turned=True),
        tpu=ragged_turned,
        default=functools.partial(tiled, turned=True),
    )
    dw = lax.platform_dependent(
        x,
        g,
        sizes,
        cpu=by_group_transpose,
        tpu=functools.partial(by_group_transpose, tile_rows=TPU_TILE_ROWS),
        default=tiled_transpose,
    )
    return dx.astype(x.dtype), dw.astype(w.dtype), None


grouped_matmul.defvjp(_forward, _backward)


def add_per_group(
    x_RF: jax.Array,
    bias_EF: jax.Array,
    sizes_E: jax.Array,
    weights_R1: jax.Array | None = None,
) -> jax.Array:
    """Add to each group of rows its own vector, multiplied with the row's weight if there are any;
    (R, F), (E, F), int32 sizes (E,) -> (R, F).

    A product with zeros and ones, or the weights in place of ones: the gradient of the vectors is a
    product too, where that of a lookup would be a scatter, which a TPU sorts first. Its FLOPs are E /
    D of the group's matrices'.
    """
    ends_E, row_R1 = jnp.cumsum(sizes_E), jnp.arange(x_RF.shape[0])[:, None]
    own_RE = (row_R1 >= ends_E - sizes_E) & (row_R1 < ends_E)
    # Rows behind the last group, their weights and their gradients may be anything.
    used_R1, own_RE = own_RE.any(axis=1, keepdims=True), own_RE.astype(bias_EF.dtype)
    if weights_R1 is not None:
        own_RE *= jnp.where(used_R1, weights_R1, 0)
    return x_RF + jnp.where(used_R1, own_RE @ bias_EF, 0)


# --- one instruction ------------------------------------------------------------------------------

_PER_GROUP = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(),
)


def ragged(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Return the grouped product, as one `ragged_dot`."""
    return lax.ragged_dot(x_RD, w_EDF, sizes_E)


def ragged_turned(g_RF: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Return the gradient of the rows, (R, D), as one `ragged_dot`."""
    return ragged(g_RF, w_EDF.swapaxes(1, 2), sizes_E)


def ragged_transpose(x_RD: jax.Array, g_RF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Return the gradient of the matrices, fp32 (E, D, F), as one `ragged_dot_general`."""
    return lax.ragged_dot_general(
        x_RD, g_RF, sizes_E, _PER_GROUP, preferred_element_type=jnp.float32
    )


# --- a loop over groups, and over the tiles of each -----------------------------------------------


def by_group(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    sizes_E: jax.Array,
    *,
    tile_rows: int = CPU_TILE_ROWS,
    turned: bool = False,
) -> jax.Array:
    """Return the grouped product; rows behind the last group are 0. The matrix of a group that has rows
    is read out of the stack once, and tiles begin where their group does.

    `turned`: multiply with the transposed matrices, (R, F) -> (R, D); they are read as they lie.
    """
    tile_rows = min(tile_rows, x_RD.shape[0])
    ends_E = jnp.cumsum(sizes_E)
    used_first_E = jnp.argsort(sizes_E == 0)

    def group(number: jax.Array, y_RF: jax.Array) -> jax.Array:
        index = used_first_E[number]
        w = lax.dynamic_index_in_dim(w_EDF, index, 0, False)
        begin, end = ends_E[index] - sizes_E[index], ends_E[index]

        def tile(number: jax.Array, y_RF: jax.Array) -> jax.Array:
            first, own = _own_rows(begin + number * tile_rows, end, tile_rows, x_RD.shape[0])
            x = lax.dynamic_slice_in_dim(x_RD, first, tile_rows)
            return _write_rows(y_RF, x @ (w.T if turned else w), first, own)

        return _loop(-(-sizes_E[index] // tile_rows), tile, y_RF)

    y_RF = _zeros_like_product(x_RD, w_EDF, sizes_E, turned=turned)
    return _loop((sizes_E > 0).sum(), group, y_RF)


def by_group_transpose(
    x_RD: jax.Array, g_RF: jax.Array, sizes_E: jax.Array, *, tile_rows: int = CPU_TILE_ROWS
) -> jax.Array:
    """Return the gradient of the matrices, fp32 (E, D, F): each is summed up in one place, and then
    written.
    """
    tile_rows = min(tile_rows, x_RD.shape[0])
    ends_E = jnp.cumsum(sizes_E)
    zeros = varying_zeros((x_RD.shape[1], g_RF.shape[1]), x_RD, g_RF, sizes_E)

    def group(size: jax.Array, end: jax.Array) -> jax.Array:
        def tile(number: jax.Array, dw_DF: jax.Array) -> jax.Array:
            first = end - size + number * tile_rows
            return dw_DF + _tile_transpose(
                x_RD, g_RF, *_own_rows(first, end, tile_rows, x_RD.shape[0])
            )

        # `maxlm.plan` knows by the scope's name how many groups share the rows.
        with jax.named_scope(f"tiles_of_one_in_{sizes_E.shape[0]}"):
            return _loop(-(-size // tile_rows), tile, zeros)

    return lax.map(lambda group_: group(*group_), (sizes_E, ends_E))


# --- on the GPU: as many tiles as there may be ----------------------------------------------------


class _Visits(NamedTuple):
    """A group, the first row of one of its tiles, and where its rows end, in order; behind the last
    of them visits of no rows.
    """

    group: jax.Array
    first: jax.Array
    end: jax.Array


def tiled(
    x_RD: jax.Array,
    w_EDF: jax.Array,
    sizes_E: jax.Array,
    *,
    tile_rows: int = GPU_TILE_ROWS,
    turned: bool = False,
) -> jax.Array:
    """Return the grouped product, as `by_group` does, in a number of visits that the host knows,
    some of them for nothing: a GPU would wait for the number before each visit.
    """
    tile_rows = min(tile_rows, x_RD.shape[0])
    visits = _visits(sizes_E, x_RD.shape[0], tile_rows)

    def visit(index: jax.Array, y_RF: jax.Array) -> jax.Array:
        group, first, end = (array[index] for array in visits)
        first, own = _own_rows(first, end, tile_rows, x_RD.shape[0])
        x = lax.dynamic_slice_in_dim(x_RD, first, tile_rows)
        w = lax.dynamic_index_in_dim(w_EDF, group, 0, False)
        return _write_rows(y_RF, x @ (w.T if turned else w), first, own)

    y_RF = _zeros_like_product(x_RD, w_EDF, sizes_E, turned=turned)
    return lax.fori_loop(0, visits.group.shape[0], visit, y_RF)


def tiled_transpose(
    x_RD: jax.Array,
    g_RF: jax.Array,
    sizes_E: jax.Array,
    *,
    tile_rows: int = GPU_TILE_ROWS,
) -> jax.Array:
    """Return the gradient of the matrices, fp32 (E, D, F), in the visits of `tiled`."""
    tile_rows = min(tile_rows, x_RD.shape[0])
    visits = _visits(sizes_E, x_RD.shape[0], tile_rows)

    def visit(index: jax.Array, dw_EDF: jax.Array) -> jax.Array:
        group, first, end = (array[index] for array in visits)
        own = _own_rows(first, end, tile_rows, x_RD.shape[0])
        before = lax.dynamic_index_in_dim(dw_EDF, group, 0, False)
        after = before + _tile_transpose(x_RD, g_RF, *own)
        return lax.dynamic_update_index_in_dim(dw_EDF, after, group, 0)

    shape = (sizes_E.shape[0], x_RD.shape[1], g_RF.shape[1])
    zeros = varying_zeros(shape, x_RD, g_RF, sizes_E)
    return lax.fori_loop(0, visits.group.shape[0], visit, zeros)


def _visits(sizes_E: jax.Array, num_rows: int, tile_rows: int) -> _Visits:
    num_groups, ends_E = sizes_E.shape[0], jnp.cumsum(sizes_E)
    num_tiles_E = -(-sizes_E // tile_rows)
    visits_E = jnp.cumsum(num_tiles_E)
    # The last tile of each group may be a part of one.
    index = jnp.arange(-(-num_rows // tile_rows) + num_groups, dtype=jnp.int32)
    group = (index[:, None] >= visits_E).sum(axis=1).clip(max=num_groups - 1)
    tile = index - (visits_E - num_tiles_E)[group]
    return _Visits(group, (ends_E - sizes_E)[group] + tile * tile_rows, ends_E[group])


# --- what both loops do ---------------------------------------------------------------------------


def _own_rows(
    true_first: jax.Array, end: jax.Array, tile_rows: int, num_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Return a tile's first row, and which of its rows lie from `true_first` to `end`, (tile_rows,
    1).

    The last tile is moved up where it would end behind the rows; it then meets some rows a second
    time, and its true first row keeps them from being counted twice.
    """
    first = jnp.minimum(true_first, num_rows - tile_rows)
    row = first + jnp.arange(tile_rows)
    return first, ((row >= true_first) & (row < end))[:, None]


def _write_rows(y_RF: jax.Array, product: jax.Array, first: jax.Array, own: jax.Array) -> jax.Array:
    before = lax.dynamic_slice_in_dim(y_RF, first, own.shape[0])
    return lax.dynamic_update_slice_in_dim(y_RF, jnp.where(own, product, before), first, axis=0)


def _tile_transpose(
    x_RD: jax.Array, g_RF: jax.Array, first: jax.Array, own: jax.Array
) -> jax.Array:
    x, g = (lax.dynamic_slice_in_dim(rows, first, own.shape[0]) for rows in (x_RD, g_RF))
    return einsum_fp32("RD,RF->DF", jnp.where(own, x, 0), jnp.where(own, g, 0))


def _zeros_like_product(
    x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, turned: bool
) -> jax.Array:
    shape = x_RD.shape[0], w_EDF.shape[1 if turned else 2]
    return vary_over(jnp.zeros(shape, x_RD.dtype), varying_axes(x_RD, w_EDF, sizes_E))


def _loop(count: jax.Array, visit: Callable[..., jax.Array], start: jax.Array) -> jax.Array:
    """Run as many visits as there are."""
    return lax.fori_loop(jnp.zeros_like(count), count, visit, start)
