import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maxlm.config.errors import UserError
from maxlm.config.schema import DataConfig
from maxlm.data import token_hash
from maxlm.data.dataset import build_dataset, validation_sources
from maxlm.data.shards import ShardWriter, TokenShards


def whole(dataset, step):
    return dataset.rows(step * dataset.batch_size, (step + 1) * dataset.batch_size)


def digest(dataset, steps):
    running = np.zeros(2, np.uint32)
    rows, columns = np.arange(dataset.batch_size), np.arange(dataset.sequence_length)
    for step in steps:
        batch = whole(dataset, step)
        part = token_hash.batch_hash(
            batch["tokens"], batch["segment_ids"], rows=rows, columns=columns
        )
        running = token_hash.advance(running, part)
    return token_hash.hexdigest(running)


def test_a_batch_has_the_documented_fields(make_dataset):
    dataset = make_dataset({"a": 1.0}, batch_size=4)
    batch = whole(dataset, 0)
    assert list(batch) == [
        "tokens",
        "targets",
        "segment_ids",
        "positions",
        "target_bytes",
        "weights",
    ]
    for name, values in batch.items():
        assert values.shape == (4, 32)
        assert values.dtype == (np.float32 if name == "weights" else np.int32)
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(0, 16), max_size=6), step=st.integers(0, 10**7))
def test_any_split_among_hosts_gives_the_same_batch(mixed, cuts, step):
    expected = whole(mixed, step)
    edges = sorted({0, 16, *cuts})
    first = step * 16
    parts = [
        mixed.rows(first + start, first + stop)
        for start, stop in reversed(list(itertools.pairwise(edges)))
    ]
    for name, values in expected.items():
        np.testing.assert_array_equal(
            np.concatenate([part[name] for part in reversed(parts)]), values
        )


STAGES = [{"until_tokens": 32 * 37}, {"until_tokens": 32 * 90, "weights": {"b": 1.0}}, {}]


@pytest.fixture(params=[(), STAGES], ids=["one mixture", "stages"])
def mixed(make_dataset, request):
    return make_dataset({"a": 3.0, "b": 1.0, "c": 0.5}, batch_size=16, stages=request.param)


def test_order_and_host_do_not_matter(make_data):
    data = make_data({"a": 2.0, "b": 1.0})
    one, two = (build_dataset(data, seed=3, batch_size=8, split="train") for _ in range(2))
    forward = [whole(one, step)["tokens"] for step in range(20)]
    backward = [whole(two, step)["tokens"] for step in reversed(range(20))]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_data_order_never_changes(make_data, tokenizer, tmp_path):
    """A resumed run must read what it would have read, whatever was upgraded in between."""
    data = make_data({"a": 3.0, "b": 1.0})
    for name, factor in (("a", 7919), ("b", 104729)):
        write_arithmetic_documents(tmp_path / name / "train", tokenizer, factor)
    only_a = data.model_copy(update={"sources": {"a": data.sources["a"]}})
    assert (
        digest(build_dataset(only_a, seed=0, batch_size=8, split="train"), range(200, 203))
        == "64990d573cad4b4d"
    )
    assert (
        digest(build_dataset(data, seed=7, batch_size=8, split="train"), range(100))
        == "aa9425f3942fb8bf"
    )


def write_arithmetic_documents(folder, tokenizer, factor):
    with ShardWriter(
        folder, vocab_size=tokenizer.vocab_size, bos_id=1, eos_id=2, tokenizer=tokenizer.fingerprint
    ) as writer:
        for number in range(200):
            writer.write_document(
                [3 + number * factor * place % 250 for place in range(number % 60)]
            )


def test_each_epoch_reads_every_token_once_in_another_order(make_data, tmp_path):
    data = make_data({"a": 1.0})
    size = TokenShards(tmp_path / "a/train").num_tokens
    places = mark_places(data, tmp_path / "a/train", size)
    dataset = build_dataset(data, seed=0, batch_size=1, split="train")
    windows = size // 32
    orders = []
    for epoch in range(3):
        rows = [places(whole(dataset, epoch * windows + row)) for row in range(windows)]
        targets = np.concatenate([(row + 1) % size for row in rows])
        # None twice, all but N mod T of them.
        assert len(set(targets)) == targets.size == windows * 32
        orders.append([int(row[0]) for row in rows])
    assert len({tuple(order) for order in orders}) == 3
    assert len({min(order) for order in orders}) > 1  # cut from another place
    assert dataset.epochs(2 * windows) == {"a": 2.0}


def mark_places(data, folder, size):
    """Return a function from a batch of one row to the places of its tokens in the stream."""
    stream = TokenShards(folder).read(0, size)
    ring = np.concatenate([stream, stream[:32]])
    starts = {}
    for place in range(size):
        starts.setdefault(ring[place : place + 32].tobytes(), []).append(place)

    def places(batch):
        (place,) = starts[batch["tokens"][0].tobytes()]
        return np.arange(place, place + 32)

    return places


