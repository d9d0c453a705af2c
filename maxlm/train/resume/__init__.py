"""Going on from a checkpoint: what it says of its run, and what may differ by now."""
