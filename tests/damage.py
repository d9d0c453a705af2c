"""Damage to checkpoints."""

from pathlib import Path

LEAST_BYTES = 1000
"""Of a file with values of arrays; smaller ones tell where those are."""


def flip_arrays(folder: Path) -> None:
    """Flip a bit in every file of arrays.

    One is not enough: a bit of the largest file, written on a busy machine, was once read by nobody,
    and the state came back right.
    """
    files = [file for file in folder.rglob("d/*") if file.stat().st_size >= LEAST_BYTES]
    assert files
    for file in files:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
