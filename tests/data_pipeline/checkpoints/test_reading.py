"""What a trained model makes of documents: against one document at a time in double precision."""

import json
import math
import random
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline.checkpoints.loading import check_model, memory_named
from data_pipeline.checkpoints.packing import pack
from data_pipeline.checkpoints.reading import Reader
from data_pipeline.classifier.model import load_classifier
from data_pipeline.documents import Document, Dropped
from data_pipeline.engine.isolation.limits import DeviceMemoryError
from data_pipeline.steps.filters.classifier import ClassifierStep
from data_pipeline.steps.filters.perplexity import Perplexity
from maxlm import cli
from maxlm.config.errors import UserError
from maxlm.config.pipeline.checkpoint import ScoringCheckpoint
from maxlm.config.pipeline.filters.classifier import ClassifierConfig
from maxlm.config.pipeline.filters.perplexity import PerplexityConfig

TEXTS = [
    "theorem proof " * 3,
    "buy cheap \u00e9\U0001f600",
    "",
    "x",
    "a long text of unseen words, over and over. " * 20,
    "proof",
]


def documents(texts):
    return iter([Document(f"a/{n}", "a", text, {"n": n}) for n, text in enumerate(texts)])


def scoring(published, **settings):
    return {"path": str(published), "max_tokens": 40, "rows": 2} | settings


def test_rows_hold_every_item_once_and_in_order():
    draw = random.Random(1)
    items = [(n, draw.choices(range(1, 50), k=draw.randint(1, 12))) for n in range(200)]
    seen = []
    for packed in pack(iter(items), rows=3, length=12):
        assert packed.tokens.shape == packed.segments.shape == (3, 12)
        used = np.zeros((3, 12), int)
        for item, row, start, stop in packed.places:
            seen.append((item, packed.tokens[row, start:stop].tolist()))
            assert len(set(packed.segments[row, start:stop])) == 1
            used[row, start:stop] += 1
        np.testing.assert_array_equal(used, packed.segments > 0)
        for row in packed.segments:
            inside = row[row > 0]
            assert (np.diff(inside) >= 0).all()
    assert seen == items


def test_bits_are_those_of_each_document_alone(published, model):
    reader = Reader(ScoringCheckpoint.model_validate(scoring(published)))
    found = dict(reader.bits_per_byte(enumerate(TEXTS)))
    assert list(found) == list(range(len(TEXTS)))
    tokenizer = model.tokenizer
    for number, text in enumerate(TEXTS):
        ids = tokenizer.encode(text)[:40]
        if not ids:
            assert math.isnan(found[number])
            continue
        logits = model.logits([tokenizer.bos_id, *ids]).astype(np.float64)
        bits = 0.0
        for place, token in enumerate(ids):
            odds = np.exp(logits[place] - logits[place, token])
            bits += math.log2(odds.sum())
        size = len(tokenizer.decode(ids).encode()) if len(ids) < 40 else None
        size = size or int(tokenizer.bytes_of(np.array(ids), np.array([1, *ids[:-1]])).sum())
        assert found[number] == pytest.approx(bits / size, rel=1e-5)
    assert len(tokenizer.encode(TEXTS[4])) > 40, "cut"


def test_buckets_by_bits_per_byte(published):
    step = Perplexity(PerplexityConfig(checkpoint=scoring(published)))
    outcomes = list(step(documents(TEXTS)))
    bits = [one.meta.get("bits_per_byte") for one in outcomes]
    assert [one.id for one in outcomes] == [f"a/{n}" for n in range(len(TEXTS))]
    assert bits[2] is None, "an empty text has none"
    assert all("perplexity_bucket" not in one.meta for one in outcomes)
    known = sorted(value for value in bits if value is not None)
    bounds = {"max_head": known[1], "max_middle": known[3]}
    step = Perplexity(PerplexityConfig(checkpoint=scoring(published), keep=("head",), **bounds))
    kept = [one for one in step(documents(TEXTS)) if not isinstance(one, Dropped)]
    assert [one.meta["bits_per_byte"] for one in kept] == [v for v in bits if v in known[:2]]
    assert {one.meta["perplexity_bucket"] for one in kept} == {"head"}
    gone = [one for one in step(documents(TEXTS)) if isinstance(one, Dropped)]
    assert {one.reason for one in gone} == {"perplexity/middle", "perplexity/tail"}


def test_a_corpus_is_sorted_by_percentiles_of_its_own(published, run_config, do, raw, tmp_path):
    (raw / "blank.txt").write_text("...")
    model = scoring(published)
    steps = [{"kind": "perplexity", "checkpoint": model, "head": 0.25, "middle": 0.5}]
    do(run_config(pipeline={"steps": steps}))
    texts = {path.name: path.read_text() for path in raw.iterdir()}
    reader = Reader(ScoringCheckpoint.model_validate(model))
    bits = {name: round(found, 4) for name, found in reader.bits_per_byte(texts.items())}
    order = sorted(bits.values())
    folder = tmp_path / "out/text"
    dropped = pq.read_table(folder / "dropped.parquet").to_pylist()
    assert {row["reason"] for row in dropped} == {"buckets/tail"}
    gone = {row["id"].rpartition("/")[2] for row in dropped}
    assert gone == {name for name, found in bits.items() if found > order[20]}
    report = json.loads((folder / "report.json").read_text())
    bounds = {"head": order[10], "middle": order[20]}
    assert report["decisions"]["01-buckets"]["up_to"] == bounds
    kept = report["steps"][-1]["values"]["perplexity_bucket"]
    assert (kept["head"], kept["middle"]) == (
        sum(found <= bounds["head"] for found in order),
        sum(bounds["head"] < found <= bounds["middle"] for found in order),
    )


