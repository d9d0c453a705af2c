"""`maxlm export RUN_DIR HF_DIR`: a checkpoint becomes a folder that other libraries load."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import SingleDeviceSharding

from maxlm import runtime
from maxlm.checkpoint import CheckpointReader, RunDirectory
from maxlm.checkpoint.hf.save import Export, plan_export, write_export
from maxlm.checkpoint.hf.stopping import as_key
from maxlm.config.errors import UserError
from maxlm.config.model import ModelConfig
from maxlm.config.schema import RuntimeConfig
from maxlm.convert.progress import progress_bar
from maxlm.data.tokenizers import end_ids, open_tokenizer
from maxlm.models.decoder import Decoder
from maxlm.models.parametrisation import as_standard
from maxlm.models.saved import saved_model
from maxlm.sharding.parameters import named_parameters, parameter_count, with_value
from maxlm.sharding.stages import recorded_layout

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


def run(arguments: argparse.Namespace) -> int:
    """Export, say what was written, and return the exit code."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    run_dir = RunDirectory(Path(arguments.run_dir).absolute())
    reader = CheckpointReader(run_dir.checkpoints)
    runtime.start(RuntimeConfig())
    record = _record(reader, arguments.run_dir, arguments.step)
    model = as_standard(saved_model(record, arguments.run_dir))
    layout = recorded_layout(record)
    files, about, vocab_size = _besides_weights(run_dir, record, model)
    export = plan_export(
        lambda model: Decoder(model, layout),
        model,
        vocab_size=vocab_size,
        about=about,
        family=arguments.family,
        preferred=record.get("published", {}).get("family"),
    )
    declared = Decoder(model, layout)
    target = Path(arguments.hf_dir).absolute()
    with progress_bar("writing", parameter_count(declared)) as advance:
        write_export(
            export,
            target,
            _Fetcher(reader, declared, record["step"]),
            dtype=np.dtype(DTYPES[arguments.dtype]),
            files=files,
            advance=advance,
        )
    _say(export, target, record["step"], arguments.dtype)
    return 0


class _Fetcher:
    """Reads parameters of a checkpoint into this machine's memory, proved by their fingerprints."""

    def __init__(self, reader: CheckpointReader, declared: Decoder, step: int):
        self._reader, self._step = reader, step
        memory = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        self._parameters = {
            path: with_value(parameter, parameter.get_value().update(sharding=memory))
            for path, parameter in named_parameters(declared)
        }

    def __call__(self, paths: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return parameters by path."""
        wanted = {"decoder": {path: self._parameters[path] for path in paths}}
        restored = self._reader.restore(wanted, step=self._step, partial=True)
        assert restored is not None, "the checkpoint was there"
        return {path: np.asarray(value[...]) for path, value in restored.state["decoder"].items()}


def _record(reader: CheckpointReader, run_dir: str, step: int | None) -> dict[str, Any]:
    records = {record["step"]: record for record in reader.records()}
    if not records:
        raise UserError(f"{run_dir} has no checkpoint; give a run_dir, or what maxlm import wrote")
    if step is not None and step not in records:
        known = ", ".join(map(str, sorted(records, reverse=True)))
        raise UserError(f"--step={step}: {run_dir} has checkpoints of steps {known}")
    return records[max(records) if step is None else step]


def _besides_weights(
    run_dir: RunDirectory, record: Mapping[str, Any], model: ModelConfig
) -> tuple[list[Path], dict[str, Any], int]:
    """Return the files to copy, what config.json says besides the model, and the vocabulary's
    size without the rows that were added to it.
    """
    published = record.get("published")
    if published is not None and run_dir.published.is_dir():
        folders = [folder for folder in (run_dir.published, run_dir.tokenizer) if folder.is_dir()]
        files = [path for folder in folders for path in sorted(folder.iterdir())]
        return files, published["config"], published["vocab_size"]
    path = run_dir.tokenizer
    tokenizer = open_tokenizer(path)
    if tokenizer.fingerprint != record["tokenizer"]:
        raise UserError(
            f"{path} is not the tokenizer that the run was trained with (fingerprint {record['tokenizer']}); "
            "put that one back"
        )
    about = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": as_key(end_ids(tokenizer, (published or {}).get("ends", ()))),
        "max_position_embeddings": record["config"]["data"]["sequence_length"],
        "use_cache": True,
    }
    size = tokenizer.vocab_size
    if published is not None:
        about, size = {**published["config"], **about}, max(size, published["vocab_size"])
    return sorted(path.iterdir()), about, min(size, model.vocab_size)


def _say(export: Export, target: Path, step: int, dtype: str) -> None:
    print(f"{target}: the checkpoint of step {step} as {export.family.name}, in {dtype}")
