"""Token shards, the index-addressed dataset over them, and the loader that puts batches on devices."""
