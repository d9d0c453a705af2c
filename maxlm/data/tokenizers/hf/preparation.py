"""What `tokenizer.json` does to a text before byte pairs are merged, and which of it is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import normalizers

from maxlm.data.tokenizers.byte_level import PATTERNS
from maxlm.data.tokenizers.hf.content import UnsupportedError
from maxlm.data.tokenizers.marked import MARK
from maxlm.data.tokenizers.vocabulary import Prefix

Part = Mapping[str, Any]
_REMOVED = "Removed"


class Preparation(NamedTuple):
    """What happens to a text before byte pairs are merged.

    Attributes:
      normalizers: of `tokenizer.json`, without what puts a prefix in front.
      pre_tokenizers: likewise; they keep every character.
      byte_level: tokens are written in the byte-level alphabet.
      marks: a space is written as U+2581.
      prefix: the space in front of a text.
      normal: what is done to a text that is not undone, as a function.
      pattern: the only thing that cuts texts into words, if a regular expression does.
    """

    normalizers: Sequence[Part]
    pre_tokenizers: Sequence[Part]
    byte_level: bool
    marks: bool
    prefix: Prefix | None
    normal: Callable[[str], str] | None
    pattern: str | None


def read_preparation(normalizer: Part | None, pre_tokenizer: Part | None) -> Preparation:
    """Read both sections of `tokenizer.json`.

    Raises:
      UnsupportedError: a part of them loses text.
    """
    of_text = list(_parts(normalizer, "normalizers"))
    of_words = [_keeping_all(part) for part in _parts(pre_tokenizer, "pretokenizers")]
    for part in of_text:
        _refuse_lossy(part)
    types = [part["type"] for part in of_words]
    prepends = any(part["type"] == "Prepend" for part in of_text)
    metaspace = next((part for part in of_words if part["type"] == "Metaspace"), None)
    prefix = Prefix(after_specials=True, always=True) if prepends else _prefix_of(metaspace)
    normal = normalizers.NFC() if any(part["type"] == "NFC" for part in of_text) else None
    without_prefix = [
        {**part, "prepend_scheme": "never"} if part is metaspace else part for part in of_words
    ]
    return Preparation(
        normalizers=[part for part in of_text if part["type"] != "Prepend"],
        pre_tokenizers=without_prefix,
        byte_level="ByteLevel" in types,
        marks=metaspace is not None or any(part["type"] == "Replace" for part in of_text),
        prefix=prefix,
        normal=normal.normalize_str if normal else None,
        pattern=_pattern(of_words),
    )


def sequence(parts: Sequence[Part], key: str) -> Part | None:
    """Return parts as one section of `tokenizer.json`."""
    return {"type": "Sequence", key: list(parts)} if parts else None


def _parts(section: Any, key: str) -> Iterator[Part]:
    """Yield what a section is made of, sequences within sequences undone."""
    if section is None:
        return
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        raise UnsupportedError("it is damaged: a part of normalizer or pre_tokenizer has no type")
    if section["type"] != "Sequence":
        yield section
        return
    for part in section.get(key) or ():
        yield from _parts(part, key)


def _refuse_lossy(part: Part) -> None:
    kind = part["type"]
    is_mark = part.get("pattern") == {"String": " "} and part.get("content") == MARK
    kept = {
        "NFC": True,  # the same characters, composed
        "Prepend": part.get("prepend") == MARK,
        "Replace": is_mark,
    }
    if not kept.get(kind, False):
        raise UnsupportedError(f"its normalizer {kind} loses text")


def _keeping_all(part: Part) -> Part:
    """Return a pre-tokenizer that keeps every character of a text.

    Raises:
      UnsupportedError: it does not.
    """
    kind = part["type"]
    if kind == "Split" and part.get("behavior") == _REMOVED and part.get("invert"):
        # What the pattern matches is kept, and it is meant to match everything.
        return {**part, "behavior": "Isolated", "invert": False}
    keeps = {
        "ByteLevel": not part.get("add_prefix_space", True),
        "Digits": True,
        "Metaspace": part.get("replacement") == MARK,
        "Punctuation": part.get("behavior") != _REMOVED,
        "Split": part.get("behavior") != _REMOVED,
        "UnicodeScripts": True,
    }
    if not keeps.get(kind, False):
        what = " with add_prefix_space" if kind == "ByteLevel" else ""
        raise UnsupportedError(f"its pre_tokenizer {kind}{what} loses text")
    if kind == "Metaspace":  # earlier versions of the file say it in other words
        scheme = "always" if part.get("add_prefix_space", True) else "never"
        known = {"type", "replacement", "prepend_scheme", "split"}
        return {"prepend_scheme": scheme} | {k: v for k, v in part.items() if k in known}
    return part


def _prefix_of(metaspace: Part | None) -> Prefix | None:
    if metaspace is None or metaspace["prepend_scheme"] == "never":
        return None
    return Prefix(after_specials=metaspace["prepend_scheme"] == "always", always=False)


def _pattern(parts: Sequence[Part]) -> str | None:
    """Return the regular expression that alone cuts texts into words, None if it is not so."""
    match parts:
        case [{"type": "ByteLevel", **rest}]:
            return PATTERNS["r50k"] if rest.get("use_regex", True) else None
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} as split,
            {"type": "ByteLevel", "use_regex": False},
        ] if not split.get("invert"):
            return pattern
    return None
