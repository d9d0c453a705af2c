"""`maxlm generate RUN_DIR --prompt TEXT`: continue texts with a run's newest checkpoint."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator

from maxlm import runtime
from maxlm.config.errors import UserError
from maxlm.config.schema import RuntimeConfig
from maxlm.decoding.loading import find
from maxlm.decoding.model import load
from maxlm.decoding.sampling import Sampling, check_sampling


def run(arguments: argparse.Namespace) -> int:
    """Print the prompts and what follows them; return the exit code."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    settings = {
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "seed": arguments.seed,
    }
    problems = check_sampling(Sampling(**settings), arguments.max_tokens)
    if options := [f"--{name.replace('_', '-')}={value} {text}" for name, value, text in problems]:
        raise UserError("; ".join(options))
    find(arguments.run_dir, arguments.step)  # before JAX starts, which takes seconds
    runtime.start(RuntimeConfig())
    model = load(arguments.run_dir, step=arguments.step, mesh={"tensor": arguments.tensor})
    settings["max_tokens"] = arguments.max_tokens
    if len(arguments.prompt) == 1:
        _show_growing(arguments.prompt[0], model.stream(arguments.prompt[0], **settings))
        return 0
    answers = model.generate(arguments.prompt, **settings)
    for prompt, answer in zip(arguments.prompt, answers, strict=True):
        print(prompt + answer)
    return 0


def _show_growing(prompt: str, pieces: Iterator[str]) -> None:
    """Print a text as it grows."""
    shown = False
    for piece in pieces:
        print(piece if shown else prompt + piece, end="", flush=True)
        shown = True
    print("" if shown else prompt)
