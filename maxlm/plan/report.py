"""What `maxlm plan` tells: a table in the terminal, or JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from maxlm.plan.estimate import Traffic

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Memory of one device that lives while the step runs: `count` times `size_bytes`, of this
    shape.
    """

    count: int
    size_bytes: int
    shape: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """What was compiled.

    Attributes:
      config: the run's file and the settings that won over it.
      topology: the slice or slices.
      num_devices: JAX devices of them.
      mesh: devices along each axis.
      fitted: what `mesh.elastic` changed for these devices; empty if nothing.
      num_parameters: of the model.
      tokens_per_step: over the whole mesh.
      kernels: the implementation of each operation that has several.
      versions: of jax and libtpu.
    """

    config: str
    topology: str
    num_devices: int
    mesh: dict[str, int]
    fitted: str
    num_parameters: int
    tokens_per_step: int
    kernels: dict[str, str]
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Of one device, in bytes: what the step needs, what there is, and the largest buffers."""

    needed_bytes: int
    available_bytes: int
    largest: Sequence[Buffer]

    @property
    def fits(self) -> bool:
        """Whether the step can run."""
        return self.needed_bytes <= self.available_bytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a step costs, for one device.

    Attributes:
      compile_seconds: for tracing and compiling the step.
      model_flops: what the model needs by `maxlm.models.cost`; the recomputed does not count.
      product_flops: of the matrix products in the compiled step.
      kernel_flops: of kernels, as they state them.
      unstated_kernels: how often kernels run that state none: their time is missing from the
        estimate.
      unknown_products: FLOPs of products whose cycles the compiler cannot tell; they count like
        kernels.
      traffic: collectives by kind and mesh axes.
      seconds: estimates low, nominal and high; of each, the parts.
      peak_flops: FLOP/s of one device.
      bubble: share of a step in which a pipeline's stages wait; the estimates include it.
    """

    compile_seconds: float
    model_flops: float
    product_flops: float
    kernel_flops: float
    unstated_kernels: float
    unknown_products: float
    traffic: Sequence[Traffic]
    seconds: dict[str, dict[str, float]]
    peak_flops: float
    bubble: float

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device receives."""
        return sum(one.wire_bytes for one in self.traffic)

    def step_seconds(self, estimate: str) -> float:
        """Return the time of a step."""
        return sum(self.seconds[estimate].values())

    def mfu(self, estimate: str) -> float:
        """Return the share of the peak that the model's own FLOPs take."""
        return self.model_flops / self.step_seconds(estimate) / self.peak_flops


@dataclasses.dataclass(frozen=True)
class Plan:
    """The answer; `cost` is None where the step does not fit."""

    layout: Layout
    memory: Memory
    cost: Cost | None

    def to_json(self) -> dict[str, object]:
        """Return everything as what JSON can hold."""
        answer = {"fits": self.memory.fits, **dataclasses.asdict(self)}
        if self.cost is not None:
            cost = dataclasses.asdict(self.cost)
            cost["traffic"] = [one._asdict() for one in self.cost.traffic]
            cost["wire_bytes"] = self.cost.wire_bytes
            cost["step_seconds"] = {
                name: self.cost.step_seconds(name) for name in self.cost.seconds
            }
            cost["mfu"] = {name: self.cost.mfu(name) for name in self.cost.seconds}
            answer["cost"] = cost
        return answer


def show(plan: Plan, console: Console) -> None:
    """Print the answer."""
    layout, memory, cost = plan.layout, plan.memory, plan.cost
    axes = (
        " ".join(f"{axis} {size}" for axis, size in layout.mesh.items() if size > 1) or "one device"
    )
    rows: list[tuple[str, str | Text]] = [
        (
            "model",
            f"{layout.num_parameters:,} parameters, {layout.tokens_per_step:,} tokens per step",
        ),
        ("mesh", f"{axes} ({layout.num_devices} devices)"),
        *([("fitted to", layout.fitted)] if layout.fitted else []),
        *layout.kernels.items(),
        ("memory", _memory_words(memory)),
    ]
    if cost is not None:
        rows += _cost_rows(cost)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=11)
    table.add_column()
    for label, words in rows:
        table.add_row(label, words if isinstance(words, Text) else Text(words))
    tables = [
        table,
        _buffer_table(memory.largest) if cost is None else _traffic_table(cost.traffic),
    ]
    title = Text(f"{layout.config} on {layout.topology}", style="bold")
    console.print(Rule(title, align="left", style="dim"))
    console.print(Padding(Group(*(Padding(one, (0, 0, 1, 0)) for one in tables)), (0, 0, 0, 2)))


def _memory_words(memory: Memory) -> Text:
    words = f"{memory.needed_bytes / GIB:.2f} of {memory.available_bytes / GIB:.2f} GiB per device"
    if memory.fits:
        return Text(f"fits: {words} at the peak", style="green")
    cures = "more fsdp, train.remat=full, more train.microbatches, a smaller train.batch_size or mesh.tensor"
    return Text(f"does not fit: {words}; try {cures}", style="red")


def _cost_rows(cost: Cost) -> list[tuple[str, str | Text]]:
    names = list(cost.seconds)
    step = " - ".join(f"{cost.step_seconds(name):.3g}" for name in names)
    mfu = " - ".join(f"{cost.mfu(name):.1%}" for name in names)
    nominal = cost.seconds["nominal"]
    total = max(sum(nominal.values()), 1e-12)
    parts = ", ".join(
        f"{part} {seconds / total:.0%}" for part, seconds in nominal.items() if seconds
    )
    done = (cost.product_flops + cost.kernel_flops) / cost.model_flops
    rows: list[tuple[str, str | Text]] = [
        ("step", Text(f"{step} s, estimated ({', '.join(names)}): {parts}", style="bold")),
        ("MFU", mfu),
        (
            "FLOPs",
            f"{cost.model_flops:.3g} per device for the model; the step does {done:.2f} times that",
        ),
        ("compile", f"{cost.compile_seconds:.0f} s"),
    ]
    if cost.bubble:
        rows.insert(2, ("bubble", f"{cost.bubble:.1%} of the step, included above"))
    if cost.unstated_kernels:
        text = f"{cost.unstated_kernels:.0f} runs of kernels that state no cost: the estimate leaves them out"
        rows.append(("missing", Text(text, style="yellow")))
    if cost.unknown_products:
        share = cost.unknown_products / cost.product_flops
        text = (
            f"the compiler states no cycles for {share:.1%} of the products' FLOPs: these products "
            "count like kernels"
        )
        rows.append(("unknown", Text(text, style="yellow")))
    return rows


def _traffic_table(traffic: Sequence[Traffic]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading, justify in (
        ("collective", "left"),
        ("axes", "left"),
        ("times", "right"),
        ("GB received", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for one in traffic:
        axes = " ".join(one.axes) or "-"
        table.add_row(one.kind, axes, f"{one.times:,.0f}", f"{one.wire_bytes / 1e9:.3f}")
    table.add_row(
        "together", "", "", f"{sum(one.wire_bytes for one in traffic) / 1e9:.3f}", style="bold"
    )
    return table


def _buffer_table(largest: Sequence[Buffer]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("largest buffers", "GiB each", "shape"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for buffer in largest:
        table.add_row(str(buffer.count), f"{buffer.size_bytes / GIB:.2f}", buffer.shape)
    return table
