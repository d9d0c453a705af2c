"""Pipeline parallelism: lockstep 1F1B over the `stage` axis, interleaved where stages repeat, as
three scans.

The schedules are those of arXiv:1806.03377 and arXiv:2104.04473, with one explicit `jax.vjp` a
tick.

S stages, M microbatches, V chunks of layers per stage: chunk v of stage s holds the layers of
virtual stage v S + s, and the virtual stages form a ring that each microbatch walks V times. Every
tick every device runs the same program: one chunk forward, one chunk backward. Microbatch m = g S +
i (i < S) is at (s, v)

  forward  at tick  g S V + v S + i + s
  backward at tick  V S - 1 + g S V + (V - 1 - v) S + i + (S - 1 - s)

so what a stage sends arrives just when it is needed, and the last virtual stage goes backward in
the tick in which it went forward. Ticks: V S - 1 forward only, M V - V S + S both, V S - 1 backward
only; in all M V + V S + S - 2. A tick with both takes 1/V of a stage's time for a microbatch and a
tick with one its part of that, so a step takes M + (S - 1) / V of it, of which nobody works
usefully for

  bubble = (S - 1) / (M V + S - 1).

Stages may hold different numbers of layers (`maxlm.sharding.stages`). A tick takes as long as the
stage that has most to do in it: with i times the mean of all virtual stages a step takes i (M + (S
- 1) / V), and

  bubble = 1 - M V / (i (M V + S - 1)).

Memory: a stage input lives from its forward to its backward tick, at most 2 V S - 2 ticks later. 2
S - 1 of them (V = 1) or 2 S V (V > 1) are kept, whatever M is; the backward tick computes the chunk
again from its input. Nothing else survives a tick but the gradients.

Communication: 2 permutes of one microbatch's activations a tick (1 in the ticks that go one way
only), and for the loss one reduce-scatter and one all-gather of them over `stage` per microbatch:
each stage does 1/S of the loss.

Why there is no zero-bubble schedule (arXiv:2401.10241): weight gradients delayed into the cool-down
could fill at most (S - 1) W of the (S - 1) (F + B) that are lost, a quarter of the bubble where the
forward pass is computed again (F : recompute : B_input : W = 1 : 1 : 1 : 1), but S - 1
microbatches' inputs AND output gradients of every multiplication would have to be kept until then,
which is what recomputing from stage inputs avoids. V = 2 halves the bubble for 2 S + 1 more stage
inputs.
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
    """Sizes of a pipeline: S, V, M, and i, the work of its largest virtual stage over the mean.

    With V > 1, M is a multiple of S.
    """

    stages: int = 1
    repeats: int = 1
    microbatches: int = 1
    imbalance: float = 1.0

    @property
    def warmup_ticks(self) -> int:
        """Ticks with forward work only; as many at the end have backward work only."""
        return self.repeats * self.stages - 1

    @property
    def steady_ticks(self) -> int:
        """Ticks with work in both directions."""
        return self.microbatches * self.repeats - self.repeats * self.stages + self.stages

    @property
    def bubble(self) -> float:
        """The fraction of a step's time in which a stage does nothing useful."""
        useful = self.microbatches * self.repeats
        return 1 - useful / (self.imbalance * (useful + self.stages - 1))

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


class Parts(NamedTuple):
    """The model as the pipeline sees it.

    Attributes:
      run_chunk: (outer, chunk, x, (microbatch, number, first)) -> (y, cost, reports), one chunk of
        layers, the stage's chunk of this number; where `first` is true the embedded tokens of the
        microbatch take the place of x. x and y are trees of the same shapes; cost is what the chunk
        adds to the objective besides, reports are rows like the chunk's layers, to be summed.
      losses: (outer, y, microbatch) -> (objective, sums), from the last virtual stage's y, which
        only stage S - 1 has; every stage does its share. Sums are a tree of arrays, to be summed.
    """

    run_chunk: Callable[..., tuple[Any, jax.Array, Any]]
    losses: Callable[..., tuple[jax.Array, Any]]


