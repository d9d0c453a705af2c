"""`maxlm generate RUN_DIR --prompt TEXT`: continue texts with a run's newest checkpoint."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from pydantic import ValidationError

from maxlm import runtime
from maxlm.checkpoint import CheckpointReader, tokenizer_of_checkpoint
from maxlm.checkpoint.rearrange import rearrange_layers
from maxlm.config.checks import resolve_mesh
from maxlm.config.errors import UserError
from maxlm.config.positions.embedded import LearnedPosition
from maxlm.config.reading.explain import explain
from maxlm.config.schema import MeshConfig, RunConfig, RuntimeConfig
from maxlm.data.tokenizer import Tokenizer
from maxlm.decoding.generate import generate
from maxlm.decoding.sampling import Sampling
from maxlm.models.decoder import Decoder
from maxlm.sharding.mesh import build_mesh
from maxlm.sharding.parameters import map_parameters, shardings, with_value
from maxlm.sharding.stages import Layout, SegmentRows

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
    config = _on_devices(_saved_config(record, arguments.run_dir), arguments.tensor)
    tokenizer = Tokenizer(tokenizer_of_checkpoint(arguments.run_dir, record))
    prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in arguments.prompt]
    _check_length(config, max(map(len, prompts)), arguments.max_tokens)
    mesh = build_mesh(config.mesh, jax.local_devices()[: arguments.tensor])
    tokens = generate(
        _restore(reader, config, mesh, arguments.step),
        mesh,
        prompts,
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        stop_id=tokenizer.eos_id,
        num_ids=tokenizer.vocab_size,
        compute_dtype=runtime.compute_dtype_of(config.train, jax.local_devices()[0].platform),
    )
    _show(tokenizer, prompts, tokens)
    return 0


def _saved_config(record: dict[str, Any], run_dir: str) -> RunConfig:
    """Read the settings that were saved with a checkpoint.

    Raises:
      UserError: this version does not know them.
    """
    try:
        return RunConfig.model_validate(record["config"])
    except ValidationError as error:
        version, problems = (
            record.get("versions", {}).get("maxlm", "another version"),
            explain(error, {}),
        )
        listed = "\n  ".join(str(problem) for problem in problems)
        text = f"{run_dir}: the settings of its checkpoint are those of maxlm {version}, which this one cannot read"
        raise UserError(f"{text}; generate with that version:\n  {listed}") from None


def _on_devices(saved: RunConfig, tensor: int) -> RunConfig:
    """Return the run as it is on this machine, whatever it was trained on: only `tensor` splits it.

    Raises:
      UserError: there are too few devices, or the model does not divide by as many.
    """
    available = len(jax.local_devices())
    if not 1 <= tensor <= available:
        raise UserError(
            f"--tensor={tensor} must be at least 1 and at most {available}, the devices of this machine"
        )
    train = saved.train.model_copy(update={"microbatches": 1, "batch_size": 1})
    # Fake devices of the training are not those here.
    own = saved.runtime.model_copy(update={"device_count": None})
    here = saved.model_copy(
        update={"mesh": MeshConfig(tensor=tensor, fsdp=1), "train": train, "runtime": own}
    )
    return here.model_copy(update={"mesh": resolve_mesh(here, tensor)})


def _restore(reader: CheckpointReader, config: RunConfig, mesh: Any, step: int | None) -> Decoder:
    """Read the decoder of a checkpoint, its layers in their order."""

    def placed(declared: Decoder) -> Decoder:
        def place(parameter: Any, sharding: Any) -> Any:
            return with_value(parameter, parameter.get_value().update(sharding=sharding))

        return map_parameters(place, declared, shardings(declared, mesh))

    def saved_as(record: dict[str, Any]) -> dict[str, Decoder]:
        segments = tuple(SegmentRows(tuple(rows), len(rows)) for rows in record["layout"])
        return {"decoder": placed(Decoder(config.model, Layout(segments)))}

    restored = reader.restore(None, step=step, partial=True, saved_as=saved_as)
    assert restored is not None, "latest_record found one"
    return rearrange_layers(restored.state["decoder"], placed(Decoder(config.model)))


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


def _check_length(config: RunConfig, prompt_tokens: int, max_tokens: int) -> None:
    position = config.model.position
    if isinstance(position, LearnedPosition) and prompt_tokens + max_tokens > position.max_length:
        raise UserError(
            f"the prompt has {prompt_tokens} tokens and --max-tokens={max_tokens}, together more than "
            f"model.position.max_length={position.max_length}; shorten the prompt or lower --max-tokens"
        )
