"""Damage to checkpoints."""

from pathlib import Path

LEAST_BYTES = 1000
"""Of a file with values of arrays; smaller ones tell where those are."""


def flip_arrays(folder: Path, position: float = 0.5) -> None:
    """Flip a bit in every file of arrays.

    One is not enough: tensorstore writes what it is asked for at short notice, and on a busy machine
    the largest file may hold values that were written once more and are read by nobody.
    """
    files = [file for file in folder.rglob("d/*") if file.stat().st_size >= LEAST_BYTES]
    assert files
    for file in files:
        data = bytearray(file.read_bytes())
        data[int(len(data) * position)] ^= 1
        file.write_bytes(data)
