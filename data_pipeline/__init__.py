"""Raw text to clean, deduplicated, tokenized shards: one step a file."""
