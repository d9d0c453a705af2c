"""`maxlm data ACTION`: what is done with texts beside preparing them."""

from __future__ import annotations

import argparse
import importlib

# Each module has `run(arguments) -> exit code`, and is imported only if it was asked for.
ACTIONS = {
    "train-classifier": "data_pipeline.classifier.command",
}


def run(arguments: argparse.Namespace) -> int:
    """Carry out the action; return its exit code."""
    return int(importlib.import_module(ACTIONS[arguments.action]).run(arguments))
