"""One block of a decoder: what a mixer and an ffn add to the residual stream, and the norms around
them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxlm.config.model import BlockConfig, ModelConfig
from maxlm.config.section import LayerSection
from maxlm.layers.ffns import build_ffn
from maxlm.layers.layer import Beside, Layer, Report, Streams, mix
from maxlm.layers.mixers import build_mixer
from maxlm.layers.norm import build_norm
from maxlm.layers.sequence import SequenceInfo
from maxlm.ops.linear import computed_once

Reports = dict[str, Report]
"""What the layers of a block report, by `mixer` and `ffn`; nothing of a layer without a report."""


Run = Callable[[jax.Array], tuple[jax.Array, Any]]
"""A layer on what its norm returned: what it makes of it, and what else there is to know."""


class Block(nnx.Module):
    """A mixer and an ffn, one after the other or side by side; one of the two may be missing.

    With f a layer, s the model's `residual_scale`, and norms where `norms` has them:

      sequential:         x <- x + s f(x), f the mixer, then the ffn
      parallel:           x <- x + s mixer(x) + s ffn(x), each with norms of its own
      parallel_one_norm:  likewise, on one norm before both

    A block of one layer is the same in all three.
    """

    def __init__(self, model: ModelConfig, config: BlockConfig):
        self.has_mixer, self.has_ffn = _exists(config.mixer), _exists(config.ffn)
        self.norms, self.scale = config.norms, model.residual_scale
        self.sequential = config.residual == "sequential"
        self.one_norm = config.residual == "parallel_one_norm" and self.has_mixer and self.has_ffn
        before, behind = config.norms != "post", config.norms != "pre"
        if self.has_mixer:
            if before:
                self.mixer_norm = build_norm(model.norm, model.embed_dim)
            self.mixer = build_mixer(model, config.mixer)
            if behind:
                self.mixer_post_norm = build_norm(model.norm, model.embed_dim)
        if self.has_ffn:
            if before and not self.one_norm:
                self.ffn_norm = build_norm(model.norm, model.embed_dim)
            self.ffn = build_ffn(model, config.ffn)
            if behind:
                self.ffn_post_norm = build_norm(model.norm, model.embed_dim)

    def layers(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers that there are, by name."""
        if self.has_mixer:
            yield "mixer", self.mixer
        if self.has_ffn:
            yield "ffn", self.ffn

    def prepare(self, info: SequenceInfo) -> Mapping[Hashable, Any]:
        """Return what its layers want worked out once for all."""
        return {
            name: value for _, layer in self.layers() for name, value in layer.prepare(info).items()
        }

    def __call__(
        self, streams: Streams, info: SequenceInfo, carried: Any = ()
    ) -> tuple[Streams, Reports, Any]:
        """Return what goes to the next block, what the layers report, and what the mixer carries to
        the next step.
        """
        beside = Beside(streams.shared, carried)

        def run_mixer(h_BTD: jax.Array) -> tuple[jax.Array, tuple[Report, Beside]]:
            y_BTD, report, handed = mix(self.mixer, h_BTD, info, beside)
            return y_BTD, (report, handed)

        x_BTD, (report, beside), of_ffn = self._add(
            streams.x_BTD, run_mixer, lambda h_BTD: self.ffn(h_BTD, info), (None, beside)
        )
        reports = {"mixer": report, "ffn": of_ffn}
        told = {name: report for name, report in reports.items() if report is not None}
        return Streams(x_BTD, beside.shared), told, beside.carried

    def _add(
        self, x_BTD: jax.Array, run_mixer: Run, run_ffn: Run, no_mixer: Any
    ) -> tuple[jax.Array, Any, Any]:
        """Add to the residual stream what the layers that there are make of it.

        Args:
          x_BTD: the residual stream.
          run_mixer: runs the mixer.
          run_ffn: runs the ffn.
          no_mixer: the second result where there is no mixer.

        Returns:
          the residual stream, and what else `run_mixer` and `run_ffn` returned, None without an
          ffn.
        """
        h_BTD = in_BTD = x_BTD
        of_mixer, of_ffn = no_mixer, None
        if self.has_mixer:
            with jax.named_scope("mixer"):
                h_BTD = in_BTD if self.norms == "post" else self.mixer_norm(in_BTD)
                y_BTD, of_mixer = run_mixer(h_BTD)
                y_BTD = checkpoint_name(y_BTD, "mixer_out")
                y_BTD = y_BTD if self.norms == "pre" else self.mixer_post_norm(y_BTD)
                x_BTD += self.scale * y_BTD
        if self.has_ffn:
            with jax.named_scope("ffn"):
                in_BTD = x_BTD if self.sequential else in_BTD
                if not self.one_norm:
                    h_BTD = in_BTD if self.norms == "post" else self.ffn_norm(in_BTD)
                h_BTD = computed_once(h_BTD)
                y_BTD, of_ffn = run_ffn(h_BTD)
                y_BTD = checkpoint_name(y_BTD, "ffn_out")
                y_BTD = y_BTD if self.norms == "pre" else self.ffn_post_norm(y_BTD)
                x_BTD += self.scale * y_BTD
        return x_BTD, of_mixer, of_ffn

    def decoding_state(self, batch_size: int, length: int, dtype: Any) -> Any:
        """Return what the mixer keeps of earlier tokens; see `Mixer.decoding_state`."""
        return self.mixer.decoding_state(batch_size, length, dtype) if self.has_mixer else ()

    def carried_state(self, batch_size: int) -> Any:
        """Return what the mixer carries over from step to step; see `Mixer.carried_state`."""
        return self.mixer.carried_state(batch_size) if self.has_mixer else ()

    def decode(
        self, streams: Streams, info: SequenceInfo, state: Any, start_B: jax.Array
    ) -> tuple[Streams, Any]:
        """Run the block on the newest tokens, with what the mixer keeps of the earlier ones."""
        shared = streams.shared

        def run_mixer(h_BTD: jax.Array) -> tuple[jax.Array, tuple[Any, Any]]:
            arguments = h_BTD, info, state, start_B
            if self.mixer.takes_beside:
                y_BTD, *kept = self.mixer.decode(*arguments, shared)
                return y_BTD, tuple(kept)
            y_BTD, new_state = self.mixer.decode(*arguments)
            return y_BTD, (new_state, shared)

        x_BTD, (state, shared), _ = self._add(
            streams.x_BTD, run_mixer, lambda h_BTD: self.ffn(h_BTD, info), (state, shared)
        )
        return Streams(x_BTD, shared), state

    def penalty(self, reports: Reports) -> jax.Array | float:
        """Return this device's part of what its layers add to the objective."""
        return sum(
            (layer.penalty(reports[name]) for name, layer in self.layers() if name in reports), 0.0
        )

    def metrics(self, reports: Reports) -> dict[str, jax.Array]:
        """Return the metrics of its layers by name, a number for each row."""
        return {
            name: value
            for place, layer in self.layers()
            if place in reports
            for name, value in layer.metrics(reports[place]).items()
        }

    def after_step(self, before: Block, reports: Reports) -> Block:
        """Return the block with what its layers' own rules change after a step."""
        copy: Block = jax.tree.map(lambda leaf: leaf, self)
        for name, layer in self.layers():
            if name in reports:
                setattr(copy, name, layer.after_step(getattr(before, name), reports[name]))
        return copy


def _exists(config: LayerSection) -> bool:
    return config.kind != "none"