def test_a_full_device_is_told_from_other_errors():
    full = RuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore")
    with (
        pytest.raises(DeviceMemoryError, match="device: RESOURCE_EXHAUSTED: 9 GB$"),
        memory_named(),
    ):
        raise full
    with pytest.raises(RuntimeError, match="other"), memory_named():
        raise RuntimeError("other")


def test_a_classifier_of_hidden_states(published, model, tmp_path, capsys):
    draw = random.Random(3)
    for name, words in (("good", ["theorem", "proof"]), ("bad", ["buy", "cheap"])):
        lines = (" ".join(draw.choices([*words, "and", "the"], k=8)) for _ in range(90))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines))
    argv = ["data", "train-classifier", str(tmp_path / "good.jsonl"), str(tmp_path / "bad.jsonl")]
    argv += ["--checkpoint", str(published), "--max-tokens", "40", "--held-out", "0.4"]
    output = tmp_path / "quality"
    assert cli.main([*argv, "--output", str(output)]) == 0
    assert "accuracy" in capsys.readouterr().out
    trained = load_classifier(output)
    assert trained.header.figures["auc"] > 0.95
    config = {"model": str(output), "checkpoint": scoring(published), "threshold": 0.5}
    step = ClassifierStep(ClassifierConfig.model_validate(config))
    texts = ["theorem and the proof", "buy the cheap", "proof proof and theorem", ""]
    good, bad, again, _ = step(documents(texts))
    assert isinstance(bad, Dropped)
    for document in (good, again):
        ids = [model.tokenizer.bos_id, *model.tokenizer.encode(document.text)]
        mean = model.hidden(ids).astype(np.float64).mean(axis=0)
        score = trained._weights @ (mean / np.linalg.norm(mean)) + trained.header.bias
        odds = math.exp(trained.header.slope * score + trained.header.shift)
        assert document.meta["classifier_score"] == pytest.approx(odds / (1 + odds), abs=1e-4)
    # Only the model that it was trained on will do, and words alone will not.
    for change, message in (
        ({"checkpoint": None}, "name it as classifier.checkpoint.path"),
        ({"checkpoint": scoring(published, max_tokens=39)}, "was trained on 40; use that"),
        ({"checkpoint": scoring(another(published, tmp_path))}, "of another model or step"),
    ):
        step = ClassifierStep(ClassifierConfig.model_validate(config | change))
        with pytest.raises(UserError, match=message):
            list(step(documents(texts)))
    with pytest.raises(UserError, match="only the step `classifier`"):
        trained.probability("theorem")


def another(published, tmp_path):
    shutil.copytree(published, tmp_path / "another")
    path = tmp_path / "another/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    return tmp_path / "another"


def test_a_model_s_files_are_looked_at_without_loading_it(published, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.checkpoints.loading._load", None)
    check_model(ScoringCheckpoint(path=str(published)))
    check_model(ScoringCheckpoint(path=str(tmp_path / "none")))  # its section says so
    for name, content, message in (
        ("config.json", "{", "config.json: damaged"),
        ("model.safetensors", "x", "model.safetensors: damaged"),
        ("tokenizer.json", "{}", "tokenizer"),
    ):
        folder = tmp_path / name
        shutil.copytree(published, folder)
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=message):
            check_model(ScoringCheckpoint(path=str(folder)))
    (tmp_path / "run/checkpoints/00000003/record").mkdir(parents=True)
    record = tmp_path / "run/checkpoints/00000003/record/record.json"
    record.write_text("{}")
    with pytest.raises(UserError, match="no tokenizer, so it reads no texts; put its folder back"):
        check_model(ScoringCheckpoint(path=str(tmp_path / "run")))
    shutil.copytree(published, tmp_path / "run/tokenizer")
    check_model(ScoringCheckpoint(path=str(tmp_path / "run")))
    record.write_text("{")
    with pytest.raises(UserError, match="record.json: damaged"):
        check_model(ScoringCheckpoint(path=str(tmp_path / "run")))


def test_which_files_say_what_a_model_is(published, tmp_path):
    section = ScoringCheckpoint(path=str(published))
    names = {path.rsplit("/", 1)[1] for path in section.files()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    for step in (3, 20):
        (tmp_path / f"checkpoints/{step:08d}/record").mkdir(parents=True)
        (tmp_path / f"checkpoints/{step:08d}/record/record.json").write_text("{}")
    (tmp_path / "checkpoints/00000030.orbax-tmp/record").mkdir(parents=True)
    newest, older = (ScoringCheckpoint(path=str(tmp_path), step=step) for step in (None, 3))
    assert (newest.chosen_step, older.chosen_step) == (20, 3)
    assert [path.split("/")[-3] for path in newest.files()] == ["00000020"]
    assert [path.split("/")[-3] for path in older.files()] == ["00000003"]
    missing = ScoringCheckpoint(path=str(tmp_path), step=4)
    (problem,) = missing.problems("x")
    assert "no checkpoint of step 4" in problem.text
    (problem,) = ScoringCheckpoint(path=str(tmp_path / "none")).problems("x")
    assert "there is no model; give the run_dir" in problem.text
