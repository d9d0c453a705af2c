"""`maxlm ladder coordcheck`: train at several widths for a few steps; exit code 1 if sizes follow
the width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from maxlm import runtime
from maxlm.config.errors import UserError
from maxlm.config.ladder import LadderConfig
from maxlm.config.schema import RunConfig
from maxlm.scaling.coordcheck.activations import Sizes, measure
from maxlm.scaling.coordcheck.judge import Line, lines_of
from maxlm.scaling.coordcheck.page import draw, rows_of, write_page
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


def check_coordinates(
    ladder: LadderConfig,
    at_width: Callable[[int], RunConfig],
    options: Options,
    say: Callable[[str], None],
) -> tuple[bool, Rows, Path]:
    """Train at every width and compare; return whether all is flat, the table, and the page.

    One short sequence, again and again: sizes settle at a width that is large against the number of
    different tokens. The rate is the peak from the first step on.

    Args:
      ladder: says where the page is written.
      at_width: makes the run of a width.
      options: of the command line.
      say: shows progress.
    """
    options.check()
    runs = {width: _short(at_width(width), options) for width in options.widths}
    runtime.start(next(iter(runs.values())).runtime)
    measured: dict[int, list[Sizes]] = {}
    for width, config in runs.items():
        seeds = range(options.num_seeds)
        measured[width] = list(measure(config, num_steps=options.num_steps, seeds=seeds))
        say(f"width {width}: {len(seeds)} seeds, {options.num_steps} steps")
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
