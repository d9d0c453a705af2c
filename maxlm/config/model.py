"""The architecture: what a block is, and how blocks follow each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from maxlm.config.divisible import divisible
from maxlm.config.errors import Problem
from maxlm.config.layers import Ffn, Mixer
from maxlm.config.positions.embedded import LearnedPosition, SinusoidalPosition
from maxlm.config.positions.none import NoPosition
from maxlm.config.section import (
    LayerSection,
    OnResume,
    PositiveFloat,
    PositiveInt,
    Section,
    Use,
    as_tuple,
)

BLOCK_ACTIVATIONS = {
    "mixer_out": "what the mixer returns, before the norm behind it if there is one",
    "ffn_out": "what the ffn returns, likewise: the backward pass needs it for a norm behind it alone",
}
"""What `train.remat` can name in any block."""


MAX_LAYERS = 10_000


class NormConfig(Section):
    """Normalisation around every mixer and ffn (`norms` of their block), and before the head."""

    kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    epsilon: PositiveFloat = 1e-5
    scale: Literal["plain", "one_plus"] = Field(
        "plain",
        description="what the normalised vector is multiplied with: a weight that starts at 1, or 1 + a weight that "
        "starts at 0",
    )


class BlockConfig(Section):
    """One block: what mixer and ffn add to the residual stream x."""

    mixer: Mixer
    ffn: Ffn
    norms: Literal["pre", "post", "sandwich"] = Field(
        "pre",
        description="where a layer f has norms: x + f(norm(x)), x + norm(f(x)) (arXiv:2501.00656), or both, "
        "x + norm(f(norm(x))) (arXiv:2408.00118)",
    )
    residual: Literal["sequential", "parallel", "parallel_one_norm"] = Field(
        "sequential",
        description="the ffn sees what the mixer has added, or the block's input as the mixer does, on a norm of its "
        "own (arXiv:2204.06745) or on the mixer's",
    )

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield a norm that is to be shared and is not there."""
        if self.residual == "parallel_one_norm" and self.norms == "post":
            text = f"{path}.residual=parallel_one_norm shares the norm before mixer and ffn"
            text += f", but {path}.norms=post has none"
            yield Problem(
                f"{path}.residual",
                f"{text}; use {path}.residual=parallel, or {path}.norms=sandwich",
            )


class PatternBlock(BlockConfig):
    """A block of a pattern: what it does not say is as in `model.block`."""

    repeat: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = Field(
        1, description="how many of it follow each other"
    )


class SegmentConfig(Section):
    """A pattern of blocks, repeated."""

    pattern: Annotated[tuple[PatternBlock, ...], BeforeValidator(as_tuple)]
    repeat: Annotated[int, Field(ge=1, le=MAX_LAYERS)] | None = Field(
        None,
        description="how often the pattern stands there (null: as often as model.num_layers asks)",
    )

    @property
    def blocks(self) -> tuple[PatternBlock, ...]:
        """The blocks of one pattern, in their order."""
        return tuple(block for block in self.pattern for _ in range(block.repeat))


class MtpConfig(Section):
    """Modules behind the stack, of which the k-th predicts the token k places behind the next one
    (arXiv:2412.19437, section 2.2); training uses them, decoding does not.
    """

    depth: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = Field(
        description="modules, a token further each"
    )
    block: Annotated[BlockConfig, OnResume.FREE] = Field(
        description="the block of each module: what it does not say is as in model.block"
    )


class StandardParametrisation(Section):
    """Initial values and learning rates do not depend on the width."""

    kind: Literal["standard"] = "standard"


class MupParametrisation(Section):
    """Maximal update parametrisation (arXiv:2203.03466, table 8): initial values, learning rates of
    single parameters and the logits follow the width, so that the best learning rate does not.
    """

    kind: Literal["mup"] = "mup"
    base_width: PositiveInt = Field(
        description="embed_dim of the model whose settings were tuned: at this width all is as in standard"
    )
    base_head_dim: PositiveInt | None = Field(
        None,
        description="its head_dim (mla: nope_dim + rope_dim), if heads of other models have another: products of "
        "queries and keys are then divided by head_dim instead of its root (null: all have the same)",
    )


