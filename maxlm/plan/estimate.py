"""Estimate how long a compiled step takes, from its schedule: what each instruction costs, and
which transfers hide.

Matrix products take the cycles that the TPU's compiler states for them, or count like kernels where
it cannot tell. Its figures for other fusions are two to three times what their memory traffic
needs; these take the larger of that traffic and a quarter of the stated cycles. Transfers in the
background take the links one after the other, and cost what is left of them when they are waited
for. Left out: copies between HBM and VMEM ahead of use, work on the host, the input, and whatever
slows real machines.

Where a loop's bounds are data, as of an attention kernel that skips hidden tiles, every sequence is
taken to be one document, of which a tile of queries sees half the tiles of keys: (n + 1) / 2 of the
n of the loop around it. Experts are taken to be equally busy.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from maxlm.config.errors import RunFailedError
from maxlm.devices import Chip
from maxlm.ops.grouped_matmul import TPU_TILE_ROWS
from maxlm.plan.hlo import (
    Collective,
    Computation,
    Guess,
    Instruction,
    Module,
    collective_of,
    product_flops,
    spanned_axes,
)
from maxlm.plan.network import Network


class Efficiency(NamedTuple):
    """What the hardware reaches.

    Attributes:
      product: time of matrix products / stated cycles.
      memory: share of the memory's rate.
      other: time of other fusions, at the least / stated cycles.
      link: share of the links' rate.
      kernel: share of the peak that kernels reach.
    """

    product: float
    memory: float
    other: float
    link: float
    kernel: float


EFFICIENCIES = {
    "low": Efficiency(product=1.0, memory=0.9, other=0.2, link=0.95, kernel=0.6),
    "nominal": Efficiency(product=1.05, memory=0.8, other=0.25, link=0.9, kernel=0.45),
    "high": Efficiency(product=1.12, memory=0.65, other=0.4, link=0.75, kernel=0.35),
}
"""Estimates of the step's time, shortest first."""

_FREE = {
    *(
        "parameter",
        "constant",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "copy-start",
        "copy-done",
        "after-all",
    ),
    *("partition-id", "replica-id", "while", "conditional", "call", "opt-barrier", "async-update"),
    *("send", "send-done", "recv", "recv-done", "domain"),
}
_FREE_CALLS = {
    *(
        "AllocateBuffer",
        "AssumeGatherIndicesInBound",
        "AsyncCollectiveStart",
        "AsyncCollectiveDone",
    ),
    *("PrepareAsyncCallStart", "PrepareAsyncCallDone"),
}
_KERNEL = "tpu_custom_call"
_UNKNOWN_CYCLES = 2**62  # the compiler states 2^63 - 1 where it cannot tell
_SMALL_BYTES = 2**20  # kernels whose results together are smaller take no time to speak of


class Traffic(NamedTuple):
    """Collectives of one kind over the same mesh axes, in one step of one device."""

    kind: str
    axes: tuple[str, ...]
    times: float
    wire_bytes: float


class Work(NamedTuple):
    """What a step is made of, for one device.

    Attributes:
      product_flops: of the matrix products in the program, recomputed ones included.
      kernel_flops: of kernels, as they state them.
      unstated_kernels: how often large kernels run that do not state their FLOPs.
      unknown_products: FLOPs of the products whose cycles the compiler cannot tell.
      traffic: its collectives.
    """

    product_flops: float
    kernel_flops: float
    unstated_kernels: float
    unknown_products: float
    traffic: list[Traffic]


def guess_trips(routed_rows: int | None) -> Guess:
    """Return the guess at trips of loops whose bounds are data: over tiles of attention, or of the
    rows of experts.
    """

    def guess(loop: Instruction, around: float) -> float:
        scope = loop.attribute(r'op_name="([^"]*)') or ""
        if "further_rounds" in scope:  # none where the load of experts is even
            return 0
        shared = re.search(r"/tiles_of_one_in_(\d+)", scope)
        if routed_rows is not None and shared:
            return math.ceil(routed_rows / int(shared[1]) / TPU_TILE_ROWS)
        if "mixer/" in scope:
            return (around + 1) / 2
        raise RunFailedError(
            f"the compiled step has a loop whose turns cannot be counted, {loop.name} ({scope or 'nameless'}), so "
            "there is no estimate; train.gather, train.remat or another libtpu may change what the compiler makes of it"
        )

    return guess


