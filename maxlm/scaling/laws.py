"""Forms of the loss as a function of model size N and training tokens D.

While a law is fitted, N and D are measured in units of the runs' geometric means, and its numbers are
chosen so that all are near 1 and one can move while the others stay: else searches take hundreds of
steps along narrow valleys. `raw` returns the numbers of the paper, for N and D as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from scipy.optimize import nnls

from maxlm.scaling.runs import Runs, Units


class Law(Protocol):
    """A form of the loss; its free numbers are a vector in the order of `names`.

    Attributes:
      name: by which it is chosen and reported.
      paper: where it comes from.
      names: of its numbers, in `raw`.
      lower: the least that each of them may be.
    """

    name: str
    paper: str
    names: tuple[str, ...]
    lower: tuple[float, ...]

    def predict(self, numbers: np.ndarray, runs: Runs) -> np.ndarray:
        """Return the loss of each run, (..., P) -> (..., R); the runs' own `losses` are not looked at."""
        ...

    def starts(self, runs: Runs) -> Iterator[np.ndarray]:
        """Yield numbers from which a search may begin; the best ones first."""
        ...

    def raw(self, numbers: np.ndarray, units: Units) -> dict[str, float]:
        """Return the numbers by name, for N and D that are not in units."""
        ...


class Surface:
    """L = E + A / N^a + B / D^b (arXiv:2203.15556, eq. 2)."""

    name = "surface"
    paper = "Hoffmann et al. 2022, arXiv:2203.15556, eq. 2"
    names: tuple[str, ...] = ("E", "A", "B", "a", "b")
    lower: tuple[float, ...] = (0.0, 0.0, 0.0, 1e-3, 1e-3)

    def predict(self, numbers: np.ndarray, runs: Runs) -> np.ndarray:
        """Return the loss of each run."""
        constant, of_size, of_tokens, size_power, token_power = _columns(numbers)
        sizes, tokens = runs.parameters**-size_power, runs.tokens**-token_power
        return constant + of_size * sizes + of_tokens * tokens

    def starts(self, runs: Runs) -> Iterator[np.ndarray]:
        """Yield (E, A, B) >= 0 that fit best for each pair of exponents in a grid, best pairs
        first.

        Given the exponents, the loss is linear in the three others: they are projected out.
        """
        grid = [(a, b) for a in np.geomspace(0.05, 1.5, 12) for b in np.geomspace(0.05, 1.5, 12)]
        found = [self._projected(runs, a, b) for a, b in grid]
        for _, numbers in sorted(found, key=lambda one: one[0]):
            yield numbers

    def _projected(self, runs: Runs, a: float, b: float) -> tuple[float, np.ndarray]:
        terms = np.stack([np.ones(runs.number), runs.parameters**-a, runs.tokens**-b], axis=1)
        # (predicted - measured) / measured is the difference of logarithms, to first order.
        coefficients, error = nnls(terms / runs.losses[:, None], np.ones(runs.number))
        return float(error), np.array([*coefficients, a, b])

    def raw(self, numbers: np.ndarray, units: Units) -> dict[str, float]:
        """Return E, A, B, a, b for N and D that are not in units."""
        constant, of_size, of_tokens, a, b = numbers
        scaled = of_size * units.parameters**a, of_tokens * units.tokens**b
        return dict(zip(self.names, map(float, (constant, *scaled, a, b)), strict=True))