class _Carry(NamedTuple):
    """What goes from tick to tick: the two messages that arrived, the kept inputs, the sums so far."""

    x: Any
    d_y: Any
    inputs: Any
    d_outer: Any
    d_stack: Any
    reports: Any


class _Pipeline(NamedTuple):
    """What the devices of a stage do in a tick, and what they do it with (see
    `pipelined_gradients`).
    """

    parts: Parts
    outer: Any
    stack: Any
    schedule: Schedule
    stage: jax.Array

    def at(self, tick: jax.Array) -> _Pipeline:
        """Return it for one tick, whose gathers of parameters the compiler cannot move out of the
        loop.
        """
        return self._replace(stack=tied_to_loop(self.stack, tick))

    def forward(self, tick: jax.Array, carry: _Carry) -> tuple[Any, _Carry, jax.Array]:
        """Run one chunk forward; return its output, the carry and what the chunk adds to the
        objective.
        """
        parts, outer, stack, schedule, stage = self
        work = _clipped(schedule.forward(tick, stage), schedule)
        slot = work.chunk * schedule.slots + work.microbatch % schedule.slots

        def keep(inputs: jax.Array, x: jax.Array) -> jax.Array:
            kept = lax.dynamic_index_in_dim(inputs, slot, keepdims=False)
            return lax.dynamic_update_index_in_dim(inputs, jnp.where(work.valid, x, kept), slot, 0)

        first = work.valid & (stage == 0) & (work.chunk == 0)
        chunk = _chunk(stack, work.chunk, schedule)
        y, cost, reports = parts.run_chunk(
            outer, chunk, carry.x, (work.microbatch, work.chunk, first)
        )
        reports = jax.tree.map(lambda rows: jnp.where(work.valid, rows, 0), reports)
        carry = carry._replace(
            x=_send(y, 1, schedule),
            inputs=jax.tree.map(keep, carry.inputs, carry.x),
            reports=_add_chunk(carry.reports, reports, work.chunk, schedule),
        )
        return y, carry, jnp.where(work.valid, cost, 0)

    def backward(self, tick: jax.Array, carry: _Carry, d_loss: Any) -> _Carry:
        """Run one chunk again and backward; `d_loss` is what the last virtual stage starts from."""
        parts, outer, stack, schedule, stage = self
        work = _clipped(schedule.backward(tick, stage), schedule)
        d_y = carry.d_y
        if d_loss is not None:
            last = (stage == schedule.stages - 1) & (work.chunk == schedule.repeats - 1)
            d_y = jax.tree.map(lambda d_loss, d_y: jnp.where(last, d_loss, d_y), d_loss, d_y)
        d_y = jax.tree.map(lambda d_y: jnp.where(work.valid, d_y, 0), d_y)
        slot = work.chunk * schedule.slots + work.microbatch % schedule.slots
        kept = jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, slot, keepdims=False), carry.inputs
        )
        first = work.valid & (stage == 0) & (work.chunk == 0)

        def run(outer: Any, chunk: Any, x: Any) -> tuple[Any, jax.Array]:
            y, cost, _ = parts.run_chunk(outer, chunk, x, (work.microbatch, work.chunk, first))
            return y, vary_over(cost, ("stage",))

        (_, cost), pull = jax.vjp(run, outer, _chunk(stack, work.chunk, schedule), kept)
        d_outer, d_chunk, d_x = pull((d_y, jnp.where(work.valid, jnp.ones_like(cost), 0)))
        return carry._replace(
            d_y=_send(d_x, -1, schedule),
            d_outer=jax.tree.map(jnp.add, carry.d_outer, d_outer),
            d_stack=_add_chunk(carry.d_stack, d_chunk, work.chunk, schedule),
        )

    def loss(
        self, tick: jax.Array, y: Any, carry: _Carry
    ) -> tuple[_Carry, Any, tuple[jax.Array, Any]]:
        """Do this stage's share of the loss of the microbatch that ends in a tick, forward and
        backward.
        """
        parts, outer, _, schedule, _ = self
        work = _clipped(schedule.forward(tick, schedule.stages - 1), schedule)
        objective, pull, sums = jax.vjp(
            lambda outer, y: parts.losses(outer, y, work.microbatch), outer, y, has_aux=True
        )
        d_outer, d_y = pull(jnp.ones_like(objective))
        return (
            carry._replace(d_outer=jax.tree.map(jnp.add, carry.d_outer, d_outer)),
            d_y,
            (objective, sums),
        )

    def steady(self, carry: _Carry, tick: jax.Array) -> tuple[_Carry, tuple[jax.Array, Any]]:
        """Run a tick with work in both directions; return what it adds to objective and sums."""
        run, schedule = self.at(tick), self.schedule
        y, carry, cost = run.forward(tick, carry)
        if schedule.repeats == 1:
            carry, d_loss, losses = run.loss(tick, y, carry)
        else:
            # Only every V-th group of S ticks ends a microbatch; the same ticks on every device.
            ends = schedule.forward(tick, schedule.stages - 1).chunk == schedule.repeats - 1
            shapes = jax.eval_shape(run.loss, tick, y, carry)
            nothing = jax.tree.map(
                lambda s: vary_over(jnp.zeros(s.shape, s.dtype), _axes(s)), shapes[1:]
            )
            carry, d_loss, losses = lax.cond(
                ends, lambda carry: run.loss(tick, y, carry), lambda carry: (carry, *nothing), carry
            )
        return run.backward(tick, carry, d_loss), (losses[0] + cost, losses[1])


