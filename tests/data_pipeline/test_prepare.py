import argparse
import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_pipeline import prepare as prepare_module
from data_pipeline import staging
from data_pipeline.manifest import read_manifest
from data_pipeline.prepared import say_mixture
from data_pipeline.report import Report
from maxlm.config.errors import UserError
from maxlm.config.schema import DataFileConfig, RunConfig
from maxlm.data.dataset import build_dataset
from maxlm.data.shards import TokenShards
from maxlm.data.shards.document_ids import trace
from maxlm.data.tokenizers import open_tokenizer
from tests.data.tokenizers.kinds import BOS, EOS, byte_level, marked, write_hf, write_tiktoken


def test_what_is_prepared_can_be_read_and_says_what_was_put_in(run_config, do, raw, tmp_path):
    (raw / "copy.txt").write_text((raw / "text00.txt").read_text())
    (raw / "empty.txt").write_text("")
    config = run_config()
    out = do(config)
    tokenizer = open_tokenizer(config.data.tokenizer)
    texts = []
    for split in ("train", "validation"):
        shards = TokenShards(tmp_path / "out/text" / split)
        shards.verify()
        tokens = shards.read(0, shards.num_tokens).tolist()
        cuts = [place for place, token in enumerate(tokens) if token == tokenizer.bos_id]
        documents = [
            tokens[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(tokens)], strict=True)
        ]
        assert all(document[-1] == tokenizer.eos_id for document in documents)
        texts += [tokenizer.decode(document) for document in documents]
        assert len(documents) == shards.num_documents > 1
    expected = {path.read_text() for path in raw.iterdir()} - {""}
    assert len(texts) == 40
    assert set(texts) == expected
    manifest = json.loads((tmp_path / "out/text/manifest.json").read_text())
    assert manifest["reading"] == {
        "documents": 41,
        "skipped": {"empty document": {"count": 1, "example": (raw / "empty.txt").as_posix()}},
    }
    assert [step["reasons"] for step in manifest["steps"]] == [{}, {"exact_dedup/document": 1}, {}]
    counted = sum(counts["bytes"] for counts in manifest["splits"].values())
    assert counted == sum(len(text.encode()) for text in expected)
    for name, figure in {
        "documents read": "41",
        "dropped: exact_dedup/document": "1",
        "gzip -9": "",
    }.items():
        assert any(name in line and figure in line for line in out.splitlines())
    assert f"text: skipped 1: empty document, such as {raw / 'empty.txt'}" in out.splitlines()
    counts = manifest["splits"]["validation"]
    assert manifest["baselines"]["targets"] == counts["tokens"] - counts["documents"]
    assert manifest["baselines"]["bits_per_byte"].keys() == {
        "uniform",
        "unigram",
        "bigram",
        "gzip -9",
    }
    dataset = build_dataset(config.data, seed=0, batch_size=2, split="train", vocab_size=400)
    assert dataset.rows(0, 2)["tokens"].shape == (2, 16)
    assert not (tmp_path / "out/text/.preparing").exists()


def test_a_file_with_data_alone_gives_what_a_run_does(run_config, do, hashes, tmp_path):
    do(run_config(out=tmp_path / "one"))
    config = run_config(out=tmp_path / "two")
    alone = DataFileConfig(data=config.data.model_copy(update={"vocab_size": 400}))
    do(alone)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    # A run that names what is prepared trains on it, and a larger model's changes nothing.
    assert "already prepared" in do(config)
    assert "already prepared" in do(alone)
    (tmp_path / "two/tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"how many pieces .*; add data\.vocab_size, such as 32000"):
        do(DataFileConfig(data=config.data))


def test_same_texts_give_the_same_bytes(run_config, do, hashes, tmp_path):
    do(run_config(out=tmp_path / "one"))
    do(run_config(out=tmp_path / "two"))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert len(hashes(tmp_path / "one")) == 12


def test_a_second_time_says_so_and_changes_nothing(run_config, do, hashes, tmp_path, raw):
    folder = tmp_path / "out/text"
    said = f"{folder}: written; to look at it: maxlm data inspect {folder}\n"
    assert said in do(run_config())
    before = hashes(tmp_path / "out")
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("*"))]
    out = do(run_config())
    assert "already prepared" in out
    assert said not in out
    assert "changed" not in out
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").rglob("*"))] == times
    (raw / "more.txt").write_text("something else")
    assert "raw text has changed since" in do(run_config())
    for path in raw.iterdir():
        path.unlink()
    assert "not there any more" in do(run_config())
    assert hashes(tmp_path / "out") == before