class Coupled:
    """L = E + (A / N^a + B / D^b)^k (Skaling, arXiv:2608.07222): the surface for k = 1, Kaplan's
    form for E = 0 and b = 1.

    The exponent k couples the two terms: below 1 a lack of data hurts a small model less than it
    hurts a large one. Fitted are what each term alone adds, A^k / N^(a k) and B^k / D^(b k), and k.
    """

    name = "coupled"
    paper = (
        "Skaling, arXiv:2608.07222; contains arXiv:2203.15556, eq. 2, and arXiv:2001.08361, eq. 1.5"
    )
    names: tuple[str, ...] = ("E", "A", "B", "a", "b", "k")
    lower: tuple[float, ...] = (0.0, 0.0, 0.0, 1e-3, 1e-3, 0.05)

    def predict(self, numbers: np.ndarray, runs: Runs) -> np.ndarray:
        """Return the loss of each run."""
        constant, of_size, of_tokens, a, b, k = _columns(numbers)
        return constant + _coupled(of_size * runs.parameters**-a, of_tokens * runs.tokens**-b, k)

    def starts(self, runs: Runs) -> Iterator[np.ndarray]:
        """Yield the surface's, with each coupling."""
        for number, (constant, of_size, of_tokens, a, b) in enumerate(Surface().starts(runs)):
            k = (1.0, 0.5, 1.5)[number % 3]
            yield np.array([constant, of_size + 1e-6, of_tokens + 1e-6, a, b, k])

    def raw(self, numbers: np.ndarray, units: Units) -> dict[str, float]:
        """Return E, A, B, a, b, k for N and D that are not in units."""
        constant, of_size, of_tokens, a, b, k = numbers
        scaled = (
            (of_size * units.parameters**a) ** (1 / k),
            (of_tokens * units.tokens**b) ** (1 / k),
        )
        return dict(zip(self.names, map(float, (constant, *scaled, a / k, b / k, k)), strict=True))


class Kaplan:
    """L = ((Nc / N)^(aN / aD) + Dc / D)^aD (arXiv:2001.08361, eq. 1.5): no loss that stays.

    Fitted are what size and data alone make, (Nc / N)^aN and (Dc / D)^aD at N and D of 1, and the
    exponents.
    """

    name = "kaplan"
    paper = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5"
    names: tuple[str, ...] = ("Nc", "Dc", "aN", "aD")
    lower: tuple[float, ...] = (0.0, 0.0, 1e-3, 1e-3)

    def predict(self, numbers: np.ndarray, runs: Runs) -> np.ndarray:
        """Return the loss of each run."""
        of_size, of_tokens, a, b = _columns(numbers)
        return _coupled(of_size * runs.parameters**-a, of_tokens * runs.tokens**-b, b)

    def starts(self, runs: Runs) -> Iterator[np.ndarray]:
        """Yield a grid of exponents, with the two constants that fit best: in L^(1 / aD) they are
        linear.
        """
        grid = np.geomspace(0.02, 0.6, 10)
        found = [self._projected(runs, a, b) for a in grid for b in grid]
        for _, numbers in sorted(found, key=lambda one: one[0]):
            yield numbers

    def _projected(self, runs: Runs, a: float, b: float) -> tuple[float, np.ndarray]:
        target = runs.losses ** (1 / b)
        terms = np.stack([runs.parameters ** (-a / b), 1 / runs.tokens], axis=1)
        (of_size, of_tokens), _ = nnls(terms / target[:, None], np.ones(runs.number))
        numbers = np.array([max(of_size, 1e-9) ** b, max(of_tokens, 1e-9) ** b, a, b])
        return float(np.abs(np.log(self.predict(numbers, runs) / runs.losses)).sum()), numbers

    def raw(self, numbers: np.ndarray, units: Units) -> dict[str, float]:
        """Return Nc, Dc, aN, aD for N and D that are not in units."""
        of_size, of_tokens, a, b = numbers
        with np.errstate(over="ignore"):  # where the exponents are near 0, Nc and Dc have no end
            ends = of_size ** (1 / a) * units.parameters, of_tokens ** (1 / b) * units.tokens
        scaled = (*ends, a, b)
        return dict(zip(self.names, map(float, scaled), strict=True))


