"""`maxlm data mix`: what a run reads of each source, before it begins."""

from __future__ import annotations

import argparse

from rich.console import Console

from maxlm.config.reading.loader import load_run
from maxlm.data.dataset import build_dataset
from maxlm.data.mixture.table import readings, stage_lines, table_lines


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; return its exit code."""
    config = load_run(arguments.config, arguments.overrides).config
    train = config.train
    dataset = build_dataset(
        config.data,
        seed=config.runtime.seed,
        batch_size=train.batch_size,
        split="train",
        num_steps=train.num_steps,
        vocab_size=config.model.vocab_size,
    )
    size = {"length": config.data.sequence_length, "rows": train.num_steps * train.batch_size}
    console = Console(highlight=False, soft_wrap=True)
    found = readings(dataset.mixture, dataset.num_windows, **size)
    lines = table_lines(found, length=config.data.sequence_length)
    for line in [*lines, *stage_lines(dataset.mixture, **size)]:
        console.print(line, markup=False)
    return 0
