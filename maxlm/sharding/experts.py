"""Expert parallelism: rows of tokens travel to the device that holds their expert, and back.

A device has N tokens, each with A experts: N A copies to send. Experts lie in order over the P devices of the mesh axis
`expert`, E / P on each. The send buffer has P blocks of R slots, one block for each device:

  R = N min(A, E / P)             dropless: a token's experts are distinct, so no more copies can go to one device
  R = min(that, B C E / P)        with capacity C per expert and sequence: what does not fit is dropped here

so buffers never overflow, whatever the router does, at the price of P R rows of memory where N A are in use when the
load is even: min(P A, E) / A times as much, for the buffers here and the hidden units of the experts. Capacity is the
cure.

Collectives over `expert` per layer: 2 all_to_alls of rows in the forward pass, 2 in the backward pass, and one of E
counts in the forward pass. Bytes that a device sends in each of the four: `ragged_all_to_all` (TPU, GPU) moves only
slots in use, (P - 1) / P N A D on average when the load is even; the padded `all_to_all` of the CPU (P - 1) R D. Both
fill the same slots.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Plan(NamedTuple):
    """Which copy of a token goes to which slot of the send buffer; a copy is N's index times A plus A's.

    Attributes:
      slot_NA: slot of each copy; P R where it was dropped.
      copy_S: copy in each of the P R slots; N A where there is none.
      counts_PE: rows for each expert, by device: (P, E / P).
    """

    slot_NA: jax.Array
    copy_S: jax.Array
    counts_PE: jax.Array


class Arrived(NamedTuple):
    """Rows at the device of their expert, sorted by expert.

    Attributes:
      order_S: slot of each sorted row.
      place_S: sorted place of each slot.
      sent_P: rows for each device.
      received_P: rows from each device.
      sizes_E: rows of each expert of this device.
    """

    order_S: jax.Array
    place_S: jax.Array
    sent_P: jax.Array
    received_P: jax.Array
    sizes_E: jax.Array


def make_plan(experts_BTA: jax.Array, num_experts: int, capacity: int | None) -> Plan:
    """Sort the copies by expert and lay them out by device.

    Args:
      experts_BTA: int32, the distinct experts of each token.
      num_experts: E, over all devices.
      capacity: copies that an expert takes of one sequence, the first ones; None takes all.
    """
    num_devices = lax.axis_size("expert")
    slots = block_rows(experts_BTA.shape, num_experts // num_devices, capacity)
    if capacity is not None:
        experts_BTA = jnp.where(_rank(experts_BTA, num_experts) < capacity, experts_BTA, num_experts)
    num_choices = experts_BTA.shape[2]
    experts_M = experts_BTA.reshape(-1)
    # Stable: tokens keep their order within an expert. Dropped copies sort last.
    order_M = jnp.argsort(experts_M, stable=True)
    counts_PE = _counts(experts_M, num_experts).reshape(num_devices, -1)
    rows_P = counts_PE.sum(axis=1)
    starts_P = jnp.cumsum(rows_P) - rows_P
    device_M = jnp.minimum(experts_M // counts_PE.shape[1], num_devices - 1)
    slot_M = device_M * slots + jnp.argsort(order_M) - starts_P[device_M]
    slot_M = jnp.where(experts_M < num_experts, slot_M, num_devices * slots)
    index_PS = starts_P[:, None] + jnp.arange(slots)
    used_PS = jnp.arange(slots) < rows_P[:, None]
    copy_PS = jnp.where(used_PS, order_M.at[index_PS].get(mode="clip"), experts_M.shape[0])
    return Plan(slot_M.reshape(-1, num_choices), copy_PS.reshape(-1), counts_PE)


def block_rows(shape_BTA: tuple[int, ...], local_experts: int, capacity: int | None) -> int:
    """Return R, the most rows that can go from one device to another."""
    num_rows, length, num_choices = shape_BTA
    dropless = num_rows * length * min(num_choices, local_experts)
    return dropless if capacity is None else min(dropless, num_rows * capacity * local_experts)


def _rank(experts_BTA: jax.Array, num_experts: int) -> jax.Array:
    """Number the copies for each expert of a sequence from 0, earlier tokens first: none depends on a later one."""
    experts_BM = experts_BTA.reshape(experts_BTA.shape[0], -1)
    order_BM = jnp.argsort(experts_BM, axis=1, stable=True)
    counts_BE = jax.vmap(lambda experts_M: _counts(experts_M, num_experts))(experts_BM)
    starts_BE = jnp.cumsum(counts_BE, axis=1) - counts_BE
    rank_BM = jnp.argsort(order_BM, axis=1) - jnp.take_along_axis(starts_BE, experts_BM, axis=1)
    return rank_BM.reshape(experts_BTA.shape)


def _counts(experts_M: jax.Array, num_experts: int) -> jax.Array:
    return (experts_M[:, None] == jnp.arange(num_experts, dtype=experts_M.dtype)).sum(axis=0, dtype=jnp.int32)


def dispatch(rows_SD: jax.Array, plan: Plan) -> tuple[jax.Array, Arrived]:
    """Send each block of the buffer to its device; return the rows for this device's experts, sorted by expert."""
    sent_P = plan.counts_PE.sum(axis=1)
    if lax.axis_size("expert") == 1:  # they lie sorted already
        own = jnp.arange(rows_SD.shape[0], dtype=jnp.int32)
        return rows_SD, Arrived(own, own, sent_P, sent_P, plan.counts_PE[0])
    counts_PE = lax.all_to_all(plan.counts_PE, "expert", split_axis=0, concat_axis=0, tiled=True)
    slots = rows_SD.shape[0] // counts_PE.shape[0]
    # A slot's expert is the number of experts whose rows end at or before it; E / P in slots without a row.
    ends_PE = jnp.cumsum(counts_PE, axis=1)
    expert_PS = (jnp.arange(slots)[:, None] >= ends_PE[:, None, :]).sum(axis=2)
    order_S = jnp.argsort(expert_PS.reshape(-1), stable=True)
    arrived = Arrived(order_S, jnp.argsort(order_S), sent_P, counts_PE.sum(axis=1), counts_PE.sum(axis=0))
    rows_SD = exchange(rows_SD, sent_P, arrived.received_P)
    return take(rows_SD, order_S, arrived.place_S[:, None]), arrived


