"""`maxlm data show RUN_DIR --step 3`: the batch of a step, with documents, sources, files, places."""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from maxlm.pages import visible
from maxlm.tracing.batch import batch_of


def run(arguments: argparse.Namespace) -> int:
    """Carry out the action; return its exit code."""
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    row = -1
    for passage in batch_of(arguments.corpus, arguments.step).passages():
        if arguments.json:
            known = passage._asdict() | {"shard": str(passage.shard)}
            console.out(json.dumps(known), highlight=False)
            continue
        if passage.row != row:
            row = passage.row
            console.print(f"row {row:,}")
        last = passage.first + passage.tokens
        console.print(
            f"  {passage.source}: {visible(passage.id)}, tokens [{passage.first:,}, {last:,})"
        )
        console.print(f"    {passage.shard}, from token {passage.offset:,}")
        if arguments.characters:
            text = " ".join(visible(passage.text[: arguments.characters]).split())
            console.print(f"    {text}")
    return 0
