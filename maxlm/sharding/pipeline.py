"""Pipeline parallelism: lockstep 1F1B over the `stage` axis (arXiv:1806.03377), interleaved where stages repeat
(arXiv:2104.04473), as three scans with one explicit `jax.vjp` a tick.

S stages, M microbatches, V chunks of layers per stage: chunk v of stage s holds the layers of virtual stage v S + s,
and the virtual stages form a ring that each microbatch walks V times. Every tick every device runs the same program:
one chunk forward, one chunk backward. Microbatch m = g S + i (i < S) is at (s, v)

  forward  at tick  g S V + v S + i + s
  backward at tick  V S - 1 + g S V + (V - 1 - v) S + i + (S - 1 - s)

so what a stage sends arrives just when it is needed, and the last virtual stage goes backward in the tick in which it
went forward. Ticks: V S - 1 forward only, M V - V S + S both, V S - 1 backward only; in all M V + V S + S - 2. A tick
with both takes 1/V of a stage's time for a microbatch and a tick with one its part of that, so a step takes
M + (S - 1) / V of it, of which nobody works usefully for

  bubble = (S - 1) / (M V + S - 1).

Blocks before the pattern run on stage 0 alone, where tokens are embedded, while the other stages wait: with p times the
work of a stage's layers they add M p to a step's time, M p / S of which would be their share.

Memory: a stage input lives from its forward to its backward tick, at most 2 V S - 2 ticks later. 2 S - 1 of them
(V = 1) or 2 S V (V > 1) are kept, whatever M is; the backward tick computes the chunk again from its input. Nothing
else survives a tick but the gradients.

Communication: 2 permutes of one microbatch's activations a tick (1 in the ticks that go one way only), and for the
loss one reduce-scatter and one all-gather of them over `stage` per microbatch: each stage does 1/S of the loss.

Why there is no zero-bubble schedule (arXiv:2401.10241): weight gradients delayed into the cool-down could fill at most
(S - 1) W of the (S - 1) (F + B) that are lost, a quarter of the bubble where the forward pass is computed again
(F : recompute : B_input : W = 1 : 1 : 1 : 1), but S - 1 microbatches' inputs AND output gradients of every
multiplication would have to be kept until then, which is what recomputing from stage inputs avoids. V = 2 halves the
bubble for 2 S + 1 more stage inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from maxlm.jax_versions import vary_over
from maxlm.sharding.fsdp import tied_to_loop
from maxlm.sharding.mesh import AXES

Index = Any  # int or int32 scalar: the formulas hold for both
Tree = TypeVar("Tree")


class Work(NamedTuple):
    """What a stage does in one direction of a tick; out of range where not valid."""

    microbatch: Index
    chunk: Index
    valid: Index


class Schedule(NamedTuple):
    """Sizes of a pipeline: S, V, M. With V > 1, M is a multiple of S."""

    stages: int = 1
    repeats: int = 1
    microbatches: int = 1

    @property
    def warmup_ticks(self) -> int:
        """Ticks with forward work only; as many at the end have backward work only."""
        return self.repeats * self.stages - 1

    @property
    def steady_ticks(self) -> int:
        """Ticks with work in both directions."""
        return self.microbatches * self.repeats - self.repeats * self.stages + self.stages

    def bubble(self, before: float = 0.0) -> float:
        """Return the fraction of a step's time in which a stage does nothing useful.

        Args:
          before: time of the blocks that the first stage runs besides, relative to a stage's layers.
        """
        useful = self.microbatches * (1 + before / self.stages)
        return 1 - useful / (self.microbatches * (1 + before) + (self.stages - 1) / self.repeats)

    @property
    def slots(self) -> int:
        """Microbatches whose inputs each chunk keeps."""
        return 2 * self.stages - 1 if self.repeats == 1 else 2 * self.stages

    def forward(self, tick: Index, stage: Index) -> Work:
        """Return what a stage runs forward in a tick."""
        return self._work(tick - stage, backward=False)

    def backward(self, tick: Index, stage: Index) -> Work:
        """Return what a stage runs backward in a tick."""
        return self._work(tick - self.warmup_ticks - (self.stages - 1 - stage), backward=True)

    def _work(self, turn: Index, *, backward: bool) -> Work:
        group, place = turn // (self.stages * self.repeats), turn % (self.stages * self.repeats)
        chunk = place // self.stages
        microbatch = group * self.stages + place % self.stages
        valid = (turn >= 0) & (turn < self.microbatches * self.repeats)
        return Work(microbatch, self.repeats - 1 - chunk if backward else chunk, valid)


def layer_order(groups: int, schedule: Schedule) -> list[int]:
    """Return which group of layers each row of a stacked parameter holds: a stage's rows lie together in memory.

    The identity unless stages repeat.
    """
    rows = groups // (schedule.stages * schedule.repeats)
    return [
        (chunk * schedule.stages + stage) * rows + row
        for stage in range(schedule.stages)
        for chunk in range(schedule.repeats)
        for row in range(rows)
    ]


class Parts(NamedTuple):
    """The model as the pipeline sees it.

    Attributes:
      run_chunk: (outer, chunk, x, microbatch, first) -> (y, cost, statistics), one chunk of layers; where `first` is
        true the embedded tokens of the microbatch, after the blocks before the pattern, take the place of x. x and y
        have the same shape; cost is what the chunk adds to the objective besides, statistics are rows like the chunk's
        layers, to be summed.
      losses: (outer, y, microbatch) -> (objective, nats), from the last virtual stage's y, which only stage S - 1 has;
        every stage does its share.
    """

    run_chunk: Callable[..., tuple[jax.Array, jax.Array, Any]]
    losses: Callable[..., tuple[jax.Array, jax.Array]]


class _Carry(NamedTuple):
    """What goes from tick to tick: the two messages that arrived, the kept inputs, the sums so far."""

    x: jax.Array
    d_y: jax.Array
    inputs: jax.Array
    d_outer: Any
    d_stack: Any
    statistics: Any


class _Pipeline(NamedTuple):
    """What the devices of a stage do in a tick, and what they do it with (see `pipelined_gradients`)."""

    parts: Parts
    outer: Any
    stack: Any
    schedule: Schedule
    stage: jax.Array

    def at(self, tick: jax.Array) -> _Pipeline:
        """Return it for one tick, whose gathers of parameters the compiler cannot move out of the loop."""
        return self._replace(stack=tied_to_loop(self.stack, tick))

    def forward(self, tick: jax.Array, carry: _Carry) -> tuple[jax.Array, _Carry, jax.Array]:
        """Run one chunk forward; return its output, the carry and what the chunk adds to the objective."""
        parts, outer, stack, schedule, stage = self
        work = _clipped(schedule.forward(tick, stage), schedule)
        slot = work.chunk * schedule.slots + work.microbatch % schedule.slots
        kept = lax.dynamic_index_in_dim(carry.inputs, slot, keepdims=False)
        inputs = lax.dynamic_update_index_in_dim(carry.inputs, jnp.where(work.valid, carry.x, kept), slot, 0)
        first = work.valid & (stage == 0) & (work.chunk == 0)
        chunk = _chunk(stack, work.chunk, schedule)
        y, cost, statistics = parts.run_chunk(outer, chunk, carry.x, work.microbatch, first)
        statistics = jax.tree.map(lambda rows: jnp.where(work.valid, rows, 0), statistics)
        carry = carry._replace(
            x=_send(y, 1, schedule),
            inputs=inputs,
            statistics=_add_chunk(carry.statistics, statistics, work.chunk, schedule),
        )
        return y, carry, jnp.where(work.valid, cost, 0)

    def backward(self, tick: jax.Array, carry: _Carry, d_loss: jax.Array | None) -> _Carry:
        """Run one chunk again and backward; `d_loss` is what the last virtual stage starts from."""
        parts, outer, stack, schedule, stage = self
        work = _clipped(schedule.backward(tick, stage), schedule)
        d_y = carry.d_y
        if d_loss is not None:
            d_y = jnp.where((stage == schedule.stages - 1) & (work.chunk == schedule.repeats - 1), d_loss, d_y)
        d_y = jnp.where(work.valid, d_y, 0)
        kept = lax.dynamic_index_in_dim(
            carry.inputs, work.chunk * schedule.slots + work.microbatch % schedule.slots, keepdims=False
        )
        first = work.valid & (stage == 0) & (work.chunk == 0)

        def run(outer: Any, chunk: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y, cost, _ = parts.run_chunk(outer, chunk, x, work.microbatch, first)
            return y, vary_over(cost, ("stage",))

        (_, cost), pull = jax.vjp(run, outer, _chunk(stack, work.chunk, schedule), kept)
        d_outer, d_chunk, d_x = pull((d_y, jnp.where(work.valid, jnp.ones_like(cost), 0)))
        return carry._replace(
            d_y=_send(d_x, -1, schedule),
            d_outer=jax.tree.map(jnp.add, carry.d_outer, d_outer),
            d_stack=_add_chunk(carry.d_stack, d_chunk, work.chunk, schedule),
        )

    def loss(
        self, tick: jax.Array, y: jax.Array, carry: _Carry
    ) -> tuple[_Carry, jax.Array, tuple[jax.Array, jax.Array]]:
        """Do this stage's share of the loss of the microbatch that ends in a tick, forward and backward."""
        parts, outer, _, schedule, _ = self
        work = _clipped(schedule.forward(tick, schedule.stages - 1), schedule)
        losses, pull = jax.vjp(lambda outer, y: parts.losses(outer, y, work.microbatch), outer, y)
        d_outer, d_y = pull(jax.tree.map(jnp.ones_like, losses[:1]) + jax.tree.map(jnp.zeros_like, losses[1:]))
        return carry._replace(d_outer=jax.tree.map(jnp.add, carry.d_outer, d_outer)), d_y, losses

    def steady(self, carry: _Carry, tick: jax.Array) -> tuple[_Carry, tuple[jax.Array, jax.Array]]:
        """Run a tick with work in both directions; return what it adds to objective and nats."""
        run, schedule = self.at(tick), self.schedule
        y, carry, cost = run.forward(tick, carry)
        if schedule.repeats == 1:
            carry, d_loss, losses = run.loss(tick, y, carry)
        else:
            # Only every V-th group of S ticks ends a microbatch; the same ticks on every device.
            ends = schedule.forward(tick, schedule.stages - 1).chunk == schedule.repeats - 1
            shapes = jax.eval_shape(run.loss, tick, y, carry)
            nothing = jax.tree.map(lambda s: vary_over(jnp.zeros(s.shape, s.dtype), _axes(s)), shapes[1:])
            carry, d_loss, losses = lax.cond(
                ends, lambda carry: run.loss(tick, y, carry), lambda carry: (carry, *nothing), carry
            )
        return run.backward(tick, carry, d_loss), (losses[0] + cost, losses[1])


