"""A process of its own for each task: what it may take, where it is, how it ended."""
