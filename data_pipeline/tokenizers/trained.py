"""The tokenizer that `maxlm prepare` has trained: where it goes, and that it is ours to train again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.storage.disk import disk_errors
from maxlm.config.errors import UserError
from maxlm.config.pipeline.tokenizer import TrainedTokenizerSection
from maxlm.files import read_regular, write_whole


def publish_tokenizer(
    path: Path, files: Mapping[str, bytes], config: TrainedTokenizerSection
) -> None:
    """Write a tokenizer that was trained, and mark it as such.

    Args:
      path: of the file with the vocabulary; others lie beside it under their names.
      files: by name.
      config: how it was trained.

    Raises:
      UserError: the disk refuses.
    """
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = {"trained_by": "maxlm prepare", "settings": config.model_dump(mode="json")}
        _mark_of(path).write_text(json.dumps(mark) + "\n", encoding="utf-8")
        for name, data in files.items():
            if name != config.FILE:
                write_whole(path.with_name(name), data)
        write_whole(path, files[config.FILE])


def is_trained_here(path: Path) -> bool:
    """Return whether a tokenizer is marked as ours to train again; beside one that was brought along
    there is no mark, or a file that says something else.
    """
    return "trained_by" in _read_mark(path)


def check_unchanged(path: Path, config: TrainedTokenizerSection) -> None:
    """Refuse a tokenizer that was trained here with other settings than those of the run.

    Raises:
      UserError: it was.
    """
    known = _read_mark(path).get("settings")
    wanted = config.model_dump(mode="json")
    if isinstance(known, dict) and known != wanted:
        names = [key for key in wanted | known if known.get(key) != wanted.get(key)]
        changes = ", ".join(f"{key} {known.get(key)} -> {wanted.get(key)}" for key in names)
        raise UserError(
            f"data.tokenizer={path} was trained with other settings: {changes}; take data.pipeline.tokenizer "
            "back, use another data.tokenizer, or train it again with: maxlm prepare RUN.yaml --force"
        )


def check_trainable(path: Path, config: TrainedTokenizerSection, pieces: int | None) -> None:
    """Refuse to train where nothing says how many pieces, the name promises a tokenizer of another
    kind, or another's files lie.

    Raises:
      UserError: it does.
    """
    suffix, kind = Path(config.FILE).suffix, f"data.pipeline.tokenizer.kind={config.kind}"
    if path.suffix == ".tiktoken" or (path.suffix == ".json") != (suffix == ".json"):
        raise UserError(
            f"data.tokenizer={path}: there is no such tokenizer, and {kind} trains a {config.FILE}; bring that file "
            f"along, use data.tokenizer={path.with_suffix(suffix)}, or another kind"
        )
    beside = path.with_name("tokenizer_config.json")
    if suffix == ".json" and beside.exists() and not is_trained_here(path):
        raise UserError(
            f"{beside}: this file belongs to a tokenizer that is not there, and would be written over; "
            "move it, or use a data.tokenizer in another folder"
        )
    if pieces is None:
        raise UserError(
            f"data.tokenizer={path}: it is not there, and without a model nothing says how many pieces one that is "
            "trained has; add data.vocab_size, such as 32000, or name a tokenizer that is there"
        )


def _read_mark(path: Path) -> dict[str, Any]:
    try:
        mark = json.loads(read_regular(_mark_of(path)))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def _mark_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")
