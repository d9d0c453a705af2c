"""What a kind of layer may say of itself; everything above a layer handles the answers blindly."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from maxlm.layers.sequence import SequenceInfo

Report = Any
"""What a layer tells of a pass: a tree of fp32 sums over the tokens between `leave` and `enter`, or
None.

Sums over microbatches and devices are those of more tokens. Those of a stacked layer have its rows
in front.
"""


class Local(NamedTuple):
    """The sizes of one device's part of a run: what a layer needs to say which kernels it asks for.

    Attributes:
      device_kind: as `jax.Device.device_kind` says it.
      dtype: the compute dtype's name.
      length: tokens of a whole sequence.
      tensor: devices along `tensor`.
      context: devices along `context`.
      context_kind: `mesh.context_kind`.
    """

    device_kind: str
    dtype: str
    length: int
    tensor: int
    context: int
    context_kind: str


class StateArray(NamedTuple):
    """An array that a mixer keeps while it decodes: global shape, dtype, layout over the mesh;
    zeros at first.
    """

    shape: tuple[int, ...]
    dtype: Any
    spec: P

    def zeros(self) -> jax.Array:
        """Return it as it is before the first token, whole."""
        return jnp.zeros(self.shape, self.dtype)


class Streams(NamedTuple):
    """What goes from block to block.

    Attributes:
      x_BTD: the residual stream, (B, T / tensor, D).
      shared: what mixers hand on besides, such as the first layer's values; () if no mixer of the
        model does.
    """

    x_BTD: jax.Array
    shared: Any = ()


class Beside(NamedTuple):
    """What a mixer may take besides vectors, and hand on.

    Attributes:
      shared: see `Streams`; to the mixer that follows.
      carried: what it carried over from the last step, to the next step; not differentiated.
    """

    shared: Any = ()
    carried: Any = ()


class Layer(nnx.Module):
    """A mixer or an ffn, made from the model's configuration and its own section.

    Called with (x_BTD, info), (B, T / tensor, D), it returns as many vectors, and its report. A
    mixer has `decoding_state` and `decode` besides; an ffn decodes by being called.
    """

    def prepare(self, info: SequenceInfo) -> Mapping[Hashable, Any]:
        """Return what the layer wants worked out once for all layers that ask for the same, by a
        name for it.
        """
        del info
        return {}

    def kernel_shapes(self, local: Local) -> dict[str, list[Any]]:
        """Return what the layer asks of kernels on a device, by operation."""
        del local
        return {}

    def penalty(self, report: Report) -> jax.Array | float:
        """Return this device's part of what is added to the objective; summed over `TOKEN_AXES` it
        is the penalty.

        It is the same on all devices of `tensor`, as the objective is.

        Args:
          report: of a pass over a microbatch on this device, rows in front.
        """
        del report
        return 0.0

    def metrics(self, report: Report) -> dict[str, jax.Array]:
        """Return metrics of a step by name, a number for each row, from its report summed over all
        devices.
        """
        del report
        return {}

    def after_step(self, before: Self, report: Report) -> Self:
        """Return the layer with what its own rule changes after a step; its other parameters have
        been updated.

        Args:
          before: the layer before the step.
          report: of the step, summed over all devices.
        """
        del before, report
        return self


class Mixer(Layer):
    """A layer that moves information between tokens.

    Attributes:
      takes_beside: it is called with (x_BTD, info, beside) and returns its new `Beside` as a third
        result; `decode` likewise takes `shared` as its last argument, and returns it as a third
        result.
    """

    takes_beside = False

    def shared_at_start(self, x_BTD: jax.Array) -> Any:
        """Return what mixers share before the first of them; the first mixer of the model that has
        some decides.
        """
        del x_BTD
        return ()

    def carried_state(self, batch_size: int) -> Any:
        """Declare what is carried over from step to step: parameters of the role `state`, sequences
        first.
        """
        del batch_size
        return ()

    def decoding_state(self, batch_size: int, length: int, dtype: Any) -> Any:
        """Return a tree of `StateArray`: what is kept of up to `length` earlier tokens of each
        sequence.
        """
        raise NotImplementedError

    def decode(
        self, x_BTD: jax.Array, info: SequenceInfo, state: Any, start_B: jax.Array, *shared: Any
    ) -> Any:
        """Mix the T newest tokens of each sequence with what is kept of the earlier ones.

        Args:
          x_BTD: whole on every `tensor` device.
          info: where the new tokens stand; segment 0 for filling behind the last of them.
          state: arrays laid out as `decoding_state` says.
          start_B: int32, tokens of each sequence that came before.
          *shared: see `takes_beside`.

        Returns:
          the mixed vectors, and what is kept from now on.
        """
        raise NotImplementedError


def mix(
    mixer: Mixer, x_BTD: jax.Array, info: SequenceInfo, beside: Beside
) -> tuple[jax.Array, Report, Beside]:
    """Call a mixer, whether it takes something besides vectors or hands that on as it is."""
    if mixer.takes_beside:
        result: tuple[jax.Array, Report, Beside] = mixer(x_BTD, info, beside)
        return result
    return *mixer(x_BTD, info), beside
