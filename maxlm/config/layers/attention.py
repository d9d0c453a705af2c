"""Settings of attention layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from maxlm.config.divisible import divisible
from maxlm.config.errors import Problem
from maxlm.config.positions.distance import AlibiPosition, RelativePosition
from maxlm.config.positions.none import NoPosition
from maxlm.config.positions.rope import RopePosition
from maxlm.config.section import LayerSection, PositiveFloat, PositiveInt, Section

if TYPE_CHECKING:
    from maxlm.config.model import ModelConfig
    from maxlm.config.schema import RunConfig


class TemperatureConfig(Section):
    """Queries grow with their position p: times 1 + scale ln(1 + floor((p + 1) / floor))
    (arXiv:2501.19399, as NoPE layers of long contexts have it).
    """

    scale: PositiveFloat = 0.1
    floor: PositiveInt = Field(8192, description="tokens for which it stays 1")


class AttentionConfig(LayerSection):
    """Multi-head, grouped-query or multi-query attention (arXiv:1706.03762, arXiv:2305.13245)."""

    ACTIVATIONS: ClassVar = {
        "query": "as attention sees it: normalised and rotated",
        "key": "likewise",
        "value": "as projected",
        "attention_out": "what heads have gathered; with attention_lse, the attention kernel runs forward once",
        "attention_lse": "log sum exp of the scores, fp32, one per token and head",
    }

    kind: Literal["attention"] = "attention"
    num_heads: PositiveInt = Field(description="query heads")
    num_kv_heads: PositiveInt = Field(
        default_factory=lambda values: values["num_heads"],
        description="key/value heads (default: num_heads)",
    )
    head_dim: PositiveInt = Field(description="width of one head")
    position: Annotated[
        RopePosition | AlibiPosition | RelativePosition | NoPosition, Field(discriminator="kind")
    ] = RopePosition()
    scale: PositiveFloat | None = Field(
        None, description="factor on products of queries and keys (null: head_dim ** -0.5)"
    )
    temperature: TemperatureConfig | None = Field(
        None, description="queries grow with their position (null: they do not)"
    )
    window: PositiveInt | None = Field(
        None, description="attend to the last `window` tokens only (null: all)"
    )
    chunk: PositiveInt | None = Field(
        None, description="attend within chunks of so many tokens of a document only (null: all)"
    )
    qk_norm: Literal["none", "rmsnorm", "rmsnorm_all", "l2"] = Field(
        "none",
        description="normalise queries and keys: rmsnorm each head, rmsnorm_all over all heads, both before they are "
        "turned; l2 each head by its root mean square, without weights, afterwards",
    )
    bias: Literal["none", "qkv", "all"] = Field("none", description="projections with a bias")
    softcap: PositiveFloat | None = Field(
        None,
        description="squash scores s to softcap * tanh(s / softcap) (arXiv:2408.00118; null: leave them)",
    )
    sinks: bool = Field(
        False, description="a learned score per head for attention to nothing (arXiv:2309.17453)"
    )

    def problems(self, path: str, run: RunConfig) -> Iterator[Problem]:
        """Yield heads that do not divide, by each other or by the mesh, and rotary positions that
        make no sense.
        """
        yield from divisible(
            f"{path}.num_heads", self.num_heads, {f"{path}.num_kv_heads": self.num_kv_heads}
        )
        yield from self._position_problems(path)
        mesh = run.mesh
        exchanged = mesh.context_kind == "ulysses" and mesh.context > 1
        heads = {
            "mesh.tensor": mesh.tensor,
            **({"mesh.context": mesh.context} if exchanged else {}),
        }
        for name in ("num_heads", "num_kv_heads"):
            for problem in divisible(f"{path}.{name}", getattr(self, name), heads):
                other_kind = (
                    ", or mesh.context_kind=ring, which does not split heads" if exchanged else ""
                )
                yield replace(problem, text=problem.text + other_kind)

    def _position_problems(self, path: str) -> Iterator[Problem]:
        position, here = self.position, f"{path}.position"
        if isinstance(position, RopePosition):
            yield from position.problems(here, f"{path}.head_dim", self.head_dim)
        if isinstance(position, RelativePosition):
            yield from position.problems(here)
        if isinstance(position, AlibiPosition | RelativePosition) and self.softcap is not None:
            text = f"{path}.softcap={self.softcap} would squash what {here}.kind={position.kind} adds to scores"
            yield Problem(f"{path}.softcap", f"{text}; use {path}.softcap=null or another position")

    def told_length(self, length: int) -> int:
        """Return that of its positions."""
        position = self.position
        return position.told_length(length) if isinstance(position, RopePosition) else 0

    def mixing_flops(self, model: ModelConfig, length: int) -> float:
        """Count products of queries with keys and of scores with values.

        A query and a key that it sees cost 2 H FLOPs per head, a score and a value 2 H: with N
        heads 4 N H per pair, and 12 N H with the backward pass. Pairs hidden by the causal mask, by
        a window W or by chunks C are not counted. Of one chunk (or, without, of the sequence) query
        t = 1 ... C sees min(t, W) keys, together 1 + ... + W + (C - W) W.
        """
        del model
        chunk = min(self.chunk or length, length)

        def pairs(tokens: int) -> int:
            window = min(self.window or tokens, tokens)
            return window * (window + 1) // 2 + (tokens - window) * window

        seen = length // chunk * pairs(chunk) + pairs(length % chunk)
        return 12 * self.num_heads * self.head_dim * seen / length
