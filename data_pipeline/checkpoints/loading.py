"""Open a trained model, once for each process."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

import maxlm
from data_pipeline.engine.isolation.limits import DeviceMemoryError
from data_pipeline.storage.arrays import array_names
from data_pipeline.storage.whole import file_sha256
from maxlm.config.errors import UserError
from maxlm.config.pipeline.checkpoint import CheckpointSection
from maxlm.data.tokenizers import Tokenizer, open_tokenizer
from maxlm.files import read_regular


def load_model(section: CheckpointSection) -> maxlm.Model:
    """Return the model on a device of this process.

    Raises:
      UserError: it cannot be loaded, or has no tokenizer.
    """
    with memory_named():
        model = _load(section.path, section.chosen_step, section.dtype)
    tokenizer_of(model, section)
    return model


def tokenizer_of(model: maxlm.Model, section: CheckpointSection) -> Tokenizer:
    """Return the model's tokenizer.

    Raises:
      UserError: it has none.
    """
    if model.tokenizer is None:
        raise UserError(f"{section.path}: this model has no tokenizer, so it reads no texts")
    return model.tokenizer


@contextmanager
def memory_named() -> Iterator[None]:
    """Raise DeviceMemoryError where a model does not fit its device."""
    try:
        yield
    except RuntimeError as error:  # jax's own is one
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        raise DeviceMemoryError(
            f"a model does not fit its device: {text.splitlines()[0][:200]}"
        ) from error


def check_model(section: CheckpointSection) -> None:
    """Look at a model's files as far as that takes neither a device nor its weights: records and
    settings, where the weights lie, the tokenizer. What is not there is not looked at.

    Raises:
      UserError: a file is damaged, or there is no tokenizer.
    """
    files = [Path(file) for file in section.files()]
    for file in files:
        try:
            if file.suffix == ".json":
                json.loads(read_regular(file))
            elif file.suffix == ".safetensors":
                array_names(file)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{file}: damaged: {error}; bring the whole file back") from None
    if files:
        _find_tokenizer(Path(section.path), section.chosen_step)


def _find_tokenizer(path: Path, step: int | None) -> None:
    # A run has its own copy, an imported model what it came with, and a folder of checkpoints that
    # was carried elsewhere may have one inside.
    roots = (path,) if step is None else (path, path.absolute().parent)
    places = [path] if step is None else [r / n for r in roots for n in ("tokenizer", "published")]
    found = [place for place in places if place.is_dir()]
    if not found:
        raise UserError(
            f"{path}: this model has no tokenizer, so it reads no texts; put its folder back to {places[0]}"
        )
    open_tokenizer(found[0])


def fingerprint_of(section: CheckpointSection) -> str:
    """Return a hash of what says which model it is."""
    digests = [file_sha256(Path(path)) for path in section.files()]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _load(path: str, step: int | None, dtype: str | None) -> maxlm.Model:
    return maxlm.load(path, step=step, dtype=dtype)