def test_other_settings_are_refused_unless_forced(run_config, do, hashes, tmp_path):
    do(run_config())
    before = hashes(tmp_path / "out")
    with pytest.raises(UserError, match=r"raw\.validation_fraction: 0\.2 -> 0\.5.*--force"):
        do(run_config(validation_fraction=0.5))
    with pytest.raises(UserError, match=r"400 pieces, more than model\.vocab_size=300.*--force"):
        do(run_config(vocab_size=300))
    assert "400 pieces, fewer than model.vocab_size=500" in do(run_config(vocab_size=500))
    assert hashes(tmp_path / "out") == before
    do(run_config(validation_fraction=0.5, vocab_size=300), force=True)
    assert open_tokenizer(tmp_path / "out/tokenizer.model").vocab_size == 300
    do(run_config(), force=True)
    assert hashes(tmp_path / "out") == before


def test_tokenizer_that_was_brought_along_is_used_and_never_replaced(run_config, do, tmp_path):
    do(run_config())
    model = (tmp_path / "out/tokenizer.model").read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tokenizer.model").write_bytes(model)
    config = run_config(out=tmp_path / "other", vocab_size=500)
    do(config)
    do(config, force=True)
    assert (tmp_path / "other/tokenizer.model").read_bytes() == model
    assert TokenShards(tmp_path / "other/text/train").index.vocab_size == 400


@pytest.mark.parametrize("kind", ["byte-level", "one token", "first"])
def test_a_published_tokenizer_is_used_and_its_texts_come_back(run_config, do, raw, tmp_path, kind):
    """Of every kind that stores documents otherwise: with BOS and EOS, with one token for both, and
    with a space in front.
    """
    tree = marked("first") if kind == "first" else byte_level()
    config = {"eos_token": EOS} | ({} if kind == "one token" else {"bos_token": BOS})
    folder = write_hf(tmp_path / "published", tree, config)
    run = run_config(vocab_size=2000)
    run = run.model_copy(update={"data": run.data.model_copy(update={"tokenizer": str(folder)})})
    do(run)
    tokenizer, texts = open_tokenizer(folder), set()
    for split in ("train", "validation"):
        shards = TokenShards(tmp_path / "out/text" / split)
        assert shards.index.tokenizer == tokenizer.fingerprint
        tokens = shards.read(0, shards.num_tokens)
        starts = np.flatnonzero(tokens == tokenizer.bos_id)
        texts |= {tokenizer.decode(document) for document in np.split(tokens, starts)[1:]}
        manifest = read_manifest(tmp_path / "out/text")
        counted = int(tokenizer.bytes_of(tokens[1:], tokens[:-1]).sum())
        assert counted == manifest["splits"][split]["bytes"]
    assert texts == {path.read_text() for path in raw.iterdir()}
    assert "already prepared" in do(run)


@pytest.mark.parametrize(
    ("kind", "name", "cure"),
    [
        ("bpe", "tokenizer.json", r"tokenizer\.model"),
        ("unigram", "x.tiktoken", r"x\.model"),
        ("byte_bpe", "tokenizer.model", r"tokenizer\.json"),
        ("wordpiece", "tokenizer", r"tokenizer\.json"),
    ],
)
def test_tokenizers_of_other_kinds_are_not_trained(run_config, do, tmp_path, kind, name, cure):
    run = run_config(pipeline={"tokenizer": {"kind": kind}})
    data = run.data.model_copy(update={"tokenizer": str(tmp_path / name)})
    text = rf"{name}: there is no such tokenizer, .*kind={kind} .*use data\.tokenizer=\S*/{cure}"
    with pytest.raises(UserError, match=text):
        do(run.model_copy(update={"data": data}))


