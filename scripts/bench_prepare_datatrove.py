"""Near dedup of a folder of Parquet files by datatrove, for scripts/bench_prepare.py: CPU seconds a
stage, wall time, peak memory, and the ids that stay.

PYTHON_WITH_DATATROVE scripts/bench_prepare_datatrove.py CORPUS WORK {sha1,xxhash}

The stages run in this process, without its executor, whose start-up would count otherwise.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.hashing import HashConfig


def main() -> None:
    corpus, work, hash_name = sys.argv[1:]
    folders = {name: f"{work}/{name}" for name in ("signatures", "buckets", "remove", "kept")}
    config = MinhashConfig(hash_config=HashConfig(hash_fc=hash_name))
    shards = len(list(Path(corpus).glob("*.parquet")))
    reader = ParquetReader(corpus, glob_pattern="*.parquet", doc_progress=False)
    seconds = {}

    def timed(name, action):
        start = time.process_time()
        result = action()
        seconds[name] = time.process_time() - start
        return result

    def signatures():
        step = MinhashDedupSignature(folders["signatures"], config)
        for rank in range(shards):
            step.run(reader.run(None, rank, shards), rank, shards)

    def buckets():
        step = MinhashDedupBuckets(folders["signatures"], folders["buckets"], config=config)
        for rank in range(config.num_buckets):
            step.run(None, rank, config.num_buckets)

    def kept():
        ids = []
        for rank in range(shards):
            with ParquetWriter(folders["kept"]) as writer:
                step = MinhashDedupFilter(folders["remove"])
                for document in step.run(reader.run(None, rank, shards), rank, shards):
                    writer.write(document, rank)
                    ids.append(document.id)
        return ids

    # Loading the word tokenizer is start-up, not work.
    MinhashDedupSignature(folders["signatures"], config).get_shingles("some words to begin with")
    began = time.perf_counter()
    timed("keys", signatures)
    timed("pairs", buckets)
    timed("clusters", MinhashDedupCluster(folders["buckets"], folders["remove"], config).run)
    ids = timed("filter", kept)
    found = {
        "seconds": seconds,
        "wall_seconds": time.perf_counter() - began,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "kept": ids,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
