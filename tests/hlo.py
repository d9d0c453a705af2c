"""What a compiled program communicates: every collective, the mesh axes it spans, its bytes, how often it runs."""

import math
import re
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([^\s,)]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
    """One collective of the program; `times` counts the iterations of the loops that it is in, `bytes` its result."""

    kind: str
    axes: tuple[str, ...]
    dtype: str
    bytes: int
    times: int


def collectives(compiled, mesh, *, other_trips=None):
    """List the collectives of a compiled program (`jax.stages.Compiled`) on a mesh.

    `other_trips` is how often loops run whose trips depend on data; None if there must not be collectives in any.
    """
    computations, entry = _parse(compiled.as_text())
    found = []

    def walk(name, times):
        for line in computations[name]:
            match = _COLLECTIVE.search(line)
            if match:
                shapes = _SHAPE.findall(match[1])
                size = sum(ITEM_BYTES[t] * math.prod(int(n) for n in dims.split(",") if n) for t, dims in shapes)
                found.append(Collective(match[2], _axes(line, mesh), shapes[0][0], size, times))
                continue
            called = _CALLED.findall(line)
            called += [name.strip(" %") for names in _BRANCHES.findall(line) for name in names.split(",")]
            trips = _TRIPS.search(line)
            for inner in called:
                before = len(found)
                unknown = " while(" in line and not trips
                iterations = int(trips[1]) if trips else other_trips if unknown and other_trips is not None else 1
                walk(inner, times * iterations)
                allowed = not unknown or other_trips is not None
                assert allowed or len(found) == before, f"how often does this run? {line}"

    walk(entry, 1)
    return found


def count(found, **properties):
    """Add up how often the collectives with these properties run."""
    matching = [c for c in found if all(getattr(c, name) == value for name, value in properties.items())]
    return sum(c.times for c in matching)


def _parse(text):
    """Split a module into {computation: lines}, and name its entry."""
    computations, entry, lines = {}, "", []
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            lines = computations[match[2]] = []
            entry = match[2] if match[1] else entry
        else:
            lines.append(line)
    return computations, entry


def _axes(line, mesh):
    """Return the mesh axes along which the devices of a group, or a source and its target, differ."""
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", line)
    listed = pairs or re.search(r"replica_groups=\{(\{.*?\})\}", line)
    if listed:
        groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    else:
        match = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
        shape, grid, order = ([int(n) for n in part.split(",")] if part else None for part in match.groups())
        groups = np.arange(math.prod(grid)).reshape(grid).transpose(order).reshape(shape)
    sizes = tuple(mesh.shape.values())
    places = [np.stack(np.unravel_index(group, sizes)) for group in groups]
    spanned = np.any([np.any(place != place[:, :1], axis=1) for place in places], axis=0)
    return tuple(axis for axis, spans in zip(mesh.axis_names, spanned, strict=True) if spans)
