"""From a step of a run back to the documents that it read."""
