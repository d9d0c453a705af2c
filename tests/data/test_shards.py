import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from maxlm.config.errors import UserError
from maxlm.data.shards import INDEX_NAME, ShardWriter, TokenShards
from maxlm.data.shards.index import PAGE_BYTES
from maxlm.data.shards.open_files import MOST_OPEN


def test_every_window_is_what_was_written(write_shards, tmp_path):
    stream = write_shards(tmp_path, count=2000, shard_tokens=9000)
    shards = TokenShards(tmp_path)
    assert len(shards.index.shards) > 3
    assert (shards.num_tokens, shards.num_documents) == (stream.size, 2000)
    np.testing.assert_array_equal(shards.read(0, stream.size), stream)
    generator = np.random.default_rng(0)
    for start, stop in np.sort(generator.integers(0, stream.size + 1, (300, 2))):
        np.testing.assert_array_equal(
            shards.read(int(start), int(stop - start)), stream[start:stop]
        )
    shards.verify()


def test_reading_outside_of_the_stream_is_refused(write_shards, tmp_path):
    stream = write_shards(tmp_path)
    with pytest.raises(IndexError):
        TokenShards(tmp_path).read(stream.size - 1, 2)
    with pytest.raises(IndexError):
        TokenShards(tmp_path).read(-1, 1)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32"), (200_000, "uint32")]
)
def test_dtype_is_the_smallest_that_holds_the_vocabulary(write_shards, tmp_path, vocab_size, dtype):
    stream = write_shards(tmp_path, vocab_size=vocab_size)
    shards = TokenShards(tmp_path)
    assert shards.index.dtype == dtype
    np.testing.assert_array_equal(shards.read(0, stream.size), stream)


def test_numpy_alone_reads_a_shard_as_documented(write_shards, tmp_path):
    stream = write_shards(tmp_path, shard_tokens=10**9)
    pages = np.fromfile(tmp_path / "shard-00000.tokens", "<u4").reshape(-1, PAGE_BYTES // 4)
    np.testing.assert_array_equal(
        pages[:, :-1].copy().view("<u2").reshape(-1)[: stream.size], stream
    )


def test_equal_documents_give_equal_bytes(write_shards, tmp_path):
    write_shards(tmp_path / "a")
    write_shards(tmp_path / "b")
    write_shards(tmp_path / "c", seed=1)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for name in names
    )
    assert TokenShards(tmp_path / "a").fingerprint == TokenShards(tmp_path / "b").fingerprint
    assert TokenShards(tmp_path / "a").fingerprint != TokenShards(tmp_path / "c").fingerprint


def test_writer_refuses_ids_that_are_no_tokens(write_shards, tmp_path, tokenizer):
    for bad in ([tokenizer.vocab_size], [-1], [5, tokenizer.bos_id]):
        with (
            pytest.raises(ValueError, match="token ids"),
            make_writer(tmp_path, tokenizer) as writer,
        ):
            writer.write_document(bad)


def test_one_token_that_ends_documents_and_starts_them_is_written_once(write_shards, tmp_path):
    write_shards(tmp_path, count=3, bos_id=2, eos_id=2, longest=5)
    shards = TokenShards(tmp_path)
    tokens = shards.read(0, shards.num_tokens)
    assert (tokens == 2).sum() == shards.num_documents == 3
    assert tokens[0] == 2
    assert shards.num_targets == shards.num_tokens - 1
    write_shards(tmp_path / "two", count=3)
    two = TokenShards(tmp_path / "two")
    assert two.num_targets == two.num_tokens - 3


def test_writer_that_fails_leaves_no_index(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="token ids"), make_writer(tmp_path, tokenizer) as writer:
        [writer.write_document(document) for document in ([5] * 100, [-1])]
    assert list(tmp_path.iterdir())
    assert not (tmp_path / INDEX_NAME).exists()


