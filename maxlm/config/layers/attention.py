"""Settings of attention layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from maxlm.config.divisible import divisible
from maxlm.config.errors import Problem
from maxlm.config.rope import RopePosition
from maxlm.config.section import LayerSection, PositiveFloat, PositiveInt, Section, Width

if TYPE_CHECKING:
    from maxlm.config.model import ModelConfig
    from maxlm.config.schema import RunConfig


class NoPosition(Section):
    """No position information besides the mask."""

    kind: Literal["none"] = "none"


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
    num_heads: Annotated[PositiveInt, Width.SCALES] = Field(description="query heads")
    num_kv_heads: Annotated[PositiveInt, Width.DIVIDES] = Field(
        default_factory=lambda values: values["num_heads"],
        description="key/value heads (default: num_heads)",
    )
    head_dim: PositiveInt = Field(description="width of one head")
    position: Annotated[RopePosition | NoPosition, Field(discriminator="kind")] = RopePosition()
    window: PositiveInt | None = Field(
        None, description="attend to the last `window` tokens only (null: all)"
    )
    qk_norm: Literal["none", "rmsnorm"] = Field(
        "none", description="normalise each head's query and key"
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
        if isinstance(self.position, RopePosition):
            yield from self._rope_problems(path, self.position)
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

    def _rope_problems(self, path: str, position: RopePosition) -> Iterator[Problem]:
        if self.head_dim % 2:
            near = f"{self.head_dim - 1} or {self.head_dim + 1}" if self.head_dim > 1 else "2"
            text = f"{path}.head_dim={self.head_dim} must be even for {path}.position.kind=rope; use {near}"
            yield Problem(f"{path}.head_dim", text)
        scaling, path = position.scaling, f"{path}.position.scaling"
        if scaling and scaling.low_frequency_factor >= scaling.high_frequency_factor:
            low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
            text = f"{path}.low_frequency_factor={low} must be less than {path}.high_frequency_factor={high}"
            yield Problem(f"{path}.low_frequency_factor", f"{text}; use 1.0 and 4.0")

    def mixing_flops(self, model: ModelConfig, length: int) -> float:
        """Count products of queries with keys and of scores with values.

        A query and a key that it sees cost 2 H FLOPs per head, a score and a value 2 H: with N
        heads 4 N H per pair, and 12 N H with the backward pass. Pairs hidden by the causal mask or
        by a window W are not counted. Query t = 1 ... T sees min(t, W) keys, on average (1 + ... +
        W + (T - W) W) / T.
        """
        del model
        window = min(self.window or length, length)
        pairs = window * (window + 1) // 2 + (length - window) * window
        return 12 * self.num_heads * self.head_dim * pairs / length
