"""The memory of a run: what happened to it, and where its time went."""

from maxlm.metrics.history.run import History

__all__ = ["History"]
