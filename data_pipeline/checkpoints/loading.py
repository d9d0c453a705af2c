"""Open a trained model, once for each process."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import maxlm
from data_pipeline.storage.whole import file_sha256
from maxlm.config.errors import UserError
from maxlm.config.pipeline.checkpoint import CheckpointSection
from maxlm.data.tokenizers import Tokenizer


def load_model(section: CheckpointSection) -> maxlm.Model:
    """Return the model on a device of this process.

    Raises:
      UserError: it cannot be loaded, or has no tokenizer.
    """
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


def fingerprint_of(section: CheckpointSection) -> str:
    """Return a hash of what says which model it is."""
    digests = [file_sha256(Path(path)) for path in section.files()]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _load(path: str, step: int | None, dtype: str | None) -> maxlm.Model:
    return maxlm.load(path, step=step, dtype=dtype)
