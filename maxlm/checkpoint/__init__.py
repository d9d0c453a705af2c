"""Checkpoints that are whole or absent, verified when read, and independent of the mesh that wrote
them.
"""

from maxlm.checkpoint.manager import Checkpointer
from maxlm.checkpoint.reader import CheckpointReader, Restored
from maxlm.checkpoint.remote import SlowTier, bring_back
from maxlm.checkpoint.run_directory import RunDirectory, tokenizer_to_open

__all__ = [
    "CheckpointReader",
    "Checkpointer",
    "Restored",
    "RunDirectory",
    "SlowTier",
    "bring_back",
    "tokenizer_to_open",
]
