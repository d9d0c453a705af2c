"""A run goes on with the tokenizer it was started with, whatever lies at `data.tokenizer` by then."""

import shutil

import pytest

from data_pipeline.tokens.train_tokenizer import train_tokenizer
from tests.train.conftest import curve, read_metrics, train


@pytest.fixture
def data(tiny_data, tmp_path):
    """A copy of the prepared data that a test may spoil, as overrides of a run."""
    shutil.copytree(tiny_data, tmp_path / "data")
    folder = tmp_path / "data"
    return folder, [
        f"data.tokenizer={folder}/tokenizer.model",
        f"data.sources.text.path={folder}/text",
    ]


def another_tokenizer(path):
    texts = ["".join(chr(97 + index * index % 26) for index in range(20_000))]
    path.write_bytes(train_tokenizer({"text": texts}, {"text": 1.0}, 320))


def test_resuming_reads_the_run_s_own_tokenizer(write_run, data, refuse, tmp_path):
    folder, overrides = data
    path = write_run(train={"eval_every": 0})
    train(
        path, *overrides, "train.num_steps=2", "schedule.total_steps=4", "schedule.warmup_steps=1"
    )
    kept = (tmp_path / "run/tokenizer.model").read_bytes()
    assert kept == (folder / "tokenizer.model").read_bytes()
    another_tokenizer(folder / "tokenizer.model")
    settings = [
        *overrides,
        "train.num_steps=4",
        "schedule.total_steps=4",
        "schedule.warmup_steps=1",
    ]
    train(path, *settings)
    assert [step for step, *_ in curve(tmp_path / "run")] == [1, 2, 3, 4]
    assert read_metrics(tmp_path / "run")[4]["val/text/loss"] > 0
    assert (tmp_path / "run/tokenizer.model").read_bytes() == kept
    # Without its copy the run takes what is named, and that is not what its tokens were made with.
    (tmp_path / "run/tokenizer.model").unlink()
    assert f"{folder}/tokenizer.model" in refuse("train", path, *settings)
    # The copy in its place again, but another one.
    another_tokenizer(tmp_path / "run/tokenizer.model")
    assert f"{tmp_path}/run/tokenizer.model" in refuse("train", path, *settings)


def test_a_run_directory_with_another_tokenizer_is_refused(write_run, refuse, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tokenizer.model").write_bytes(b"left over")
    message = refuse("train", write_run(), "train.batch_size=8")
    assert f"{tmp_path}/run/tokenizer.model is another tokenizer" in message
    assert "choose another run_dir, or move that file away" in message
