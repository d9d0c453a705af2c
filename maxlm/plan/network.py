"""How long collectives take on a torus of chips: latency per hop, and bytes over the links that a
group can use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maxlm.plan.hlo import Collective
from maxlm.plan.topology import Topology

HOP_SECONDS = 1e-6
NETWORK_SECONDS = 2e-5  # one message between slices


class Line(NamedTuple):
    """The chips of a group along one dimension of the torus.

    Attributes:
      length: chips.
      links: that bring a chip its data: 2 in a ring, 1 in a line; a part of it where groups
        interleave on the links.
    """

    length: int
    links: float

    @property
    def hops(self) -> float:
        """From one end to the other, or to the far side of a ring."""
        return self.length / 2 if self.links > 1 else self.length - 1


class Network:
    """The links of a topology, and where each device of a program sits.

    Args:
      topology: the slice or slices.
      places: of each device in the program's order, its slice and its chip's coordinates.
      share: of the links' rate that a collective reaches.
    """

    def __init__(self, topology: Topology, places: Sequence[tuple[int, ...]], share: float) -> None:
        self._sides = (*topology.sides, 1)[:3]
        self._wrap = topology.wrap
        self._places = np.asarray(places)
        self._link = topology.chip.link_rate * share
        self._outside = topology.chip.network_rate * share

    def seconds(self, collective: Collective) -> float:
        """Return how long a collective takes that has the links for itself."""
        if collective.kind == "collective-permute":
            return self._permute_seconds(collective)
        members = self._places[list(collective.groups[0])]
        slices = len(np.unique(members[:, 0]))
        within = members[members[:, 0] == members[0, 0]]
        lines = [line for line in self._lines(within[:, 1:]) if line.length > 1]
        factor = 2 if collective.kind == "all-reduce" else 1
        seconds = 0.0
        if lines and collective.kind in ("all-to-all", "ragged-all-to-all"):
            # Each device sends a part to each other one. In a ring the mean way is a quarter of it,
            # either way round; in a line the link in the middle carries half of what one half
            # sends.
            seconds = max(
                collective.bytes * line.length / (4 * line.links * self._link) for line in lines
            )
        elif lines:
            wire = collective.bytes * (1 - 1 / len(within)) * factor
            links = [line.links for line in lines]
            seconds = wire / (self._link * (max(links) if collective.one_ring else sum(links)))
        seconds += factor * HOP_SECONDS * sum(line.hops for line in lines)
        if slices > 1:
            # Reduced within the slice first, so that only a part of the array crosses.
            wire = collective.bytes / len(within) * (1 - 1 / slices) * factor
            seconds += NETWORK_SECONDS + wire / self._outside
        return seconds

    def _permute_seconds(self, permute: Collective) -> float:
        source, target = (self._places[list(ends)] for ends in zip(*permute.groups, strict=True))
        if (source[:, 0] != target[:, 0]).any():
            return NETWORK_SECONDS + permute.bytes / self._outside
        distance = np.abs(source[:, 1:] - target[:, 1:])
        around = np.asarray(self._sides) - distance
        hops = np.where(self._wrap, np.minimum(distance, around), distance).sum(axis=1).max()
        # All devices send alike, so each link carries as many messages as a message has hops.
        return float(hops * (HOP_SECONDS + permute.bytes / self._link))

    def _lines(self, coordinates: np.ndarray) -> list[Line]:
        lines = []
        for dimension, side in enumerate(self._sides):
            taken = np.unique(coordinates[:, dimension])
            length = len(taken)
            stride = int(taken[1] - taken[0]) if length > 1 else 1
            ring = bool(self._wrap[dimension]) and length * stride == side and length > 2
            lines.append(Line(length, (2 if ring else 1) / stride))
        return lines
