"""Several mixers side by side on one norm, as in Hymba (arXiv:2411.13676) and Falcon-H1
(arXiv:2507.22448).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config.layers.parallel import ParallelConfig
from maxlm.config.model import ModelConfig
from maxlm.layers import mixers
from maxlm.layers.layer import Beside, Local, Mixer, Report, mix
from maxlm.layers.sequence import SequenceInfo


class Parallel(Mixer):
    """The sum of what its mixers say."""

    def __init__(self, model: ModelConfig, config: ParallelConfig):
        self.mixers = nnx.List([mixers.build_mixer(model, mixer) for mixer in config.mixers])
        self.takes_beside = any(mixer.takes_beside for mixer in self.mixers)

    def prepare(self, info: SequenceInfo) -> Mapping[Hashable, Any]:
        """Ask for all that its mixers ask for."""
        return {name: value for mixer in self.mixers for name, value in mixer.prepare(info).items()}

    def __call__(
        self, x_BTD: jax.Array, info: SequenceInfo, beside: Beside | None = None
    ) -> tuple[Any, ...]:
        """Add up the mixers; the report has one for each.

        What they share goes from one to the next.
        """
        shared, carried = beside or Beside()
        carried = carried or [()] * len(self.mixers)
        y_BTD, reports, to_next = jnp.zeros_like(x_BTD), [], []
        for mixer, own in zip(self.mixers, carried, strict=True):
            part_BTD, report, handed = mix(mixer, x_BTD, info, Beside(shared, own))
            y_BTD, shared = y_BTD + part_BTD, handed.shared
            reports.append(report)
            to_next.append(handed.carried)
        return (y_BTD, reports, Beside(shared, to_next)) if self.takes_beside else (y_BTD, reports)

    def shared_at_start(self, x_BTD: jax.Array) -> Any:
        """Return what the first mixer that shares something starts from."""
        starts = (mixer.shared_at_start(x_BTD) for mixer in self.mixers)
        return next((start for start in starts if jax.tree.leaves(start)), ())

    def carried_state(self, batch_size: int) -> Any:
        """Carry over what each mixer carries over."""
        return [mixer.carried_state(batch_size) for mixer in self.mixers]

    def decoding_state(self, batch_size: int, length: int, dtype: Any) -> Any:
        """Keep what each mixer keeps."""
        return [mixer.decoding_state(batch_size, length, dtype) for mixer in self.mixers]

    def decode(
        self, x_BTD: jax.Array, info: SequenceInfo, state: Any, start_B: jax.Array, shared: Any = ()
    ) -> tuple[Any, ...]:
        """Add up the mixers, each with its own state."""
        y_BTD, new = jnp.zeros_like(x_BTD), []
        for mixer, own in zip(self.mixers, state, strict=True):
            if mixer.takes_beside:
                part_BTD, own, shared = mixer.decode(x_BTD, info, own, start_B, shared)
            else:
                part_BTD, own = mixer.decode(x_BTD, info, own, start_B)
            y_BTD += part_BTD
            new.append(own)
        return (y_BTD, new, shared) if self.takes_beside else (y_BTD, new)

    def kernel_shapes(self, local: Local) -> dict[str, list[Any]]:
        """Ask for all that its mixers ask for."""
        shapes: dict[str, list[Any]] = {}
        for mixer in self.mixers:
            for operation, asked in mixer.kernel_shapes(local).items():
                shapes.setdefault(operation, []).extend(asked)
        return shapes

    def penalty(self, report: Report) -> jax.Array | float:
        """Add up the mixers' penalties."""
        return sum((mixer.penalty(own) for _, mixer, own in self._reporting(report)), 0.0)

    def metrics(self, report: Report) -> dict[str, jax.Array]:
        """Return the mixers' metrics, with the mixer's place behind the group: `ssm/decay` is
        `ssm/1/decay`.
        """
        values: dict[str, jax.Array] = {}
        for place, mixer, own in self._reporting(report):
            for name, value in mixer.metrics(own).items():
                group, _, rest = name.partition("/")
                values[f"{group}/{place}/{rest}"] = value
        return values

    def after_step(self, before: Self, report: Report) -> Self:
        """Let each mixer apply its own rule."""
        copy: Self = jax.tree.map(lambda leaf: leaf, self)
        for place, mixer, own in self._reporting(report):
            copy.mixers[place] = mixer.after_step(before.mixers[place], own)
        return copy

    def _reporting(self, report: Report) -> Iterator[tuple[int, Mixer, Report]]:
        """Yield the mixers with a report, and their places."""
        for place, (mixer, own) in enumerate(zip(self.mixers, report, strict=True)):
            if own is not None:
                yield place, mixer, own
