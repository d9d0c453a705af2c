"""Expert parallelism: rows of tokens travel to the device that holds their expert, and back, in
rounds.

A device has N tokens, each with A experts: N A copies to send. Experts lie in order over the P
devices of the mesh axis `expert`, E / P on each. A token's experts are distinct, so a device may
have to take up to P N min(A, E / P) rows: min(P A, E) / A times what it takes when the load is
even, N A. There is room for

  B = min(buffer_factor N A, P N min(A, E / P))    rows, and with a capacity no more than it lets through

A device alone has all its rows at once. Of several, the rows of each, sorted by expert and sender,
are worked off B at a time: ceil(most rows of any device / B) rounds, one when the load is even to a
factor of `buffer_factor`, and more whatever the router does: nothing is dropped for want of room.
Everybody knows all counts, so all devices of `expert` agree on the number of rounds.

Memory of a layer, in elements, with hidden units F on a device: 2 N A D for the copies sent and
those that come back, and B (2 D + 2 F), or B (2 D + 3 F) where gated, for rows, hidden units and
results; no backward pass needs the results, or what comes back. Rounds after the first keep nothing
for the backward pass, which runs them again.

Compiled ahead of time for v5p (jax 0.10.2, libtpu 0.0.42, 2026-11-23), a layer of DeepSeek-V3's
shape with P = 64, 4,096 tokens on a device and full rematerialisation peaks at 6.2 GiB in its
forward and backward pass, its weights and fp32 gradients included (before the weights went with the
rows). Room for the worst case,
1,048,576 rows, would take 14 GiB for each array of D columns.

Collectives over `expert` per layer: one all_gather of E counts in the forward pass, and per round 2
exchanges of rows and one of their weights (unless those are on the input) in the forward pass, and
as many in the backward pass. A layer that is recomputed, and every round after the first, runs the
way there, of rows and weights, once more before its backward pass. Bytes that a device sends in
each, a weight's being D = 1: `ragged_all_to_all` (TPU, GPU) moves the rows there are, (P - 1) / P N
A D on average when the load is even; the padded `all_to_all` of the CPU (P - 1) min(N A, B) D. Both
put the same rows in the same places.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import vary_over, varying_axes
from maxlm.sharding.context import chunk_numbers, gather_chunks, join_chunks, split_chunks


class Plan(NamedTuple):
    """How the copies of this device's tokens are sorted; a copy is N's index times A plus A's.

    Attributes:
      place_NA: place of each copy among the M = N A sorted by expert; M where it was dropped.
      copy_M: copy in each place; M behind the last that was not dropped.
      counts_PE: rows for each expert, from each device: (P, E).
    """

    place_NA: jax.Array
    copy_M: jax.Array
    counts_PE: jax.Array


class Blocks(NamedTuple):
    """Rows that go from or to this device in a round: a block for each pair of a device and one of
    the E / P experts.

    Attributes:
      sizes_PE: rows of each block.
      here_PE: first row of each at this device.
      there_PE: first row of each at the other device.
    """

    sizes_PE: jax.Array
    here_PE: jax.Array
    there_PE: jax.Array


def make_plan(experts_BTA: jax.Array, num_experts: int, capacity: int | None) -> Plan:
    """Sort the copies by expert, and tell all devices how many there are.

    Args:
      experts_BTA: int32, the distinct experts of each token.
      num_experts: E, over all devices.
      capacity: copies that an expert takes of one sequence, the first ones; None takes all.
    """
    if capacity is not None:
        experts_BTA = jnp.where(
            _rank(experts_BTA, num_experts) < capacity, experts_BTA, num_experts
        )
    experts_M = experts_BTA.reshape(-1)
    # Stable: tokens keep their order within an expert. Dropped copies sort last.
    copy_M = jnp.argsort(experts_M, stable=True)
    num_copies, kept_M = experts_M.shape[0], experts_M < num_experts
    place_M = jnp.where(kept_M, jnp.argsort(copy_M), num_copies)
    counts_E = _counts(experts_M, num_experts)
    copy_M = jnp.where(jnp.arange(num_copies) < counts_E.sum(), copy_M, num_copies)
    counts_PE = (
        counts_E[None] if lax.axis_size("expert") == 1 else lax.all_gather(counts_E, "expert")
    )
    return Plan(place_M.reshape(-1, experts_BTA.shape[2]), copy_M, counts_PE)


def most_rows(shape_BTA: tuple[int, ...], num_experts: int, capacity: int | None) -> int:
    """Return the most rows that a device can have to take."""
    num_sequences, length, num_choices = shape_BTA
    num_devices = lax.axis_size("expert")
    most = num_devices * num_sequences * length * min(num_choices, num_experts // num_devices)
    # Alone, it works on its copies where they lie, dropped ones too.
    if num_devices == 1 or capacity is None:
        return most
    return min(most, num_sequences * capacity * num_experts)


def _rank(experts_BTA: jax.Array, num_experts: int) -> jax.Array:
    """Number the copies for each expert of a sequence from 0, earlier tokens first: none depends on
    a later one.

    Where `context` splits the sequence, its devices gather the counts of their chunks.
    """
    if lax.axis_size("context") == 1:
        return _rank_and_counts(experts_BTA, num_experts)[0]
    experts_2BTA = split_chunks(experts_BTA)
    rank_2BTA, counts_2BE = jax.vmap(lambda chunk: _rank_and_counts(chunk, num_experts))(
        experts_2BTA
    )
    counts_CBE = gather_chunks(counts_2BE)
    before_CBE = jnp.cumsum(counts_CBE, axis=0) - counts_CBE
    before_2BE = before_CBE[jnp.stack(chunk_numbers(lax.axis_index("context")))]
    flat_2BM = experts_2BTA.reshape(*before_2BE.shape[:2], -1)
    before_2BM = jnp.take_along_axis(before_2BE, flat_2BM, axis=2)
    return join_chunks(rank_2BTA + before_2BM.reshape(experts_2BTA.shape))


def _rank_and_counts(experts_BTA: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    experts_BM = experts_BTA.reshape(experts_BTA.shape[0], -1)
    order_BM = jnp.argsort(experts_BM, axis=1, stable=True)
    counts_BE = jax.vmap(lambda experts_M: _counts(experts_M, num_experts))(experts_BM)
    starts_BE = jnp.cumsum(counts_BE, axis=1) - counts_BE
    rank_BM = jnp.argsort(order_BM, axis=1) - jnp.take_along_axis(starts_BE, experts_BM, axis=1)
    return rank_BM.reshape(experts_BTA.shape), counts_BE


def _counts(experts_M: jax.Array, num_experts: int) -> jax.Array:
    return (experts_M[:, None] == jnp.arange(num_experts, dtype=experts_M.dtype)).sum(
        axis=0, dtype=jnp.int32
    )


# --- rounds ---------------------------------------------------------------------------------------

Run = Callable[[Any, Plan, jax.Array], jax.Array]
"""(inputs, plan, number of the round) -> what the round adds to the result; must not close over
arrays.
"""


def in_rounds(run: Run, inputs: Any, plan: Plan, rows: int, most: int) -> jax.Array:
    """Add up `run(inputs, plan, number)` over as many rounds as the router makes necessary in this
    step.

    The first is differentiated as it stands. The others are a loop that keeps nothing; where there
    is no second round it costs zeros for gradients, and adding them.

    Args:
      run: one round.
      inputs: what is differentiated.
      plan: the copies, sorted.
      rows: B, rows that a device takes in a round.
      most: rows that it can have to take in all.
    """
    first = jnp.int32(0)
    if rows >= most:
        return run(inputs, plan, first)
    rows_P = plan.counts_PE.sum(axis=0).reshape(plan.counts_PE.shape[0], -1).sum(axis=1)
    return run(inputs, plan, first) + _after_the_first(run, inputs, plan, -(-rows_P.max() // rows))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _after_the_first(run: Run, inputs: Any, plan: Plan, rounds: jax.Array) -> jax.Array:
    """Return the sum of all rounds but the first."""
    y = jax.eval_shape(run, inputs, plan, rounds)
    y = vary_over(jnp.zeros(y.shape, y.dtype), varying_axes(*jax.tree.leaves((inputs, plan))))

    result: jax.Array = _further_rounds(rounds, lambda number, y: y + run(inputs, plan, number), y)
    return result


def _after_the_first_forward(run, inputs, plan, rounds):  # type: ignore[no-untyped-def]
    return _after_the_first(run, inputs, plan, rounds), (inputs, plan, rounds)


def _after_the_first_backward(run, saved, d_y):  # type: ignore[no-untyped-def]
    inputs, plan, rounds = saved
    # From zeros: to hand the inputs on to the first round, and its gradients here, would make
    # rematerialisation keep whole parameters as the loop's results.
    d_inputs = jax.tree.map(lambda x: vary_over(jnp.zeros_like(x), varying_axes(x)), inputs)

    def add(number: jax.Array, d_inputs: Any) -> Any:
        _, pull = jax.vjp(lambda inputs: run(inputs, plan, number), inputs)
        return jax.tree.map(jnp.add, d_inputs, pull(d_y)[0])

    return _further_rounds(rounds, add, d_inputs), None, None


_after_the_first.defvjp(_after_the_first_forward, _after_the_first_backward)


def _further_rounds(rounds: jax.Array, add: Callable[[jax.Array, Any], Any], start: Any) -> Any:
    """Add up the rounds after the first; `maxlm.plan` knows the loop by the scope's name: usually
    it has no turn.
    """
    with jax.named_scope("further_rounds"):
        return lax.while_loop(
            lambda carry: carry[0] < rounds,
            lambda carry: (carry[0] + 1, add(*carry)),
            (jnp.ones_like(rounds), start),
        )[1]


def dispatch(
    rows_MD: jax.Array, plan: Plan, number: jax.Array, rows: int
) -> tuple[jax.Array, tuple[Blocks, Blocks]]:
    """Send the sorted rows of a round to the devices of their experts.

    Returns:
      rows for this device's experts, sorted by expert, (B, D); undefined where there are none.
      the blocks that went from this device, and those that came to it.
    """
    sent, held = _blocks(plan, number, rows)
    if lax.axis_size("expert") == 1:  # they lie sorted already
        return rows_MD, (sent, held)
    return exchange(rows_MD, sent, held, rows, zeros=False), (sent, held)


def combine(rows_BD: jax.Array, blocks: tuple[Blocks, Blocks], num_copies: int) -> jax.Array:
    """Send what the experts made of a round's rows back to where they came from, (M, D); zeros in
    all other places.
    """
    sent, held = blocks
    if lax.axis_size("expert") == 1:
        return rows_BD
    return exchange(rows_BD, held, sent, num_copies, zeros=True)


def _blocks(plan: Plan, number: jax.Array, rows: int) -> tuple[Blocks, Blocks]:
    """Return the blocks that this device sends in a round and those that it gets: rows [number B,
    (number + 1) B).
    """
    counts_PE = plan.counts_PE
    num_devices, num_experts = counts_PE.shape
    at_sender_PE = jnp.cumsum(counts_PE, axis=1) - counts_PE
    # At the expert's device, rows lie by expert and then by sender.
    held = counts_PE.T.reshape(num_devices, -1)
    at_holder_PE = (jnp.cumsum(held, axis=1) - held).reshape(
        num_experts, num_devices
    ).T - number * rows
    first_PE = jnp.clip(at_holder_PE, 0, rows)
    sizes_PE = jnp.clip(at_holder_PE + counts_PE, 0, rows) - first_PE
    at_sender_PE += jnp.clip(-at_holder_PE, 0, counts_PE)
    device, local = lax.axis_index("expert"), num_experts // num_devices

    def own(x_PE: jax.Array) -> jax.Array:
        return lax.dynamic_index_in_dim(x_PE, device, keepdims=False).reshape(num_devices, local)

    def mine(x_PE: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(x_PE, device * local, local, axis=1)

    sent = Blocks(own(sizes_PE), own(at_sender_PE), own(first_PE))
    return sent, Blocks(mine(sizes_PE), mine(first_PE), mine(at_sender_PE))


# --- rows in other places -------------------------------------------------------------------------


@jax.custom_vjp
def take(rows_ID: jax.Array, index_O: jax.Array, uses_IU: jax.Array) -> jax.Array:
    """Return rows[index], zeros where the index is behind the last row; the gradient is a gather
    too, not a scatter.

    Args:
      rows_ID: I rows.
      index_O: row in each of the O places.
      uses_IU: the places that each row is in, the inverse of `index_O`; O for none.
    """
    del uses_IU
    return rows_ID.at[index_O].get(mode="fill", fill_value=0)


@jax.custom_vjp
def add_up(rows_OD: jax.Array, uses_IU: jax.Array, index_O: jax.Array) -> jax.Array:
    """Return the sum of the rows in each one's places, in fp32, (O, D) -> (I, D); this and `take` are
    each other's gradients.
    """
    del index_O
    rows_IUD = rows_OD.at[uses_IU].get(mode="fill", fill_value=0)
    return rows_IUD.sum(axis=1, dtype=jnp.float32).astype(rows_OD.dtype)


def _take_forward(rows, index, uses):  # type: ignore[no-untyped-def]
    return take(rows, index, uses), (index, uses)


def _take_backward(saved, d_rows):  # type: ignore[no-untyped-def]
    index, uses = saved
    return add_up(d_rows, uses, index), None, None


def _add_up_forward(rows, uses, index):  # type: ignore[no-untyped-def]
    return add_up(rows, uses, index), (index, uses)


def _add_up_backward(saved, d_sums):  # type: ignore[no-untyped-def]
    return take(d_sums, *saved), None, None


take.defvjp(_take_forward, _take_backward)
add_up.defvjp(_add_up_forward, _add_up_backward)


# --- rows on other devices ------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def exchange(
    rows_ID: jax.Array, sent: Blocks, received: Blocks, num_rows: int, zeros: bool
) -> jax.Array:
    """Send blocks of rows to the devices of `expert`, put those received in their places; (I, D) ->
    (num_rows, D).

    `zeros`: all other places have zeros, as a token's device needs, which adds up rounds. At an
    expert's device nobody reads them, and filling them is a pass over all the room: a TPU leaves them
    as they are.
    """
    return lax.platform_dependent(
        rows_ID,
        sent,
        received,
        cpu=functools.partial(exchange_padded, num_rows=num_rows),
        tpu=functools.partial(exchange_ragged, num_rows=num_rows, zeros=zeros),
        default=functools.partial(exchange_ragged, num_rows=num_rows, zeros=True),
    )


def _exchange_forward(rows, sent, received, num_rows, zeros):  # type: ignore[no-untyped-def]
    # The gradient needs the number of rows alone, in an array of no bytes.
    like = jnp.zeros((rows.shape[0], 0))
    return exchange(rows, sent, received, num_rows, zeros=zeros), (sent, received, like)


def _exchange_backward(num_rows, zeros, saved, d_rows):  # type: ignore[no-untyped-def]
    del num_rows
    sent, received, like = saved
    return exchange(d_rows, received, sent, like.shape[0], zeros=not zeros), None, None


exchange.defvjp(_exchange_forward, _exchange_backward)


def exchange_ragged(
    rows_ID: jax.Array, sent: Blocks, received: Blocks, num_rows: int, *, zeros: bool
) -> jax.Array:
    """Move the rows that there are."""
    room = (jnp.zeros if zeros else lax.empty)((num_rows, rows_ID.shape[1]), rows_ID.dtype)
    room = vary_over(room, varying_axes(rows_ID, sent.sizes_PE))
    places = (sent.here_PE, sent.sizes_PE, sent.there_PE, received.sizes_PE)
    return lax.ragged_all_to_all(
        rows_ID, room, *(x.reshape(-1) for x in places), axis_name="expert"
    )


def exchange_padded(rows_ID: jax.Array, sent: Blocks, received: Blocks, num_rows: int) -> jax.Array:
    """Move as many rows between any two devices as there can be, for platforms without the ragged
    one.
    """
    most = min(rows_ID.shape[0], num_rows)
    packed_ZD = rows_ID.at[_places(sent, most, rows_ID.shape[0])].get(mode="fill", fill_value=0)
    packed_ZD = lax.all_to_all(packed_ZD, "expert", split_axis=0, concat_axis=0, tiled=True)
    zeros = vary_over(
        jnp.zeros((num_rows, rows_ID.shape[1]), rows_ID.dtype), varying_axes(packed_ZD)
    )
    return zeros.at[_places(received, most, num_rows)].set(packed_ZD, mode="drop")


def _places(blocks: Blocks, most: int, nowhere: int) -> jax.Array:
    """Return which row here each packed row is, `most` for each other device, with its blocks one
    after the other.
    """
    ends_PE = jnp.cumsum(blocks.sizes_PE, axis=1)
    packed_Z = jnp.arange(most)
    block_PZ = (packed_Z[:, None] >= ends_PE[:, None, :]).sum(axis=2)
    shift_PE = blocks.here_PE - (ends_PE - blocks.sizes_PE)
    place_PZ = packed_Z + jnp.take_along_axis(shift_PE, block_PZ, axis=1, mode="clip")
    return jnp.where(block_PZ < ends_PE.shape[1], place_PZ, nowhere).reshape(-1)


def capacity_of(
    factor: float | None, length: int, num_choices: int, num_experts: int
) -> int | None:
    """Return how many copies an expert takes of a sequence: `factor` times an even share, rounded
    up.
    """
    return None if factor is None else math.ceil(factor * length * num_choices / num_experts)
