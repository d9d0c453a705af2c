"""Continue texts token by token, with what mixers keep of the earlier ones (keys and values, or a
state).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.decoding.sampling import Sampling, at_index, choose
from maxlm.decoding.shapes import length_bucket, rows_bucket
from maxlm.decoding.weights import Weights, without_values
from maxlm.kernels.mask import causal
from maxlm.layers.layer import StateArray
from maxlm.layers.sequence import SequenceInfo
from maxlm.layers.stack import row_count
from maxlm.models.decoder import Decoder
from maxlm.ops import OPERATIONS
from maxlm.sharding.fsdp import cast, gather, vary
from maxlm.sharding.mesh import BATCH_AXES, DECODING_AXES
from maxlm.sharding.parameters import partition_specs


class Generator:
    """Continues texts; each program is compiled once for all calls of its shapes.

    Args:
      weights: parameters on the mesh.
      mesh: `tensor` splits heads and hidden units, the batch axes the texts; `stage` and `context`
        have size 1.
      num_ids: how many ids the tokenizer has; the model's vocabulary may be larger.
      compute_dtype: of weights, activations and what is kept.
    """

    def __init__(self, weights: Weights, mesh: Mesh, *, num_ids: int, compute_dtype: Any):
        self._weights, self._mesh, self._dtype = weights, mesh, compute_dtype
        self._advances: dict[tuple[int, bool], Callable[..., tuple[jax.Array, Any]]] = {}
        self._pick = jax.jit(
            functools.partial(choose, num_ids=num_ids), static_argnames=("sampling",)
        )
        self._empty: dict[tuple[int, int], Callable[[], Any]] = {}
        self._row_devices = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sampling: Sampling,
        stop_ids: Collection[int],
    ) -> Iterator[list[int | None]]:
        """Yield, up to `max_tokens` times, the next token of each text, None for those that have
        reached one of `stop_ids`.

        Args:
          prompts: token ids of each text, at least one.
          max_tokens: tokens to generate at most.
          sampling: how a token is chosen. Same seed and prompts, same texts.
          stop_ids: tokens that end a text, which are not part of it.
        """
        tokens_BT, lengths_B = self._fill_up(prompts)
        room = length_bucket(tokens_BT.shape[1] + max_tokens)
        decoder = self._weights.for_tokens(len(lengths_B))
        advance = self._advance_to(decoder, int(lengths_B[: len(prompts)].max()) + max_tokens)
        states = self._empty_states(decoder, len(lengths_B), room)
        key, done_B = sampling.keys(len(lengths_B)), np.arange(len(lengths_B)) >= len(prompts)
        unseeded = dataclasses.replace(sampling, seed=0)  # another seed is no other program
        start_B, one_B = np.zeros_like(lengths_B), np.ones_like(lengths_B)
        logits_BV, states = advance(decoder, tokens_BT, states, start_B, lengths_B)
        for index in range(max_tokens):
            drawn = self._pick(logits_BV, at_index(key, index), sampling=unseeded)
            token_B = np.asarray(drawn)
            done_B |= np.isin(token_B, list(stop_ids))
            if done_B.all():
                return
            pairs = zip(token_B[: len(prompts)], done_B, strict=False)
            yield [None if done else int(token) for token, done in pairs]
            # What the filling of the prompts left behind them is overwritten before any token can
            # see it.
            logits_BV, states = advance(decoder, token_B[:, None], states, lengths_B + index, one_B)

    def _fill_up(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the prompts as rows of one length, of a number that the devices share, and how
        many tokens of each are real.
        """
        rows = rows_bucket(len(prompts), self._row_devices)
        lengths_B = np.ones(rows, np.int32)
        lengths_B[: len(prompts)] = [len(prompt) for prompt in prompts]
        tokens_BT = np.zeros((rows, length_bucket(int(lengths_B.max()))), np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : len(prompt)] = prompt
        return tokens_BT, lengths_B

    def _advance_to(self, decoder: Decoder, longest: int) -> Callable[..., tuple[jax.Array, Any]]:
        """Return the program for texts of up to `longest` tokens: the same for all lengths that
        layers do not tell apart.
        """
        length = decoder.model.told_length(longest)
        key = length, row_count(decoder.stack[0]) is None
        if key not in self._advances:
            declared = without_values(decoder)
            self._advances[key] = make_advance(declared, self._mesh, self._dtype, length)
        return self._advances[key]

    def _empty_states(self, decoder: Decoder, rows: int, room: int) -> Any:
        if (rows, room) not in self._empty:
            self._empty[rows, room] = make_empty_states(
                decoder, self._mesh, rows, room, self._dtype
            )
        return self._empty[rows, room]()


