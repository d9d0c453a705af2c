"""Train or validation, and in which order: both by a hash of the document's id, so neither depends
on other documents; and long documents in pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

SPLITS = ("train", "validation")
PLACES = 2**63  # places are below it
ORDERS = 2**64
# Keys of `meta`: the number of a document's bucket in a curriculum, and how many there are.
BUCKET, BUCKETS = "curriculum_bucket", "curriculum_buckets"


def split_place(identity: str) -> int:
    """Return a document's place in [0, PLACES): those below a threshold are held out."""
    return _hash("split", identity) >> 1


def order_place(identity: str) -> int:
    """Return a piece's place in [0, ORDERS) in the order of its split.

    The order matters: a training sequence holds neighbours, and an evaluation may read only the
    first part.
    """
    return _hash("order", identity)


def training_place(identity: str, meta: Mapping[str, object]) -> int:
    """Return a piece's place in [0, ORDERS) among those that are learned from: in the range of its
    document's bucket, if it has one.
    """
    place, bucket, buckets = order_place(identity), meta.get(BUCKET), meta.get(BUCKETS)
    if not isinstance(bucket, int) or not isinstance(buckets, int):
        return place
    first, stop = (ORDERS * number // buckets for number in (bucket, bucket + 1))
    return first + place * (stop - first) // ORDERS


def threshold_of(fraction: float) -> int:
    """Return the place below which the fraction of all documents lies."""
    return int(fraction * PLACES)


def cut(identity: str, text: str, max_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of pieces of at most `max_bytes`, cut after a line (or within one, if it
    must be).
    """
    data = text.encode()
    if len(data) <= max_bytes:
        yield identity, text
        return
    start = number = 0
    while start < len(data):
        stop = min(start + max(max_bytes, 4), len(data))
        if stop < len(data):
            line_end = data.rfind(b"\n", start + max_bytes // 2, stop) + 1
            stop = line_end or _character_start(data, stop)
        number += 1
        yield f"{identity}#{number}", data[start:stop].decode()
        start = stop


def _character_start(data: bytes, position: int) -> int:
    while data[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _hash(purpose: str, identity: str) -> int:
    digest = hashlib.sha256(purpose.encode() + b"\0" + identity.encode()).digest()
    return int.from_bytes(digest[:8], "big")
