"""`maxlm import HF_DIR CHECKPOINT_DIR`: a folder of published weights becomes a checkpoint."""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import yaml

from maxlm import runtime
from maxlm.checkpoint import Checkpointer, RunDirectory
from maxlm.checkpoint.hf.load import load
from maxlm.checkpoint.hf.published import Published, open_published
from maxlm.checkpoint.hf.tensors.write_files import whole_folder
from maxlm.checkpoint.run_directory import refuse_unsafe
from maxlm.config.errors import UserError
from maxlm.config.schema import CheckpointConfig, MeshConfig, RuntimeConfig
from maxlm.convert.check import check_logits, require_transformers
from maxlm.convert.progress import progress_bar
from maxlm.data.tokenizers import open_tokenizer
from maxlm.models.decoder import Decoder
from maxlm.sharding.mesh import build_mesh
from maxlm.sharding.parameters import parameter_count
from maxlm.sharding.stages import lay_out

MODEL_FILE = "model.yaml"


def run(arguments: argparse.Namespace) -> int:
    """Import, say what was imported, and return the exit code."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    if arguments.vocab_multiple < 1:
        raise UserError(f"--vocab-multiple={arguments.vocab_multiple} must be at least 1")
    if arguments.check:
        require_transformers()
    published = open_published(
        arguments.hf_dir, vocab_multiple=arguments.vocab_multiple, text_only=arguments.text_only
    )
    target = Path(arguments.checkpoint_dir).absolute()
    refuse_unsafe("CHECKPOINT_DIR", target)
    for note in published.notes:
        print(note, file=sys.stderr)
    runtime.start(RuntimeConfig())
    if jax.process_count() > 1:
        raise UserError(
            "maxlm import runs in one process; several read a folder of published weights by "
            "themselves when they start to train: train.init_from"
        )
    with whole_folder(target) as folder:
        (folder / MODEL_FILE).write_text(_model_yaml(published), encoding="utf-8")
        tokenizer = _keep_tokenizer(published, RunDirectory(folder))
        _copy_files(published, RunDirectory(folder))
        count = _save_weights(published, folder, tokenizer)
    _say(published, target, count)
    if arguments.check:
        print(check_logits(published, target))
    return 0


def _save_weights(published: Published, folder: Path, tokenizer: str | None) -> int:
    """Write the checkpoint, and return how many parameters it has."""
    model = published.model
    devices = jax.local_devices()
    split = max(n for n in range(1, len(devices) + 1) if model.embed_dim % n == 0)
    mesh = build_mesh(MeshConfig(fsdp=split), devices[:split])
    declared = Decoder(model)
    count = parameter_count(declared)
    with progress_bar("reading", count) as advance:
        decoder = load(published, declared, mesh, advance)
    record = {
        "config": {"model": model.model_dump(mode="json")},
        "layout": [list(rows.repetitions) for rows in lay_out(model.repeats).segments],
        "published": published.record(),
        **({} if tokenizer is None else {"tokenizer": tokenizer}),
        "versions": {"maxlm": version("maxlm")},
    }
    with Checkpointer(RunDirectory(folder).checkpoints, CheckpointConfig()) as checkpointer:
        checkpointer.save(0, {"decoder": decoder}, record, wait=True)
    return count


def _model_yaml(published: Published) -> str:
    """Return the model as a run's YAML includes it."""
    settings: dict[str, Any] = {**published.settings, "vocab_size": published.model.vocab_size}
    text = yaml.safe_dump({"model": settings}, sort_keys=False, width=100)
    return f"# Imported from {published.folder.name}, a {published.family.name}\n{text}"


def _keep_tokenizer(published: Published, target: RunDirectory) -> str | None:
    """Keep the tokenizer as a run does, and return its fingerprint; None, and why, if there is none
    that maxlm can use. Its files are kept in any case.
    """
    try:
        tokenizer = open_tokenizer(published.folder)
    except UserError as error:
        print(f"without a tokenizer that maxlm can use: {error}", file=sys.stderr)
        return None
    target.keep_tokenizer(tokenizer.files)
    return tokenizer.fingerprint


def _copy_files(published: Published, target: RunDirectory) -> None:
    """Keep what else the folder has besides weights: generation settings, licence."""
    target.published.mkdir()
    for path in published.other_files():
        if not (target.tokenizer / path.name).exists():
            shutil.copyfile(path, target.published / path.name)


def _say(published: Published, target: Path, count: int) -> None:
    padded = published.model.vocab_size - published.vocab_size
    rows = f", {padded} rows added to the vocabulary" if padded else ""
    print(f"{target}: {count:,} parameters of {published.folder}, a {published.family.name}{rows}")
    print(f"train on with: include: [{target / MODEL_FILE}] and train.init_from: {target}")
