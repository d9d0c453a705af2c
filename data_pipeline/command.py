"""`maxlm data`: what is done with texts beside preparing them: training what judges them, looking at
them.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path

from maxlm.config.errors import UserError

# Each module has `run(arguments) -> exit code`, and is imported only if it was asked for.
ACTIONS = {
    "mix": "maxlm.data.mixture.command",
    "train-classifier": "data_pipeline.classifier.command",
    "train-ngrams": "data_pipeline.ngrams.command",
    "vocabulary": "data_pipeline.tokenizers.command",
    "inspect": "data_pipeline.inspection.overview",
    "show": "data_pipeline.inspection.show",
    "search": "data_pipeline.inspection.search",
}


def run(arguments: argparse.Namespace) -> int:
    """Carry out the action; return its exit code."""
    return int(importlib.import_module(ACTIONS[arguments.action]).run(arguments))


def check_arguments(
    arguments: argparse.Namespace, bounds: Mapping[str, tuple[float, float]]
) -> None:
    """Check numbers, and that `output` is free.

    Raises:
      UserError: all that is wrong.
    """
    wrong = [
        f"--{name.replace('_', '-')} {getattr(arguments, name)}: give {low:g} to {high:.9g}"
        for name, (low, high) in bounds.items()
        if not low <= getattr(arguments, name) <= high
    ]
    output = Path(arguments.output)
    folder = output.absolute().parent
    if output.exists():
        wrong.append(f"--output {output}: it exists already; remove it or give another name")
    elif not folder.is_dir():
        wrong.append(f"--output {output}: there is no folder {folder}; make it")
    if wrong:
        raise UserError("\n  ".join(wrong))