def test_a_byte_level_tokenizer_is_trained_beside_its_config(run_config, do, hashes, tmp_path):
    path = tmp_path / "out/tokenizer.json"

    def run(**tokenizer):
        made = run_config(pipeline={"tokenizer": {"kind": "byte_bpe", **tokenizer}})
        data = made.data.model_copy(update={"tokenizer": str(path)})
        return made.model_copy(update={"data": data})

    path.parent.mkdir()
    beside = path.with_name("tokenizer_config.json")
    beside.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: this file belongs to"):
        do(run())
    beside.unlink()
    do(run())
    before, tokenizer = hashes(tmp_path / "out"), open_tokenizer(path)
    assert 258 < tokenizer.vocab_size <= 400, "a few words do not have more pairs"
    assert TokenShards(tmp_path / "out/text/train").index.tokenizer == tokenizer.fingerprint
    assert "already prepared" in do(run())
    with pytest.raises(UserError, match=r"other settings: pattern cl100k -> r50k.*--force"):
        do(run(pattern="r50k"))
    do(run(pattern="r50k"), force=True)
    assert open_tokenizer(path).fingerprint != tokenizer.fingerprint
    do(run(), force=True)
    assert hashes(tmp_path / "out") == before


def test_a_file_beside_a_tokenizer_that_was_brought_along_is_no_mark(run_config, do, tmp_path):
    """A tiktoken file has its JSON where `prepare` marks what it has trained."""
    path = write_tiktoken(tmp_path / "out")
    for suffix in ("", ".json"):
        path.with_name(f"{path.name}{suffix}").rename(tmp_path / f"out/tokenizer.model{suffix}")
    before = (tmp_path / "out/tokenizer.model").read_bytes()
    do(run_config(vocab_size=2000))
    do(run_config(vocab_size=2000), force=True)
    assert (tmp_path / "out/tokenizer.model").read_bytes() == before


def test_lost_tokenizer_is_trained_again(run_config, do, hashes, tmp_path):
    do(run_config())
    before = hashes(tmp_path / "out")
    (tmp_path / "out/tokenizer.model").unlink()
    do(run_config())
    assert hashes(tmp_path / "out") == before


def test_sources_without_raw_are_left_alone(run_config, do, tmp_path):
    settings = run_config().model_dump()
    settings["data"]["sources"]["given"] = {"path": str(tmp_path / "given")}
    do(RunConfig.model_validate(settings))
    assert not (tmp_path / "given").exists()
    settings["data"]["sources"].pop("text")
    with pytest.raises(UserError, match="nothing to prepare"):
        do(RunConfig.model_validate(settings))


@pytest.fixture
def more_raw(raw, make_text):
    """A second folder: twenty files whose text, or nearly it, is in the first one too, and twenty
    others.
    """
    folder = raw.with_name("more_raw")
    folder.mkdir()
    for number in range(40):
        shared = make_text(number).replace("\n", " \n") + ("" if number % 4 else " end")
        (folder / f"other{number:02}.txt").write_text(
            shared if number % 2 == 0 else make_text(1000 + number)
        )
    return folder


def with_more(settings, more_raw, path):
    """Return the run with a second source, first in the order of names."""
    text = settings["data"]["sources"]["text"]
    more = text | {"path": str(path), "raw": text["raw"] | {"paths": (str(more_raw),)}}
    return RunConfig.model_validate(
        settings | {"data": settings["data"] | {"sources": {"text": text, "more": more}}}
    )


def protecting(config, *names):
    """Return the run with sources that lose nothing."""
    settings = config.model_dump()
    for step in settings["data"]["pipeline"]["steps"]:
        step["protect"] = names
    return RunConfig.model_validate(settings)


def documents_of(config):
    """Return {(source, split): the documents' texts, white space collapsed}."""
    tokenizer, documents = open_tokenizer(config.data.tokenizer), {}
    for name, source in config.data.sources.items():
        for split in ("train", "validation"):
            shards = TokenShards(Path(source.path) / split)
            tokens = shards.read(0, shards.num_tokens)
            texts = map(
                tokenizer.decode, np.split(tokens, np.flatnonzero(tokens == tokenizer.bos_id))[1:]
            )
            documents[name, split] = {" ".join(text.split()).removesuffix(" end") for text in texts}
    return documents


