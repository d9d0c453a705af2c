"""What is static in a Hopper kernel: blocks, sizes, shared memory, and how scores are made."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from maxlm.kernels import block_sizes
from maxlm.kernels.mask import Mask, Visits, block_ranges
from maxlm.kernels.shape import Scoring

SIZE_STEP = 32
"""Head sizes are filled up with zeros to whole steps: TMA writes and wgmma reads tiles of 32 or 64
columns.
"""
TILE_ROWS = 8
"""Of the tiles that matrices are copied in: sequences are filled up to whole ones."""
COMPUTING = 2
"""Warpgroups that compute; one more fetches."""
ROWS = 64
"""Queries or keys of a computing warpgroup: the rows of a wgmma instruction."""
STAGES = 2
"""Blocks in a ring: one is worked on while the next arrives."""
LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is static in a kernel."""

    kernel: str
    block: int
    apart: bool
    turns: bool
    groups: int
    key_size: int
    value_size: int
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, kernel: str) -> Problem:
        """Return that of a kernel: forward, d_q or d_kv."""
        key_size, value_size = (x.shape[3] + -x.shape[3] % SIZE_STEP for x in (k, v))
        blocks = block_sizes.hopper(key_size, value_size)
        apart, groups = blocks.apart and kernel == "d_kv", q.shape[2] // k.shape[2]
        return cls(
            kernel,
            getattr(blocks, kernel),
            apart,
            blocks.turns,
            groups,
            key_size,
            value_size,
            scoring.scale_of(k.shape[3]),
            scoring.softcap,
        )

    @property
    def of_keys(self) -> bool:
        """Return whether a thread block owns keys, and queries pass by in the rings."""
        return self.kernel == "d_kv"

    @property
    def num_tiles(self) -> int:
        """Return how many tiles of 64 rows a thread block owns."""
        return 1 if self.apart else COMPUTING

    def table(self, mask: Mask) -> jax.Array:
        """Return which blocks pass by each thread block."""
        rows = self.num_tiles * ROWS
        if self.of_keys:
            return block_ranges(mask, self.block, rows).of_keys
        return block_ranges(mask, rows, self.block).of_queries

    def visits(self, table: Any, batch: jax.Array, index: jax.Array) -> Visits:
        """Return the blocks that pass by one thread block."""
        return Visits.of(table, batch, index, groups=self.groups if self.of_keys else 1)

    def matrices(self, count: int, rows: int, columns: int) -> Any:
        """Return shared memory for bf16 matrices, in tiles that divide whatever is multiplied with
        whatever.
        """
        return matrices(
            count, rows, math.gcd(64, self.block, self.key_size, self.value_size), columns
        )

    def tiles(self) -> dict[str, Any]:
        """Return what holds a thread block's own tokens in the backward pass: q and d_out, or k and
        v.
        """
        return {
            "first_tile": self.matrices(self.num_tiles, ROWS, self.key_size),
            "second_tile": self.matrices(self.num_tiles, ROWS, self.value_size),
            "tile_ready": plgpu.Barrier(num_arrivals=2, num_barriers=self.num_tiles),
        }

    def rings(self) -> dict[str, Any]:
        """Return buffers for the blocks that pass by: k and v, or q and d_out, with lse and delta,
        and their barriers.

        What the mask says of a block, and lse, arrive with the first matrix, delta with the second.
        """
        vectors = ("lse", "delta") if self.of_keys else ()
        arrivals = {"first": 2 + len(vectors[:1]), "second": 1 + len(vectors[1:])}
        barrier = functools.partial(plgpu.Barrier, num_barriers=STAGES)
        return {
            "first_ring": self.matrices(STAGES, self.block, self.key_size),
            "second_ring": self.matrices(STAGES, self.block, self.value_size),
            "mask_ring": plgpu.SMEM((STAGES, 2 if self.of_keys else 3, self.block), jnp.uint32),
            **{f"{name}_ring": plgpu.SMEM((STAGES, self.block), jnp.float32) for name in vectors},
            **{f"{name}_ready": barrier(num_arrivals=n) for name, n in arrivals.items()},
            **{f"{name}_free": barrier(num_arrivals=COMPUTING) for name in arrivals},
        }

    @property
    def exponent(self) -> float:
        """Return what scores are multiplied with to become exponents of 2."""
        return (self.scale if self.softcap is None else self.softcap) * LOG2_E

    def scores(self, products: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Turn q k^T into scores in units of the scale or the cap, and the slope of the cap, None
        without one.
        """
        if self.softcap is None:
            return products, None
        # The GPU's own approximation of tanh has only 11 bits.
        capped = 1 - 2 / (1 + jnp.exp2(products * (2 * LOG2_E * self.scale / self.softcap)))
        return capped, 1 - capped * capped


def matrices(count: int, rows: int, tile: int, columns: int, dtype: Any = jnp.bfloat16) -> Any:
    """Return shared memory for matrices, laid out in tiles of 8 rows, as wgmma reads them."""
    swizzle = tile * jnp.dtype(dtype).itemsize
    transforms = plgpu.TilingTransform((TILE_ROWS, tile)), plgpu.SwizzleTransform(swizzle)  # type: ignore[abstract]  # jax 0.11
    return plgpu.SMEM((count, rows, columns), dtype, transforms=transforms)
