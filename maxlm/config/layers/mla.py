"""Settings of multi-head latent attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from maxlm.config.divisible import divisible
from maxlm.config.errors import Problem
from maxlm.config.positions.rope import RopePosition
from maxlm.config.section import LayerSection, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from maxlm.config.model import ModelConfig
    from maxlm.config.schema import RunConfig


class MlaConfig(LayerSection):
    """Multi-head latent attention (arXiv:2405.04434): keys and values of all heads are made from
    one short vector a token, which is all that decoding keeps.
    """

    ACTIVATIONS: ClassVar = {
        "query_latent": "of query_rank numbers, normalised, of 1 / tensor of the tokens",
        "kv_latent": "of kv_rank + rope_dim numbers, likewise: keys and values are made from it",
        "query": "as attention sees it: rotated",
        "key": "likewise, the rotated part copied to every head",
        "value": "as made from the latent",
        "attention_out": "what heads have gathered; with attention_lse, the attention kernel runs forward once",
        "attention_lse": "log sum exp of the scores, fp32, one per token and head",
    }

    kind: Literal["mla"] = "mla"
    num_heads: PositiveInt = Field(description="heads of queries, keys and values")
    query_rank: PositiveInt | None = Field(
        None, description="width of the vector that queries are made from (null: the token's own)"
    )
    kv_rank: PositiveInt = Field(
        description="width of the vector that keys and values are made from"
    )
    nope_dim: PositiveInt = Field(description="part of a query and key that knows no position")
    rope_dim: PositiveInt = Field(
        description="part of a query and key that is rotated; all heads share that of the key"
    )
    value_dim: PositiveInt = Field(description="width of a head's value")
    position: RopePosition = RopePosition()
    scale: PositiveFloat | None = Field(
        None,
        description="factor on the product of query and key (null: (nope_dim + rope_dim) ** -0.5)",
    )

    @property
    def key_dim(self) -> int:
        """Width of a query and of a key."""
        return self.nope_dim + self.rope_dim

    def problems(self, path: str, run: RunConfig) -> Iterator[Problem]:
        """Yield heads and ranks that the mesh does not divide, and what cannot be rotated."""
        mesh = run.mesh
        exchanged = mesh.context_kind == "ulysses" and mesh.context > 1
        heads = {"mesh.tensor": mesh.tensor} | ({"mesh.context": mesh.context} if exchanged else {})
        other_kind = ", or mesh.context_kind=ring, which does not split heads" if exchanged else ""
        for problem in divisible(f"{path}.num_heads", self.num_heads, heads):
            yield replace(problem, text=problem.text + other_kind)
        shards = {"mesh.fsdp": mesh.fsdp, "mesh.expert": mesh.expert, "mesh.context": mesh.context}
        for name, rank in (("query_rank", self.query_rank), ("kv_rank", self.kv_rank)):
            for problem in divisible(f"{path}.{name}", rank or 0, shards):
                text = f"{problem.text}, with more of the devices on mesh.data or mesh.tensor"
                yield replace(problem, text=text)
        yield from self.position.problems(f"{path}.position", f"{path}.rope_dim", self.rope_dim)

    def told_length(self, length: int) -> int:
        """Return that of its positions."""
        return self.position.told_length(length)

    def mixing_flops(self, model: ModelConfig, length: int) -> float:
        """Count products of queries with keys and of scores with values.

        As in attention: 2 FLOPs per pair that sees each other, head and number of a key and of a
        value, and thrice that with the backward pass. Query t = 1 ... T sees t keys.
        """
        del model
        return 6 * self.num_heads * (self.key_dim + self.value_dim) * (length + 1) / 2
