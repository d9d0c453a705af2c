"""Settings of steps that judge a document by itself."""