def test_epochs_differ_also_for_a_handful_of_windows(make_dataset):
    dataset = make_dataset({"a": 1.0}, count=4, batch_size=1)
    assert dataset.num_batches in range(1, 6)
    epochs = [
        [
            whole(dataset, e * dataset.num_batches + i)["tokens"].tobytes()
            for i in range(dataset.num_batches)
        ]
        for e in range(8)
    ]
    assert len({tuple(epoch) for epoch in epochs}) > 4


def test_seeds_and_names_give_other_orders(make_data, make_dataset):
    data = make_data({"a": 1.0})
    results = {
        digest(build_dataset(data, seed=seed, batch_size=8, split="train"), range(3))
        for seed in range(10)
    }
    renamed = data.model_copy(update={"sources": {"z": data.sources["a"]}})
    results.add(digest(build_dataset(renamed, seed=0, batch_size=8, split="train"), range(3)))
    assert len(results) == 11


def test_without_shuffling_the_stream_is_read_in_order(make_data, tmp_path):
    data = make_data({"a": 1.0}, shuffle="none")
    stream = TokenShards(tmp_path / "a/train").read(0, 32 * 8 + 1)
    batch = whole(build_dataset(data, seed=0, batch_size=8, split="train"), 0)
    np.testing.assert_array_equal(batch["tokens"].reshape(-1), stream[:-1])
    np.testing.assert_array_equal(batch["targets"].reshape(-1), stream[1:])


def test_mixture_has_its_shares_of_rows(make_data, tmp_path):
    weights = {"a": 1.0, "b": 2.5, "c": 0.33}
    data = make_data(weights)
    dataset = build_dataset(data, seed=0, batch_size=10, split="train")
    contents = {name: TokenShards(tmp_path / name / "train") for name in weights}
    contents = {
        name: shards.read(0, shards.num_tokens).tobytes() * 2 for name, shards in contents.items()
    }
    counts = dict.fromkeys(weights, 0)
    for step in range(100):
        for row in whole(dataset, step)["tokens"]:
            (name,) = [name for name, text in contents.items() if row.tobytes() in text]
            counts[name] += 1
    for name, weight in weights.items():
        assert counts[name] == pytest.approx(1000 * weight / sum(weights.values()), abs=6)
        windows = TokenShards(tmp_path / name / "train").num_tokens // 32
        assert dataset.epochs(1000)[name] == pytest.approx(counts[name] / windows, abs=1 / windows)


def test_stages_read_what_their_mixtures_say_and_go_on_in_each_source(make_data, tmp_path):
    """Every row of every step against the sources read alone: their windows in their order, none
    twice, in numbers that are counted here.
    """
    weights = {"a": 1.0, "b": 3.0}
    data = make_data(weights, stages=STAGES)
    mixed = build_dataset(data, seed=3, batch_size=8, split="train")
    alone = {
        name: build_dataset(data, seed=3, batch_size=8, split="train", source=name)
        for name in weights
    }
    streams = {name: dataset.rows(0, 200)["tokens"] for name, dataset in alone.items()}
    read = dict.fromkeys(weights, 0)
    at = {}
    for step in range(20):
        for row, tokens in enumerate(whole(mixed, step)["tokens"]):
            at[8 * step + row] = dict(read)
            (name,) = [n for n in weights if (streams[n][read[n]] == tokens).all()]
            read[name] += 1
    assert mixed.epochs(160) == {n: read[n] / alone[n].num_windows[n] for n in weights}
    assert at[37]["b"] == pytest.approx(37 * 3 / 4, abs=1)
    assert at[90] == {"a": at[37]["a"], "b": at[37]["b"] + 53}
    assert read["b"] - at[90]["b"] == pytest.approx(70 * 3 / 4, abs=1)