@pytest.mark.parametrize("together", [True, False])
def test_a_text_in_two_sources_is_in_one_split(run_config, do, more_raw, tmp_path, together):
    settings = run_config().model_dump()
    config = with_more(settings, more_raw, tmp_path / "out/more")
    if not together:
        do(RunConfig.model_validate(settings))
    do(config)
    documents = documents_of(config)
    assert sum(map(len, documents.values())) == len(set.union(*documents.values())) == 60
    steps = json.loads((tmp_path / "out/more/manifest.json").read_text())["steps"]
    assert [step["reasons"] for step in steps[1:]] == [
        {"exact_dedup/document": 10},
        {"near_dedup": 10},
    ]
    assert "already prepared" in do(config)


@pytest.mark.parametrize(
    ("names", "text", "more"), [(("more",), 20, 40), (("more", "text"), 40, 40)]
)
def test_a_protected_source_keeps_its_copies(run_config, do, more_raw, tmp_path, names, text, more):
    config = with_more(run_config().model_dump(), more_raw, tmp_path / "out/more")
    do(protecting(config, *names))
    left = documents_of(config)
    assert len(left["text", "train"] | left["text", "validation"]) == text
    assert len(left["more", "train"] | left["more", "validation"]) == more


def test_a_source_whose_text_is_gone_cannot_be_compared(run_config, do, more_raw, raw, tmp_path):
    settings = run_config().model_dump()
    do(RunConfig.model_validate(settings))
    (raw / "text00.txt").write_text("something else")
    for what in ("has changed since", "is not there any more"):
        with pytest.raises(
            UserError, match=rf"out/text: prepared already, but its raw text {what}.*--force"
        ):
            do(with_more(settings, more_raw, tmp_path / "out/more"))
        raw = raw.rename(raw.with_name("moved"))
    # Settings are those of a run: with others, what is prepared is not what the run asks for.
    with pytest.raises(UserError, match=r"steps\.0-exact_dedup\.protect: \[\] -> \['more'\]"):
        do(protecting(with_more(settings, more_raw, tmp_path / "out/more"), "more"))


def test_sources_that_were_never_compared_are_refused(run_config, do, more_raw, tmp_path):
    settings = run_config().model_dump()
    do(RunConfig.model_validate(settings))
    both = with_more(settings, more_raw, tmp_path / "out/more")
    alone = both.model_dump()
    alone["data"]["sources"].pop("text")
    do(RunConfig.model_validate(alone))
    with pytest.raises(
        UserError, match=r"out/text and .*out/more were prepared by different runs.*--force"
    ):
        do(both)
    do(both, force=True)
    assert "already prepared" in do(both)


def test_special_files_in_the_place_of_what_is_read(run_config, do, tmp_path):
    do(run_config())
    for name in (
        "text/manifest.json",
        "text/train/index.json",
        "text/train/shard-00000.tokens",
        "tokenizer.model",
    ):
        path = tmp_path / "out" / name
        kept = path.rename(tmp_path / "kept")
        os.mkfifo(path)
        with pytest.raises(UserError, match=path.name):
            do(run_config())
        kept.rename(path)
    assert "already prepared" in do(run_config())


def test_two_sources_share_a_tokenizer_and_one_is_added_later(
    run_config, do, hashes, more_raw, tmp_path
):
    settings = run_config().model_dump()
    do(RunConfig.model_validate(settings))
    before = hashes(tmp_path / "out/text")
    config = with_more(settings, more_raw, tmp_path / "out/more")
    out = do(config)
    assert "more: tokenize" in out
    assert "text: tokenize" not in out
    assert hashes(tmp_path / "out/text") == before
    build_dataset(config.data, seed=0, batch_size=2, split="train").rows(0, 2)
    # What the run will read of them is said, or why it cannot.
    for settings, expected in (
        ({}, ["source", "more", "text", "(tokens"]),
        ({"tokens": 1e9}, ["the"]),
    ):
        sources = {
            name: source.model_copy(update=settings) for name, source in config.data.sources.items()
        }
        data = config.data.model_copy(update={"sources": sources})
        out = io.StringIO()
        say_mixture(
            config.model_copy(update={"data": data}), Report(Console(file=out, soft_wrap=True))
        )
        assert [line.split()[0] for line in out.getvalue().splitlines()] == expected


