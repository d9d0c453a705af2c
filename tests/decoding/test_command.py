"""`maxlm generate`: what it prints, and every mistake it names."""

import pytest
import yaml

from maxlm import runtime
from maxlm.checkpoint import CheckpointReader
from maxlm.cli import main
from tests.data.tokenizers.kinds import write_sentencepiece
from tests.train.conftest import make_run, train


@pytest.fixture
def say(trained, monkeypatch, capsys):
    """say(arguments...) -> what is printed after the prompt `ember `, in this process."""
    monkeypatch.setattr(runtime, "start", lambda settings: None)  # JAX runs here already

    def run(*arguments):
        capsys.readouterr()
        assert (
            main(["generate", str(trained), "--prompt", "ember ", "--max-tokens", "8", *arguments])
            == 0
        )
        text = capsys.readouterr().out
        assert text.startswith("ember ")
        return text

    return run


def test_the_same_seed_gives_the_same_text(say):
    assert say("--seed", "1") == say("--seed", "1") != say("--seed", "2")


def test_the_likeliest_tokens_need_no_seed(say):
    assert say("--temperature", "0", "--seed", "1") == say("--top-k", "1", "--seed", "2")


def test_any_saved_step_can_speak(say):
    assert say("--temperature", "0") == say("--temperature", "0", "--step", "3")
    assert say("--temperature", "0", "--step", "2")


def test_several_prompts_on_two_devices_get_the_texts_they_get_alone(trained, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "start", lambda settings: None)

    def say(*arguments):
        capsys.readouterr()
        assert (
            main(["generate", str(trained), "--max-tokens", "6", "--temperature", "0", *arguments])
            == 0
        )
        return capsys.readouterr().out

    prompts = ["ember ", "quartz river sable "]
    alone = [say("--prompt", prompt) for prompt in prompts]
    both = [argument for prompt in prompts for argument in ("--prompt", prompt)]
    assert say(*both) == say(*both, "--tensor", "2") == "".join(alone)
    assert all(text.startswith(prompt) for text, prompt in zip(alone, prompts, strict=True))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--step", "7", "--max-tokens", "1"],
            "checkpoints has no checkpoint of step 7; it has [3, 2]",
        ),
        (["--temperature", "nan"], "--temperature=nan must be a number >= 0"),
        (["--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
        (
            ["--top-k", "0", "--top-p", "2"],
            "--top-k=0 must be at least 1; --top-p=2.0 must be above 0 and at most 1",
        ),
        (["--max-tokens", "0"], "--max-tokens=0 must be at least 1"),
        (
            ["--max-tokens", "2000000000"],
            "--max-tokens=2000000000 must be at least 1 and at most 1000000",
        ),
        (["--seed", "-1"], "--seed=-1 must be at least 0"),
        (
            ["--max-tokens", "127"],
            "2 tokens and max_tokens=127, together more than model.position.max_length=128",
        ),
    ],
)
def test_what_cannot_be_generated(refuse, trained, arguments, expected):
    assert expected in refuse("generate", trained, "--prompt", "e", *arguments)


def test_generating_without_a_checkpoint(refuse, tmp_path):
    assert f"{tmp_path} has no checkpoint; train first" in refuse(
        "generate", tmp_path, "--prompt", "a"
    )
    assert f"{tmp_path}/none is not a folder" in refuse(
        "generate", tmp_path / "none", "--prompt", "a"
    )


def test_settings_that_this_version_does_not_know(refuse, trained, monkeypatch):
    read = CheckpointReader.latest_record

    def of_another_version(reader):
        record = read(reader)
        return {
            **record,
            "config": {**record["config"], "model": {**record["config"]["model"], "dropout": 0.1}},
        }

    monkeypatch.setattr(CheckpointReader, "latest_record", of_another_version)
    message = refuse("generate", trained, "--prompt", "a")
    assert f"{trained}: the settings of its checkpoint are those of maxlm" in message
    assert "model.dropout is not a known key" in message


def test_generating_needs_nothing_but_the_run_directory(
    say, trained, tiny_data, tmp_path, monkeypatch
):
    """What lies at data.tokenizer may be another one by now, or nothing, and a run can be carried
    elsewhere.
    """
    text = say("--temperature", "0")
    tokenizer = tiny_data / "tokenizer.model"
    assert (trained / "tokenizer/tokenizer.model").read_bytes() == tokenizer.read_bytes()
    tokenizer.rename(tmp_path / "kept")
    try:
        assert say("--temperature", "0") == text
        tokenizer.write_text("another")
        monkeypatch.chdir(tmp_path)
        assert say("--temperature", "0") == text
    finally:
        (tmp_path / "kept").rename(tokenizer)


def test_generating_with_a_tokenizer_that_is_not_the_run_s(refuse, trained, tmp_path):
    tokenizer, other = trained / "tokenizer", tmp_path / "other"
    kept = tokenizer.rename(tmp_path / "kept")
    try:
        assert f"{tokenizer}: the model's tokenizer is missing" in refuse(
            "generate", trained, "--prompt", "a"
        )
        write_sentencepiece(tokenizer / "tokenizer.model")
        message = refuse("generate", trained, "--prompt", "a")
        tokenizer.rename(other)
        assert f"{tokenizer} is not the tokenizer that the checkpoint of step 3 was" in message
        tokenizer.mkdir()
        assert f"{tokenizer}: a folder with a tokenizer has one of" in refuse(
            "generate", trained, "--prompt", "a"
        )
    finally:
        tokenizer.rmdir()
        kept.rename(tokenizer)


def test_ids_without_a_piece_are_never_generated(tiny_data, tmp_path, monkeypatch, capsys):
    """The model's vocabulary is far larger than the tokenizer's: a hot draw would meet an id
    without a piece.
    """
    config = make_run(tiny_data, tmp_path / "run")
    config["model"]["vocab_size"] = 4096
    config["train"] |= {"num_steps": 1, "eval_every": 0}
    config["schedule"] = {}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    train(tmp_path / "run.yaml")
    monkeypatch.setattr(runtime, "start", lambda settings: None)
    arguments = ["--prompt", "ember ", "--max-tokens", "30", "--temperature", "100"]
    assert main(["generate", str(tmp_path / "run"), *arguments]) == 0
    assert capsys.readouterr().out.startswith("ember ")
