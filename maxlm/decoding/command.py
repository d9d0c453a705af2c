"""`maxlm generate RUN_DIR --prompt TEXT`: continue texts with a run's newest checkpoint."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from maxlm import runtime
from maxlm.checkpoint import CheckpointReader, tokenizer_of_checkpoint
from maxlm.config.checks import find_problems
from maxlm.config.errors import ConfigError, UserError
from maxlm.config.model import ModelConfig
from maxlm.config.positions.embedded import LearnedPosition
from maxlm.config.schema import MeshConfig, RuntimeConfig
from maxlm.data.tokenizer import Tokenizer
from maxlm.decoding.generate import generate
from maxlm.decoding.sampling import Sampling
from maxlm.models.saved import restore_decoder, saved_model
from maxlm.sharding.mesh import build_mesh

MAX_TOKENS = 1_000_000
"""What is kept of earlier tokens has room for all from the start."""


def run(arguments: argparse.Namespace) -> int:
    """Print the prompts and what follows them; return the exit code."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    sampling = _sampling(arguments)
    if not Path(arguments.run_dir).is_dir():
        raise UserError(
            f"{arguments.run_dir} is not a folder; give the run_dir of a run that was trained"
        )
    reader = CheckpointReader(Path(arguments.run_dir) / "checkpoints")
    runtime.start(RuntimeConfig())
    record = reader.latest_record()
    if record is None:
        raise UserError(f"{arguments.run_dir} has no checkpoint; train first: maxlm train RUN.yaml")
    model = saved_model(record, arguments.run_dir)
    mesh_config = _mesh_config(model, arguments.tensor)
    tokenizer = Tokenizer(tokenizer_of_checkpoint(arguments.run_dir, record))
    prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in arguments.prompt]
    _check_length(model, max(map(len, prompts)), arguments.max_tokens)
    mesh = build_mesh(mesh_config, jax.local_devices()[: arguments.tensor])
    tokens = generate(
        restore_decoder(reader, model, mesh, arguments.step),
        mesh,
        prompts,
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        stop_id=tokenizer.eos_id,
        num_ids=tokenizer.vocab_size,
        compute_dtype=_compute_dtype(record),
    )
    _show(tokenizer, prompts, tokens)
    return 0


def _mesh_config(model: ModelConfig, tensor: int) -> MeshConfig:
    """Return the mesh on this machine, whatever the model was trained on: only `tensor` splits it.

    Raises:
      UserError: there are too few devices, or the model does not divide by as many.
    """
    available = len(jax.local_devices())
    if not 1 <= tensor <= available:
        raise UserError(
            f"--tensor={tensor} must be at least 1 and at most {available}, the devices of this machine"
        )
    mesh = MeshConfig(tensor=tensor, fsdp=1)
    problems = find_problems({"model": model, "mesh": mesh})
    if problems:
        raise ConfigError(problems, f"the model on {tensor} device{'s' * (tensor > 1)}")
    return mesh


def _show(
    tokenizer: Tokenizer, prompts: Sequence[list[int]], tokens: Iterator[list[int | None]]
) -> None:
    """Print a text as it grows; of several, each when all are whole."""
    texts, shown = [list(prompt) for prompt in prompts], ""
    for step in tokens:
        for text, token in zip(texts, step, strict=True):
            text += [] if token is None else [token]
        if len(texts) == 1:
            shown = _show_more(tokenizer.decode(texts[0]), shown, last=False)
    for text in texts:
        _show_more(tokenizer.decode(text), shown, last=True)
        print()


def _show_more(text: str, shown: str, *, last: bool) -> str:
    """Print what is new in a text and return what has been printed; a character that is not whole
    yet waits.
    """
    ready = text if last else text.rstrip("\ufffd")
    print(ready[len(shown) :], end="", flush=True)
    return ready if len(ready) > len(shown) else shown


def _sampling(arguments: argparse.Namespace) -> Sampling:
    problems = []
    if not 0 <= arguments.temperature < math.inf:  # nan is neither
        problems.append(
            f"--temperature={arguments.temperature} must be a number >= 0; 0 takes the likeliest token"
        )
    if not 0 <= arguments.seed < 2**32:
        problems.append(f"--seed={arguments.seed} must be at least 0 and below 2**32")
    if arguments.top_k is not None and arguments.top_k < 1:
        problems.append(f"--top-k={arguments.top_k} must be at least 1")
    if arguments.top_p is not None and not 0 < arguments.top_p <= 1:
        problems.append(f"--top-p={arguments.top_p} must be above 0 and at most 1")
    if not 1 <= arguments.max_tokens <= MAX_TOKENS:
        problems.append(
            f"--max-tokens={arguments.max_tokens} must be at least 1 and at most {MAX_TOKENS}"
        )
    if problems:
        raise UserError("; ".join(problems))
    return Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)


def _compute_dtype(record: Mapping[str, Any]) -> Any:
    """Return what the model was trained in, or what is best here for one that was imported."""
    train = record["config"].get("train", {})
    asked = train.get("compute_dtype", "auto")
    return runtime.compute_dtype_of(asked, jax.local_devices()[0].platform)


def _check_length(model: ModelConfig, prompt_tokens: int, max_tokens: int) -> None:
    position = model.position
    if isinstance(position, LearnedPosition) and prompt_tokens + max_tokens > position.max_length:
        raise UserError(
            f"the prompt has {prompt_tokens} tokens and --max-tokens={max_tokens}, together more than "
            f"model.position.max_length={position.max_length}; shorten the prompt or lower --max-tokens"
        )