def test_damage_is_named_and_force_repairs_it(run_config, do, hashes, tmp_path):
    do(run_config())
    before = hashes(tmp_path / "out")
    os.truncate(tmp_path / "out/text/train/shard-00000.tokens", 100)
    with pytest.raises(UserError, match=r"shard-00000\.tokens.*--force"):
        do(run_config())
    (tmp_path / "out/text/manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json.*--force"):
        do(run_config())
    do(run_config(), force=True)
    assert hashes(tmp_path / "out") == before


def test_other_people_s_files_are_never_replaced(run_config, do, tmp_path):
    (tmp_path / "out/text/train").mkdir(parents=True)
    (tmp_path / "out/text/train/thesis.txt").write_text("x")
    for force in (False, True):
        with pytest.raises(UserError, match="something other than token shards is there"):
            do(run_config(), force=force)
    assert (tmp_path / "out/text/train/thesis.txt").read_text() == "x"


def test_shards_without_a_manifest_are_replaced_only_by_force(run_config, do, tmp_path):
    do(run_config())
    (tmp_path / "out/text/manifest.json").unlink()
    with pytest.raises(UserError, match=r"without manifest\.json.*--force"):
        do(run_config())
    do(run_config(), force=True)


def test_two_at_once_are_refused(run_config, do, tmp_path):
    stage = tmp_path / "out/text/.preparing"
    stage.mkdir(parents=True)
    lock = os.open(stage, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another `maxlm prepare` is writing here"):
        do(run_config())
    os.close(lock)
    do(run_config())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_disk_that_refuses(run_config, do, hashes, tmp_path, monkeypatch, number):
    do(run_config())
    before = hashes(tmp_path / "out")

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(
            UserError, match=r"out/(text|\.work).*: .*(free some space|use another path)"
        ):
            do(run_config(validation_fraction=0.5), force=True)
    assert hashes(tmp_path / "out") == before
    do(run_config())


def test_path_below_a_file(run_config, do, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out"):
        do(run_config())


@pytest.mark.parametrize("call", range(5))
def test_stop_at_any_rename_starts_again_cleanly(
    run_config, do, hashes, tmp_path, monkeypatch, call
):
    do(run_config(out=tmp_path / "expected", validation_fraction=0.5))
    do(run_config())
    calls = iter(range(100))
    rename = staging.Path.rename

    def stopped(self, target):
        if next(calls) == call:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(staging.Path, "rename", stopped)
        if call < 4:
            with pytest.raises(KeyboardInterrupt):
                do(run_config(validation_fraction=0.5), force=True)
            assert not (tmp_path / "out/text/manifest.json").exists()
    do(run_config(validation_fraction=0.5), force=call == 4)
    assert hashes(tmp_path / "out/text") == hashes(tmp_path / "expected/text")


def test_killed_at_any_moment_goes_on_to_the_same_bytes(
    run_config, hashes, tmp_path, do, monkeypatch
):
    do(run_config(out=tmp_path / "expected"))
    run_file = tmp_path / "run.json"
    run_file.write_text(run_config().model_dump_json())
    program = (
        "import sys; from data_pipeline.prepare import prepare; from data_pipeline.report import Report;"
        "from maxlm.config.schema import RunConfig;"
        "config = RunConfig.model_validate_json(open(sys.argv[1]).read()); print('ready', flush=True);"
        "prepare(config, force=False, report=Report())"
    )
    said = []
    for lines in range(1, 14, 2):  # killed soon after it has told so many steps
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(run_file)], stdout=subprocess.PIPE, text=True
        )
        told = [process.stdout.readline() for _ in range(lines)]
        time.sleep(0.01 * lines)
        process.send_signal(signal.SIGKILL)
        said.append(
            [line.partition(":")[0] for line in told + process.communicate()[0].split("\n")]
        )
        if "Prepared text" in said[-1]:
            break
    assert sum("read" in names for names in said) == 1  # what was finished is not done again
    monkeypatch.undo()
    do(run_config())
    assert hashes(tmp_path / "out") == hashes(tmp_path / "expected")


