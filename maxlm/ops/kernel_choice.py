"""Which kernel runs: an ordered table for each operation that has more than one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from maxlm.config.errors import UserError


class Shape(Protocol):
    """What an operation is asked for, in static numbers."""

    @property
    def device_kind(self) -> str:
        """`jax.Device.device_kind`."""


class Row(NamedTuple):
    """A kernel in the table.

    Attributes:
      platforms: where it runs.
      unsupported: why it cannot do what is asked, or None if it can.
      build: the kernel for a device kind, which decides block sizes.
    """

    platforms: tuple[str, ...]
    unsupported: Callable[[Any], str | None]
    build: Callable[[str], Any]


class Operation(NamedTuple):
    """An operation and its kernels.

    Attributes:
      name: its field in `runtime.kernels`.
      table: kernels by name.
      order: per platform, the kernels to try, best first; the last one does everything.
    """

    name: str
    table: Mapping[str, Row]
    order: Mapping[str, tuple[str, ...]]

    def why_not(self, name: str, platform: str, shapes: Sequence[Shape]) -> str | None:
        """Return why a kernel cannot do all of the shapes on a platform, or None if it can."""
        row = self.table[name]
        if platform not in row.platforms:
            return f"runs on {' and '.join(row.platforms)}, not on {platform}"
        return next((why for shape in shapes if (why := row.unsupported(shape))), None)

    def reference(self, device: Any) -> Any:
        """Return the kernel that does everything, for a `jax.Device`."""
        return self.table[self.order[device.platform][-1]].build(device.device_kind)


class Choice(NamedTuple):
    """The kernel that runs, its name in the table, and why it, for the log."""

    kernel: Any
    name: str
    reason: str


def choose(operation: Operation, requested: str, platform: str, shapes: Sequence[Shape]) -> Choice:
    """Choose the kernel for a model.

    Args:
      operation: what is to be computed.
      requested: a name in the operation's table, or "auto".
      platform: of the devices: cpu, gpu or tpu.
      shapes: what the model's layers ask for, all of which the kernel must be able to do; at least
        one.

    Raises:
      UserError: the requested kernel cannot do what is asked.
    """
    table, device_kind = operation.table, shapes[0].device_kind
    if requested != "auto":
        path = f"runtime.kernels.{operation.name}={requested}"
        if why := operation.why_not(requested, platform, shapes):
            able = [name for name in table if not operation.why_not(name, platform, shapes)]
            raise UserError(f"{path} {why}; use {', '.join(able)} or auto")
        return Choice(table[requested].build(device_kind), requested, path)
    passed_over = ""
    for name in operation.order[platform]:
        why = operation.why_not(name, platform, shapes)
        if why is None:
            return Choice(
                table[name].build(device_kind), name, f"first choice for {platform}{passed_over}"
            )
        passed_over += f"; {name} {why}"
    raise AssertionError(f"no kernel of {operation.name} for {platform}{passed_over}")
