"""Numbers that must divide others: the message names both, and values of each that would work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from maxlm.config.errors import Problem

_FAR = 100_000  # a number to use instead is looked for so far away


def divisible(path: str, value: int, by: Mapping[str, int], *, times: int = 1) -> Iterator[Problem]:
    """Yield a problem if `value` is not a multiple of the product of `by`; name values of each that
    would work.

    Args:
      path: of the value.
      value: what is to be divided.
      by: sizes by their paths.
      times: one more factor, which is not a setting.
    """
    factors = {name: size for name, size in by.items() if size > 1}
    product = times * math.prod(factors.values())
    if value % product == 0:
        return
    names = " * ".join(
        [str(times)] * (times > 1) + [f"{name}={size}" for name, size in factors.items()]
    )
    down = value // product * product
    cures = [f"{path}={f'{down} or ' if down else ''}{down + product}"]
    for name, size in factors.items():
        rest = product // size
        if value % rest == 0:
            near = near_divisors(value // rest, size)
            cures.append(f"{name}={' or '.join(str(divisor) for divisor in near)}")
    names += f" = {product}" if len(factors) + (times > 1) > 1 else ""
    yield Problem(path, f"{path}={value} must be divisible by {names}; use {', or '.join(cures)}")


def near_divisors(value: int, size: int) -> list[int]:
    """Return the divisors of `value` next to `size`: the one below, and the one above if it is not
    far.
    """
    start = min(size, value)
    below = next((n for n in range(start, max(start - _FAR, 0), -1) if value % n == 0), 1)
    above = next(
        (n for n in range(size + 1, min(2 * size, value, size + _FAR) + 1) if value % n == 0), None
    )
    return [below] if above is None else [below, above]
