"""Which tokens end an answer of a published model: of a chat model there are several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maxlm.checkpoint.hf.tensors.read_files import read_json
from maxlm.config.errors import UserError

GENERATION_CONFIG = "generation_config.json"
KEY = "eos_token_id"


def end_tokens(folder: Path, config: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """Return the ids that end an answer: those of generation_config.json, or else of config.json,
    in their order; none where neither says any.

    Raises:
      UserError: they are no ids of the vocabulary.
    """
    path = folder / GENERATION_CONFIG
    said = read_json(path).get(KEY) if path.is_file() else None
    where, value = (path, said) if said is not None else (folder / "config.json", config.get(KEY))
    ids = value if isinstance(value, list) else [] if value is None else [value]
    wrong = [one for one in ids if type(one) is not int or not 0 <= one < vocab_size]
    if wrong:
        raise UserError(
            f"{where}: {KEY}={value!r}: {wrong[0]!r} is no id in [0, {vocab_size}); mend it, or leave it out"
        )
    return tuple(dict.fromkeys(ids))


def as_key(ends: tuple[int, ...] | list[int]) -> int | list[int]:
    """Return one id as such, several as a list, as both files write them."""
    return ends[0] if len(ends) == 1 else list(ends)
