"""The tokenizer that `maxlm prepare` has trained: where it goes, and that it is ours to train again."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.storage.disk import disk_errors
from maxlm.config.errors import UserError
from maxlm.files import read_regular, write_whole

TRAINED_NAME = "tokenizer.model"  # in a folder with nothing else it is a SentencePiece model


def publish_tokenizer(path: Path, model: bytes) -> None:
    """Write a model that was trained, and mark it as such.

    Raises:
      UserError: the disk refuses.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _mark_of(path).write_text(
            json.dumps({"trained_by": "maxlm prepare"}) + "\n", encoding="utf-8"
        )
        write_whole(path, model)


def is_trained_here(path: Path) -> bool:
    """Return whether a tokenizer is marked as ours to train again; beside one that was brought along
    there is no mark, or a file that says something else.
    """
    try:
        mark = json.loads(read_regular(_mark_of(path)))
    except (OSError, ValueError):
        return False
    return isinstance(mark, dict) and "trained_by" in mark


def check_trainable(path: Path, pieces: int | None) -> None:
    """Refuse to train where nothing says how many pieces, or the name promises a tokenizer of
    another kind.

    Raises:
      UserError: it does.
    """
    if path.suffix in (".json", ".tiktoken"):
        raise UserError(
            f"data.tokenizer={path}: there is no such tokenizer, and what is trained here are SentencePiece models; "
            f"bring that file along, or use data.tokenizer={path.with_suffix('.model')}"
        )
    if pieces is None:
        raise UserError(
            f"data.tokenizer={path}: it is not there, and without a model nothing says how many pieces one that is "
            "trained has; add data.vocab_size, such as 32000, or name a tokenizer that is there"
        )


def _mark_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")
