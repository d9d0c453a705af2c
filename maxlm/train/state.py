"""Everything a run carries from step to step, and where it lies."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import RunConfig
from maxlm.layers.stack import Carried
from maxlm.models.cost import flops_per_token
from maxlm.models.decoder import Decoder
from maxlm.sharding.host import on_host
from maxlm.sharding.parameters import initialise, is_parameter, layers_of, partition_spec
from maxlm.train.faults.spikes import SpikeWindow, new_window


class Consumed(NamedTuple):
    """What a run has read and spent since step 0; whole numbers, which are exact at any size.

    Attributes:
      rows: of the training data; the next step reads from this one on.
      tokens: in these rows.
      flops: by the formula in `maxlm.models.cost`.
    """

    rows: int
    tokens: int
    flops: int


class Consumption:
    """What a run has consumed after each of its steps from `start_step` on, where it had consumed
    `start`.
    """

    def __init__(self, start: Consumed, start_step: int, config: RunConfig):
        length = config.data.sequence_length
        tokens = config.tokens_per_step
        self.per_step = Consumed(
            config.train.batch_size, tokens, round(tokens * flops_per_token(config.model, length))
        )
        self._start, self._start_step = start, start_step

    def at(self, step: int) -> Consumed:
        """Return what the run has consumed after `step` steps."""
        steps = step - self._start_step
        pairs = zip(self._start, self.per_step, strict=True)
        return Consumed(*(before + steps * each for before, each in pairs))


class TrainState(NamedTuple):
    """The state of training after `step` steps; together with the data's seed it determines all
    later steps.

    Attributes:
      step: int32, steps done, skipped ones included.
      decoder: fp32 parameters.
      optimizer: the optimizer's slots, laid out as the parameters.
      token_hash: uint32[2], running hash of every token consumed.
      skipped_in_row: int32, skipped steps since the last that was not.
      skipped: int32, skipped steps in all.
      carried: what mixers carry over from step to step; no arrays where none do.
      spikes: what spikes are told from, if they are.
    """

    step: jax.Array
    decoder: Decoder
    optimizer: Any
    token_hash: jax.Array
    skipped_in_row: jax.Array
    skipped: jax.Array
    carried: Carried
    spikes: SpikeWindow | None = None


def _new_state(decoder: Decoder, slots: Any, batch_size: int, window: int) -> TrainState:
    """Return the state of step 0 around a decoder and the optimizer's slots."""

    def zero() -> jax.Array:
        return jnp.zeros((), jnp.int32)

    carried = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), decoder.carried_state(batch_size)
    )
    token_hash = jnp.zeros((2,), jnp.uint32)
    counters = (token_hash, zero(), zero())
    return TrainState(zero(), decoder, slots, *counters, carried, new_window(window))


def declare_state(
    declared: Decoder,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    batch_size: int = 0,
    offload: bool = False,
    window: int = 0,
) -> TrainState:
    """Return the state as `jax.ShapeDtypeStruct`s with shardings: what a checkpoint is restored
    into.

    Args:
      declared: the decoder without values.
      optimizer: the gradient transformation.
      mesh: where the state lies.
      batch_size: sequences of a step, of which mixers may carry something over to the next.
      offload: the optimizer's slots lie in host memory.
      window: steps that spikes are told from, 0 for none.
    """
    shapes = jax.eval_shape(
        lambda decoder: _new_state(decoder, optimizer.init(decoder), batch_size, window), declared
    )

    def placed(leaf: Any) -> Any:
        spec = _spec_that_fits(leaf, mesh) if is_parameter(leaf) else P()
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), leaf
        )

    state: TrainState = jax.tree.map(placed, shapes, is_leaf=is_parameter)
    return (
        state._replace(optimizer=jax.tree.map(_slot_on_host, state.optimizer)) if offload else state
    )


def _spec_that_fits(parameter: Any, mesh: Mesh) -> P:
    """Return a parameter's layout; rows that were saved for other stages, and do not divide by
    these, stay whole.
    """
    spec, rows = partition_spec(parameter), parameter.get_value().shape[:1]
    if layers_of(parameter) is not None and rows[0] % mesh.shape["stage"]:
        return P(None, *spec[1:])
    return spec


def _slot_on_host(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # Counters stay: a copy each way for four bytes.
    return leaf.update(sharding=on_host(leaf.sharding)) if leaf.ndim else leaf


def create_state(
    declared: TrainState,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int = 0,
) -> TrainState:
    """Create the state of step 0, every array born where it lies; see `initialise`.

    Args:
      declared: the state as `declare_state` says it.
      optimizer: the gradient transformation.
      mesh: where the state lies.
      seed: of the parameters.
      batch_size: see `declare_state`.
    """
    decoder = initialise(declared.decoder, seed, mesh)
    return state_around(decoder, optimizer, declared, batch_size=batch_size)


def state_around(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    declared: TrainState,
    *,
    batch_size: int = 0,
    slots: Any = None,
) -> TrainState:
    """Return the state of step 0 of a decoder with values, which is given away.

    Args:
      decoder: on its devices.
      optimizer: the gradient transformation.
      declared: the state as `declare_state` says it.
      batch_size: see `declare_state`.
      slots: the optimizer's, on their devices; new ones by default.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, declared)
    window = 0 if declared.spikes is None else declared.spikes.losses.shape[0]
    if slots is None:
        create = jax.jit(
            lambda decoder: _new_state(decoder, optimizer.init(decoder), batch_size, window),
            out_shardings=shardings,
            donate_argnums=0,
        )
        created: TrainState = create(decoder)
        return created
    nothing: Any = ()
    counters: TrainState = jax.jit(
        lambda: _new_state(declared.decoder, (), batch_size, window)._replace(decoder=nothing),
        out_shardings=shardings._replace(decoder=nothing, optimizer=()),
    )()
    return counters._replace(decoder=decoder, optimizer=slots)
