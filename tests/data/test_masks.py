"""Tokens that are read and not learned: from the writer to the fields of a batch."""

import itertools

import numpy as np
import pytest

from maxlm.config.errors import UserError
from maxlm.data.baselines import measure_baselines
from maxlm.data.dataset import build_dataset
from maxlm.data.examples import packing
from maxlm.data.shards import ShardWriter, TokenShards
from maxlm.data.shards.index import PAGE_BYTES, PAYLOAD_BYTES


@pytest.fixture
def write(tokenizer):
    """Return a function that writes random documents, some tokens masked in all but every third
    shard, and returns the stream of tokens and of masks.
    """

    def written(folder, *, count=300, seed=0, shard_tokens=3000, masks=True, vocab_size=None):
        generator = np.random.default_rng(seed)
        settings = {
            "vocab_size": vocab_size or tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "tokenizer": tokenizer.fingerprint,
            "shard_tokens": shard_tokens,
        }
        stream, masked = [], []
        with ShardWriter(folder, **settings) as writer:
            for _ in range(count):
                ids = generator.integers(3, tokenizer.vocab_size, generator.integers(0, 60))
                bits = generator.random(ids.size) < 0.2
                bits &= masks and len(stream) // shard_tokens % 3 != 1
                writer.write_document(ids, masked=bits if bits.any() else None)
                stream += [tokenizer.bos_id, *ids, tokenizer.eos_id]
                masked += [False, *bits, False]
        return np.array(stream, np.int32), np.array(masked)

    return written


@pytest.mark.parametrize("vocab_size", [None, 100_000])
def test_every_range_is_what_was_written(write, tmp_path, vocab_size):
    # A page holds 65,504 bits: three pages of masks in the first shard.
    stream, masked = write(tmp_path, count=6000, shard_tokens=140_000, vocab_size=vocab_size)
    shards = TokenShards(tmp_path)
    files = sorted(path.name for path in tmp_path.glob("*.masked"))
    assert files == ["shard-00000.masked"], "none of the shard that is learned whole"
    assert shards.index.shards[0].masked.tokens == shards.index.masked == masked.sum()
    assert shards.num_targets == stream.size - 6000 - masked.sum()
    np.testing.assert_array_equal(shards.read_masked(0, stream.size), masked)
    generator = np.random.default_rng(0)
    for start, stop in np.sort(generator.integers(0, stream.size + 1, (200, 2))):
        found = shards.read_masked(int(start), int(stop - start))
        np.testing.assert_array_equal(found, masked[start:stop])
    np.testing.assert_array_equal(shards.read(0, stream.size), stream)
    shards.verify()


def test_numpy_alone_reads_a_mask_as_documented(write, tmp_path):
    stream, masked = write(tmp_path, shard_tokens=10**9)
    pages = np.fromfile(tmp_path / "shard-00000.masked", np.uint8).reshape(-1, PAGE_BYTES)
    bits = np.unpackbits(pages[:, :PAYLOAD_BYTES].reshape(-1), bitorder="little")
    np.testing.assert_array_equal(bits[: stream.size].astype(bool), masked)


def test_a_folder_without_masks_is_what_it_was(write, tmp_path):
    stream, _ = write(tmp_path, masks=False)
    assert "masked" not in (tmp_path / "index.json").read_text()
    assert not list(tmp_path.glob("*.masked"))
    assert not TokenShards(tmp_path).read_masked(0, stream.size).any()


def test_damage_is_noticed(write, tmp_path):
    write(tmp_path, shard_tokens=10**9)
    path = tmp_path / "shard-00000.masked"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(
        UserError, match=r"shard-00000\.masked: damaged .*page 0.*checksum.*--force"
    ):
        TokenShards(tmp_path).read_masked(0, 5)
    with pytest.raises(UserError, match="checksum"):
        TokenShards(tmp_path).verify()
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"shard-00000\.masked: .*bytes, the index says"):
        TokenShards(tmp_path)
    # A page of tokens in the place of one of bits: numbers tell them apart.
    path.write_bytes((tmp_path / "shard-00000.tokens").read_bytes()[: len(data)])
    with pytest.raises(UserError, match="checksum"):
        TokenShards(tmp_path).read_masked(0, 5)
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00000\.masked: .*missing"):
        TokenShards(tmp_path)


def test_masks_are_part_of_the_fingerprint(write, tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    write(tmp_path / "c", masks=False)
    prints = [TokenShards(tmp_path / name).fingerprint for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(("split", "shuffle"), [("train", "global"), ("validation", "none")])
def test_a_batch_is_that_of_the_plain_tokens_without_the_masked_weights(
    make_data, write, tmp_path, split, shuffle
):
    """Same tokens, segments and places; a masked token has no weight and no bytes as a target."""
    data = make_data({"a": 1.0}, shuffle=shuffle)
    batches = {}
    for masks in (False, True):
        for each in ("train", "validation"):
            for path in (tmp_path / "a" / each).iterdir():
                path.unlink()
            stream, masked = write(tmp_path / "a" / each, seed=3, masks=masks)
        dataset = build_dataset(data, seed=0, batch_size=4, split=split, source="a")
        batches[masks] = dataset.rows(0, 2 * dataset.num_batches * 4)
    plain, kept = batches[False], batches[True]
    for name in ("tokens", "targets", "segment_ids", "positions"):
        np.testing.assert_array_equal(plain[name], kept[name])
    # Every token is a target once in an epoch: windows are found again by their first tokens.
    places = {stream[i : i + 32].tobytes(): i for i in range(stream.size)}
    ring = np.concatenate([stream, stream[:64]])
    places |= {ring[i : i + 32].tobytes(): i for i in range(stream.size - 32, stream.size)}
    around = np.concatenate([masked, masked[:64]])
    seen = 0
    for row, window in enumerate(plain["tokens"]):
        start = places.get(window.tobytes())
        if start is None:  # filled up at the end of validation
            assert split == "validation"
            continue
        learned = ~around[start + 1 : start + 33]
        np.testing.assert_array_equal(kept["weights"][row], plain["weights"][row] * learned)
        expected = plain["target_bytes"][row] * learned
        np.testing.assert_array_equal(kept["target_bytes"][row], expected)
        seen += int((~learned).sum())
    assert seen > masked.sum() / 2


def test_marks_come_off_again():
    tokens = np.array([0, 5, 2**31 - 3, packing.NO_TOKEN], np.int32)
    for bits in itertools.product([False, True], repeat=3):
        masked = np.array([*bits, False])
        marked = packing.mark_masked(tokens, masked)
        assert marked.dtype == np.int32
        plain, found = packing.split_masked(marked)
        np.testing.assert_array_equal(plain, tokens)
        np.testing.assert_array_equal(found, masked)


def test_baselines_predict_what_is_learned(write, tokenizer, tmp_path):
    write(tmp_path / "train", seed=1)
    stream, masked = write(tmp_path / "validation", seed=2)
    opened = [TokenShards(tmp_path / name) for name in ("train", "validation")]
    found = measure_baselines(*opened, tokenizer)
    learned = ~masked[1:] & (stream[1:] != tokenizer.bos_id)
    assert found.targets == learned.sum() == opened[1].num_targets
    size = tokenizer.bytes_of(stream[1:], stream[:-1])[learned].sum()
    expected = learned.sum() * np.log2(tokenizer.vocab_size) / size
    assert found.bits_per_byte["uniform"] == pytest.approx(expected, abs=1e-4)
