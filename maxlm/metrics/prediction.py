"""A prediction of a run's loss, made before it is run by a ladder's fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maxlm.config.errors import UserError
from maxlm.files import read_regular

log = logging.getLogger(__name__)

VERSION = 1


class Expected(NamedTuple):
    """A loss, and the interval that holds it with 90 % confidence."""

    value: float
    low: float
    high: float


class Prediction(NamedTuple):
    """What a run's loss will be, at its end and on the way.

    Attributes:
      loss: the metric, such as val/books/loss.
      parameters: N of the run.
      tokens: D of the run.
      final: the loss at its end.
      shape: (fraction of the steps, loss / final loss, its least and its most among the ladder's
        rungs), fractions ascending; the last is (1, 1, 1, 1).
    """

    loss: str
    parameters: int
    tokens: int
    final: Expected
    shape: tuple[tuple[float, float, float, float], ...]

    def at(self, fraction: float) -> Expected | None:
        """Return what is expected after a fraction of the steps; None before the first one known."""
        fractions, *ratios = (np.array(column) for column in zip(*self.shape, strict=True))
        if fraction < fractions[0]:
            return None
        here = (float(np.exp(np.interp(fraction, fractions, np.log(one)))) for one in ratios)
        pairs = zip(here, self.final, strict=True)
        return Expected(*(ratio * final for ratio, final in pairs))


class Expectation:
    """A prediction beside what is measured; it warns once of a loss outside its interval."""

    def __init__(self, prediction: Prediction, num_steps: int):
        self._prediction, self._num_steps, self._warned = prediction, num_steps, False
        self._source = prediction.loss.removeprefix("val/").removesuffix("/loss")

    @property
    def charts(self) -> dict[str, list[str]]:
        """The measured and the expected loss in one chart, by the chart's name."""
        names = [f"predicted/{self._source}/{name}" for name in ("expected", "low", "high")]
        return {f"{self._prediction.loss} and its prediction": [self._prediction.loss, *names]}

    def beside(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Return what was expected of an evaluation after so many steps, by metric; nothing before
        the first fraction that the prediction knows.
        """
        expected = self._prediction.at(step / self._num_steps)
        if expected is None:
            return {}
        measured = values[self._prediction.loss]
        if not self._warned and not expected.low <= measured <= expected.high:
            self._warned = True
            log.warning(
                "step %d: %s is %.4f, outside the predicted %.4f to %.4f",
                step,
                self._prediction.loss,
                measured,
                expected.low,
                expected.high,
            )
        names = zip(("expected", "low", "high"), expected, strict=True)
        return {f"predicted/{self._source}/{name}": value for name, value in names}


def read_prediction(path: str) -> Prediction:
    """Read a prediction.

    Raises:
      UserError: the file is not there, or is none.
    """
    cure = "make it: maxlm ladder fit LADDER.yaml --predict RUN.yaml"
    try:
        data = json.loads(read_regular(path))
        if data["version"] != VERSION:
            raise ValueError(data["version"])
        shape = tuple(tuple(map(float, row)) for row in data["shape"])
        return Prediction(
            str(data["loss"]),
            int(data["parameters"]),
            int(data["tokens"]),
            Expected(**data["final"]),
            shape,  # type: ignore[arg-type] # rows of four
        )
    except OSError as error:
        raise UserError(f"metrics.prediction={path}: {error.strerror}; {cure}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"metrics.prediction={path} is not a prediction; {cure}") from None


def to_json(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as plain data."""
    return {
        "version": VERSION,
        **prediction._asdict(),
        "final": prediction.final._asdict(),
        "shape": [list(row) for row in prediction.shape],
    }


def check_prediction(
    prediction: Prediction, path: str, *, parameters: int, tokens: int, losses: Sequence[str]
) -> None:
    """Refuse a prediction of another run than the one with these numbers and losses.

    Raises:
      UserError: names what differs.
    """
    wrong = [
        f"{name}={predicted:,} and the run has {actual:,}"
        for name, predicted, actual in (
            ("parameters", prediction.parameters, parameters),
            ("tokens", prediction.tokens, tokens),
        )
        if predicted != actual
    ]
    if prediction.loss not in losses:
        wrong.append(f"loss={prediction.loss} and the run has {', '.join(losses)}")
    if wrong:
        raise UserError(
            f"metrics.prediction={path} is of another run: it has {'; '.join(wrong)}; "
            "make one of this run: maxlm ladder fit LADDER.yaml --predict RUN.yaml"
        )
