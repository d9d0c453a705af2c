"""A small tokenizer, and ways to write small sources of random tokens and the config that names
them.
"""

import numpy as np
import pytest

from data_pipeline.tokenizers.sentencepiece import train_sentencepiece
from maxlm.config.pipeline.tokenizer import BpeConfig
from maxlm.config.schema import DataConfig
from maxlm.data.dataset import build_dataset
from maxlm.data.shards import ShardWriter
from maxlm.data.tokenizers import open_tokenizer

TEXT = (
    "def add(a, b):\n    return a + b\n\n\nclass Point:\n    def __init__(self, x, y):\n        self.x = x\n"
    * 20
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_sentencepiece(BpeConfig(), [TEXT], 320)["tokenizer.model"])
    return open_tokenizer(path)


@pytest.fixture
def write_shards(tokenizer):
    """Return a function that writes `count` random documents and returns the stream of tokens they
    make.
    """

    def write(folder, *, count=200, seed=0, longest=60, **settings):
        generator = np.random.default_rng(seed)
        settings = {
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "tokenizer": tokenizer.fingerprint,
            "shard_tokens": 2000,
        } | settings
        stream = []
        with ShardWriter(folder, **settings) as writer:
            for _ in range(count):
                document = generator.integers(
                    3, settings["vocab_size"], generator.integers(0, longest)
                )
                writer.write_document(document)
                stream += [settings["bos_id"], *document, settings["eos_id"]]
        return np.array(stream, np.int32)

    return write


@pytest.fixture
def make_data(tokenizer, write_shards, tmp_path):
    """Return a function {name: weight} -> DataConfig of that many sources, written to disk."""

    def make(weights, *, count=200, **settings):
        sources = {}
        for seed, (name, weight) in enumerate(weights.items()):
            write_shards(tmp_path / name / "train", count=count, seed=seed)
            write_shards(tmp_path / name / "validation", count=20, seed=seed + 1000)
            sources[name] = {"path": str(tmp_path / name), "weight": weight}
        settings = {
            "sources": sources,
            "tokenizer": str(tokenizer.path),
            "sequence_length": 32,
        } | settings
        return DataConfig.model_validate(settings)

    return make


@pytest.fixture
def make_dataset(make_data):
    """Return a function {name: weight} -> Dataset."""

    def make(weights, *, split="train", seed=0, batch_size=8, source=None, **settings):
        return build_dataset(
            make_data(weights, **settings),
            seed=seed,
            batch_size=batch_size,
            split=split,
            source=source,
        )

    return make
