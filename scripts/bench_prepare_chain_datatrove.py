"""Pages of JSON lines through datatrove, for scripts/bench_prepare_chain.py: CPU seconds of
extraction, of the heuristics and of near dedup, and how many documents each leaves.

PYTHON_WITH_DATATROVE scripts/bench_prepare_chain_datatrove.py CORPUS WORK

The stages run in this process, without its executor and its sandbox for extraction, whose start-up
would count otherwise.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)


def main() -> None:
    corpus, work = map(Path, sys.argv[1:])
    seconds, left = {}, {}
    documents = [
        Document(text=json.loads(line)["text"], id=f"{path.name}:{number}")
        for path in sorted(corpus.glob("*.jsonl"))
        for number, line in enumerate(path.open())
    ]

    def timed(name, action):
        start = time.process_time()
        result = action()
        seconds[name] = time.process_time() - start
        left[name] = len(result)
        return result

    extractor = Trafilatura()
    filters = [
        GopherRepetitionFilter(),
        GopherQualityFilter(min_doc_words=30, max_non_alpha_words_ratio=0.6),
        FineWebQualityFilter(),
    ]
    for one in filters:  # loading the word tokenizer is start-up, not work
        one.filter(Document(text="Some words to begin with.", id="0"))

    def extracted():
        for document in documents:
            document.text = extractor.extract(document.text) or ""
        return [document for document in documents if document.text]

    def filtered(given):
        return [one for one in given if all(rules.filter(one) is True for rules in filters)]

    config = MinhashConfig()
    MinhashDedupSignature(str(work / "none"), config).get_shingles("some words to begin with")

    def deduplicated(given):
        signatures, buckets, remove = (str(work / name) for name in ("sig", "buckets", "remove"))
        MinhashDedupSignature(signatures, config).run(given, 0, 1)
        for rank in range(config.num_buckets):
            MinhashDedupBuckets(signatures, buckets, config=config).run(
                None, rank, config.num_buckets
            )
        MinhashDedupCluster(buckets, remove, config).run()
        return list(MinhashDedupFilter(remove).run(given, 0, 1))

    pages = timed("extract", extracted)
    good = timed("heuristics", lambda: filtered(pages))
    timed("near_dedup", lambda: deduplicated(good))
    print(json.dumps({"seconds": seconds, "left": left}))


if __name__ == "__main__":
    main()