def pipelined_gradients(
    parts: Parts, outer: Any, stack: Any, zeros: tuple[Any, Any], x: jax.ShapeDtypeStruct, schedule: Schedule
) -> tuple[Any, Any, jax.Array, jax.Array, Any]:
    """Run a step's microbatches through the pipeline; inside the shard_map.

    Args:
      parts: the model.
      outer: parameters outside the stack, whole on every stage.
      stack: this stage's rows of the stacked parameters.
      zeros: fp32 zeros like outer and stack, to sum gradients in.
      x: shape and dtype of one microbatch's activations on this device.
      schedule: the sizes.

    Returns:
      gradients of outer and stack, this device's objective and nats, and the statistics of the stack's layers.
    """
    run = _Pipeline(parts, outer, stack, schedule, lax.axis_index("stage"))
    warmup, all_forward = schedule.warmup_ticks, schedule.warmup_ticks + schedule.steady_ticks
    nothing = vary_over(jnp.zeros(x.shape, x.dtype), AXES)
    kept = vary_over(jnp.zeros((schedule.repeats * schedule.slots, *x.shape), x.dtype), AXES)
    carry = _Carry(nothing, nothing, kept, *zeros, _no_statistics(parts, outer, stack, nothing))
    carry, costs = lax.scan(lambda carry, tick: run.at(tick).forward(tick, carry)[1:], carry, jnp.arange(warmup))
    carry, (objectives, nats) = lax.scan(run.steady, carry, jnp.arange(warmup, all_forward))
    ticks = jnp.arange(all_forward, all_forward + warmup)
    carry, _ = lax.scan(lambda carry, tick: (run.at(tick).backward(tick, carry, None), None), carry, ticks)
    return carry.d_outer, carry.d_stack, costs.sum() + objectives.sum(), nats.sum(), carry.statistics


