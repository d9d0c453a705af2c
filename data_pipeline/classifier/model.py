"""A linear model of hashed words: the probability that a text is of the good kind, and its file.

The file is safetensors: one array of weights, and a JSON header; reading it runs no code.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, FiniteFloat, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data_pipeline.classifier.features import grams
from data_pipeline.storage.whole import written_whole
from maxlm.config.errors import UserError
from maxlm.config.section import PositiveInt, Section

DECIMALS = 6
"""Of a probability that steps compare and store."""
_HEADER = "maxlm"  # the key of the header in the file's metadata


class Header(Section):
    """What a model's file says beside the weights.

    Attributes:
      bits: there are 2^bits weights, if features are hashed words.
      max_chars: characters of a text that it looks at.
      checkpoint: which trained model the features are of, as a hash; None: they are words.
      max_tokens: tokens of a text that this model reads.
      bias: added to the weighted words.
      slope, shift: of Platt's calibration: the probability is sigmoid(slope * score + shift).
      figures: what was measured when it was trained, for people.
    """

    format: Literal["maxlm-classifier-1"] = "maxlm-classifier-1"
    bits: Annotated[int, Field(ge=8, le=28)] = 20
    max_chars: PositiveInt = 100_000
    checkpoint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    max_tokens: PositiveInt | None = None
    bias: FiniteFloat = 0.0
    slope: FiniteFloat = 1.0
    shift: FiniteFloat = 0.0
    figures: dict[str, FiniteFloat | int] = {}


class Classifier:
    """Scores texts.

    A text of n words and pairs has the features count / sqrt(n): the features of a text whose words
    all differ have length one. Of a trained model, features are its mean hidden state, of length
    one.
    """

    def __init__(self, header: Header, weights: np.ndarray):
        self.header, self._weights = header, weights

    def probability(self, text: str) -> float:
        """Return the calibrated probability that a text is of the good kind."""
        return sigmoid(self.header.slope * self.score(text) + self.header.shift)

    def score(self, text: str) -> float:
        """Return the weighted sum of a text's words, before calibration.

        Raises:
          UserError: the features are no words.
        """
        self.require_words()
        found = grams(text, self.header.bits, self.header.max_chars)
        total = float(self._weights[found].sum(dtype=np.float64))
        return total / np.sqrt(max(found.size, 1)) + self.header.bias

    def require_words(self) -> None:
        """Refuse what asks for words of a model that knows hidden states.

        Raises:
          UserError: the features are no words.
        """
        if self.header.checkpoint is not None:
            raise UserError(
                "this classifier was trained on hidden states of a model: only the step `classifier` "
                "with its `checkpoint` takes it"
            )

    def probability_of(self, features: np.ndarray) -> float:
        """Return the probability that a text with these features of a trained model is of the good
        kind.
        """
        score = float(features.astype(np.float64) @ self._weights) + self.header.bias
        return sigmoid(self.header.slope * score + self.header.shift)

    def save(self, path: Path) -> None:
        """Write the model's file, in full or not at all."""
        with written_whole(path) as unfinished:
            metadata = {_HEADER: self.header.model_dump_json()}
            save_file({"weights": self._weights.astype(np.float32)}, unfinished, metadata)


def sigmoid(value: float) -> float:
    """Return 1 / (1 + exp(-value)), for any finite value."""
    small = math.exp(-abs(value))
    return (1.0 if value >= 0 else small) / (1.0 + small)


def load_classifier(path: Path | str) -> Classifier:
    """Return the model of a file.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = Header.model_validate_json((file.metadata() or {}).get(_HEADER, ""))
            weights = file.get_tensor("weights")
    except (OSError, SafetensorError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not a classifier: {first}; {_CURE}") from None
    shape = weights.shape if header.checkpoint and weights.ndim == 1 else (1 << header.bits,)
    if weights.dtype != np.float32 or weights.shape != shape:
        found = f"weights are {weights.dtype} {weights.shape}, not float32 {shape}"
        raise UserError(f"{path}: {found}; {_CURE}")
    if not np.isfinite(weights).all():
        raise UserError(f"{path}: weights that are not finite; {_CURE}")
    return Classifier(header, weights)


_CURE = "train one with `maxlm data train-classifier`"
