"""Everything a run carries from step to step, and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.config.schema import RunConfig
from maxlm.models.cost import flops_per_token
from maxlm.models.decoder import Decoder
from maxlm.sharding.host import on_host, to_device, to_place_of
from maxlm.sharding.parameters import initialise, is_parameter, partition_spec, with_value

Tree = TypeVar("Tree")


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
    """What a run has consumed after each of its steps from `start_step` on, where it had consumed `start`."""

    def __init__(self, start: Consumed, start_step: int, config: RunConfig):
        length = config.data.sequence_length
        tokens = config.train.batch_size * length
        self.per_step = Consumed(config.train.batch_size, tokens, round(tokens * flops_per_token(config.model, length)))
        self._start, self._start_step = start, start_step

    def at(self, step: int) -> Consumed:
        """Return what the run has consumed after `step` steps."""
        steps = step - self._start_step
        pairs = zip(self._start, self.per_step, strict=True)
        return Consumed(*(before + steps * each for before, each in pairs))


class TrainState(NamedTuple):
    """The state of training after `step` steps; together with the data's seed it determines all later steps.

    Attributes:
      step: int32, steps done, skipped ones included.
      decoder: fp32 parameters.
      optimizer: the optimizer's slots, laid out as the parameters.
      token_hash: uint32[2], running hash of every token consumed.
      skipped_in_row: int32, non-finite steps since the last finite one.
      skipped: int32, non-finite steps in all.
    """

    step: jax.Array
    decoder: Decoder
    optimizer: Any
    token_hash: jax.Array
    skipped_in_row: jax.Array
    skipped: jax.Array


def _new_state(decoder: Decoder, optimizer: optax.GradientTransformation) -> TrainState:
    def zero() -> jax.Array:
        return jnp.zeros((), jnp.int32)

    return TrainState(zero(), decoder, optimizer.init(decoder), jnp.zeros((2,), jnp.uint32), zero(), zero())


def declare_state(
    declared: Decoder, optimizer: optax.GradientTransformation, mesh: Mesh, *, offload: bool = False
) -> TrainState:
    """Return the state as `jax.ShapeDtypeStruct`s with shardings: what a checkpoint is restored into.

    With `offload`, the optimizer's slots lie in host memory.
    """
    shapes = jax.eval_shape(lambda decoder: _new_state(decoder, optimizer), declared)

    def placed(leaf: Any) -> Any:
        sharding = NamedSharding(mesh, partition_spec(leaf) if is_parameter(leaf) else P())
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), leaf)

    state: TrainState = jax.tree.map(placed, shapes, is_leaf=is_parameter)
    return state._replace(optimizer=jax.tree.map(_slot_on_host, state.optimizer)) if offload else state


def _slot_on_host(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # Counters stay: a copy each way for four bytes.
    return leaf.update(sharding=on_host(leaf.sharding)) if leaf.ndim else leaf


def create_state(
    declared: Decoder,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    layer_order: Sequence[int] | None = None,
    offload: bool = False,
) -> TrainState:
    """Create the state of step 0, every array born where it lies; see `initialise` and `declare_state`."""
    state = declare_state(declared, optimizer, mesh, offload=offload)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    decoder = initialise(declared, seed, mesh, layer_order)
    create = jax.jit(lambda decoder: _new_state(decoder, optimizer), out_shardings=shardings, donate_argnums=0)
    created: TrainState = create(decoder)
    return created


def reorder_layers(tree: Tree, saved: Sequence[int], wanted: Sequence[int]) -> Tree:
    """Bring the rows of every stacked parameter from one order of layers into another, where each array lies.

    Args:
      tree: any tree with parameters in it: a state, a decoder, gradients.
      saved: the layer that each row holds now.
      wanted: the layer that each row is to hold.
    """
    if list(saved) == list(wanted):
        return tree
    rows = jnp.asarray([list(saved).index(layer) for layer in wanted])

    def moved(tree: Tree) -> Tree:
        def move(leaf: Any) -> Any:
            if not is_parameter(leaf) or leaf.get_value().ndim == len(leaf.get_metadata("spec")):
                return leaf
            value = leaf.get_value()
            return with_value(leaf, to_place_of(to_device(value)[rows], value))

        result: Tree = jax.tree.map(move, tree, is_leaf=is_parameter)
        return result

    shardings = jax.tree.map(lambda array: array.sharding, tree)
    reordered: Tree = jax.jit(moved, out_shardings=shardings, donate_argnums=0)(tree)
    return reordered
