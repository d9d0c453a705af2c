"""Read the text of a compiled program: its instructions in the order they run, and how often each
of them does.

XLA's own cost analysis counts the body of a loop once, and a training step is nothing but loops.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
# A computation in the background; one that is called runs on the SparseCores of a TPU.
_STARTS, _DONES = ("async-start", "call-start"), ("async-done", "call-done")
_ITEM_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.*)$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%([^\s,)}]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_COUNTED = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Array(NamedTuple):
    """The type of a value: dtype, dimensions, memory space (0 is the device's main memory)."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = _ITEM_BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return math.prod(self.shape) * bits // 8


class Instruction(NamedTuple):
    """One line: `%name = results op(operands), attributes`; the arguments of a constant are in
    `arguments`.
    """

    name: str
    op: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    @property
    def called(self) -> list[str]:
        """Computations that it runs or applies, without a loop's condition."""
        names = _CALLED.findall(self.attributes)
        for group in _BRANCHES.findall(self.attributes):
            names += [name.strip(" %") for name in group.split(",")]
        return names

    def attribute(self, pattern: str) -> str | None:
        """Return what the first group of a pattern finds in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


Guess = Callable[[Instruction, float], float]
"""From a loop whose bounds are data, and the trips of the loop around it, to its mean trips."""
Computation = dict[str, Instruction]
"""Instructions by name, in the order they run; the last one is the root."""


class Module(NamedTuple):
    """A program.

    Attributes:
      computations: by name.
      entry: the name of the one that runs.
      num_partitions: devices that run it together: of several TPU slices those of one.
      slices: TPU slices, which send each other what their devices have reduced.
      routed_rows: rows that the experts of a device get when all are equally busy; ragged
        instructions have room for more, and are taken to work on these alone.
    """

    computations: dict[str, Computation]
    entry: str
    num_partitions: int = 1
    slices: int = 1
    routed_rows: int | None = None

    def fill(self, room: Array) -> float:
        """Return the share of a ragged instruction's rows that are in use."""
        return 1.0 if self.routed_rows is None else min(self.routed_rows / room.shape[0], 1.0)

    def fused(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yield an instruction, and everything in the computations it is made of, however deep."""
        yield instruction
        if instruction.op in ("fusion", *_STARTS, "custom-call"):
            for name in instruction.called:
                for inner in self.computations[name].values():
                    yield from self.fused(inner)

    def trips(self, loop: Instruction, computation: Computation) -> int:
        """Return how often a loop runs.

        Raises:
          ValueError: it does not count with constant bounds.
        """
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        initial = computation[loop.operands[0]].operands
        body = self.computations[loop.attribute(r"body=%([^\s,)]+)") or ""]
        condition = self.computations[loop.attribute(r"condition=%([^\s,)]+)") or ""]

        def constant(of: Computation, name: str) -> int:
            """Follow a value to the constant that it is, out of the loop if need be."""
            made = of[name]
            if made.op == "constant":
                return int(made.arguments)
            if made.op == "get-tuple-element" and of is not computation:
                return constant(computation, initial[_index(made)])
            if made.op in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
                return constant(of, made.operands[0])
            raise ValueError(f"{loop.name}: {name} is no constant")

        test = _root(condition)
        if test.op != "compare" or "direction=LT" not in test.attributes:
            raise ValueError(f"{loop.name}: its condition is {test.op}")
        counter, bound = test.operands
        place = _index(condition[counter])
        step = _original(body, _root(body).operands[place])
        if step.op != "add":
            raise ValueError(f"{loop.name}: its counter is made by {step.op}")
        strides = [name for name in step.operands if not _is_element(body, name, place)]
        if len(strides) != 1:
            raise ValueError(f"{loop.name}: its counter is no sum of itself and a constant")
        start, end = constant(computation, initial[place]), constant(condition, bound)
        return max(-(-(end - start) // constant(body, strides[0])), 0)

    def mean_trips(
        self, loop: Instruction, computation: Computation, around: float, guess: Guess
    ) -> float:
        """Return the trips of a loop, guessed where its bounds are data; `around`: those of the
        loop around it.
        """
        try:
            return self.trips(loop, computation)
        except ValueError:
            return guess(loop, around)

    def runs(
        self, guess: Guess, name: str | None = None, times: float = 1, around: float = 1
    ) -> Iterator[tuple[Instruction, Computation, float]]:
        """Yield every instruction outside fusions, its computation, and how often it runs, as
        scheduled.

        Of a conditional every branch counts as if it were taken.
        """
        computation = self.computations[name or self.entry]
        for instruction in computation.values():
            yield instruction, computation, times
            if instruction.op in ("while", "conditional", "call"):
                trips = (
                    self.mean_trips(instruction, computation, around, guess)
                    if instruction.op == "while"
                    else 1
                )
                inside = trips if instruction.op == "while" else around
                for inner in instruction.called:
                    yield from self.runs(guess, inner, times * trips, inside)


def parse(text: str, *, slices: int = 1, routed_rows: int | None = None) -> Module:
    """Read the text of a module (`jax.stages.Compiled.as_text()`); for the other arguments see
    `Module`.
    """
    computations: dict[str, Computation] = {}
    entry, current, root = "", {}, ""
    for line in _lines(text):
        if found := _COMPUTATION.match(line):
            current = computations[found[2]] = {}
            entry = found[2] if found[1] else entry
        elif found := _INSTRUCTION.match(line):
            current[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
        elif line == "}" and root in current:
            current[root] = current.pop(root)
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return Module(computations, entry, int(partitions[1]) if partitions else 1, slices, routed_rows)


def _lines(text: str) -> Iterator[str]:
    """Yield the lines; as one those of an instruction in whose attributes lines break, as a kernel's
    metadata may make them.
    """
    whole, is_instruction = "", False
    for line in text.splitlines():
        begins = bool(_INSTRUCTION.match(line))
        if is_instruction and not begins and line and not _END.match(line):
            whole += line
            continue
        yield whole
        whole, is_instruction = line, begins
    yield whole


def _instruction(name: str, text: str) -> Instruction:
    types, rest = _split(text) if text.startswith("(") else text.split(" ", 1)
    op, _, rest = rest.strip().partition("(")
    arguments, attributes = _split(f"({rest}")
    operands = tuple(re.findall(r"%([^\s,)]+)", arguments))
    return Instruction(name, op, _arrays(types), operands, arguments[1:-1], attributes)


def _split(text: str) -> tuple[str, str]:
    """Split after the bracket that closes the first one."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.end()], text[match.end() :]
    return text, ""


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, shape, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in shape.split(",") if size)
        found.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


def _original(computation: Computation, name: str) -> Instruction:
    """Follow copies back."""
    made = computation[name]
    while made.op in ("copy", "bitcast"):
        made = computation[made.operands[0]]
    return made


def _is_element(computation: Computation, name: str, place: int) -> bool:
    """Tell whether a value is an element of a tuple, perhaps copied."""
    made = _original(computation, name)
    return made.op == "get-tuple-element" and _index(made) == place


def _index(instruction: Instruction) -> int:
    """Return which element of a tuple is taken."""
    return int(instruction.attribute(r"index=(\d+)") or 0)


def _root(computation: Computation) -> Instruction:
    return next(reversed(computation.values()))


# --- matrix products ------------------------------------------------------------------------------


def product_flops(module: Module, instruction: Instruction, computation: Computation) -> int:
    """Count the FLOPs of the matrix products in an instruction, fused ones included."""
    total = 0
    for home, inner in ((computation, instruction), *_with_computation(module, instruction)):
        if inner.op == "dot":
            total += _dot_flops(inner, home)
        elif inner.op == "convolution":
            total += _convolution_flops(inner, home)
    return total


def _with_computation(
    module: Module, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    for name in instruction.called if instruction.op in ("fusion", *_STARTS) else ():
        computation = module.computations[name]
        for inner in computation.values():
            yield computation, inner
            yield from _with_computation(module, inner)


def _dot_flops(dot: Instruction, computation: Computation) -> int:
    """Count 2 FLOPs per element of the result and per contracted element."""
    contracted = dot.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    left = computation[dot.operands[0]].results[0].shape
    depth = math.prod(left[int(dimension)] for dimension in contracted.split(",") if dimension)
    return 2 * math.prod(dot.results[0].shape) * depth


def _convolution_flops(convolution: Instruction, computation: Computation) -> int:
    """Count 2 FLOPs per input feature, output feature, row of the batch, and pair of positions that
    meet.

    The TPU's compiler writes every matrix product as a convolution, with dimensions that are not
    contracted as window positions, most of which see padding only.
    """
    labels = convolution.attribute(r"dim_labels=(\S+?)(?:,|$)") or ""
    left_labels, right_labels, out_labels = re.split(r"_|->", labels)
    left, right = (
        dict(zip(names, computation[operand].results[0].shape, strict=True))
        for names, operand in zip((left_labels, right_labels), convolution.operands, strict=True)
    )
    out = dict(zip(out_labels, convolution.results[0].shape, strict=True))
    window = convolution.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(field.split("=") for field in window.split())
    positions = 1
    for axis in (label for label in out_labels if label.isdigit()):
        at = {name: value.split("x")[int(axis)] for name, value in fields.items()}
        positions *= _meetings(left[axis], right[axis], out[axis], at)
    batch_groups = int(convolution.attribute(r"batch_group_count=(\d+)") or 1)
    return 2 * right["i"] * right["o"] * left["b"] // batch_groups * positions


def _meetings(size: int, taps: int, outputs: int, window: dict[str, str]) -> int:
    """Count the pairs (output, tap) of one window dimension that read an element of the input, not
    padding.
    """
    stride, spread = int(window.get("stride", 1)), int(window.get("lhs_dilate", 1))
    dilate, before = int(window.get("rhs_dilate", 1)), int(window.get("pad", "0_0").split("_")[0])
    count = 0
    for tap in range(taps):
        reads = (output * stride + tap * dilate - before for output in range(outputs))
        count += sum(read % spread == 0 and 0 <= read // spread < size for read in reads)
    return count


# --- collectives ----------------------------------------------------------------------------------


class Collective(NamedTuple):
    """A collective, or a point-to-point transfer.

    Attributes:
      kind: one of COLLECTIVES.
      phase: start or done of one that runs in the background, else sync.
      bytes: of the whole array: what an all-gather makes, all others take.
      groups: the devices of each group in the program's order; of a permute, sources and targets.
        With several slices the program names those of the first one only, and a group across slices
        is given for its first device.
      one_ring: whether it goes round one ring of all devices, as on the SparseCores, and not along
        every dimension.
    """

    kind: str
    phase: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    one_ring: bool = False

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device receives, at the least."""
        if self.kind == "collective-permute":
            return self.bytes
        size = len(self.groups[0])
        return self.bytes * (size - 1) / size * (2 if self.kind == "all-reduce" else 1)


def collective_of(
    module: Module, instruction: Instruction, computation: Computation
) -> Collective | None:
    """Return the collective that an instruction is, or that is fused into it.

    On TPU one in the background is three kinds of fusions: one that starts it, those whose work
    hides it, and one that waits for it. All three show it; `phase` is None of it for those in the
    middle, which are no communication.
    """
    kind = re.sub(r"-(start|done)$", "", instruction.op)
    if kind in COLLECTIVES:
        phase = instruction.op.removeprefix(kind).removeprefix("-") or "sync"
        if phase == "done":
            return Collective(kind, phase, 0, ())
        return _collective(module, kind, phase, instruction, computation)
    if instruction.op in ("send", "recv-done") and "xla_megascale" in instruction.attributes:
        return _between_slices(module, instruction, computation)
    if instruction.op in (*_STARTS, *_DONES, "fusion"):
        return _fused_collective(module, instruction)
    return None


def _fused_collective(module: Module, instruction: Instruction) -> Collective | None:
    inner = list(_with_computation(module, instruction))
    found = [(computation, item) for computation, item in inner if item.op in COLLECTIVES]
    if instruction.op in _DONES:
        return Collective("async", "done", 0, ())
    if not found:
        return None
    targets = {
        item.attribute(r'custom_call_target="([^"]*)"')
        for _, item in inner
        if item.op == "custom-call"
    }
    computation, item = found[0]
    kind, phase = item.op, "sync"
    if "AsyncCollectiveDone" in targets:
        return Collective(kind, "done", 0, ())
    if "AsyncCollectiveStart" in targets or instruction.op in _STARTS:
        phase = "start"
    elif item.attribute(r'"async_collective_fusion_config":\{"flag_start":"(\d+)"'):
        return None
    elif kind == "all-reduce" and any(other.op == "dynamic-slice" for _, other in inner):
        kind = "reduce-scatter"  # the compiler's own form of it
    return _collective(module, kind, phase, item, computation)._replace(
        one_ring=instruction.op == "call-start"
    )


def _between_slices(
    module: Module, instruction: Instruction, computation: Computation
) -> Collective:
    if instruction.op == "recv-done":
        return Collective("send", "done", 0, ())
    kind = (
        (instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"') or "")
        .lower()
        .replace("_", "-")
    )
    size = computation[instruction.operands[0]].results[0].bytes
    group = tuple(range(0, module.num_partitions * module.slices, module.num_partitions))
    return Collective(
        kind if kind in COLLECTIVES else "collective-permute", "start", size, (group,)
    )


def _collective(
    module: Module, kind: str, phase: str, instruction: Instruction, computation: Computation
) -> Collective:
    groups = replica_groups(instruction.attributes)
    arrays = [
        array for operand in instruction.operands for array in computation[operand].results[:1]
    ]
    # Its operands are the data, the room for the result, offsets and sizes.
    if kind == "ragged-all-to-all":
        return Collective(kind, phase, int(arrays[0].bytes * module.fill(arrays[0])), groups)
    size = sum(array.bytes for array in arrays)
    return Collective(kind, phase, size * len(groups[0]) if kind == "all-gather" else size, groups)


def replica_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """Read the groups of a collective, or the pairs of a permute, in any of the ways XLA writes
    them.

    Listed, as a transposed and reshaped count (`[4,2]<=[2,4]T(1,0)`), or by the axes of a mesh that
    they span (`mesh['a'=2,'b'=4] {'b'}`), or parts of axes: of `'b':(2)4` an axis is 2 x 4 x the
    rest, of which groups span the 4.
    """
    listed = re.search(r"(?:source_target_pairs|replica_groups)=\{(\{.*?\})\}", attributes)
    if listed:
        return tuple(
            tuple(int(n) for n in group.split(","))
            for group in re.findall(r"\{([\d,]+)\}", listed[1])
        )
    counted = re.search(rf"replica_groups=\[([\d,]+)\]<={_COUNTED}", attributes)
    if counted:
        return _rows(_count(counted[2], counted[3]), _ints(counted[1])[-1])
    axes = re.search(
        rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_COUNTED}\))?\s*\{{([^}}]*)\}}",
        attributes,
    )
    if axes:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes[1])}
        ids = _count(axes[2], axes[3]) if axes[2] else np.arange(math.prod(sizes.values()))
        spanned = [
            (name, int(before or 1), int(before or 1) * int(size or sizes[name]))
            for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", axes[4])
        ]
        parts = [part for name, size in sizes.items() for part in _cut(name, size, spanned)]
        within = [
            place
            for name, first, last in spanned
            for place, (axis, before, _) in enumerate(parts)
            if axis == name and first <= before < last
        ]
        outside = [place for place in range(len(parts)) if place not in within]
        lengths = [last // first for _, first, last in parts]
        grid = ids.reshape(lengths).transpose([*outside, *within])
        return _rows(grid, math.prod(lengths[place] for place in within))
    raise ValueError(f"replica groups in an unknown form: {attributes[:200]}")


def _cut(
    axis: str, size: int, spanned: Sequence[tuple[str, int, int]]
) -> list[tuple[str, int, int]]:
    """Cut an axis where what is spanned of it begins and ends: (axis, devices before, with it)."""
    cuts = {1, size}.union(*({first, last} for name, first, last in spanned if name == axis))
    return [(axis, first, last) for first, last in itertools.pairwise(sorted(cuts))]


def _count(shape: str, order: str | None) -> np.ndarray:
    """Number the devices: 0, 1, 2 ... in this shape, transposed."""
    sizes = _ints(shape)
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(_ints(order) if order else None)


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _rows(grid: np.ndarray, width: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in grid.reshape(-1, width).tolist())


def spanned_axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the mesh axes along which the devices of a group differ.

    Args:
      groups: devices by their place in the mesh, row-major.
      mesh: devices along each axis.
    """
    sizes = tuple(mesh.values())
    spans = np.zeros(len(sizes), bool)
    for group in groups:
        coordinates = np.stack(np.unravel_index(group, sizes))
        spans |= (coordinates != coordinates[:, :1]).any(axis=1)
    return tuple(axis for axis, spanned in zip(mesh, spans, strict=True) if spanned)
