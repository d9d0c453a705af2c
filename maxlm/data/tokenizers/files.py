"""Find a tokenizer's files and read them: what kind it is, its content says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from maxlm.config.errors import UserError
from maxlm.files import read_regular

Kind = Literal["sentencepiece", "hf_json", "tiktoken"]

# The name under which a file of each kind is kept, wherever it came from.
KEPT_NAMES: dict[Kind, str] = {
    "sentencepiece": "tokenizer.model",
    "hf_json": "tokenizer.json",
    "tiktoken": "tokenizer.tiktoken",
}
CONFIG_NAME = "tokenizer_config.json"
SPECIALS_NAME = "special_tokens_map.json"
CHAT_NAME = "chat_template.jinja"
SIDECAR_SUFFIX = ".json"  # of a tiktoken file: o200k.tiktoken has o200k.tiktoken.json

_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_IN_FOLDERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model")


class TokenizerFiles(NamedTuple):
    """A tokenizer's files in memory.

    Attributes:
      path: of the one with the vocabulary.
      kind: what it is.
      main: its bytes.
      beside: other files that belong to it, by the name under which they are kept.
    """

    path: Path
    kind: Kind
    main: bytes
    beside: Mapping[str, bytes]

    @property
    def to_keep(self) -> dict[str, bytes]:
        """All files by the names under which a folder of them is a tokenizer."""
        return {KEPT_NAMES[self.kind]: self.main, **self.beside}


def read_files(named: Path | str) -> TokenizerFiles:
    """Read the tokenizer that a path names: a file, or a folder with one.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = Path(named)
    if path.is_dir():
        path = _in_folder(path)
    main = _read(path)
    if main is None:
        raise UserError(f"{path}: there is no such tokenizer; run: maxlm prepare RUN.yaml")
    if path.suffix == ".json" or main.lstrip()[:1] == b"{":
        names = (CONFIG_NAME, SPECIALS_NAME, CHAT_NAME)
        found = {name: _read(path.with_name(name)) for name in names}
        kind: Kind = "hf_json"
    elif _TIKTOKEN_LINE.match(main):
        kind = "tiktoken"
        found = {KEPT_NAMES[kind] + SIDECAR_SUFFIX: _read(sidecar_of(path))}
    else:
        kind, found = "sentencepiece", {}
    beside = {name: data for name, data in found.items() if data is not None}
    return TokenizerFiles(path, kind, main, beside)


def sidecar_of(path: Path) -> Path:
    """Return the path of the JSON file that belongs to a tiktoken file."""
    return path.with_name(path.name + SIDECAR_SUFFIX)


def _in_folder(folder: Path) -> Path:
    """Return the file in a folder that has the vocabulary; tokenizer.json comes first."""
    found = [folder / name for name in _IN_FOLDERS if (folder / name).exists()]
    found = found or sorted(folder.glob("*.tiktoken"))
    if len(found) == 1 or (found and found[0].name == KEPT_NAMES["hf_json"]):
        return found[0]
    what = f"several ({', '.join(path.name for path in found)})" if found else "none"
    raise UserError(
        f"{folder}: a folder with a tokenizer has one of {', '.join(_IN_FOLDERS)} or *.tiktoken, this has {what}; "
        "data.tokenizer must name such a folder, or the file itself"
    )


def _read(path: Path) -> bytes | None:
    """Return a file's bytes, None where there is none."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}; data.tokenizer must name a tokenizer's file or folder"
        ) from None
