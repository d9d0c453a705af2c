"""`maxlm import` and `maxlm export`: what they write, what they say, and what they refuse."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import maxlm
from maxlm import runtime
from maxlm.checkpoint import CheckpointReader
from maxlm.cli import main
from maxlm.config import load_run
from tests.train.conftest import make_run, train

FIXTURES = Path(__file__).parents[1] / "checkpoint/hf/fixtures"


@pytest.fixture(autouse=True)
def jax_runs_here(monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda settings: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small published model with files besides its weights, one of them code."""
    folder = tmp_path_factory.mktemp("source") / "llama"
    shutil.copytree(FIXTURES / "llama3", folder)
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "LICENSE").write_text("as you like")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (folder / "modeling_llama.py").write_text("raise SystemExit")
    return folder


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "llama"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "start", lambda settings: None)
        assert main(["import", str(source), str(folder), "--vocab-multiple", "10"]) == 0
    return folder


def test_an_import_is_a_checkpoint_a_model_and_the_files_besides(source, imported, capsys):
    assert CheckpointReader(imported / "checkpoints").steps() == [0]
    kept = {path.name for path in (imported / "published").iterdir()}
    assert kept == {"tokenizer.json", "LICENSE", "generation_config.json"}
    assert yaml.safe_load((imported / "model.yaml").read_text())["model"]["vocab_size"] == 70
    assert not list(imported.parent.glob("*.unfinished"))
    record = CheckpointReader(imported / "checkpoints").latest_record()
    assert record["published"]["ends"] == [2, 5]


def test_its_model_yaml_is_a_run_s(imported, tmp_path):
    run = make_run(tmp_path, tmp_path / "run")
    del run["model"]
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"include": str(imported / "model.yaml"), **run})
    )
    config = load_run(tmp_path / "run.yaml").config
    record = CheckpointReader(imported / "checkpoints").latest_record()
    assert config.model.model_dump(mode="json") == record["config"]["model"]


def test_an_export_of_an_import_is_what_was_imported(source, imported, tmp_path, capsys):
    assert main(["export", str(imported), str(tmp_path / "out")]) == 0
    assert "as llama, in float32" in capsys.readouterr().out
    out = tmp_path / "out"
    written, read = (load_file(folder / "model.safetensors") for folder in (out, source))
    assert written.keys() == read.keys()
    assert all(written[name].tobytes() == read[name].tobytes() for name in read)
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (source, out))
    rope = was.pop("rope_parameters")
    assert now.pop("rope_theta") == rope.pop("rope_theta")
    assert now.pop("rope_scaling") == rope
    assert now.pop("torch_dtype") == was.pop("dtype")
    del was["transformers_version"]
    assert now == was
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "SHA256SUMS"),
        *("tokenizer.json", "LICENSE", "generation_config.json"),
    }
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [2, 5]}
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest


def test_other_dtypes(imported, tmp_path):
    main(["export", str(imported), str(tmp_path / "out"), "--dtype", "float16"])
    values = load_file(tmp_path / "out/model.safetensors")
    wanted = load_file(FIXTURES / "llama3/model.safetensors")
    for name, value in values.items():
        assert value.tobytes() == wanted[name].astype("float16").tobytes()
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float16"