def pipelined_gradients(
    parts: Parts, outer: Any, stack: Any, zeros: tuple[Any, Any], x: Any, schedule: Schedule
) -> tuple[Any, Any, jax.Array, Any, Any]:
    """Run a step's microbatches through the pipeline; inside the shard_map.

    Args:
      parts: the model.
      outer: parameters outside the stack, whole on every stage.
      stack: this stage's rows of the stacked parameters.
      zeros: fp32 zeros like outer and stack, to sum gradients in.
      x: shapes and types of one microbatch's activations on this device.
      schedule: the sizes.

    Returns:
      gradients of outer and stack, this device's objective and other sums, and the reports of the
      stack's layers.
    """
    run = _Pipeline(parts, outer, stack, schedule, lax.axis_index("stage"))
    warmup, all_forward = schedule.warmup_ticks, schedule.warmup_ticks + schedule.steady_ticks
    nothing, num_slots = _zeros(x), schedule.repeats * schedule.slots
    kept = _zeros(jax.tree.map(lambda s: jax.ShapeDtypeStruct((num_slots, *s.shape), s.dtype), x))
    carry = _Carry(nothing, nothing, kept, *zeros, _no_reports(parts, outer, stack, nothing))
    carry, costs = lax.scan(
        lambda carry, tick: run.at(tick).forward(tick, carry)[1:], carry, jnp.arange(warmup)
    )
    carry, (objectives, sums) = lax.scan(run.steady, carry, jnp.arange(warmup, all_forward))
    ticks = jnp.arange(all_forward, all_forward + warmup)
    carry, _ = lax.scan(
        lambda carry, tick: (run.at(tick).backward(tick, carry, None), None), carry, ticks
    )
    objective = costs.sum() + objectives.sum()
    return carry.d_outer, carry.d_stack, objective, _summed(sums), carry.reports


def _zeros(x: Any) -> Any:
    """Return zeros that may differ between any two devices."""
    return jax.tree.map(lambda s: vary_over(jnp.zeros(s.shape, s.dtype), AXES), x)