def make_advance(
    declared: Decoder, mesh: Mesh, compute_dtype: Any, length: int
) -> Callable[..., tuple[jax.Array, Any]]:
    """Return advance(decoder, tokens_BT, states, start_B, lengths_B) -> (fp32 logits (B, V),
    states).

    `start_B` tokens of each sequence came before, `lengths_B` of the T are real, and the logits are
    those that follow the last real one. The longest sequence will have `length` tokens in the end.
    """

    # One query against many keys is a product with a vector: nothing for a kernel of matrix
    # products to win.
    kernels = {
        name: operation.reference(mesh.devices.flat[0]) for name, operation in OPERATIONS.items()
    }

    def program(
        decoder: Decoder,
        tokens_BT: jax.Array,
        states: Any,
        start_B: jax.Array,
        lengths_B: jax.Array,
    ) -> tuple[jax.Array, Any]:
        decoder = gather(cast(vary(decoder), compute_dtype))
        place_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
        positions_BT = start_B[:, None] + place_T
        segments_BT = (place_T < lengths_B[:, None]).astype(jnp.int32)
        info = SequenceInfo(
            positions_BT,
            segments_BT,
            causal(segments_BT, positions_BT),
            length,
            kernels=kernels,
            split=False,
        )
        x_BTD, states = decoder.decode(tokens_BT, info, states, start_B)
        x_BD = jnp.take_along_axis(x_BTD, lengths_B[:, None, None] - 1, axis=1)[:, 0]
        return decoder.logits(x_BD), states

    rows, of_states = P(DECODING_AXES), state_specs(declared)
    in_specs = (partition_specs(declared), rows, of_states, rows, rows)
    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=in_specs, out_specs=(P(DECODING_AXES, "tensor"), of_states)
    )
    return jax.jit(mapped, donate_argnums=2)


def make_empty_states(
    decoder: Decoder, mesh: Mesh, batch_size: int, length: int, dtype: Any
) -> Callable[[], Any]:
    """Return a program that makes what the mixers keep before the first token, for sequences of up
    to `length` tokens, on its devices.

    A tree for each block, by segment and place, with a row for each of its layers in front, where
    it has rows.
    """
    declared = _declared_states(decoder, batch_size, length, dtype)
    layouts = jax.tree.map(
        lambda array: NamedSharding(mesh, array.spec), declared, is_leaf=_is_state_array
    )
    return jax.jit(
        lambda: jax.tree.map(lambda array: array.zeros(), declared, is_leaf=_is_state_array),
        out_shardings=layouts,
    )


def state_specs(decoder: Decoder) -> Any:
    """Return the layouts of what the mixers keep."""
    return jax.tree.map(
        lambda array: array.spec, _declared_states(decoder, 1, 1, None), is_leaf=_is_state_array
    )


def _declared_states(decoder: Decoder, batch_size: int, length: int, dtype: Any) -> Any:
    """Return a `StateArray` for everything the mixers keep, the rows of a block's layers in front
    where it has rows.
    """
    states = []
    for segment in decoder.stack:
        rows = row_count(segment)

        def stacked(array: StateArray, rows: int | None = rows) -> StateArray:
            if rows is None:
                return array
            return StateArray((rows, *array.shape), array.dtype, P(None, *array.spec))

        of_blocks = [
            block.mixer.decoding_state(batch_size, length, dtype) if block.has_mixer else ()
            for block in segment
        ]
        states.append(jax.tree.map(stacked, of_blocks, is_leaf=_is_state_array))
    return states


def _is_state_array(node: Any) -> bool:
    return isinstance(node, StateArray)