def test_order_of_sources_in_the_file_does_not_matter(make_data):
    data = make_data({"a": 2.0, "b": 1.0})
    swapped = DataConfig.model_validate(
        data.model_dump() | {"sources": dict(reversed(data.model_dump()["sources"].items()))}
    )
    results = [
        digest(build_dataset(d, seed=0, batch_size=8, split="train"), range(5))
        for d in (data, swapped)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_validation_reads_every_token_once_in_order(make_dataset, tmp_path, batch_size):
    dataset = make_dataset(
        {"a": 1.0, "b": 1.0}, split="validation", source="b", batch_size=batch_size
    )
    shards = TokenShards(tmp_path / "b/validation")
    stream = shards.read(0, shards.num_tokens)
    batches = [whole(dataset, step) for step in range(dataset.num_batches)]
    exists = np.concatenate(
        [
            np.arange(batch_size * 32) + step * batch_size * 32 < stream.size - 1
            for step in range(dataset.num_batches)
        ]
    )
    targets = np.concatenate([batch["targets"].reshape(-1) for batch in batches])
    weights = np.concatenate([batch["weights"].reshape(-1) for batch in batches])
    np.testing.assert_array_equal(targets[exists], stream[1:])
    np.testing.assert_array_equal(weights[exists], stream[1:] != dataset.tokenizer.bos_id)
    assert not weights[~exists].any()
    assert batch_size * (dataset.num_batches - 1) * 32 < stream.size - 1
    assert not whole(dataset, dataset.num_batches)["weights"].any()  # past the end


def test_rows_that_do_not_exist_are_refused(make_dataset):
    dataset = make_dataset({"a": 1.0})
    for arguments in ((-1, 0), (-1, 1), (3, 2)):
        with pytest.raises(IndexError):
            dataset.rows(*arguments)


def test_fingerprint_is_of_names_and_tokens(make_data, write_shards, tmp_path):
    data = make_data({"a": 1.0, "b": 1.0})
    before = build_dataset(data, seed=0, batch_size=8, split="train").fingerprint
    assert build_dataset(data, seed=1, batch_size=4, split="train").fingerprint == before
    write_shards(tmp_path / "b/train", seed=99)
    assert build_dataset(data, seed=0, batch_size=8, split="train").fingerprint != before


def test_far_steps_cost_nothing(make_dataset):
    dataset = make_dataset({"a": 1.0, "b": 1.0})
    assert whole(dataset, 10**12)["tokens"].shape == (8, 32)


# --- mistakes -------------------------------------------------------------------------------------


def expect(match, data, **arguments):
    with pytest.raises(UserError, match=match) as caught:
        build_dataset(data, **({"seed": 0, "batch_size": 8, "split": "train"} | arguments))
    return str(caught.value)


def test_folder_that_is_not_there(make_data, tmp_path):
    data = make_data({"a": 1.0})
    (tmp_path / "a").rename(tmp_path / "b")
    expect(
        r"data\.sources\.a\.path=.*no such folder; .*data\.sources\.a\.raw.*run: maxlm prepare",
        data,
    )
    raw = data.model_dump()
    raw["sources"]["a"]["raw"] = {"kind": "python_stdlib"}
    expect(
        r"data\.sources\.a\.path=.*no such folder; run: maxlm prepare",
        DataConfig.model_validate(raw),
    )


def test_split_that_is_not_there(make_data, tmp_path):
    data = make_data({"a": 1.0})
    (tmp_path / "a/train/index.json").unlink()
    expect(r"a/train: the folder has no index\.json; run: maxlm prepare", data)
    assert validation_sources(data) == ["a"]
    (tmp_path / "a/validation/index.json").unlink()
    assert validation_sources(data) == []


def test_all_damaged_sources_are_named_at_once(make_data, tmp_path):
    data = make_data({"a": 1.0, "b": 1.0, "c": 1.0})
    (tmp_path / "a/train/shard-00000.tokens").unlink()
    (tmp_path / "c/train/index.json").write_text("{")
    message = expect("damaged", data)
    assert "a/train/shard-00000.tokens" in message
    assert "c/train/index.json" in message


def test_other_tokenizer(make_data, write_shards, tmp_path):
    data = make_data({"a": 1.0})
    write_shards(tmp_path / "a/train", tokenizer="0" * 64)
    expect(r"data\.sources\.a\.path.*another tokenizer.*data\.tokenizer=.*maxlm prepare", data)


def test_index_that_contradicts_the_tokenizer(make_data, tokenizer, write_shards, tmp_path):
    data = make_data({"a": 1.0})
    write_shards(tmp_path / "a/train", bos_id=tokenizer.eos_id, eos_id=tokenizer.bos_id)
    expect(r"index\.json: bos_id=2", data)


def test_vocabulary_that_is_too_small(make_data, tokenizer):
    size = tokenizer.vocab_size
    expect(
        rf"{size} pieces, more than model\.vocab_size={size - 1}",
        make_data({"a": 1.0}),
        vocab_size=size - 1,
    )
    build_dataset(make_data({"b": 1.0}), seed=0, batch_size=1, split="train", vocab_size=size)


def test_too_little_text(make_data, write_shards, tmp_path):
    data = make_data({"a": 1.0}, sequence_length=100_000)
    expect(r"too few for data\.sequence_length=100000", data)
    write_shards(tmp_path / "a/validation", count=0)
    expect("validation split is empty", data, split="validation", source="a")


def test_damage_shows_at_the_read(make_data, tmp_path):
    data = make_data({"a": 1.0})
    dataset = build_dataset(data, seed=0, batch_size=64, split="train")
    path = tmp_path / "a/train/shard-00001.tokens"
    damaged = bytearray(path.read_bytes())
    damaged[77] ^= 16
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"shard-00001\.tokens: damaged.*maxlm prepare"):
        [whole(dataset, step) for step in range(dataset.num_batches)]
