"""Settings of how much of each source a run reads, and when."""
