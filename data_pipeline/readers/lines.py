"""JSON lines: a text a line, bad lines counted and named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from data_pipeline.readers.record import MAX_RECORD_BYTES, Found, Unread, scalars
from data_pipeline.readers.streams import Damage
from maxlm.config.pipeline.raw import RawTextConfig


def read_json_lines(
    chunks: Iterable[bytes | Damage], raw: RawTextConfig
) -> Iterator[Found | Unread]:
    """Yield the texts of a file of JSON objects, one a line; blank lines count as lines."""
    for place, line in _lines(chunks):
        if isinstance(line, Damage):
            yield Unread(place, line.reason)
            continue
        if not line.strip():
            continue
        try:
            content = _parse(line)
        except UnicodeDecodeError:
            yield Unread(place, "line that is not UTF-8")
            continue
        except (ValueError, RecursionError):
            yield Unread(place, "line that is not JSON")
            continue
        text = content.get(raw.text_key) if isinstance(content, dict) else None
        if isinstance(text, str):
            yield Found(place, text, scalars(content, raw.meta_keys))
        else:
            yield Unread(place, f"line without a `{raw.text_key}`")


def _parse(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:  # it refuses lone surrogates and nan, which json takes
        return json.loads(line)


def _lines(chunks: Iterable[bytes | Damage]) -> Iterator[tuple[str, bytes | Damage]]:
    """Yield (place, line) for each line, without its end; lines that are too long, and the ends of
    lines that damage cut, are told as damage.
    """
    number, rest, too_long = 1, [b""], False
    for chunk in chunks:
        if isinstance(chunk, Damage):
            # What was begun is no whole line; what comes begins within another.
            yield f":{number}", chunk
            rest, too_long = [b""], False
            continue
        first, *more = chunk.split(b"\n")
        if not too_long:
            rest.append(first)
            if sum(map(len, rest)) > MAX_RECORD_BYTES:
                too_long, rest = True, [b""]
        for line in more:
            yield f":{number}", _whole(rest, too_long)
            number, rest, too_long = number + 1, [line], False
    if too_long or any(rest):
        yield f":{number}", _whole(rest, too_long)


def _whole(parts: list[bytes], too_long: bool) -> bytes | Damage:
    line = b"".join(parts)
    return Damage("line too long") if too_long or len(line) > MAX_RECORD_BYTES else line
