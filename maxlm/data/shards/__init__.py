"""Token shards: what the trainer reads, and `maxlm prepare` writes."""

from maxlm.data.shards.index import INDEX_NAME, ShardIndex
from maxlm.data.shards.reader import TokenShards
from maxlm.data.shards.writer import ShardWriter

__all__ = ["INDEX_NAME", "ShardIndex", "ShardWriter", "TokenShards"]
