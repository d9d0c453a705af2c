"""A sequence that is split over `context`: who holds which chunks (zigzag), and what crosses their
borders.

With c devices a sequence is cut into 2c chunks, and device i works on chunks i and 2c - 1 - i, one
after the other. Under a causal mask chunk j sees j + 1 chunks, so every device's two see 2c + 1
together: nobody waits for the device with the end of the sequence. Most of the model works on
single tokens, to which their order means nothing. The rest says what it needs: attention the places
of its chunks, a recurrence the state that enters them (`carry`), a convolution the tokens before
them (`shift`), and what works on nothing but the whole sequence exchanges it for a share of the
heads or channels (`whole`, `parts`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from maxlm.jax_versions import vary_over, varying_axes


def zigzag(x_BT: jax.Array) -> jax.Array:
    """Turn this device's contiguous part of the sequence, chunks 2i and 2i + 1, into chunks i and
    2c - 1 - i.

    Two permutes over `context` of half of x each: the even chunks 0, 2, ... go to different
    devices, and the odd ones too. Meant for the small integers of a batch, once a step.
    """
    devices = lax.axis_size("context")
    if devices == 1:
        return x_BT
    even, odd = split_chunks(x_BT)
    even = lax.ppermute(even, "context", [(i, _holder(2 * i, devices)) for i in range(devices)])
    odd = lax.ppermute(odd, "context", [(i, _holder(2 * i + 1, devices)) for i in range(devices)])
    # Of chunks i and 2c - 1 - i one is even and one is odd.
    early_is_even = lax.axis_index("context") % 2 == 0
    return jnp.where(
        early_is_even, jnp.concatenate([even, odd], axis=1), jnp.concatenate([odd, even], axis=1)
    )


def chunk_numbers(device: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the numbers, counted along the sequence, of the two chunks that a device of `context`
    holds.
    """
    return device, 2 * lax.axis_size("context") - 1 - device


def places(x_BT: jax.Array) -> jax.Array:
    """Return where in the sequence this device's tokens are, int32 like (B, T), counted from 0."""
    index, half = jnp.arange(x_BT.shape[1], dtype=jnp.int32), x_BT.shape[1] // 2
    if lax.axis_size("context") > 1:
        early, late = chunk_numbers(lax.axis_index("context"))
        index += jnp.where(index < half, early, late - 1) * half
    return jnp.broadcast_to(index, x_BT.shape)


def split_chunks(x_BT: jax.Array, axis: int = 1) -> jax.Array:
    """Put this device's early and its late chunk side by side: (B, T, ...) -> (2, B, T / 2, ...)."""
    return jnp.stack(jnp.split(x_BT, 2, axis=axis))


def own_chunks(x_BT: jax.Array) -> jax.Array:
    """Put this device's chunks side by side as `split_chunks` does; one device alone has one chunk,
    (1, B, T, ...).
    """
    return x_BT[None] if lax.axis_size("context") == 1 else split_chunks(x_BT)


def join_chunks(x_2BT: jax.Array, axis: int = 1) -> jax.Array:
    """Undo `split_chunks` and `own_chunks`."""
    return jnp.concatenate([*x_2BT], axis=axis)


def in_order(x_BS: jax.Array) -> jax.Array:
    """Put a whole sequence, gathered as (0, 2c - 1, 1, 2c - 2, ...), in its order; (B, S, ...) ->
    (B, S, ...).
    """
    devices = lax.axis_size("context")
    x = x_BS.reshape(x_BS.shape[0], devices, 2, -1, *x_BS.shape[2:])
    return jnp.stack([x[:, :, 0], x[:, ::-1, 1]], axis=1).reshape(x_BS.shape)


def zigzag_order(x_BS: jax.Array) -> jax.Array:
    """Undo `in_order`."""
    devices = lax.axis_size("context")
    x = x_BS.reshape(x_BS.shape[0], 2, devices, -1, *x_BS.shape[2:])
    return jnp.stack([x[:, 0], x[:, 1, ::-1]], axis=2).reshape(x_BS.shape)


def gather_chunks(x_2: jax.Array) -> jax.Array:
    """All-gather what devices have of their two chunks, in the order of the sequence: (2, ...) ->
    (2c, ...).
    """
    x_C2 = lax.all_gather(x_2, "context")
    return jnp.concatenate([x_C2[:, 0], x_C2[::-1, 1]])


def gather_sequence(x_BT: jax.Array) -> jax.Array:
    """All-gather the whole sequence, in its order: (B, T, ...) -> (B, S, ...)."""
    return (
        x_BT
        if lax.axis_size("context") == 1
        else in_order(lax.all_gather(x_BT, "context", axis=1, tiled=True))
    )