def test_any_flipped_bit_is_an_error_that_names_the_file_and_the_cure(write_shards, tmp_path):
    stream = write_shards(tmp_path, count=600, shard_tokens=9000)
    path = tmp_path / "shard-00001.tokens"
    whole = path.read_bytes()
    generator = np.random.default_rng(1)
    places = [
        0,
        PAGE_BYTES - 1,
        PAGE_BYTES,
        len(whole) - 1,
        *generator.integers(0, len(whole), 100),
    ]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        shards = TokenShards(tmp_path)
        with pytest.raises(
            UserError, match=r"shard-00001\.tokens: damaged.*checksum.*maxlm prepare"
        ):
            shards.read(0, stream.size)
        with pytest.raises(UserError, match=r"shard-00001\.tokens"):
            shards.verify()
    path.write_bytes(whole)
    np.testing.assert_array_equal(TokenShards(tmp_path).read(0, stream.size), stream)


def test_pages_that_are_out_of_place_are_noticed(write_shards, tmp_path):
    write_shards(tmp_path, count=600, shard_tokens=10**9)
    path = tmp_path / "shard-00000.tokens"
    whole = path.read_bytes()
    path.write_bytes(
        whole[PAGE_BYTES : 2 * PAGE_BYTES] + whole[:PAGE_BYTES] + whole[2 * PAGE_BYTES :]
    )
    with pytest.raises(UserError, match="page 0 does not have its checksum"):
        TokenShards(tmp_path).read(0, 10)


def test_shards_that_are_exchanged_are_noticed(write_shards, tmp_path):
    write_shards(tmp_path, count=600, shard_tokens=5000)
    one, two = tmp_path / "shard-00000.tokens", tmp_path / "shard-00001.tokens"
    assert one.stat().st_size == two.stat().st_size
    one.rename(tmp_path / "x"), two.rename(one), (tmp_path / "x").rename(two)
    with pytest.raises(UserError, match="checksum"):
        TokenShards(tmp_path).read(0, 10)


def test_a_shard_of_other_text_is_noticed_by_the_full_check(write_shards, tmp_path):
    write_shards(tmp_path / "a", shard_tokens=10**9, longest=2)
    write_shards(tmp_path / "b", shard_tokens=10**9, longest=2, seed=1)
    shutil.copy(tmp_path / "b/shard-00000.tokens", tmp_path / "a/shard-00000.tokens")
    shards = TokenShards(tmp_path / "a")
    with pytest.raises(UserError, match="SHA-256"):
        shards.verify()


@pytest.mark.parametrize("size", [0, 1, PAGE_BYTES, -1, -PAGE_BYTES])
def test_truncated_shard_is_refused_when_it_is_opened(write_shards, tmp_path, size):
    write_shards(tmp_path, count=1000, shard_tokens=10**9)
    path = tmp_path / "shard-00000.tokens"
    os.truncate(path, size % path.stat().st_size)
    with pytest.raises(
        UserError, match=r"shard-00000\.tokens: damaged.* bytes, the index says .*maxlm prepare"
    ):
        TokenShards(tmp_path)


def test_shard_truncated_while_it_is_open_is_an_error_at_the_read(write_shards, tmp_path):
    stream = write_shards(tmp_path, count=1000, shard_tokens=10**9)
    shards = TokenShards(tmp_path)
    os.truncate(tmp_path / "shard-00000.tokens", PAGE_BYTES)
    shards.read(0, 100)
    with pytest.raises(UserError, match=r"shard-00000\.tokens.* became shorter"):
        shards.read(stream.size - 100, 100)


def test_missing_shard_and_longer_shard_are_refused(write_shards, tmp_path):
    write_shards(tmp_path)
    path = tmp_path / "shard-00001.tokens"
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"shard-00001\.tokens"):
        TokenShards(tmp_path)
    path.unlink()
    with pytest.raises(
        UserError, match=r"shard-00001\.tokens: damaged token shard: the file is missing"
    ):
        TokenShards(tmp_path)


def test_of_many_shards_some_are_open_and_one_that_was_replaced_is_an_error(write_shards, tmp_path):
    stream = write_shards(tmp_path / "data", count=600, shard_tokens=150)

    def opened():
        links = Path("/proc/self/fd").iterdir()
        targets = [str(link.readlink()) for link in links if link.is_symlink()]
        return sum(target.startswith(str(tmp_path / "data")) for target in targets)

    shards = TokenShards(tmp_path / "data")
    assert len(shards.index.shards) > 70
    assert opened() == MOST_OPEN
    np.testing.assert_array_equal(shards.read(0, stream.size), stream)  # twice through all of them
    np.testing.assert_array_equal(shards.read(0, stream.size), stream)
    assert opened() == MOST_OPEN
    first = tmp_path / "data/shard-00000.tokens"  # of those that are closed now
    shutil.copy(first, tmp_path / "same")
    (tmp_path / "same").replace(first)
    with pytest.raises(UserError, match=r"shard-00000\.tokens.*replaced"):
        shards.read(0, 10)
    shards.read(stream.size - 10, 10)
    del shards
    assert opened() == 0