def count_work(module: Module, mesh: Mapping[str, int]) -> Work:
    """Add up FLOPs and collectives over all loops; `mesh`: devices along each axis."""
    products = kernels = unstated = unknown = 0.0
    totals: dict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for instruction, computation, times in module.runs(guess_trips(module.routed_rows)):
        flops = times * product_flops(module, instruction, computation)
        products += flops
        unknown += flops * (_stated_cycles(instruction) is None)
        for kernel, flops in _kernels(module, instruction, computation):
            kernels += times * flops
            large = sum(result.bytes for result in kernel.results) > _SMALL_BYTES
            unstated += times * (large and not flops)
        collective = collective_of(module, instruction, computation)
        if collective is not None and collective.phase != "done":
            total = totals[collective.kind, spanned_axes(collective.groups, mesh)]
            total[0] += times
            total[1] += times * collective.wire_bytes
    traffic = [Traffic(kind, axes, *total) for (kind, axes), total in totals.items()]
    return Work(
        products, kernels, unstated, unknown, sorted(traffic, key=lambda one: -one.wire_bytes)
    )


class Timeline:
    """Walk a schedule and add up seconds by what they are spent on.

    Args:
      module: the program.
      chip: what it runs on.
      peak: FLOP/s of one device.
      network: its links.
      efficiency: what is reached of all that.
    """

    def __init__(
        self, module: Module, chip: Chip, peak: float, network: Network, efficiency: Efficiency
    ) -> None:
        self._module, self._chip, self._peak = module, chip, peak
        self._network, self._efficiency = network, efficiency
        self._guess = guess_trips(module.routed_rows)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of a step: products, kernels, other, and communication that nothing
        hides.
        """
        spent = self._computation(self._module.entry, 1)
        return {name: spent[name] for name in ("products", "kernels", "other", "communication")}

    def instructions(self) -> Iterator[tuple[Instruction, float, dict[str, float]]]:
        """Yield what runs, loops and branches aside: how often it does, and the seconds of all its
        runs by what they are spent on; nothing of what may hide.
        """
        for instruction, computation, times in self._module.runs(self._guess):
            if instruction.op not in ("while", "conditional", "call"):
                collective = collective_of(self._module, instruction, computation)
                spent = self._instruction(instruction, computation, 1, collective)
                yield instruction, times, {kind: times * once for kind, once in spent.items()}

    def _computation(self, name: str, around: float) -> dict[str, float]:
        spent: dict[str, float] = defaultdict(float)
        computation = self._module.computations[name]
        # When the links are free, and when the transfers in flight will be done.
        free_at, pending = 0.0, []
        for instruction in computation.values():
            collective = collective_of(self._module, instruction, computation)
            now = sum(spent.values())
            if collective is not None and collective.phase == "start":
                free_at = max(now, free_at) + self._network.seconds(collective)
                pending.append(free_at)
            elif collective is not None and collective.phase == "done":
                if pending:  # one that was started before the loop has no start here
                    spent["communication"] += max(pending.pop(0) - now, 0.0)
            elif collective is not None:
                free_at = max(now, free_at) + self._network.seconds(collective)
                spent["communication"] += free_at - now
            for kind, seconds in self._instruction(
                instruction, computation, around, collective
            ).items():
                spent[kind] += seconds
        return spent

    def _instruction(
        self,
        instruction: Instruction,
        computation: Computation,
        around: float,
        collective: Collective | None,
    ) -> dict[str, float]:
        if instruction.op == "while":
            trips = self._module.mean_trips(instruction, computation, around, self._guess)
            body = instruction.attribute(r"body=%([^\s,)]+)") or ""
            return {
                kind: trips * seconds for kind, seconds in self._computation(body, trips).items()
            }
        if instruction.op in ("conditional", "call"):
            branches = [self._computation(name, around) for name in instruction.called]
            return max(branches, key=lambda branch: sum(branch.values()))
        kernels = list(_kernels(self._module, instruction, computation))
        if kernels:
            return {
                "kernels": sum(flops for _, flops in kernels)
                / (self._peak * self._efficiency.kernel)
            }
        flops = product_flops(self._module, instruction, computation)
        stated = _stated_cycles(instruction)
        if flops and stated is None:
            return {"products": flops / (self._peak * self._efficiency.kernel)}
        cycles = (stated or 0) / self._chip.clock
        if flops:
            return {"products": max(cycles * self._efficiency.product, flops / self._peak)}
        if (
            collective is not None
            or instruction.op in _FREE
            or _call_target(instruction) in _FREE_CALLS
        ):
            return {}
        traffic = _memory_bytes(self._module, instruction, computation)
        seconds = traffic / (self._chip.memory_rate * self._efficiency.memory)
        return {"other": max(seconds, cycles * self._efficiency.other)}


def _stated_cycles(instruction: Instruction) -> int | None:
    """Return what the compiler states, 0 where it says nothing; None where it cannot tell."""
    stated = int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
    return stated if stated < _UNKNOWN_CYCLES else None


def _call_target(instruction: Instruction) -> str | None:
    return (
        instruction.attribute(r'custom_call_target="([^"]*)"')
        if instruction.op == "custom-call"
        else None
    )


def _kernels(
    module: Module, instruction: Instruction, computation: Computation
) -> Iterator[tuple[Instruction, float]]:
    """Yield the kernels in an instruction, with the FLOPs they state (`pl.CostEstimate`), 0 where
    they state none.

    The compiler's own kernel for `ragged_dot` states those of the whole room for rows.
    """
    for kernel in module.fused(instruction):
        if _call_target(kernel) != _KERNEL:
            continue
        flops = float(kernel.attribute(r'"?flops"?:\s*"?(\d+)') or 0)
        if "ragged_dot" in kernel.attributes and kernel is instruction:
            arrays = [array for name in kernel.operands for array in computation[name].results[:1]]
            flops *= module.fill(next(array for array in arrays if len(array.shape) > 1))
        yield kernel, flops


def _memory_bytes(module: Module, instruction: Instruction, computation: Computation) -> float:
    """Count the bytes that an instruction reads from and writes to HBM; of what it slices, only the
    slices.
    """
    results = [array.bytes for array in instruction.results if array.space == 0]
    reads = [_arrays_of(computation, name) for name in instruction.operands]
    if instruction.op in ("dynamic-slice", "gather"):
        return 2 * sum(results)
    if instruction.op == "dynamic-update-slice":
        return 2 * sum(reads[1])
    if instruction.op != "fusion":
        return sum(results) + sum(sum(read) for read in reads)
    fused = module.computations[instruction.called[0]]
    total = 0.0
    for inner in fused.values():
        if inner.op == "parameter":
            total += _parameter_bytes(fused, inner, sum(reads[int(inner.arguments)]))
    # What is updated in place is written in part only.
    updates = [inner for inner in fused.values() if inner.op in ("dynamic-update-slice", "scatter")]
    for update in updates:
        whole = update.results[0].bytes
        if whole in results:
            results.remove(whole)
            results.append(
                sum(_arrays_of(fused, update.operands[-1 if update.op == "scatter" else 1]))
            )
    return total + sum(results)


def _arrays_of(computation: Computation, name: str) -> list[int]:
    return [array.bytes for array in computation[name].results if array.space == 0]


def _parameter_bytes(fused: Computation, parameter: Instruction, whole: float) -> float:
    """Count what a fusion reads of one operand."""
    names, uses = {parameter.name}, []
    for inner in fused.values():
        if names & set(inner.operands):
            if inner.op in ("bitcast", "reshape"):
                names.add(inner.name)
            else:
                uses.append(inner)
    slices = [
        use
        for use in uses
        if use.op in ("dynamic-slice", "slice", "gather") and use.operands[0] in names
    ]
    updated = [
        use
        for use in uses
        if use.op in ("dynamic-update-slice", "scatter") and use.operands[0] in names
    ]
    if uses and len(slices) + len(updated) == len(uses):
        return min(whole, float(sum(use.results[0].bytes for use in slices)))
    return whole
