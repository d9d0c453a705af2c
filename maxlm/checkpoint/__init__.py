"""Checkpoints that are whole or absent, verified when read, and independent of the mesh that wrote
them.
"""

from maxlm.checkpoint.manager import Checkpointer
from maxlm.checkpoint.reader import CheckpointReader, Restored
from maxlm.checkpoint.run_directory import RunDirectory, tokenizer_to_open

__all__ = [
    "CheckpointReader",
    "Checkpointer",
    "Restored",
    "RunDirectory",
    "tokenizer_to_open",
]
