"""Where a run writes its metrics, and how they are read."""

from maxlm.metrics.writers.curves import EventFile, scalar_or_text
from maxlm.metrics.writers.lines import FILE, read_metrics
from maxlm.metrics.writers.writer import MetricsWriter

__all__ = ["FILE", "EventFile", "MetricsWriter", "read_metrics", "scalar_or_text"]
