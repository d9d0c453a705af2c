"""What a vocabulary costs a model: parameters of its embedding and head, and FLOPs per byte of text."""

from __future__ import annotations

from typing import NamedTuple

from maxlm.config.schema import RunConfig
from maxlm.models.cost import flops_per_token, parameter_count


class Cost(NamedTuple):
    """Of a model with a vocabulary.

    Attributes:
      parameters: all of them.
      vocabulary_parameters: those that there would not be without its rows: embedding and head.
      flops_per_token: of training.
    """

    parameters: int
    vocabulary_parameters: int
    flops_per_token: float


def cost_of(config: RunConfig, vocab_size: int) -> Cost:
    """Return what the run's model costs with another vocabulary.

    Parameters grow linearly with the vocabulary, so a row's are the difference of two models.
    """
    model = config.model.model_copy(update={"vocab_size": vocab_size})
    larger = config.model.model_copy(update={"vocab_size": 2 * vocab_size})
    parameters = parameter_count(model)
    return Cost(
        parameters,
        parameter_count(larger) - parameters,
        flops_per_token(model, config.data.sequence_length),
    )
