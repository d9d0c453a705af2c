"""Who is held out, and that all pieces of a document go to one split, whatever the others are."""

import pytest

from data_pipeline.documents import Document
from data_pipeline.operations.tokenize import _pieces
from data_pipeline.stages.shards import DocumentShard
from data_pipeline.stages.tokens import hold_out
from data_pipeline.storage.document_files import DocumentWriter
from data_pipeline.storage.whole import file_sha256
from data_pipeline.tokens.order import split_place
from maxlm.config.errors import UserError
from maxlm.config.pipeline.raw import RawTextConfig


@pytest.fixture
def shards(tmp_path):
    """Return a function that writes documents, some to a file."""

    def write(texts, a_file=100):
        written = []
        for index, start in enumerate(range(0, len(texts), a_file)):
            path = tmp_path / f"{len(texts)}-{index}.parquet"
            with DocumentWriter(path) as writer:
                for number, text in enumerate(texts[start : start + a_file], start=start):
                    writer.write(Document(f"text/name{number}", "text", text))
            counts = {"documents": writer.documents, "text_bytes": writer.bytes}
            written.append(DocumentShard(index, path, file_sha256(path), "text", **counts))
        return written

    return write


@pytest.fixture
def split(shards, workshop):
    """Return a function that splits documents: {name: split}, from pieces of at most `most` bytes."""

    def names(texts, fraction, most=1000):
        raw = RawTextConfig(kind="files", validation_fraction=fraction, max_document_bytes=most)
        source = hold_out("text", raw, shards(texts), workshop)
        found = {}
        for shard in source.shards:
            task = FakeTask([shard.path], source.settings)
            for part, piece in _pieces(task):
                found.setdefault(part, []).append(piece.id.removeprefix("text/"))
        return found.get("train", []), found.get("validation", [])

    return names


class FakeTask:
    def __init__(self, paths, settings):
        self.paths, self.settings = paths, settings


def test_every_document_is_in_one_split_and_the_fraction_is_met(split):
    train, validation = split(["x"] * 1000, 0.1)
    assert sorted(train + validation) == sorted(f"name{number}" for number in range(1000))
    assert len(validation) == pytest.approx(100, abs=35)


def test_a_document_s_split_depends_on_its_id_alone(split):
    train, validation = map(set, split(["x"] * 300, 0.1))
    fewer_train, fewer_validation = map(set, split(["x"] * 200, 0.1))
    assert fewer_train < train
    assert fewer_validation <= validation
    assert validation < set(split(["x"] * 300, 0.2)[1])


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_few_documents_give_one_to_either_split(split, fraction):
    for count in (2, 3, 5):
        train, validation = split(["x"] * count, fraction)
        assert train
        assert validation


def test_one_document_cannot_be_split(split):
    with pytest.raises(UserError, match=r"only one document is left.*lines of a \.jsonl"):
        split(["x"], 0.5)
    with pytest.raises(UserError, match="no document is left"):
        split([], 0.5)


def test_pieces_of_a_document_are_in_one_split(split):
    texts = [f"{number}\n" * 50 for number in range(100)]
    train, validation = split(texts, 0.3, most=40)
    assert len(train) + len(validation) == sum(-(-len(text) // 40) for text in texts) > 200
    parents = [{name.partition("#")[0] for name in names} for names in (train, validation)]
    assert not parents[0] & parents[1]
    assert parents[0] | parents[1] == {f"name{number}" for number in range(100)}
    threshold = max(split_place(f"text/{name}") for name in parents[1])
    assert threshold < min(split_place(f"text/{name}") for name in parents[0])
