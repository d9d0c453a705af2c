"""What the warpgroups of a thread block share: who does what, blocks in rings, masks, loads and
stores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from maxlm.kernels.hopper.problem import COMPUTING, ROWS, STAGES
from maxlm.kernels.mask import Visits

_COMPUTE_REGISTERS, _FETCH_REGISTERS = 240, 24
"""For each thread; 2 x 240 + 24 is what a multiprocessor has."""


def share_work(compute: Callable[[jax.Array], None], fetch: Callable[[], None]) -> None:
    """Let each warpgroup do its part.

    What both need, each computes itself: kept over the change of registers it would spill, for one
    has few of them.
    """
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup < COMPUTING)
    def _compute() -> None:
        plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
        compute(warpgroup)

    @pl.when(warpgroup == COMPUTING)
    def _fetch() -> None:
        plgpu.set_max_registers(_FETCH_REGISTERS, action="decrease")
        fetch()


def keys_and_values(problem, batch, head, k, v, kv_words):  # type: ignore[no-untyped-def]
    """Return sources(block, group) for `fetch_blocks`, for a block of queries."""
    kv_head = lax.div(head, jnp.int32(problem.groups))

    def sources(block: jax.Array, group: Any) -> dict[str, Any]:
        del group
        keys = pl.ds(block * problem.block, problem.block)
        return {
            "first": {"first": k.at[batch, keys, kv_head], "mask": kv_words.at[batch, :, keys]},
            "second": {"second": v.at[batch, keys, kv_head]},
        }

    return sources


def fetch_blocks(visits: Visits, sources: Callable[..., Any], shared: SimpleNamespace) -> None:
    """Bring the blocks of all visits into the rings, as soon as there is room.

    `sources(block, group)` says for each of the two matrices what arrives with it: {ring:
    reference}.
    """
    rings = vars(shared)

    def fetch(n: jax.Array, carry: Any, *, block: jax.Array, group: Any, **_: Any) -> Any:
        slot = lax.rem(n, jnp.int32(STAGES))
        for name, arriving in sources(block, group).items():
            pl.when(n >= STAGES)(
                functools.partial(plgpu.barrier_wait, rings[f"{name}_free"].at[slot])
            )
            for ring, source in arriving.items():
                plgpu.copy_gmem_to_smem(
                    source, rings[f"{ring}_ring"].at[slot], rings[f"{name}_ready"].at[slot]
                )
        return carry

    visits.walk(fetch, None)
    # A barrier's last phase, too, is seen by the thread that waited for the ones before.

    def finish(slot: jax.Array, _: None) -> None:
        for barrier in (shared.first_free, shared.second_free):
            plgpu.barrier_wait(barrier.at[slot])

    lax.fori_loop(0, jnp.minimum(visits.count, STAGES), finish, None)


def load(ref: Any, *, axis: int) -> jax.Array:
    """Load a vector that lies along an axis of a score matrix."""
    return plgpu.load(ref, (), layout=plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False)


def load_words(ref: Any, *, axis: int) -> list[jax.Array]:
    """Load what the mask says of tokens that lie along an axis of a score matrix."""
    return [load(ref.at[i], axis=axis) for i in range(ref.shape[0])]


def hide(
    values: jax.Array, hidden: float, own_words: Sequence[jax.Array], passing_words: Any
) -> jax.Array:
    """Replace the values of pairs that do not see each other; see `mask.words`."""
    own = [lax.broadcast_in_dim(x, values.shape, [0]) for x in own_words]
    passing = [
        lax.broadcast_in_dim(x, values.shape, [1]) for x in load_words(passing_words, axis=1)
    ]
    # There are two words of a query and three of a key.
    (q_segment, q_rank), (kv_segment, kv_from, kv_count) = sorted((own, passing), key=len)
    return jnp.where((q_segment == kv_segment) & (q_rank - kv_from < kv_count), values, hidden)


def end_reading() -> None:
    """Order what threads have read of a ring before what TMA will write there.

    The threads read masks and vectors through one proxy, TMA writes through another: a barrier
    alone orders accesses of one (PTX, memory consistency model, proxies). What wgmma reads, it
    reads through TMA's.
    """
    plgpu.commit_smem()


def write(*copies: tuple[Any, Any]) -> None:
    """Copy from shared memory and wait until it is done."""
    plgpu.commit_smem()
    for tile, destination in copies:
        plgpu.copy_smem_to_gmem(tile, destination)
    plgpu.wait_smem_to_gmem(0)


def swap(turn: Any) -> None:
    """Give the tensor cores to the other warpgroup and wait until it gives them back."""
    plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(turn)


def zeros(columns: int | None = None) -> jax.Array:
    """Return fp32 zeros of a warpgroup's rows, as a vector or as wgmma lays out a matrix."""
    if columns is None:
        return plgpu.layout_cast(jnp.full((ROWS,), 0, jnp.float32), plgpu.Layout.WGMMA.reduce(1))
    return plgpu.layout_cast(jnp.full((ROWS, columns), 0, jnp.float32), plgpu.Layout.WGMMA)
