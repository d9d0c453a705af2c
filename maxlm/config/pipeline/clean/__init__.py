"""Settings of steps that change what a document says."""
