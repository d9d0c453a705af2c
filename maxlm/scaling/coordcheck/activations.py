"""Train a model for a few steps and keep what its layers make of one batch, before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import MeshConfig, RunConfig
from maxlm.data.loader import device_batch
from maxlm.layers.layer import Streams
from maxlm.models.decoder import Decoder
from maxlm.sharding.fsdp import vary
from maxlm.sharding.mesh import BATCH_AXES, BATCH_SPEC, batch_sharding
from maxlm.sharding.parameters import partition_specs
from maxlm.sharding.tensor import enter
from maxlm.train.loss.gradients import Batch, microbatches
from maxlm.train.setup import Program, build_program, compile_step, open_datasets
from maxlm.train.state import create_state

Activations = dict[str, jax.Array]
EMBEDDING, LOGITS = "embedding", "logits of targets"


class Sizes(NamedTuple):
    """Root mean squares, by name of the layer.

    Attributes:
      step: steps done.
      activations: of what layers return.
      changes: of the difference to what they returned before the first step.
    """

    step: int
    activations: dict[str, float]
    changes: dict[str, float]


def measure(config: RunConfig, *, num_steps: int, seeds: Sequence[int]) -> Iterator[Sizes]:
    """Train a run on its first batch, again and again, on the first device; yield sizes before the
    first step and after each, for one seed after the other.

    Raises:
      UserError: its data are not prepared.
    """
    on_one = config.model_copy(update={"mesh": MeshConfig()})
    dataset = open_datasets(on_one).train
    program = build_program(on_one, jax.devices()[:1], num_ids=dataset.tokenizer.vocab_size)
    look, step = _make_activations(program), compile_step(on_one, program).run
    batch = device_batch(dataset, 0, batch_sharding(program.mesh))
    for seed in seeds:
        arguments = program.state, program.optimizer, program.mesh
        state = create_state(*arguments, seed=seed, batch_size=config.train.batch_size)
        first = look(state.decoder, batch)
        for number in range(num_steps + 1):
            seen = look(state.decoder, batch)
            changes = {name: _rms(seen[name] - first[name]) for name in seen}
            yield Sizes(number, {name: _rms(value) for name, value in seen.items()}, changes)
            state, _ = step(state, batch)


def _rms(values: jax.Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64)))))


def _make_activations(program: Program) -> Callable[[Decoder, Batch], Activations]:
    """Return activations(decoder, batch): what the embedding makes of it, what each block adds to
    the residual stream, and how far the targets' logits are above the others, in fp32.

    Of the logits those of the targets: what steps teach them is the same at all widths, while what
    the first values of the output projection make of other hidden states, nearly all there is of
    the other logits, falls with the root of the width.
    """
    execution = program.execution
    # All axes have one device.
    spec = P(("stage", *BATCH_AXES), ("context", "tensor"))

    def look(decoder: Decoder, batch: Batch) -> Activations:
        decoder = execution.whole(vary(decoder.without_modules()))
        piece = jax.tree.map(lambda field: field[0], microbatches(batch, execution))
        info = decoder.prepared(execution.sequence_info(piece))
        streams = decoder.embed(piece["tokens"], info)
        seen = {EMBEDDING: streams.x_BTD}
        for block, layer in _blocks(decoder):
            after: Streams = block(streams, info)[0]
            seen[f"block {layer}"] = after.x_BTD - streams.x_BTD
            streams = after
        logits_BTV = decoder.logits(enter(decoder.norm(streams.x_BTD)))
        target_BT1 = jnp.take_along_axis(logits_BTV, piece["targets"][..., None], axis=2)
        seen[LOGITS] = target_BT1 - logits_BTV.mean(axis=2, keepdims=True)
        return {name: x.astype(jnp.float32) for name, x in seen.items()}

    mapped = jax.shard_map(
        look,
        mesh=program.mesh,
        in_specs=(partition_specs(program.declared), BATCH_SPEC),
        out_specs=spec,
    )
    activations: Callable[[Decoder, Batch], Activations] = jax.jit(mapped)
    return activations


def _blocks(decoder: Decoder) -> Iterator[tuple[Callable[..., tuple[Streams, ...]], int]]:
    """Yield every block of the stack with its own parameters, and its number."""
    number = 0
    for segment in decoder.stack:
        rows = jax.tree.leaves(segment)[0].shape[0]
        for row in range(rows):
            for block in segment:
                yield jax.tree.map(lambda values, row=row: values[row], block), number
                number += 1