def _no_statistics(parts: Parts, outer: Any, stack: Any, x: jax.Array) -> Any:
    """Return zeros for the statistics of all layers of this stage."""
    index = jnp.int32(0)
    shapes = jax.eval_shape(lambda: parts.run_chunk(outer, stack, x, index, index == 0)[2])
    return jax.tree.map(lambda s: vary_over(jnp.zeros(s.shape, s.dtype), _axes(s)), shapes)


def pipelined_losses(
    parts: Parts, outer: Any, stack: Any, x: jax.ShapeDtypeStruct, schedule: Schedule
) -> tuple[jax.Array, jax.Array]:
    """Run microbatches forward only; return the summed (objective, nats)."""
    stage = lax.axis_index("stage")

    def tick(x: jax.Array, tick: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        work = _clipped(schedule.forward(tick, stage), schedule)
        first = work.valid & (stage == 0) & (work.chunk == 0)
        chunk = _chunk(tied_to_loop(stack, tick), work.chunk, schedule)
        y, cost, _ = parts.run_chunk(outer, chunk, x, work.microbatch, first)
        last = schedule.forward(tick, schedule.stages - 1)
        losses = parts.losses(outer, y, _clipped(last, schedule).microbatch)
        ends = last.valid & (last.chunk == schedule.repeats - 1)
        objective, nats = (jnp.where(ends, value, 0) for value in losses)
        return _send(y, 1, schedule), (objective + jnp.where(work.valid, cost, 0), nats)

    ticks = jnp.arange(schedule.microbatches * schedule.repeats + schedule.stages - 1)
    _, (objectives, nats) = lax.scan(tick, vary_over(jnp.zeros(x.shape, x.dtype), AXES), ticks)
    return objectives.sum(), nats.sum()


def spread_over_stages(x_TD: jax.Array) -> jax.Array:
    """Give each stage 1/S of the rows that the last stage has: (T, D) -> (T / S, D)."""
    last = lax.axis_index("stage") == lax.axis_size("stage") - 1
    return lax.psum_scatter(jnp.where(last, x_TD, 0), "stage", scatter_dimension=0, tiled=True)


def _clipped(work: Work, schedule: Schedule) -> Work:
    """Point work that is not valid at something that exists: it is computed and dropped."""
    return Work(jnp.clip(work.microbatch, 0, schedule.microbatches - 1), work.chunk, work.valid)


def _send(x: jax.Array, by: int, schedule: Schedule) -> jax.Array:
    """Permute around the ring of stages."""
    stages = schedule.stages
    return lax.ppermute(x, "stage", [(stage, (stage + by) % stages) for stage in range(stages)])


def _chunk(stack: Tree, chunk: jax.Array, schedule: Schedule) -> Tree:
    """Cut a chunk of layers out of this stage's rows."""
    if schedule.repeats == 1:
        return stack

    def cut(rows: jax.Array) -> jax.Array:
        size = rows.shape[0] // schedule.repeats
        return lax.dynamic_slice_in_dim(rows, chunk * size, size)

    result: Tree = jax.tree.map(cut, stack)
    return result


def _add_chunk(stack: Tree, chunk: Tree, index: jax.Array, schedule: Schedule) -> Tree:
    """Add a chunk's gradients to this stage's rows."""
    result: Tree
    if schedule.repeats == 1:
        result = jax.tree.map(jnp.add, stack, chunk)
        return result

    def add(rows: jax.Array, part: jax.Array) -> jax.Array:
        start = index * part.shape[0]
        old = lax.dynamic_slice_in_dim(rows, start, part.shape[0])
        return lax.dynamic_update_slice_in_dim(rows, old + part, start, axis=0)

    result = jax.tree.map(add, stack, chunk)
    return result


def _axes(shape: Any) -> tuple[str, ...]:
    """Return the axes that the result of an abstract evaluation varies over."""
    return tuple(sorted(shape.manual_axis_type.varying if hasattr(shape, "manual_axis_type") else shape.vma))
