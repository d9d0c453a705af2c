"""Published weights, in and out: an engine, and a table for each family of models."""
