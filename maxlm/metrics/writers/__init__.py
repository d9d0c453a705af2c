"""Where a run writes its metrics, and how they are read."""
