"""Continue texts token by token, with what mixers keep of the earlier ones (keys and values, or a
state).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.decoding.sampling import Sampling, choose
from maxlm.kernels.mask import causal
from maxlm.layers.layer import StateArray
from maxlm.layers.sequence import SequenceInfo
from maxlm.models.decoder import Decoder
from maxlm.ops import OPERATIONS
from maxlm.sharding.fsdp import cast, gather, vary
from maxlm.sharding.mesh import DECODING_AXES
from maxlm.sharding.parameters import partition_specs

PREFILL_BLOCK = 64
"""Prompts are filled up to whole blocks, so that prompts of similar length share a compiled
program.
"""


def generate(
    decoder: Decoder,
    mesh: Mesh,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling,
    stop_id: int,
    num_ids: int,
    compute_dtype: Any,
) -> Iterator[list[int | None]]:
    """Yield, up to `max_tokens` times, the next token of each text, None for those that have
    reached `stop_id`.

    Args:
      decoder: parameters on the mesh.
      mesh: `tensor` splits heads and hidden units, the batch axes the texts; `stage` and `context`
        have size 1.
      prompts: token ids of each text, BOS first; as many as a multiple of the batch axes' devices.
      max_tokens: tokens to generate at most.
      sampling: how a token is chosen.
      stop_id: the end-of-document token.
      num_ids: how many ids the tokenizer has; the model's vocabulary may be larger.
      compute_dtype: of weights, activations and what is kept.
    """
    lengths_B = np.asarray([len(prompt) for prompt in prompts], np.int32)
    longest = int(lengths_B.max()) + max_tokens
    advance = make_advance(decoder, mesh, compute_dtype, longest)
    padded = _whole_blocks(int(lengths_B.max()))
    states = empty_states(
        decoder, mesh, len(prompts), _whole_blocks(padded + max_tokens), compute_dtype
    )
    tokens_BT = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, : len(prompt)] = prompt
    pick = jax.jit(functools.partial(choose, sampling=sampling, num_ids=num_ids))
    key, start_B, done_B = (
        jax.random.key(sampling.seed),
        np.zeros_like(lengths_B),
        np.zeros(len(prompts), bool),
    )
    logits_BV, states = advance(decoder, tokens_BT, states, start_B, lengths_B)
    for index in range(max_tokens):
        token_B = np.asarray(pick(logits_BV, jax.random.fold_in(key, index)))
        done_B |= token_B == stop_id
        if done_B.all():
            return
        yield [None if done else int(token) for token, done in zip(token_B, done_B, strict=True)]
        # What the filling of the prompts left behind them is overwritten before any token can see
        # it.
        logits_BV, states = advance(
            decoder, token_B[:, None], states, lengths_B + index, np.ones_like(lengths_B)
        )


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


def empty_states(decoder: Decoder, mesh: Mesh, batch_size: int, length: int, dtype: Any) -> Any:
    """Return what the mixers keep before the first token, for sequences of up to `length` tokens,
    on its devices.

    A tree for each block, by segment and place, with a row for each of its layers in front.
    """
    declared = _declared_states(decoder, batch_size, length, dtype)
    layouts = jax.tree.map(
        lambda array: NamedSharding(mesh, array.spec), declared, is_leaf=_is_state_array
    )
    create = jax.jit(
        lambda: jax.tree.map(lambda array: array.zeros(), declared, is_leaf=_is_state_array),
        out_shardings=layouts,
    )
    return create()


def state_specs(decoder: Decoder) -> Any:
    """Return the layouts of what the mixers keep."""
    return jax.tree.map(
        lambda array: array.spec, _declared_states(decoder, 1, 1, None), is_leaf=_is_state_array
    )


def _declared_states(decoder: Decoder, batch_size: int, length: int, dtype: Any) -> Any:
    """Return a `StateArray` for everything the mixers keep, the rows of a block's layers in front."""
    states = []
    for segment, repeat in zip(decoder.stack, decoder.model.repeats, strict=True):

        def stacked(array: StateArray, repeat: int = repeat) -> StateArray:
            return StateArray((repeat, *array.shape), array.dtype, P(None, *array.spec))

        of_blocks = [
            block.mixer.decoding_state(batch_size, length, dtype) if block.has_mixer else ()
            for block in segment
        ]
        states.append(jax.tree.map(stacked, of_blocks, is_leaf=_is_state_array))
    return states


def _is_state_array(node: Any) -> bool:
    return isinstance(node, StateArray)


def _whole_blocks(length: int) -> int:
    return -(-length // PREFILL_BLOCK) * PREFILL_BLOCK
