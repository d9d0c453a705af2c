"""Run the command line; a training hears signals from here on, before anything large is loaded."""

import contextlib
import importlib
import sys

from maxlm.process.huge_pages import use_huge_pages
from maxlm.process.signals import listening


def main() -> int:
    """Run one command and return its exit code."""
    trains = sys.argv[1:2] == ["train"]
    if trains:
        use_huge_pages()
    with listening() if trains else contextlib.nullcontext():
        return int(importlib.import_module("maxlm.cli").main())


if __name__ == "__main__":
    sys.exit(main())
