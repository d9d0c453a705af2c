"""What a program compiled for the CPU communicates: every collective, its mesh axes, its bytes, how
often it runs; and whether all devices come to their collectives in one order.
"""

import functools
import math
from typing import NamedTuple

from maxlm.plan.hlo import collective_of, parse, spanned_axes

NESTED = ("while", "conditional", "call")


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


def unordered(compiled):
    """List what XLA may run side by side though both hold collectives: pairs of names.

    The CPU's runtime begins a collective once the one before has begun, and a loop or branch has
    begun long before its last collective. So what comes after one is in order only if it needs its
    result. Out of order, the devices of a process meet in the wrong collective: all have the same
    number.
    """
    module = parse(compiled.as_text())

    @functools.cache
    def communicates(name):
        return any(holds(module.computations[name], i) for i in module.computations[name].values())

    def holds(computation, instruction):
        """Tell whether an instruction is a collective, or runs one."""
        if collective_of(module, instruction, computation) is not None:
            return True
        return instruction.op in NESTED and any(map(communicates, instruction.called))

    pairs = []
    for computation in module.computations.values():
        needs, before = {}, []
        for name, instruction in computation.items():
            needs[name] = {name}.union(*(needs[operand] for operand in instruction.operands))
            if holds(computation, instruction):
                pairs += [(other, name) for other in before if other not in needs[name]]
                before += [name] if instruction.op in NESTED else []
    return pairs