def test_the_command(tmp_path, raw, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "run_dir: runs/x\n"
        "model: {vocab_size: 300, num_layers: 1, embed_dim: 8, block: "
        "{mixer: {kind: attention, num_heads: 1, head_dim: 8}, ffn: {kind: mlp, hidden_dim: 8}}}\n"
        "data:\n  sources: {text: {path: data/text, raw: {kind: files, paths: [raw]}}}\n"
        "  tokenizer: data/tokenizer.model\n  sequence_length: 16\n"
        "train: {num_steps: 1, batch_size: 8}\n"
    )
    arguments = argparse.Namespace(
        config="run.yaml", overrides=["model.vocab_size=310"], force=False
    )
    assert prepare_module.run(arguments) == 0
    assert open_tokenizer("data/tokenizer.model").vocab_size == 310
    assert "train tokens" in capsys.readouterr().out
    arguments.overrides += ["data.sources.text.raw.paths=[nothing]"]
    arguments.force = True
    with pytest.raises(
        UserError, match=r"data\.sources\.text\.raw\.paths: nothing: there is no such"
    ):
        prepare_module.run(arguments)


def test_passages_that_are_masked_are_read_and_not_learned(run_config, do, raw, tmp_path):
    """A passage in five documents, some of them cut into pieces, and nothing else is masked; every
    other byte of the folder is as without the step.
    """
    passage = " ".join(f"planted{number}" for number in range(30))
    texts = {}
    for number, path in enumerate(sorted(raw.iterdir())):
        words = [f"w{number}x{place}" for place in range(30 + 2 * number)]
        if number % 8 == 0:
            words.insert(10 + number, passage)
        texts[path.name] = " ".join(words)
        path.write_text(texts[path.name])
    settings = {"vocab_size": 500, "max_document_bytes": 400}
    mask = {"kind": "substring_dedup", "min_tokens": 20, "keep": "none", "action": "mask"}
    do(run_config(pipeline={"steps": [mask]}, **settings))
    tokenizer = open_tokenizer(tmp_path / "out/tokenizer.model")
    counted, hidden = dict.fromkeys(("train", "validation"), 0), {}
    for split in counted:
        shards = TokenShards(tmp_path / "out/text" / split)
        masked, tokens = (read(0, shards.num_tokens) for read in (shards.read_masked, shards.read))
        for span in trace(shards, 0, shards.num_tokens):
            ids, bits = (array[span.start : span.stop] for array in (tokens, masked))
            assert not bits[[0, -1]].any(), "BOS and EOS"
            hidden[span.id] = tokenizer.decode(ids[bits])
        counted[split] = int(masked.sum())
        assert shards.num_targets == shards.num_tokens - shards.num_documents - counted[split]
    assert any(identity.endswith("#2") and found for identity, found in hidden.items())
    for name, text in texts.items():
        pieces = sorted(
            identity for identity in hidden if Path(identity.partition("#")[0]).name == name
        )
        found = "".join(hidden[identity] for identity in pieces)
        if passage in text:
            # A token at an edge may be of both; a space in front belongs to a word's token.
            assert passage in found
            assert len(found) <= len(passage) + 2
        else:
            assert not found
    manifest = read_manifest(tmp_path / "out/text")
    assert {split: n["masked_tokens"] for split, n in manifest["splits"].items()} == counted
    do(run_config(out=tmp_path / "plain", pipeline={"steps": []}, **settings))
    for split in counted:
        for name in ("shard-00000.tokens", "shard-00000.documents.parquet"):
            one, two = (tmp_path / out / "text" / split / name for out in ("out", "plain"))
            assert one.read_bytes() == two.read_bytes()


def test_texts_do_not_change_behind_a_step_that_marks_places(run_config):
    mask = {"kind": "substring_dedup", "action": "mask"}
    late = [{"kind": "pii"}, {"kind": "heuristics", "rules": ["c4"]}, {"kind": "near_dedup"}]
    run = run_config(pipeline={"steps": [{"kind": "pii"}, mask, *late]})
    found = [
        problem.path
        for problem in run.data.pipeline.steps[1].problems("data.pipeline.steps.1", run.data)
    ]
    assert found == ["data.pipeline.steps.2", "data.pipeline.steps.3"]
