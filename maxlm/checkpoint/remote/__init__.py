"""Copies of checkpoints in a second place, such as an object store, and the way back."""

from maxlm.checkpoint.remote.tier import SlowTier, bring_back

__all__ = ["SlowTier", "bring_back"]