def _no_reports(parts: Parts, outer: Any, stack: Any, x: Any) -> Any:
    """Return zeros for the reports of all layers of this stage."""
    index = jnp.int32(0)
    shapes = jax.eval_shape(lambda: parts.run_chunk(outer, stack, x, (index, index, index == 0))[2])
    return jax.tree.map(lambda s: vary_over(jnp.zeros(s.shape, s.dtype), _axes(s)), shapes)


def pipelined_losses(
    parts: Parts, outer: Any, stack: Any, x: Any, schedule: Schedule
) -> tuple[jax.Array, Any]:
    """Run microbatches forward only; return this device's (objective, sums)."""
    stage = lax.axis_index("stage")

    def tick(x: Any, tick: jax.Array) -> tuple[Any, tuple[jax.Array, Any]]:
        work = _clipped(schedule.forward(tick, stage), schedule)
        first = work.valid & (stage == 0) & (work.chunk == 0)
        chunk = _chunk(tied_to_loop(stack, tick), work.chunk, schedule)
        y, cost, _ = parts.run_chunk(outer, chunk, x, (work.microbatch, work.chunk, first))
        last = schedule.forward(tick, schedule.stages - 1)
        losses = parts.losses(outer, y, _clipped(last, schedule).microbatch)
        ends = last.valid & (last.chunk == schedule.repeats - 1)
        objective, sums = jax.tree.map(lambda value: jnp.where(ends, value, 0), losses)
        return _send(y, 1, schedule), (objective + jnp.where(work.valid, cost, 0), sums)

    ticks = jnp.arange(schedule.microbatches * schedule.repeats + schedule.stages - 1)
    _, (objectives, sums) = lax.scan(tick, _zeros(x), ticks)
    return objectives.sum(), _summed(sums)


def _summed(sums: Any) -> Any:
    """Add up what all ticks gave."""
    return jax.tree.map(lambda values: values.sum(axis=0), sums)


def on_some_stages(
    here: jax.Array,
    run: Callable[..., Tree],
    skip: Callable[..., Tree],
    *operands: Any,
    permutes: bool,
) -> Tree:
    """Return what `run` returns where `here` is true, which it is for all devices of a stage or
    none, and what `skip` does elsewhere.

    A branch, so that nobody computes what is dropped. It may hold collectives of groups within a
    stage, all of whose devices take the same branch. A permute is not one of those: whatever pairs
    it has, it is one collective of all devices, and would wait for those in the other branch. With
    `permutes` every stage runs both.

    Args:
      here: whether this device's stage has something to run.
      run: returns a tree of arrays.
      skip: likewise, of the same types.
      *operands: what both take.
      permutes: whether `run` permutes.
    """
    if not permutes:
        return lax.cond(here, run, skip, *operands)  # type: ignore[no-any-return]
    results = run(*operands), skip(*operands)
    return jax.tree.map(lambda ran, skipped: jnp.where(here, ran, skipped), *results)  # type: ignore[no-any-return]


def spread_over_stages(x_TD: jax.Array) -> jax.Array:
    """Give each stage 1/S of the rows that the last stage has: (T, D) -> (T / S, D)."""
    last = lax.axis_index("stage") == lax.axis_size("stage") - 1
    return lax.psum_scatter(jnp.where(last, x_TD, 0), "stage", scatter_dimension=0, tiled=True)


def _clipped(work: Work, schedule: Schedule) -> Work:
    """Point work that is not valid at something that exists: it is computed and dropped."""
    return Work(jnp.clip(work.microbatch, 0, schedule.microbatches - 1), work.chunk, work.valid)


def _send(x: Tree, by: int, schedule: Schedule) -> Tree:
    """Permute around the ring of stages."""
    ring = [(stage, (stage + by) % schedule.stages) for stage in range(schedule.stages)]
    result: Tree = jax.tree.map(lambda x: lax.ppermute(x, "stage", ring), x)
    return result


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
    return tuple(
        sorted(shape.manual_axis_type.varying if hasattr(shape, "manual_axis_type") else shape.vma)
    )
