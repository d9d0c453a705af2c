"""A run goes on with the tokenizer it was started with, whatever lies at `data.tokenizer` by then."""

import shutil

import pytest

import maxlm
from data_pipeline.tokenizers.sentencepiece import train_sentencepiece
from maxlm.cli import main
from maxlm.config.pipeline.tokenizer import BpeConfig
from tests.data.tokenizers.kinds import EOS, byte_level, write_hf
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
    path.write_bytes(train_sentencepiece(BpeConfig(), texts, 320)["tokenizer.model"])


def test_resuming_reads_the_run_s_own_tokenizer(write_run, data, refuse, tmp_path):
    folder, overrides = data
    path = write_run(train={"eval_every": 0})
    train(
        path, *overrides, "train.num_steps=2", "schedule.total_steps=4", "schedule.warmup_steps=1"
    )
    kept = (tmp_path / "run/tokenizer/tokenizer.model").read_bytes()
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
    assert (tmp_path / "run/tokenizer/tokenizer.model").read_bytes() == kept
    # Without its copy the run takes what is named, and that is not what its tokens were made with.
    shutil.rmtree(tmp_path / "run/tokenizer")
    assert f"{folder}/tokenizer.model" in refuse("train", path, *settings)
    # The copy in its place again, but another one.
    (tmp_path / "run/tokenizer").mkdir()
    another_tokenizer(tmp_path / "run/tokenizer/tokenizer.model")
    assert f"{tmp_path}/run/tokenizer/tokenizer.model" in refuse("train", path, *settings)


def test_a_run_directory_with_another_tokenizer_is_refused(write_run, refuse, tmp_path):
    (tmp_path / "run/tokenizer").mkdir(parents=True)
    (tmp_path / "run/tokenizer/tokenizer.model").write_bytes(b"left over")
    message = refuse("train", write_run(), "train.batch_size=8")
    assert f"{tmp_path}/run/tokenizer is another tokenizer" in message
    assert "choose another run_dir, or move that folder away" in message


def test_a_run_keeps_a_tokenizer_of_several_files(write_run, tmp_path):
    """From a published vocabulary with one token for beginnings and ends to a model that speaks."""
    published = write_hf(tmp_path / "published", byte_level(), {"eos_token": EOS, "more": 1})
    settings = [
        f"data.tokenizer={published}",
        f"data.sources.text.path={tmp_path}/other",
        "model.vocab_size=1024",
    ]
    path = write_run(train={"eval_every": 0, "num_steps": 2}, schedule={"warmup_steps": 0})
    assert main(["prepare", str(path), *settings]) == 0
    train(path, *settings)
    kept = {file.name: file.read_bytes() for file in (tmp_path / "run/tokenizer").iterdir()}
    assert kept == {file.name: file.read_bytes() for file in published.iterdir()}
    shutil.rmtree(published)
    values = read_metrics(tmp_path / "run")[2]
    assert 0 < values["val/text/bits_per_byte"] < 16
    model = maxlm.load(tmp_path / "run")
    assert model.tokenizer.bos_id == model.tokenizer.eos_id
    assert model.num_ids == 900
    answer = model.generate("ember ", max_tokens=4, temperature=0)
    assert answer
    assert answer == "".join(model.stream("ember ", max_tokens=4, temperature=0))
