"""`maxlm data train-ngrams TEXT... --output FILE`: an n-gram model of texts."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from data_pipeline.command import check_arguments
from data_pipeline.ngrams.arpa import is_arpa, write_arpa
from data_pipeline.ngrams.storage import save_ngrams
from data_pipeline.ngrams.training import Recipe, Trained, train
from data_pipeline.storage.disk import disk_errors
from data_pipeline.text.corpus import Corpus


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; return its exit code."""
    output = Path(arguments.output)
    half = max(-(-arguments.order // 2), 1)  # of an n-gram's words, which share 64 bits
    bounds = {
        "order": (2, 8),
        "vocabulary": (4, 2 ** min(24, 64 // half)),
        "held_out": (0.001, 0.9),
        "memory_mb": (16, 2**20),
    }
    check_arguments(arguments, bounds)
    corpus = Corpus(arguments.texts, text_key=arguments.text_key)
    recipe = Recipe(
        order=arguments.order,
        form=arguments.words,
        vocabulary=arguments.vocabulary,
        held_out=arguments.held_out,
        memory_bytes=arguments.memory_mb * 2**20,
    )
    with (
        disk_errors(output),
        tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".ngrams-") as folder,
    ):
        trained = train(corpus, recipe, Path(folder))
        (write_arpa if is_arpa(output) else save_ngrams)(trained.model, output)
    for line in corpus.skipped.lines():
        print(line)
    _tell(trained)
    print(f"wrote {output}")
    return 0


def _tell(trained: Trained) -> None:
    model = trained.model
    sizes = (f"{level.logs.size:,} of {n}" for n, level in enumerate(model.levels, 1))
    print(f"n-grams by their words: {', '.join(sizes)}")
    if trained.without_estimate:
        lengths = ", ".join(map(str, trained.without_estimate))
        print(f"too little text to estimate discounts of n-grams of {lengths} words: fixed ones")
    chosen = ", ".join(f"{model.header.percentiles[p]:.1f} at {p} %" for p in (10, 30, 50, 60, 90))
    print(f"perplexity of documents that are held out: {chosen}")
