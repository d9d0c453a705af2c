"""Settings of mixtures one after the other, by tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from maxlm.config.errors import Problem
from maxlm.config.section import Name, NonNegativeFloat, PositiveFloat, Section

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig


class StageConfig(Section):
    """A part of a run with its own mixture: until a number of tokens or a share of the run; the last
    stage has neither and lasts to the end.
    """

    until_tokens: PositiveFloat | None = Field(None, description="of the run, such as 9e9")
    until_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="of train.num_steps, such as 0.9"
    )
    weights: Annotated[dict[Name, NonNegativeFloat], Field(min_length=1)] | None = Field(
        None,
        description="in the place of the sources' own (null: those); a source that is not named is not read, and one "
        "that no stage reads is evaluated only",
    )


def mixture_problems(data: DataConfig) -> Iterator[Problem]:
    """Yield what is wrong between stages, sources and the mix."""
    if not data.stages:
        return
    for number, stage in enumerate(data.stages):
        path = f"data.stages.{number}"
        yield from _end_problems(path, stage, last=number + 1 == len(data.stages))
        yield from _weight_problems(path, stage, data)
    for name in ("until_tokens", "until_share"):
        ends = [getattr(stage, name) for stage in data.stages[:-1]]
        known = [(place, end) for place, end in enumerate(ends) if end is not None]
        for (_, before), (place, end) in itertools.pairwise(known):
            if end <= before:
                path = f"data.stages.{place}.{name}"
                text = f"{path}={end:g} is not beyond {before:g}, where a stage before it ends"
                yield Problem(path, f"{text}; give stages in their order, each with a later end")
    for name, source in data.sources.items():
        if source.tokens is not None:
            text = f"data.sources.{name}.tokens is for runs without data.stages, whose weights say what is read"
            yield Problem(f"data.sources.{name}.tokens", f"{text}; remove one of them")


def _end_problems(path: str, stage: StageConfig, *, last: bool) -> Iterator[Problem]:
    ends = [name for name in ("until_tokens", "until_share") if getattr(stage, name) is not None]
    if last and ends:
        text = f"{path}.{ends[0]}: the last stage lasts to the end of the run"
        yield Problem(f"{path}.{ends[0]}", f"{text}; remove it, or add a stage behind it")
    elif not last and len(ends) != 1:
        text = f"{path} needs one of until_tokens and until_share, and has {len(ends)}"
        yield Problem(path, f"{text}; for example until_share: 0.9")


def _weight_problems(path: str, stage: StageConfig, data: DataConfig) -> Iterator[Problem]:
    for name in stage.weights or ():
        if name not in data.sources:
            text = f"{path}.weights.{name} is not a source"
            yield Problem(
                f"{path}.weights.{name}", f"{text}; name some of {', '.join(data.sources)}"
            )
    if stage.weights and not any(stage.weights.values()):
        yield Problem(f"{path}.weights", f"{path}.weights are all 0; give one source a weight")
