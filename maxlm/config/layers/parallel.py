"""Settings of several mixers side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.section import LayerSection, as_tuple

if TYPE_CHECKING:
    from maxlm.config.layers import Mixer
    from maxlm.config.model import ModelConfig
    from maxlm.config.schema import RunConfig


class ParallelConfig(LayerSection):
    """Several mixers on one norm, their results added up."""

    kind: Literal["parallel"] = "parallel"
    mixers: Annotated[tuple[Mixer, ...], BeforeValidator(as_tuple), Field(min_length=2)] = Field(
        description="two or more mixers, each with its kind"
    )

    @property
    def activations(self) -> dict[str, str]:
        """Those of all its mixers."""
        return {
            name: meaning for mixer in self.mixers for name, meaning in mixer.activations.items()
        }

    def when_used(self) -> Self:
        """Return it with each mixer so."""
        return self.model_copy(update={"mixers": tuple(one.when_used() for one in self.mixers)})

    def problems(self, path: str, run: RunConfig) -> Iterator[Problem]:
        """Yield what is wrong with each mixer."""
        for index, mixer in enumerate(self.mixers):
            yield from mixer.problems(f"{path}.mixers.{index}", run)

    def told_length(self, length: int) -> int:
        """Return that of its mixers, or `length` where they differ."""
        told = {mixer.told_length(length) for mixer in self.mixers} - {0}
        return length if len(told) > 1 else next(iter(told), 0)

    def mixing_flops(self, model: ModelConfig, length: int) -> float:
        """Add up those of the mixers."""
        return sum(mixer.mixing_flops(model, length) for mixer in self.mixers)