def test_folder_that_is_replaced_does_not_change_under_a_reader(write_shards, tmp_path):
    stream = write_shards(tmp_path / "data")
    shards = TokenShards(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    write_shards(tmp_path / "data", seed=1)
    np.testing.assert_array_equal(shards.read(0, stream.size), stream)


BAD_INDEXES = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "tokens: 3",
    "a list": lambda text: "[]",
    "binary": lambda text: "\x00\xff",
    "nested too deep": lambda text: "[" * 100_000,
    "other format": lambda text: text.replace("maxlm-tokens-1", "maxlm-tokens-9"),
    "other dtype": lambda text: text.replace("uint16", "float32"),
    "wrong dtype": lambda text: text.replace("uint16", "uint32"),
    "negative": lambda text: json.dumps(json.loads(text) | {"tokens": -1}),
    "text for a number": lambda text: json.dumps(json.loads(text) | {"tokens": "12"}),
    "a fraction": lambda text: json.dumps(json.loads(text) | {"tokens": 1.5}),
    "sum of tokens": lambda text: json.dumps(
        json.loads(text) | {"tokens": json.loads(text)["tokens"] + 1}
    ),
    "sum of documents": lambda text: json.dumps(json.loads(text) | {"documents": 0}),
    "BOS outside": lambda text: json.dumps(json.loads(text) | {"bos_id": 10**6}),
    "unknown key": lambda text: json.dumps(json.loads(text) | {"extra": 1}),
    "missing key": lambda text: json.dumps(
        {k: v for k, v in json.loads(text).items() if k != "shards"}
    ),
    "path outside": lambda text: text.replace("shard-00000.tokens", "../../etc/passwd"),
}


@pytest.mark.parametrize("name", BAD_INDEXES)
def test_bad_index_is_an_error_that_names_the_file(write_shards, tmp_path, name):
    write_shards(tmp_path)
    path = tmp_path / INDEX_NAME
    path.write_text(BAD_INDEXES[name](path.read_text()), encoding="latin-1")
    with pytest.raises(UserError, match=r"index\.json|shard-00000\.tokens") as caught:
        TokenShards(tmp_path)
    assert "maxlm prepare" in str(caught.value)


def test_folder_that_is_not_there_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"no such folder; run: maxlm prepare"):
        TokenShards(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no index\.json; run: maxlm prepare"):
        TokenShards(tmp_path)


def make_writer(folder, tokenizer):
    return ShardWriter(
        folder,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        tokenizer=tokenizer.fingerprint,
    )


@pytest.mark.parametrize("vocab_size", [400, 2**17])
def test_a_token_that_is_no_piece_is_named_with_its_shard(write_shards, tmp_path, vocab_size):
    """A shard of another vocabulary, its checksums whole, under an index that was edited."""
    stream = write_shards(tmp_path, vocab_size=vocab_size)
    assert len(json.loads((tmp_path / "index.json").read_text())["shards"]) > 1
    index = json.loads((tmp_path / "index.json").read_text())
    largest = int(stream.max())
    (tmp_path / "index.json").write_text(json.dumps(index | {"vocab_size": largest}))
    shards = TokenShards(tmp_path)
    place = int(stream.argmax())
    ends = np.cumsum([shard["tokens"] for shard in index["shards"]])
    name = index["shards"][int(np.searchsorted(ends, place, side="right"))]["file"]
    with pytest.raises(
        UserError,
        match=rf"{name}: damaged token shard: it holds token {largest}, .*vocab_size={largest}",
    ):
        shards.read(place, 1)
    with pytest.raises(UserError, match=f"it holds token {largest}"):
        shards.verify()
    (tmp_path / "index.json").write_text(json.dumps(index | {"vocab_size": largest + 1}))
    TokenShards(tmp_path).verify()
