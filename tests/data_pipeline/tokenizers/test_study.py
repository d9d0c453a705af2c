"""The vocabulary study against counts by the library that made the vocabulary."""

import json

import pytest
import sentencepiece
from pydantic import TypeAdapter

from data_pipeline import prepare as prepare_module
from data_pipeline.documents import Document
from data_pipeline.tokenizers.study import Texts, try_vocabulary
from maxlm.cli import main
from maxlm.config.pipeline.tokenizer import TrainedTokenizer
from tests.data_pipeline.conftest import InProcess

BPE = TypeAdapter(TrainedTokenizer).validate_python({"kind": "bpe"})


@pytest.fixture
def texts(make_text):
    def documents(source, seeds, language=""):
        meta = {"language": language} if language else {}
        return [Document(f"{source}/{seed}", source, make_text(seed), meta) for seed in seeds]

    held_out = {
        "a": [*documents("a", range(50, 53), "en"), *documents("a", range(60, 62), "de")],
        "b": documents("b", range(70, 72)),
    }
    learned = {name: [make_text(seed) for seed in range(10)] for name in "ab"}
    return Texts(learned, held_out, {"a": 3.0, "b": 1.0})


def test_figures_are_those_of_the_library(texts, tmp_path):
    result = try_vocabulary(texts, BPE, 330, tmp_path / "330")
    model = sentencepiece.SentencePieceProcessor(
        model_proto=(tmp_path / "330/tokenizer.model").read_bytes()
    )
    assert list(result.groups) == ["a", "a/de", "a/en", "b"]
    used = set()
    for name, group in result.groups.items():
        source, _, language = name.partition("/")
        own = [
            one.text
            for one in texts.held_out[source]
            if not language or one.meta["language"] == language
        ]
        ids = [token for text in own for token in model.encode(text)]
        used |= set(ids)
        assert (group.documents, group.bytes) == (len(own), sum(len(t.encode()) for t in own))
        assert group.tokens == len(ids)
        assert group.bytes_per_token == group.bytes / len(ids)
    assert result.pieces == 330
    # <s> and </s> are no pieces of text; <unk>, which byte fallback leaves unused, counts.
    assert result.never_used == pytest.approx(1 - len(used) / 328, abs=1e-4)
    per_token = {name: result.groups[name].bytes_per_token for name in "ab"}
    assert result.mixed == pytest.approx(0.75 * per_token["a"] + 0.25 * per_token["b"])


def test_the_command_compares_on_what_the_steps_leave(run_config, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prepare_module, "build_engine", lambda _: InProcess())
    run = run_config(pipeline={"steps": [{"kind": "language", "languages": {"en": 0.0}}]})
    path, output = tmp_path / "run.json", tmp_path / "study.json"
    path.write_text(run.model_dump_json(exclude_unset=True))
    command = ["data", "vocabulary", str(path), "--sizes", "400", "300", "--kinds", "bpe"]
    assert main([*command, "byte_bpe", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["vocabularies"]
    assert [(row["kind"], row["asked"]) for row in rows] == [
        (kind, size) for kind in ("bpe", "byte_bpe") for size in (300, 400)
    ]
    for few, more in (rows[:2], rows[2:]):
        assert few["mixed"] < more["mixed"]
        assert few["groups"].keys() <= {"text", "text/en"}
        # The run's model ties its two tables or not: 8 numbers a row and table, nothing else.
        tables = 1 if run.model.tie_embeddings else 2
        assert few["vocabulary_parameters"] == tables * 8 * 300
        assert more["parameters"] - few["parameters"] == tables * 8 * 100
        assert more["flops_per_token"] - few["flops_per_token"] == 6 * 8 * 100
        per_byte = few["flops_per_token"] / few["mixed"]
        assert few["flops_per_byte"] == pytest.approx(per_byte, rel=1e-3)
    shown = capsys.readouterr().out
    assert "byte_bpe" in shown
    assert f"{rows[0]['mixed']:.3f}" in shown
    assert main([*command, "--measure-mb", "0"]) == 2
