"""Run the command line; a training hears signals from here on, before anything large is loaded."""

import contextlib
import importlib
import sys

from maxlm.process.malloc import tune_malloc
from maxlm.process.signals import listening


def main() -> int:
    """Run one command and return its exit code."""
    trains = sys.argv[1:2] == ["train"]
    if trains:
        tune_malloc()
    with listening() if trains else contextlib.nullcontext():
        return int(importlib.import_module("maxlm.cli").main())


if __name__ == "__main__":
    sys.exit(main())
