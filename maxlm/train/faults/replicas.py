"""Compare what devices hold copies of: a device that computes or stores wrongly shows itself by a
copy that differs.

Parameters and optimizer slots are copied along every mesh axis that does not split them, and all
copies go through the same operations, bit for bit. So each device takes a fingerprint of each
array that it holds,

    sum over i of mix(bits(x[i]) xor mix(i))  mod 2^32

and the largest and the smallest among copies are equal, or one of them is corrupt. `mix` is a
bijection: one changed element always shows. It is not linear: two sign bits that flip do not
cancel, as they would in a sum with weights.

A corrupt state is never saved, and is not mended here: the run ends, and started again it goes on
from its newest checkpoint, whose copies were compared before it was saved.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.checkpoint.fingerprint import bits_of, scramble
from maxlm.checkpoint.leaves import flatten
from maxlm.config.errors import RunFailedError
from maxlm.events import event
from maxlm.health.exchange import exchange
from maxlm.jax_versions import vary_over
from maxlm.runtime import settle
from maxlm.sharding.host import HOST_MEMORY, to_device
from maxlm.sharding.mesh import AXES

log = logging.getLogger(__name__)

_SHOWN = 8  # names in a message


class Fingerprints(NamedTuple):
    """Of some arrays, which are copied along the same axes.

    Attributes:
      of_devices: uint32[devices, arrays], in the order of the mesh, each device holding its row.
      differing: whether copies of any differ; the same on all devices.
    """

    of_devices: jax.Array
    differing: jax.Array


class Group(NamedTuple):
    """Arrays that are copied along the same axes, in a program of their own: all that it sends
    follows from what it has received, so that devices cannot wait for each other in two places.

    Attributes:
      axes: along which devices hold copies.
      names: of the arrays.
      program: of the arrays.
    """

    axes: tuple[str, ...]
    names: list[str]
    program: Callable[[list[jax.Array]], Fingerprints]


class Difference(NamedTuple):
    """Copies of an array that are not one.

    Attributes:
      leaf: its name.
      suspects: places in the mesh of the devices that hold what fewer hold; of all of them, where
        no value has a majority.
      others: how many devices hold copies of the same part besides.
    """

    leaf: str
    suspects: tuple[int, ...]
    others: int


class Replicas:
    """The copies in the train state of a run; every process must make the same calls.

    Args:
      declared: the state as `jax.ShapeDtypeStruct`s with shardings.
      mesh: where it lies.
      every: steps between comparisons, 0 for none but those asked for by `now`.
    """

    def __init__(self, declared: Any, mesh: Mesh, *, every: int):
        self._mesh, self._every = mesh, every
        groups: dict[tuple[tuple[str, ...], str], dict[str, P]] = {}
        for name, leaf in flatten(declared).items():
            axes = _copied_over(leaf.sharding.spec, mesh)
            # What lies in host memory comes to the device one array at a time.
            alone = name if leaf.sharding.memory_kind == HOST_MEMORY else ""
            groups.setdefault((axes, alone), {})[name] = leaf.sharding.spec
        self._groups = [
            Group(axes, list(specs), _make_program(list(specs.values()), axes, mesh))
            for (axes, _), specs in sorted(groups.items())
            if axes
        ]
        self._pending: tuple[int, list[Fingerprints]] | None = None

    def check(self, step: int, state: Any, *, now: bool) -> None:
        """Compare, where it is due, and read what the comparison before has found.

        Args:
          step: steps done.
          state: the train state after them.
          now: compare in any case, and wait for the result.

        Raises:
          RunFailedError: copies differ; names arrays and devices.
        """
        self._read()
        if self._groups and (now or (self._every and step % self._every == 0)):
            leaves = flatten(state)
            found = [
                settle(group.program([leaves[name] for name in group.names]))
                for group in self._groups
            ]
            self._pending = step, found
        if now:
            self._read()

    def _read(self) -> None:
        if self._pending is None:
            return
        step, found = self._pending
        self._pending = None
        if any(jax.device_get([each.differing for each in found])):
            self._fail(step, found)

    def _fail(self, step: int, found: list[Fingerprints]) -> None:
        gather = jax.jit(lambda rows: rows, out_shardings=NamedSharding(self._mesh, P()))
        rows = [jax.device_get(settle(gather(each.of_devices))) for each in found]
        differences = [
            difference
            for group, rows_DA in zip(self._groups, rows, strict=True)
            for name, numbers in zip(group.names, np.asarray(rows_DA).T, strict=True)
            for difference in find_differences(name, numbers, self._mesh, group.axes)
        ]
        hosts = exchange(socket.gethostname())
        devices = self._mesh.devices.ravel()
        suspects = sorted({place for each in differences for place in each.suspects})
        told = [_describe(devices[place], hosts) for place in suspects]
        leaves = list(dict.fromkeys(each.leaf for each in differences))
        some = "".join(f"\n  {_line(each, devices)}" for each in differences[:_SHOWN])
        more = f"\n  and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        log.error(
            "step %d: copies of the train state differ on %s",
            step,
            "; ".join(told),
            extra=event("replicas_differ", step=step, devices=told, leaves=leaves[:_SHOWN]),
        )
        raise RunFailedError(
            f"after step {step} devices hold copies of the train state that differ, so one of them computes or stores "
            f"wrongly: {'; '.join(told)}{some}{more}\nNothing of it was saved. Start the same command again: it goes "
            "on from the newest checkpoint, whose copies were equal. If the same device is named again, leave its host "
            "out"
        )


def find_differences(
    leaf: str, numbers: np.ndarray, mesh: Mesh, copied_over: Sequence[str]
) -> Iterator[Difference]:
    """Yield which copies of an array's parts differ.

    Args:
      leaf: the array's name.
      numbers: (devices,) a fingerprint of what each device holds, in the order of the mesh.
      mesh: the devices.
      copied_over: axes along which devices hold copies.
    """
    shape = tuple(mesh.shape.values())
    coordinates = np.stack(np.unravel_index(np.arange(mesh.size), shape), axis=1)
    apart = [number for number, axis in enumerate(mesh.axis_names) if axis not in copied_over]
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, coordinate in enumerate(coordinates):
        groups.setdefault(tuple(map(int, coordinate[apart])), []).append(place)
    for places in groups.values():
        counts = Counter(int(numbers[place]) for place in places).most_common()
        if len(counts) == 1:
            continue
        tied = counts[0][1] == counts[1][1]
        suspects = tuple(place for place in places if tied or int(numbers[place]) != counts[0][0])
        yield Difference(leaf, suspects, len(places) - len(suspects))


def fingerprint(array: jax.Array) -> jax.Array:
    """Return a uint32 of what an array holds, inside a jit or on one device."""
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        index = index * jnp.uint32(size % 2**32)
        index += lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(scramble(bits_of(array), index), dtype=jnp.uint32)


def _copied_over(spec: P, mesh: Mesh) -> tuple[str, ...]:
    """Return the axes, longer than 1, that do not split an array."""
    split = {
        axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())
    }
    return tuple(axis for axis in AXES if axis not in split and mesh.shape[axis] > 1)


def _make_program(
    specs: Sequence[P], copied_over: tuple[str, ...], mesh: Mesh
) -> Callable[[list[jax.Array]], Fingerprints]:
    """Return program(arrays) -> fingerprints, compiled at its first use."""

    def of_device(arrays: list[jax.Array]) -> Fingerprints:
        numbers = jnp.stack([vary_over(fingerprint(array), AXES) for array in arrays])
        # The largest complement is the complement of the smallest: one reduction for both.
        largest, complement = lax.pmax(jnp.stack([numbers, ~numbers]), copied_over)
        here = vary_over(jnp.any(largest != ~complement).astype(jnp.int32), AXES)
        return Fingerprints(numbers[None], lax.pmax(here, AXES) > 0)

    mapped = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(list(specs),),
        out_specs=Fingerprints(P(AXES), P()),  # type: ignore[arg-type]
    )
    return jax.jit(lambda arrays: mapped(to_device(arrays)))


def _describe(device: Any, hosts: Sequence[str]) -> str:
    process = device.process_index
    return f"device {device.id} ({device.device_kind}) of process {process} on {hosts[process]}"


def _line(difference: Difference, devices: np.ndarray) -> str:
    names = ", ".join(str(devices[place].id) for place in difference.suspects)
    if not difference.others:
        return f"{difference.leaf}: devices {names} differ, and no value has a majority"
    return f"{difference.leaf}: device {names} differs from {difference.others} others"