def test_train_on_and_export(tiny_data, tmp_path, capsys):
    """Published weights of 64 tokens, a run with a tokenizer of 320: two steps, then written."""
    run = make_run(tiny_data, tmp_path / "run")
    published = shutil.copytree(FIXTURES / "llama2", tmp_path / "published")
    # Of these the run's tokenizer has 1 and 2 as special tokens, the second as its EOS.
    (published / "generation_config.json").write_text('{"eos_token_id": [1, 40]}')
    assert main(["import", str(published), str(tmp_path / "weights")]) == 0
    run["model"] = yaml.safe_load((tmp_path / "weights/model.yaml").read_text())["model"]
    run["model"]["vocab_size"] = 328
    run["train"] |= {"num_steps": 2, "eval_every": 0, "init_from": str(published)}
    run["schedule"] = {}
    run["checkpoint"] = {"every": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    train(tmp_path / "run.yaml")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), str(out), "--dtype", "bfloat16"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["model_type"]) == (320, "llama")
    generation = json.loads((out / "generation_config.json").read_text())
    assert config["eos_token_id"] == generation["eos_token_id"] == [2, 1]
    assert (out / "tokenizer.model").read_bytes() == (tiny_data / "tokenizer.model").read_bytes()
    again = tmp_path / "again"
    assert main(["import", str(out), str(again)]) == 0
    assert "a llama" in capsys.readouterr().out
    # What was imported, the folder itself, and the run in bf16 are one model, tokenizer included.
    models = [maxlm.load(path, dtype="float32") for path in (again, out, tmp_path / "run")]
    tokens = models[0].tokenizer.encode("ember quartz")
    logits = [model.logits(tokens) for model in models]
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_allclose(logits[0], logits[2], atol=0.02 * np.abs(logits[0]).max())
    assert main(["generate", str(again), "--prompt", "ember ", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("ember ")


def test_the_text_model_of_text_and_images(refuse, tmp_path, capsys):
    whole = FIXTURES.parent / "multimodal/gemma3_images"
    assert "text and images" in refuse("import", whole, tmp_path / "in")
    assert main(["import", str(whole), str(tmp_path / "in"), "--text-only"]) == 0
    assert (
        "skipped multi_modal_projector.* (2 tensors), vision_tower.* (" in capsys.readouterr().err
    )
    assert main(["export", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["model_type"], config["eos_token_id"]) == ("gemma3_text", 2)
    written = load_file(tmp_path / "out/model.safetensors")
    read = {
        name.removeprefix("language_model."): values
        for name, values in load_file(whole / "model.safetensors").items()
        if name.startswith("language_model.")
    }
    assert written.keys() == read.keys()
    assert all(written[name].tobytes() == read[name].tobytes() for name in read)


def test_check_needs_transformers(refuse, source, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refuse("import", source, tmp_path / "x", "--check")
    assert "torch and transformers cannot be found; install what it needs with: pip" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["llama3", "gpt2"])
def test_check_compares_with_transformers(name, tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    assert main(["import", str(FIXTURES / name), str(tmp_path / "in"), "--check"]) == 0
    assert re.search(r"are those of transformers \S+ to \d\.\de-0[5-8]", capsys.readouterr().out)
    monkeypatch.setattr("maxlm.convert.check.TOLERANCE", 1e-12)
    assert main(["import", str(FIXTURES / name), str(tmp_path / "again"), "--check"]) == 1
    assert "differ from those of transformers" in capsys.readouterr().err


def test_what_cannot_be_imported(refuse, source, imported, tmp_path):
    assert f"{imported} is there already" in refuse("import", source, imported)
    assert "has no config.json" in refuse("import", tmp_path, tmp_path / "x")
    assert "--vocab-multiple=0" in refuse("import", source, tmp_path / "x", "--vocab-multiple", "0")
    odd = tmp_path / "a[1]"
    assert f"CHECKPOINT_DIR={str(odd)!r}" in refuse("import", source, odd)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_an_import_that_fails(refuse, source, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    assert "model.embed_tokens.weight: shape [64, 32], not [64, 64]" in refuse(
        "import", broken, tmp_path / "out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_what_cannot_be_exported(refuse, imported, tmp_path):
    out = tmp_path / "out"
    assert "has no checkpoint" in refuse("export", tmp_path, out)
    assert "--step=3: " in refuse("export", imported, out, "--step", "3")
    assert "gpt2: model.position.kind='none'" in refuse("export", imported, out, "--family", "gpt2")
    assert "--family=x is not known" in refuse("export", imported, out, "--family", "x")
    out.mkdir()
    (out / "mine").write_text("kept")
    assert "is there already" in refuse("export", imported, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_value_that_float16_cannot_hold(refuse, source, tmp_path):
    large = tmp_path / "large"
    shutil.copytree(source, large)
    tensors = load_file(large / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, large / "model.safetensors")
    assert main(["import", str(large), str(tmp_path / "in")]) == 0
    message = refuse("export", tmp_path / "in", tmp_path / "out", "--dtype", "float16")
    assert "model.norm.weight has 1e+06, which float16 cannot hold; use --dtype bfloat16" in message
    assert not (tmp_path / "out").exists()