def combine(rows_SD: jax.Array, arrived: Arrived) -> jax.Array:
    """Send what the experts made of the rows back to the slots they came from."""
    if lax.axis_size("expert") == 1:
        return rows_SD
    rows_SD = take(rows_SD, arrived.place_S, arrived.order_S[:, None])
    return exchange(rows_SD, arrived.received_P, arrived.sent_P)


# --- rows in other places --------------------------------------------------------------------------------------------


@jax.custom_vjp
def take(rows_ID: jax.Array, index_O: jax.Array, uses_IU: jax.Array) -> jax.Array:
    """Return rows[index], zeros where the index is behind the last row; the gradient is a gather too, not a scatter.

    Args:
      rows_ID: I rows.
      index_O: row in each of the O places.
      uses_IU: the places that each row is in, the inverse of `index_O`; O for none.
    """
    del uses_IU
    return rows_ID.at[index_O].get(mode="fill", fill_value=0)


def _take_forward(rows, index, uses):  # type: ignore[no-untyped-def]
    return take(rows, index, uses), uses


def _take_backward(uses, d_rows):  # type: ignore[no-untyped-def]
    d_uses = d_rows.at[uses].get(mode="fill", fill_value=0)
    return d_uses.sum(axis=1, dtype=jnp.float32).astype(d_rows.dtype), None, None


take.defvjp(_take_forward, _take_backward)


# --- rows on other devices -------------------------------------------------------------------------------------------


@jax.custom_vjp
def exchange(rows_SD: jax.Array, sent_P: jax.Array, received_P: jax.Array) -> jax.Array:
    """Send block p of R slots to device p of `expert`, the first sent[p] of which are in use: (P R, D) -> (P R, D)."""
    return lax.platform_dependent(rows_SD, sent_P, received_P, cpu=exchange_padded, default=exchange_ragged)


def _exchange_forward(rows, sent, received):  # type: ignore[no-untyped-def]
    return exchange(rows, sent, received), (sent, received)


def _exchange_backward(saved, d_rows):  # type: ignore[no-untyped-def]
    sent, received = saved
    return exchange(d_rows, received, sent), None, None


exchange.defvjp(_exchange_forward, _exchange_backward)


def exchange_padded(rows_SD: jax.Array, sent_P: jax.Array, received_P: jax.Array) -> jax.Array:
    """Move all slots, in use or not."""
    del sent_P, received_P
    return lax.all_to_all(rows_SD, "expert", split_axis=0, concat_axis=0, tiled=True)


def exchange_ragged(rows_SD: jax.Array, sent_P: jax.Array, received_P: jax.Array) -> jax.Array:
    """Move the slots in use to the same places as `exchange_padded` does; the others are zero."""
    slots = rows_SD.shape[0] // sent_P.shape[0]
    blocks_P = jnp.arange(sent_P.shape[0], dtype=jnp.int32) * slots
    # At every receiver, the block that belongs to this device.
    own_block_P = jnp.full_like(sent_P, slots) * lax.axis_index("expert")
    return lax.ragged_all_to_all(
        rows_SD, jnp.zeros_like(rows_SD), blocks_P, sent_P, own_block_P, received_P, axis_name="expert"
    )


def capacity_of(factor: float | None, length: int, num_choices: int, num_experts: int) -> int | None:
    """Return how many copies an expert takes of a sequence: `factor` times an even share, rounded up."""
    return None if factor is None else math.ceil(factor * length * num_choices / num_experts)
