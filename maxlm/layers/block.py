"""One block of a decoder: a mixer and an ffn, each on a norm of its own, each added to its input."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
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

Reports = dict[str, Report]
"""What the layers of a block report, by `mixer` and `ffn`; nothing of a layer without a report."""


class Block(nnx.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + ffn(norm(x)); one of the two may be
    missing.
    """

    def __init__(self, model: ModelConfig, config: BlockConfig):
        self.has_mixer, self.has_ffn = _exists(config.mixer), _exists(config.ffn)
        if self.has_mixer:
            self.mixer_norm = build_norm(model.norm, model.embed_dim)
            self.mixer = build_mixer(model, config.mixer)
        if self.has_ffn:
            self.ffn_norm = build_norm(model.norm, model.embed_dim)
            self.ffn = build_ffn(model, config.ffn)

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
        x_BTD, beside, reports = streams.x_BTD, Beside(streams.shared, carried), {}
        if self.has_mixer:
            with jax.named_scope("mixer"):
                y_BTD, reports["mixer"], beside = mix(
                    self.mixer, self.mixer_norm(x_BTD), info, beside
                )
                x_BTD += checkpoint_name(y_BTD, "mixer_out")
        if self.has_ffn:
            with jax.named_scope("ffn"):
                y_BTD, reports["ffn"] = self.ffn(self.ffn_norm(x_BTD), info)
                x_BTD += y_BTD
        told = {name: report for name, report in reports.items() if report is not None}
        return Streams(x_BTD, beside.shared), told, beside.carried

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
        x_BTD, shared = streams
        if self.has_mixer:
            arguments = self.mixer_norm(x_BTD), info, state, start_B
            if self.mixer.takes_beside:
                y_BTD, state, shared = self.mixer.decode(*arguments, shared)
            else:
                y_BTD, state = self.mixer.decode(*arguments)
            x_BTD += y_BTD
        if self.has_ffn:
            x_BTD += self.ffn(self.ffn_norm(x_BTD), info)[0]
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
