"""How the loss is computed on these devices: decided once, before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maxlm.config.schema import MeshConfig, RunConfig
from maxlm.kernels.mask import with_least
from maxlm.layers.sequence import SequenceInfo
from maxlm.layers.stack import BlockExecution, HeldRows, Remat, build_remat
from maxlm.models.decoder import logit_rule_of
from maxlm.sharding.context import gather_sequence
from maxlm.sharding.fsdp import cast, gather
from maxlm.sharding.pipeline import Schedule
from maxlm.sharding.stages import Layout
from maxlm.train.objectives import Objective, build_objective


class Execution(NamedTuple):
    """How the loss is computed.

    Attributes:
      objective: what is learned.
      gather: when parameters are whole: `train.gather`, or `step` where they are whole as they are.
      remat: what a block's backward pass computes again.
      schedule: of microbatches on the stages of a pipeline.
      layout: of layers on the stages.
      compute_dtype: of weights and activations.
      kernels: by operation.
      context_kind: how attention spans `context`.
      unroll: see `BlockExecution`.
    """

    objective: Objective
    gather: str
    remat: Remat
    schedule: Schedule
    layout: Layout
    compute_dtype: jnp.dtype
    kernels: Mapping[str, Any]
    context_kind: str
    unroll: int = 1

    def sequence_info(self, fields: Mapping[str, jax.Array]) -> SequenceInfo:
        """Say where the tokens of a microbatch stand."""
        mask = self.objective.mask(fields, fields["places"])
        whole_BT = gather_sequence(fields["segment_ids"])
        return SequenceInfo(
            fields["positions"],
            fields["segment_ids"],
            with_least(mask, whole_BT),
            whole_BT.shape[1],
            self.kernels,
            self.context_kind,
        )

    @property
    def blocks(self) -> BlockExecution:
        """How blocks are run whose parameters are whole already, or are made whole layer by layer."""
        gather = self.whole if self.gather == "layer" else None
        return BlockExecution(gather, self.remat, self.unroll)

    def whole(self, module: Any) -> Any:
        """Return a module with whole parameters in the compute dtype."""
        return gather(cast(module, self.compute_dtype))

    def held_rows(self, stage: jax.Array, chunk: jax.Array) -> list[HeldRows]:
        """Say how many rows of each segment hold a layer in a chunk of a stage."""
        held = []
        for segment in self.layout.segments:
            counts, chunks = segment.counts(), self.schedule.repeats
            uneven = min(counts) != segment.rows
            here = jnp.asarray(counts)[stage * chunks + chunk] if uneven else None
            held.append(HeldRows(min(counts), here))
        return held


def build_execution(
    config: RunConfig,
    mesh: MeshConfig,
    layout: Layout,
    *,
    compute_dtype: jnp.dtype,
    kernels: Mapping[str, Any],
    num_ids: int | None = None,
    unroll: int = 1,
) -> Execution:
    """Collect what decides how the loss is computed; `num_ids` is the number of ids that the
    tokenizer has, `unroll` is `BlockExecution`'s.
    """
    train = config.train
    filled_up = num_ids is not None and num_ids < config.model.vocab_size
    return Execution(
        objective=build_objective(
            config.objective,
            logit_rule=logit_rule_of(config.model),
            num_ids=num_ids if filled_up else None,
        ),
        gather=train.gather,
        remat=build_remat(train),
        schedule=Schedule(mesh.stage, mesh.stage_repeats, train.microbatches, layout.imbalance),
        layout=layout,
        compute_dtype=compute_dtype,
        kernels=kernels,
        context_kind=mesh.context_kind,
        unroll=unroll,
    )
