"""What a program compiled for the CPU communicates: every collective, its mesh axes, its bytes, how
often it runs.
"""

import math
from typing import NamedTuple

from maxlm.plan.hlo import collective_of, parse, spanned_axes


class Collective(NamedTuple):
    """One collective of the program; `times` counts the iterations of the loops that it is in,
    `bytes` its result.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    bytes: int
    times: int


def collectives(compiled, mesh, *, other_trips=None):
    """List the collectives of a compiled program (`jax.stages.Compiled`) on a mesh.

    `other_trips` is how often loops run whose trips depend on data; None if there must not be
    collectives in any.
    """
    module, found = parse(compiled.as_text()), []
    for instruction, computation, times in module.runs(
        lambda *_: math.nan if other_trips is None else other_trips
    ):
        collective = collective_of(module, instruction, computation)
        if collective is None or collective.phase == "done":
            continue
        assert not math.isnan(times), f"how often does this run? {instruction}"
        size = sum(array.bytes for array in instruction.results)
        axes = spanned_axes(collective.groups, mesh.shape)
        found.append(Collective(collective.kind, axes, instruction.results[0].dtype, size, times))
    return found


def count(found, **properties):
    """Add up how often the collectives with these properties run."""
    matching = [
        c for c in found if all(getattr(c, name) == value for name, value in properties.items())
    ]
    return sum(c.times for c in matching)
