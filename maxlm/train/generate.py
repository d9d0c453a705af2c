"""`maxlm generate RUN_DIR --prompt TEXT`: continue a text with a run's newest checkpoint, on one device."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path

import jax

from maxlm import runtime
from maxlm.checkpoint import CheckpointReader
from maxlm.config.errors import UserError
from maxlm.config.schema import KernelsConfig, MeshConfig, RunConfig, RuntimeConfig
from maxlm.data.tokenizer import Tokenizer
from maxlm.models.sampling import Sampling, generate
from maxlm.train.setup import build_program
from maxlm.train.state import reorder_layers


def run(arguments: argparse.Namespace) -> int:
    """Print the prompt and what follows it; return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr, force=True)
    sampling = _sampling(arguments)
    if not Path(arguments.run_dir).is_dir():
        raise UserError(f"{arguments.run_dir} is not a folder; give the run_dir of a run that was trained")
    reader = CheckpointReader(Path(arguments.run_dir) / "checkpoints")
    runtime.start(RuntimeConfig())
    record = reader.latest_record()
    if record is None:
        raise UserError(f"{arguments.run_dir} has no checkpoint; train first: maxlm train RUN.yaml")
    saved = RunConfig.model_validate(record["config"])
    tokenizer = Tokenizer(saved.data.tokenizer)
    prompt = [tokenizer.bos_id, *tokenizer.encode(arguments.prompt)]
    _check_length(saved, len(prompt), arguments.max_tokens)
    # One device, whatever the run was trained on: the mesh and what depends on it go back to their defaults.
    config = saved.model_copy(
        update={
            "mesh": MeshConfig(),
            "train": saved.train.model_copy(update={"microbatches": 1}),
            "runtime": saved.runtime.model_copy(
                update={"device_count": None, "kernels": KernelsConfig(attention="chunked")}
            ),
        }
    )
    program = build_program(config, jax.local_devices()[:1])
    restored = reader.restore({"decoder": program.state.decoder}, step=arguments.step, partial=True)
    assert restored is not None, "latest_record found one"
    tokens = generate(
        reorder_layers(restored.state["decoder"], restored.record["layer_order"], program.layer_order),
        program.mesh,
        prompt,
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        seed=arguments.seed,
        stop_id=tokenizer.eos_id,
        compute_dtype=program.how.compute_dtype,
    )
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    ids, shown = list(prompt), ""
    for token in tokens:
        ids.append(token)
        shown = _show_more(tokenizer.decode(ids), shown, last=False)
    _show_more(tokenizer.decode(ids), shown, last=True)
    print()
    return 0


def _show_more(text: str, shown: str, *, last: bool) -> str:
    """Print what is new in a text and return what has been printed; a character that is not whole yet waits."""
    ready = text if last else text.rstrip("\ufffd")
    print(ready[len(shown) :], end="", flush=True)
    return ready if len(ready) > len(shown) else shown


def _sampling(arguments: argparse.Namespace) -> Sampling:
    problems = []
    if not 0 <= arguments.temperature < math.inf:  # nan is neither
        problems.append(f"--temperature={arguments.temperature} must be a number >= 0; 0 takes the likeliest token")
    if not 0 <= arguments.seed < 2**32:
        problems.append(f"--seed={arguments.seed} must be at least 0 and below 2**32")
    if arguments.top_k is not None and arguments.top_k < 1:
        problems.append(f"--top-k={arguments.top_k} must be at least 1")
    if arguments.top_p is not None and not 0 < arguments.top_p <= 1:
        problems.append(f"--top-p={arguments.top_p} must be above 0 and at most 1")
    if arguments.max_tokens < 1:
        problems.append(f"--max-tokens={arguments.max_tokens} must be at least 1")
    if problems:
        raise UserError("; ".join(problems))
    return Sampling(arguments.temperature, arguments.top_k, arguments.top_p)


def _check_length(config: RunConfig, prompt_tokens: int, max_tokens: int) -> None:
    position = config.model.position
    if position.kind == "learned" and prompt_tokens + max_tokens > position.max_length:
        raise UserError(
            f"the prompt has {prompt_tokens} tokens and --max-tokens={max_tokens}, together more than "
            f"model.position.max_length={position.max_length}; shorten the prompt or lower --max-tokens"
        )
