"""A group of settings, and the types that settings are made of."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from maxlm.config.errors import Problem

if TYPE_CHECKING:
    from maxlm.config.model import ModelConfig
    from maxlm.config.schema import RunConfig


class Section(BaseModel):
    """A frozen group of settings: unknown keys, wrong types, nan and inf are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class OnResume(Enum):
    """What a change means for a run that goes on: a mark in a field's `Annotated`, for all in it if
    it is a section.

    A change of a field without a mark makes another run.
    """

    FREE = "how the run is executed, watched or stored: may change"
    RATE = "may change as long as no step that is done had another learning rate"
    PIECES = "may change unless a layer of the model judges microbatches"
    MIXTURE = "may change as long as no row that was read was of another source"
    FIXED = "makes another run, within a section that is free"


class Width(Enum):
    """What a ladder of sizes does with a setting of a layer: a mark in a field's `Annotated`.

    A setting without a mark is the same at all widths.
    """

    SCALES = "is multiplied by embed_dim / embed_dim of the base"
    DIVIDES = "likewise, then moved to the nearest divisor of the scaled setting before it"


class Use(Enum):
    """What a setting is for: a mark in a field's `Annotated`, for all in it if it is a section."""

    TRAINING = "how a model is trained; what a trained one computes is the same without it"


Metrics = dict[str, tuple[str, str]]
"""Names of metrics, with the unit and the meaning of each."""


class LayerSection(Section):
    """The settings of a kind of layer, and what is known of it without building it.

    Attributes:
      kind: the name of the kind, by which the layer is found that it is the settings of.
      ACTIVATIONS: names that `train.remat` can give a choice for, and what each is.
      METRICS: what the layer reports, by its name in the catalogue: the unit and the meaning of
      each.
    """

    ACTIVATIONS: ClassVar[dict[str, str]] = {}
    METRICS: ClassVar[Metrics] = {}

    kind: str

    @property
    def activations(self) -> dict[str, str]:
        """The names that `train.remat` can give a choice for, and what each is."""
        return self.ACTIVATIONS

    def when_used(self) -> Self:
        """Return the layer as a trained model is used: without what is a measure of training."""
        return self

    def problems(self, path: str, run: RunConfig) -> Iterator[Problem]:
        """Yield what is wrong between its settings, and with the model's, the data's and the
        mesh's.

        Args:
          path: where the section stands, such as model.block.mixer.
          run: the run; a mesh axis of -1 counts as 1.
        """
        del path, run
        yield from ()

    @property
    def judges_microbatches(self) -> bool:
        """Whether it adds something to the objective that depends on how a batch is cut into
        microbatches.
        """
        return False

    @property
    def routed_copies(self) -> int:
        """Copies of each token that are sent to where others are worked on, 0 for none."""
        return 0

    def told_length(self, length: int) -> int:
        """Return a length of whole sequences that the layer does not tell from `length`, 0 if it
        knows none.
        """
        del length
        return 0

    def mixing_flops(self, model: ModelConfig, length: int) -> float:
        """Return the FLOPs per token of a forward and backward pass that are no products with
        weights.

        Args:
          model: the model it stands in.
          length: tokens of a sequence.
        """
        del model, length
        return 0.0


def kind_or(default: str) -> BeforeValidator:
    """Return the mark of a union, discriminated by `kind`, of which a section without `kind` is the
    default one.
    """

    def complete(value: Any) -> Any:
        return (
            {"kind": default, **value} if isinstance(value, dict) and "kind" not in value else value
        )

    return BeforeValidator(complete)


def as_tuple(value: Any) -> Any:
    """Take a list, as YAML has them, where a frozen section holds a tuple."""
    return tuple(value) if isinstance(value, list) else value


# Devices count in int32 and calculate in fp32, whose largest number is 3.4e38.
INT32_MAX = 2**31 - 1
PositiveInt = Annotated[int, Field(ge=1, le=INT32_MAX)]
Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
PositiveFloat = Annotated[float, Field(gt=0, le=3e38)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=3e38)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