def carry(summaries: Any, apply: Callable[[Any, Any], Any], initial: Any) -> Any:
    """Take a recurrence's state along the whole sequence; return the states that enter this
    device's chunks.

    One all-gather of all summaries, packed into one fp32 array; with these, each device takes the
    2c - 1 steps by itself. The backward pass is one reduce-scatter. Summaries are not combined with
    each other, as in a parallel prefix
    sum: that is dearer (matrix by matrix instead of matrix by state), and some recurrences cannot.

    Documents: a chunk in which one starts passes nothing on of the state that enters it. Its
    summary says so by a mask (a factor of exactly 0), never by a very small decay: sums of
    logarithms with one such term lose all others' digits.

    Args:
      summaries: tree of arrays (2, ...), what this device's chunks do to a state; computed in fp32.
        With one device along `context` there may be any number of chunks, one after the other. Of a
        single one (`own_chunks`) the summary is not used, so that the compiler does not compute it.
      apply: from the summary of one chunk (without the leading dimension) and the state that enters
        it, to the state that leaves it, of the same types; a function of these two alone.
      initial: the state that enters the sequence, the same on all devices of `context`.

    Returns:
      states like `initial`, each with the leading dimension of the summaries.
    """
    ordered = _along_sequence(summaries)
    axes = varying_axes(*jax.tree.leaves((ordered, initial)))
    ordered, initial = jax.tree.map(lambda x: vary_over(x, axes), (ordered, initial))

    def step(state: Any, summary: Any) -> tuple[Any, Any]:
        state = apply(summary, state)
        return state, state

    # What leaves the last chunk enters none.
    _, leaving = lax.scan(step, initial, jax.tree.map(lambda x: x[:-1], ordered))
    entering = jax.tree.map(
        lambda first, others: jnp.concatenate([first[None], others]), initial, leaving
    )
    if lax.axis_size("context") == 1:
        return entering
    mine = jnp.stack(chunk_numbers(lax.axis_index("context")))
    return jax.tree.map(lambda x: x[mine], entering)


def _along_sequence(summaries: Any) -> Any:
    """Return the summaries of all chunks, in the order of the sequence: arrays (2, ...) -> (2c,
    ...).
    """
    if lax.axis_size("context") == 1:
        return summaries
    summaries = jax.tree.map(lambda x: x.astype(jnp.float32), summaries)
    _, unpack = ravel_pytree(jax.tree.map(lambda x: x[0], summaries))
    packed = jax.vmap(lambda summary: ravel_pytree(summary)[0])(summaries)
    return jax.vmap(unpack)(gather_chunks(packed))


def shift(x_2BT: jax.Array, width: int) -> jax.Array:
    """Return the last `width` tokens of the chunk before each of this device's chunks; zeros before
    the first.

    Two permutes over `context` of `width` tokens each: in front of an early chunk is that of the
    device before, in front of a late chunk that of the device behind, but on the last device its
    own early one. With layers that do so `SequenceInfo.permutes` has to be true,
    whatever `mesh.context_kind` is.

    Args:
      x_2BT: this device's chunks, (2, B, T, ...); with one device any number, one after the other.
      width: of a convolution its width - 1; at most T.

    Returns:
      (2, B, width, ...).

    Raises:
      ValueError: a chunk has fewer tokens.
    """
    devices, length = lax.axis_size("context"), x_2BT.shape[2]
    if not 0 < width <= length:
        raise ValueError(
            f"from chunks of {length} tokens at least 1 and at most {length} can be shifted, not {width}"
        )
    ends = x_2BT[:, :, length - width :]
    if devices == 1:
        return jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    early, late = ends
    # A device to which nobody sends gets zeros.
    before_early = lax.ppermute(early, "context", [(i, i + 1) for i in range(devices - 1)])
    before_late = lax.ppermute(late, "context", [(i + 1, i) for i in range(devices - 1)])
    is_last = lax.axis_index("context") == devices - 1
    return jnp.stack([before_early, jnp.where(is_last, early, before_late)])


def whole(x_BT: jax.Array, axis: int) -> jax.Array:
    """Exchange this device's tokens for the whole sequence, in its order, of 1 / c of the heads or
    channels.

    One all-to-all, as is the backward pass.

    Args:
      x_BT: (B, T, ...), where T are the two chunks that this device holds.
      axis: of the heads or channels, from 2; c must divide their number.

    Returns:
      (B, S, ...), with 1 / c of the size along the axis.
    """
    if lax.axis_size("context") == 1:
        return x_BT
    return in_order(lax.all_to_all(x_BT, "context", split_axis=axis, concat_axis=1, tiled=True))


def parts(x_BS: jax.Array, axis: int) -> jax.Array:
    """Undo `whole`: exchange a share of the heads or channels for all of them, of this device's
    tokens.
    """
    if lax.axis_size("context") == 1:
        return x_BS
    return lax.all_to_all(zigzag_order(x_BS), "context", split_axis=1, concat_axis=axis, tiled=True)


def share(parameter: jax.Array, axis: int) -> jax.Array:
    """Cut the heads or channels that `whole` gives to this device out of a parameter that has all
    of them.
    """
    size = parameter.shape[axis] // lax.axis_size("context")
    return lax.dynamic_slice_in_dim(parameter, lax.axis_index("context") * size, size, axis=axis)


def _holder(chunk: int, devices: int) -> int:
    return min(chunk, 2 * devices - 1 - chunk)
