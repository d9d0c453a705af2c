"""`maxlm ladder coordcheck`: train at several widths for a few steps; exit code 1 if sizes follow
the width.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from maxlm import runtime
from maxlm.config.errors import UserError
from maxlm.config.ladder import LadderConfig
from maxlm.config.reading.loader import load_ladder
from maxlm.config.schema import RunConfig
from maxlm.scaling.coordcheck.activations import Sizes, measure
from maxlm.scaling.coordcheck.judge import Line, lines_of
from maxlm.scaling.coordcheck.page import draw, rows_of, write_page
from maxlm.scaling.ladder.rungs import run_at_width
from maxlm.scaling.ladder.show.tables import Rows


class Options(NamedTuple):
    """What is asked on the command line.

    Attributes:
      widths: to train at, ascending.
      num_steps: at each.
      num_seeds: of initial values, at each.
      num_tokens: of the one sequence that is trained on.
      tolerance: how far sizes may grow or fall from the smallest to the largest width.
    """

    widths: tuple[int, ...]
    num_steps: int
    num_seeds: int
    num_tokens: int
    tolerance: float

    def check(self) -> None:
        """Refuse what shows nothing.

        Raises:
          UserError: names it.
        """
        if len(self.widths) < 2 or list(self.widths) != sorted(set(self.widths)):
            raise UserError(
                f"--widths={','.join(map(str, self.widths))}: give two or more, ascending, such as 64,128,256"
            )
        for name in ("steps", "seeds", "tokens"):
            value = getattr(self, f"num_{name}")
            if value < 1:
                raise UserError(f"--{name}={value} must be 1 or more")
        if not 0 < self.tolerance < 10:
            raise UserError(f"--tolerance={self.tolerance} must be above 0, such as 0.1 for 10 %")


def run(arguments: argparse.Namespace) -> int:
    """Check the ladder's widths; return the exit code."""
    ladder, options = load_ladder(arguments.ladder), _options(arguments)
    flat, rows, path = check_coordinates(ladder, options)
    console = Console(width=160, highlight=False, markup=False)
    console.print(f"\n{rows.title}")
    console.print(rows.rich())
    print(f"{'all sizes are flat' if flat else 'sizes follow the width'}: {path}", flush=True)
    return 0 if flat else 1


def _options(arguments: argparse.Namespace) -> Options:
    try:
        widths = tuple(int(width) for width in arguments.widths.split(","))
    except ValueError:
        raise UserError(f"--widths={arguments.widths}: give numbers, such as 64,128,256") from None
    counts = arguments.steps, arguments.seeds, arguments.tokens
    options = Options(widths, *counts, arguments.tolerance)
    options.check()
    return options


def check_coordinates(ladder: LadderConfig, options: Options) -> tuple[bool, Rows, Path]:
    """Train at every width and compare; return whether all is flat, the table, and the page.

    One short sequence, again and again: sizes settle at a width that is large against the number of
    different tokens. The rate is the peak from the first step on.
    """
    runs = {width: _short(run_at_width(ladder, width), options) for width in options.widths}
    runtime.start(next(iter(runs.values())).runtime)
    measured: dict[int, list[Sizes]] = {}
    for width, config in runs.items():
        seeds = range(options.num_seeds)
        measured[width] = list(measure(config, num_steps=options.num_steps, seeds=seeds))
        print(f"width {width}: {len(seeds)} seeds, {options.num_steps} steps", flush=True)
    lines = lines_of(measured)
    rows = rows_of(lines, options.widths, options.tolerance)
    path = Path(ladder.run_dir) / "coordcheck.html"
    write_page(path, "coordinate check", draw(lines, options.widths), rows)
    return all(map(_fits(options), lines)), rows, path


def _fits(options: Options) -> Callable[[Line], bool]:
    return lambda line: not line.judged or line.is_flat(options.tolerance)


def _short(config: RunConfig, options: Options) -> RunConfig:
    """Return the run on one short sequence, at a constant rate."""
    data = config.model_dump(mode="json")
    data["train"] |= {"batch_size": 1, "microbatches": 1, "num_steps": options.num_steps + 1}
    data["data"]["sequence_length"] = options.num_tokens
    data["schedule"] = {"kind": "constant"}
    data["mesh"], data["runtime"]["profile"] = {}, None
    data["train"]["init_from"], data["checkpoint"]["at_steps"] = None, []
    return RunConfig.model_validate(data)