class ModelConfig(Section):
    """A decoder: `num_layers` blocks, each like `block` unless its segment's pattern says
    otherwise.
    """

    vocab_size: PositiveInt = Field(
        description="rows of the embedding; at least the tokenizer's pieces"
    )
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] = Field(
        description="blocks in all segments together"
    )
    embed_dim: PositiveInt = Field(description="width of the residual stream")
    block: Annotated[BlockConfig, OnResume.FREE] = Field(
        description="what every block is, unless the pattern says otherwise"
    )
    segments: tuple[SegmentConfig, ...] = Field(
        default=({},),  # type: ignore[arg-type] # validated as what a user writes
        validate_default=True,
        description="patterns of blocks that follow each other; a block says what differs from model.block",
    )
    mtp: MtpConfig | None = Field(
        None, description="modules that predict further tokens (null: none)"
    )
    norm: NormConfig = NormConfig()
    position: Annotated[
        LearnedPosition | SinusoidalPosition | NoPosition, Field(discriminator="kind")
    ] = Field(NoPosition(), description="what is added to the embeddings")
    tie_embeddings: bool = Field(
        False, description="use the embedding table as the output projection too"
    )
    embed_scale: PositiveFloat = Field(1.0, description="factor on the vectors of tokens")
    residual_scale: PositiveFloat = Field(
        1.0, description="factor on what mixers and ffns add to the residual stream"
    )
    logit_scale: PositiveFloat = Field(
        1.0, description="factor on products with the output projection"
    )
    logit_softcap: PositiveFloat | None = Field(
        None,
        description="squash logits z to logit_softcap * tanh(z / logit_softcap) (arXiv:2408.00118; null: leave them)",
    )
    init_std: Annotated[PositiveFloat, Use.TRAINING] = Field(
        0.02,
        description="standard deviation of initial weights; outputs of mixer and ffn get / sqrt(2 num_layers)",
    )

    parametrisation: Annotated[
        StandardParametrisation | MupParametrisation, Field(discriminator="kind")
    ] = Field(
        StandardParametrisation(),
        description="how initial values and learning rates follow the width",
    )

    @field_validator("segments", mode="before")
    @classmethod
    def _complete_blocks(cls, segments: Any, info: ValidationInfo) -> Any:
        """Fill what patterns leave open from `block`."""
        block = info.data.get("block")
        if block is None:
            raise PydanticCustomError(
                "block_is_wrong", "nothing can be said of the segments before that is mended"
            )
        whole = block.model_dump(exclude_unset=True)
        return as_tuple(
            [_completed(segment, whole) for segment in segments] if _is_list(segments) else segments
        )

    @field_validator("mtp", mode="before")
    @classmethod
    def _complete_module(cls, mtp: Any, info: ValidationInfo) -> Any:
        """Fill what the block of the modules leaves open from `block`."""
        block = info.data.get("block")
        own = mtp.get("block", {}) if isinstance(mtp, Mapping) else None
        if block is None or not isinstance(own, Mapping):
            return mtp
        return {**mtp, "block": _over(block.model_dump(exclude_unset=True), own)}

    def when_used(self) -> ModelConfig:
        """Return the model as it is used when it is trained: each layer so, and without modules for
        further tokens.
        """

        def used(block: BlockConfig) -> BlockConfig:
            return block.model_copy(
                update={"mixer": block.mixer.when_used(), "ffn": block.ffn.when_used()}
            )

        segments = tuple(
            segment.model_copy(update={"pattern": tuple(map(used, segment.pattern))})
            for segment in self.segments
        )
        return self.model_copy(
            update={"block": used(self.block), "segments": segments, "mtp": None}
        )

    @property
    def width_factor(self) -> float:
        """How many times as wide it is as the model that its settings are from; 1 but for muP."""
        how = self.parametrisation
        return self.embed_dim / how.base_width if isinstance(how, MupParametrisation) else 1.0

    def score_scale(self, head_dim: int) -> float | None:
        """Return the factor on products of queries and keys of a layer that does not say one; None
        for head_dim ** -0.5.
        """
        how = self.parametrisation
        base = how.base_head_dim if isinstance(how, MupParametrisation) else None
        return None if base in (None, head_dim) else float(base) ** 0.5 / head_dim

    @property
    def repeats(self) -> tuple[int, ...]:
        """How often the pattern of each segment stands in the model."""
        given = sum((segment.repeat or 0) * len(segment.blocks) for segment in self.segments)
        return tuple(
            segment.repeat or (self.num_layers - given) // len(segment.blocks)
            for segment in self.segments
        )

    @property
    def mtp_depth(self) -> int:
        """How many further tokens there are modules for."""
        return self.mtp.depth if self.mtp else 0

    @property
    def layers(self) -> tuple[PatternBlock, ...]:
        """Every block of the model, from the first to the last."""
        pairs = zip(self.segments, self.repeats, strict=True)
        return tuple(
            block for segment, repeat in pairs for _ in range(repeat) for block in segment.blocks
        )

    def sections(self) -> Iterator[tuple[str, LayerSection]]:
        """Yield each different mixer and ffn with its path, that of `block` where it is the same."""
        seen: set[tuple[str, LayerSection]] = set()
        for number, segment in enumerate(self.segments):
            for place, block in enumerate(segment.pattern):
                for name in ("mixer", "ffn"):
                    layer = getattr(block, name)
                    shared = layer == getattr(self.block, name)
                    path = (
                        f"model.block.{name}"
                        if shared
                        else f"model.segments.{number}.pattern.{place}.{name}"
                    )
                    if (name, layer) not in seen:
                        yield path, layer
                    seen.add((name, layer))
        for name in ("mixer", "ffn"):
            layer = getattr(self.mtp.block if self.mtp else self.block, name)
            if self.mtp and (name, layer) not in seen:
                shared = layer == getattr(self.block, name)
                yield f"model.{'' if shared else 'mtp.'}block.{name}", layer

    def told_length(self, length: int) -> int:
        """Return a length of whole sequences that no layer tells from `length`: programs of both
        are the same. 0 if no layer knows any.
        """
        told = {section.told_length(length) for _, section in self.sections()} - {0}
        return length if len(told) > 1 else next(iter(told), 0)

    def problems(self) -> Iterator[Problem]:
        """Yield segments that do not make `num_layers` blocks."""
        yield from self._block_problems()
        empty = [
            f"model.segments.{number}.pattern"
            for number, one in enumerate(self.segments)
            if not one.pattern
        ]
        empty += [] if self.segments else ["model.segments"]
        for path in empty:
            block = "[{}]" if path.endswith("pattern") else "[{pattern: [{}]}]"
            yield Problem(
                path, f"{path}=[] must not be empty; use {block}, a block like model.block"
            )
        if not empty:
            yield from self._count_problems()

    def _block_problems(self) -> Iterator[Problem]:
        """Yield what is wrong with a block, once for all that are like `block` in it."""
        yield from self.block.problems("model.block")
        for number, segment in enumerate(self.segments):
            for place, block in enumerate(segment.pattern):
                if (block.norms, block.residual) != (self.block.norms, self.block.residual):
                    yield from block.problems(f"model.segments.{number}.pattern.{place}")
        own = self.mtp.block if self.mtp else self.block
        if (own.norms, own.residual) != (self.block.norms, self.block.residual):
            yield from own.problems("model.mtp.block")

    def _count_problems(self) -> Iterator[Problem]:
        open_ended = [
            number for number, segment in enumerate(self.segments) if segment.repeat is None
        ]
        given = sum((segment.repeat or 0) * len(segment.blocks) for segment in self.segments)
        if len(open_ended) > 1:
            names = " and ".join(f"model.segments.{number}" for number in open_ended)
            text = f"{names} have no repeat, and only one segment can take the layers left over"
            yield Problem(
                f"model.segments.{open_ended[1]}",
                f"{text}; give model.segments.{open_ended[1]}.repeat",
            )
        elif not open_ended and given != self.num_layers:
            text = f"model.num_layers={self.num_layers}, but model.segments make {given} blocks"
            yield Problem(
                "model.num_layers", f"{text}; use model.num_layers={given}, or other repeats"
            )
        elif open_ended:
            yield from self._open_segment_problems(open_ended[0], given)

    def _open_segment_problems(self, number: int, given: int) -> Iterator[Problem]:
        left, length = self.num_layers - given, len(self.segments[number].blocks)
        path = f"model.segments.{number}.pattern"
        if not given:
            yield from divisible(
                "model.num_layers", left, {f"the number of blocks in {path}": length}
            )
        elif left <= 0 or left % length:
            near = given + max(left // length, 1) * length
            text = f"model.num_layers={self.num_layers} must be the {given} blocks of the other segments and a multiple"
            cure = f"use model.num_layers={near} or {near + length}"
            yield Problem(
                "model.num_layers", f"{text} of the number of blocks in {path}, {length}; {cure}"
            )


def shared_path(path: str) -> str:
    """Return where a setting of a block is that a pattern or `model.mtp` does not say: in
    `model.block`.
    """
    return re.sub(r"^model\.(segments\.\d+\.pattern\.\d+|mtp\.block)\.", "model.block.", path)


def _completed(segment: Any, block: Mapping[str, Any]) -> Any:
    """Return a segment as it was written, its blocks with what they leave open."""
    if not isinstance(segment, Mapping):
        return segment
    pattern = segment.get("pattern", [{}])
    if _is_list(pattern):
        pattern = tuple(
            _over(block, entry) if isinstance(entry, Mapping) else entry for entry in pattern
        )
    return {**segment, "pattern": pattern}


def _over(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with everything in `new` on top; a section of another kind has nothing in
    common with the old.
    """
    if "kind" in new and "kind" in base and new["kind"] != base["kind"]:
        return dict(new)
    merged = dict(base)
    for key, value in new.items():
        old = base.get(key)
        merged[key] = (
            _over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