class Farseer:
    """L = exp(a3 N^g + b3) + exp(a2 N^e + b2) D^(-exp(a1 N^h + b1)) (arXiv:2506.10972).

    How fast data helps depends on the size of the model. Nine numbers: it wants many runs.
    """

    name = "farseer"
    paper = "Farseer, arXiv:2506.10972"
    names: tuple[str, ...] = ("a1", "b1", "h", "a2", "b2", "e", "a3", "b3", "g")
    lower: tuple[float, ...] = (-np.inf,) * 9

    def predict(self, numbers: np.ndarray, runs: Runs) -> np.ndarray:
        """Return the loss of each run."""
        sizes = runs.parameters
        a1, b1, h, a2, b2, e, a3, b3, g = _columns(numbers)
        power, scale, floor = a1 * sizes**h + b1, a2 * sizes**e + b2, a3 * sizes**g + b3
        return np.exp(floor) + np.exp(scale - np.exp(power) * np.log(runs.tokens))

    def starts(self, runs: Runs) -> Iterator[np.ndarray]:
        """Yield the surface's: what it says of each size, written as a power of the size."""
        for number, (constant, of_size, of_tokens, a, b) in enumerate(Surface().starts(runs)):
            g = (-0.3, -0.1, 0.1)[number % 3]
            floor = np.log(constant + of_size * runs.parameters**-a + 1e-9)
            slope, offset = np.polyfit(runs.parameters**g, floor, 1)
            data = (0.0, np.log(b), g, 0.0, np.log(of_tokens + 1e-9), g)
            yield np.array([*data, slope, offset, g])

    def raw(self, numbers: np.ndarray, units: Units) -> dict[str, float]:
        """Return the nine for N that is not in units; D stays in units of `tokens_unit`."""
        scaled = numbers.reshape(3, 3).copy()
        scaled[:, 0] *= units.parameters ** -scaled[:, 2]
        named = dict(zip(self.names, map(float, scaled.ravel()), strict=True))
        return {**named, "tokens_unit": units.tokens}


class Repeated:
    """The surface of what repeated data and excess parameters are worth (arXiv:2305.16264, eq. 5
    and 6).

    D' = U + U R (1 - exp(-(D / U - 1) / R)) with U different tokens: the n-th time a token is read
    it is worth less. N' likewise, beyond the size that is best for U tokens.
    """

    name = "repeated"
    paper = "Muennighoff et al. 2023, arXiv:2305.16264, eq. 5 and 6"
    names: tuple[str, ...] = ("E", "A", "B", "a", "b", "R_D", "R_N")
    lower: tuple[float, ...] = (0.0, 1e-9, 1e-9, 1e-3, 1e-3, 0.05, 0.05)

    def predict(self, numbers: np.ndarray, runs: Runs) -> np.ndarray:
        """Return the loss of each run."""
        _, of_size, of_tokens, a, b, data_half, size_half = _columns(numbers)
        unique = runs.unique_tokens
        # Where the surface is as steep in N as in D, at equal steps of their logarithms.
        best = (a * of_size / (b * of_tokens)) ** (1 / a) * unique ** (b / a)
        sizes = _worth(runs.parameters, np.minimum(best, runs.parameters), size_half)
        effective = Runs(sizes, _worth(runs.tokens, unique, data_half), runs.losses, unique)
        return Surface().predict(numbers[..., :5], effective)

    def starts(self, runs: Runs) -> Iterator[np.ndarray]:
        """Yield the surface's, with the published half lives and others."""
        for number, start in enumerate(Surface().starts(runs)):
            halves = ((15.4, 5.3), (5.0, 5.0), (30.0, 10.0))[number % 3]
            yield np.array([*np.maximum(start, np.array(self.lower[:5])), *halves])

    def raw(self, numbers: np.ndarray, units: Units) -> dict[str, float]:
        """Return all seven; half lives have no unit."""
        named = Surface().raw(numbers[:5], units)
        return {**named, "R_D": float(numbers[5]), "R_N": float(numbers[6])}


def _columns(numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """Take (..., P) numbers apart: P arrays (..., 1) that meet the runs along the last dimension."""
    return tuple(numbers[..., place, None] for place in range(numbers.shape[-1]))


def _coupled(of_size: np.ndarray, of_tokens: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Return (of_size^(1 / power) + of_tokens^(1 / power))^power."""
    inner = of_size ** (1 / power) + of_tokens ** (1 / power)
    return np.asarray(inner**power)


def _worth(amount: np.ndarray, unique: np.ndarray, half_life: np.ndarray) -> np.ndarray:
    """Return what `amount` is worth of which `unique` is new and the rest repeats it."""
    repeats = np.maximum(amount / unique - 1, 0)
    return unique * (1 + half_life * -np.expm1(-repeats / half_life))


LAWS: dict[str, Law] = {
    law.name: law for law in (Surface(), Coupled(), Kaplan(), Farseer(), Repeated())
}
"""Every form, the default first."""
