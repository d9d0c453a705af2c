"""Several mixers side by side on one norm, as in Hymba (arXiv:2411.13676) and Falcon-H1 (arXiv:2507.22448)."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from maxlm.config.layers.parallel import ParallelConfig
from maxlm.config.model import ModelConfig
from maxlm.layers import mixers
from maxlm.layers.layer import Local, Mixer, Report
from maxlm.layers.sequence import SequenceInfo


class Parallel(Mixer):
    """The sum of what its mixers say."""

    def __init__(self, model: ModelConfig, config: ParallelConfig):
        self.mixers = nnx.List([mixers.build_mixer(model, mixer) for mixer in config.mixers])

    def prepare(self, info: SequenceInfo) -> Mapping[Hashable, Any]:
        """Ask for all that its mixers ask for."""
        return {name: value for mixer in self.mixers for name, value in mixer.prepare(info).items()}

    def __call__(self, x_BTD: jax.Array, info: SequenceInfo) -> tuple[jax.Array, Report]:
        """Add up the mixers; the report has one for each."""
        results = [mixer(x_BTD, info) for mixer in self.mixers]
        return functools.reduce(jnp.add, (y_BTD for y_BTD, _ in results)), [report for _, report in results]

    def decoding_state(self, batch_size: int, length: int, dtype: Any) -> Any:
        """Keep what each mixer keeps."""
        return [mixer.decoding_state(batch_size, length, dtype) for mixer in self.mixers]

    def decode(self, x_BTD: jax.Array, info: SequenceInfo, state: Any, start_B: jax.Array) -> tuple[jax.Array, Any]:
        """Add up the mixers, each with its own state."""
        pairs = zip(self.mixers, state, strict=True)
        results = [mixer.decode(x_BTD, info, of_mixer, start_B) for mixer, of_mixer in pairs]
        return functools.reduce(jnp.add, (y_BTD for y_BTD, _ in results)), [new for _, new in results]

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
        """Return the mixers' metrics, with the mixer's place behind the group: `ssm/decay` is `ssm/1/decay`."""
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
