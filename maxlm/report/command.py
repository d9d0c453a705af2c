"""`maxlm report RUN_DIR`: write the page of a run; needs neither JAX nor a device."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from maxlm.config.errors import UserError, make_possible
from maxlm.files import write_whole
from maxlm.report.page import render
from maxlm.report.record import RunRecord


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is; return the exit code."""
    folder = Path(arguments.run_dir)
    page = render(RunRecord.read(folder))
    output = Path(arguments.output) if arguments.output else folder / "report.html"
    try:
        write_whole(output, page.encode())
    except OSError as error:
        raise UserError(
            f"{output} cannot be written: {error.strerror or error}; {make_possible(error)}, or choose another --output"
        ) from error
    sys.stdout.write(f"{output}\n")
    return 0
