"""Steps that read files of the user's, in a whole run: a changed file is another step."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline import preparation
from data_pipeline.classifier.model import Classifier, Header
from data_pipeline.documents import Document
from data_pipeline.ngrams.storage import save_ngrams
from data_pipeline.ngrams.training import Recipe, train
from data_pipeline.stages.mapping import MappingStage
from data_pipeline.stages.shards import DocumentShard
from data_pipeline.steps.filters.classifier import ClassifierStep
from maxlm.config.errors import ConfigError, UserError
from maxlm.config.pipeline import PipelineConfig
from maxlm.config.pipeline.filters.classifier import ClassifierConfig


def identities(step: dict, folder: Path) -> set[str]:
    """Return the identity of a step's task."""
    [section] = PipelineConfig.model_validate({"steps": [step]}).steps
    shard = DocumentShard(0, folder / "0.parquet", "0" * 64, "text", 1, 1)
    return {task.identity for task in MappingStage("01", section, folder).tasks([shard])}


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "toxicity", "lexicon": {"files": ["NAME"]}},
        {"kind": "toxicity", "model": "NAME"},
        {"kind": "classifier", "model": "NAME"},
        {"kind": "perplexity", "model": "NAME"},
        {"kind": "url", "words": {"files": ["NAME"]}},
        {"kind": "url", "robots_files": ["NAME"]},
    ],
)
def test_another_content_is_another_task(tmp_path, settings) -> None:
    path = tmp_path / "file"
    step = json.loads(json.dumps(settings).replace("NAME", str(path)))
    with pytest.raises(UserError, match="file: cannot be read: No such file"):
        identities(step, tmp_path)
    path.write_text("one")
    first = identities(step, tmp_path)
    path.write_text("two")
    assert identities(step, tmp_path) != first
    path.write_text("one")
    assert identities(step, tmp_path) == first


def test_a_whole_run(run_config, do, raw, make_text, tmp_path) -> None:
    weights = np.zeros(2**8, np.float32)
    Classifier(Header(bits=8, bias=1.0), weights).save(tmp_path / "classifier")
    recipe = Recipe(order=3, held_out=0.3)
    (tmp_path / "work").mkdir()
    texts = [make_text(seed) for seed in range(100, 160)]
    save_ngrams(train(texts, recipe, tmp_path / "work").model, tmp_path / "ngrams")
    (tmp_path / "words.txt").write_text("unwanted\n")
    (raw / "bad.txt").write_text("An unwanted text " * 10)
    (raw / "odd.txt").write_text("zzz yyy xxx " * 30)
    steps = [
        {"kind": "toxicity", "lexicon": {"files": [str(tmp_path / "words.txt")]}},
        {"kind": "classifier", "model": str(tmp_path / "classifier"), "score": "quality"},
        {"kind": "top_fraction", "score": "quality", "fraction": 0.5},
        {"kind": "perplexity", "model": str(tmp_path / "ngrams"), "middle": 1.0},
    ]
    do(run_config(pipeline={"steps": steps}))
    dropped = pq.read_table(tmp_path / "out/text/dropped.parquet").to_pylist()
    found = {Path(row["id"]).name: row["reason"] for row in dropped}
    assert found["bad.txt"] == "toxicity/max_count"
    # All scores are equal, so the first half stays.
    assert found["odd.txt"] == "perplexity/tail"
    last = {f"text{number}.txt" for number in range(20, 40)}
    assert {name for name, reason in found.items() if reason == "top_fraction"} == last


def test_steps_that_leave_nothing_are_named(run_config, do, raw) -> None:
    steps = [{"kind": "toxicity", "lexicon": ["e", "a"], "max_count": 0}, {"kind": "licence"}]
    (raw / "odd.txt").write_text("a word")
    with pytest.raises(UserError) as caught:
        do(run_config(pipeline={"steps": steps}))
    assert "no document is left of what was read" in str(caught.value)
    assert "01-toxicity dropped 1 as toxicity/max_count, such as 1, such as a" in str(caught.value)
    assert re.search(r"; 02-licence dropped \d+ as licence/missing$", str(caught.value))


def test_a_classifier_of_words_takes_no_checkpoint(tmp_path) -> None:
    path = str(tmp_path / "classifier")
    Classifier(Header(bits=8, bias=1.0), np.zeros(2**8, np.float32)).save(tmp_path / "classifier")
    config = ClassifierConfig(model=path, checkpoint={"path": "runs/x"})
    with pytest.raises(UserError, match="was trained on words; remove the setting"):
        list(ClassifierStep(config)(iter([Document("a", "s", "Some text.", {})])))
    config = ClassifierConfig(model="a.bin", label="good", checkpoint={"path": "runs/x"})
    assert "p.checkpoint: a.bin reads words alone; remove the setting" in [
        problem.text for problem in config.problems("p", None)
    ]


def test_all_files_are_opened_before_the_first_document_is_read(
    run_config, do, tmp_path, monkeypatch
) -> None:
    def damaged(name: str, content: str = "no such file") -> str:
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    Classifier(Header(checkpoint="0" * 64, max_tokens=9), np.ones(4, np.float32)).save(
        tmp_path / "states"
    )
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/config.json").write_text("{")
    empty, arpa = (
        damaged("empty.txt", "# nothing\n\n"),
        "\\data\\\nngram 1=1\n\n\\1-grams:\n-1\ta\n",
    )
    broken = damaged("bad.jsonl", '{"text": ')
    absent = str(tmp_path / "absent")
    steps = [
        {"kind": "toxicity", "lexicon": {"files": [empty]}, "model": str(tmp_path / "states")},
        {"kind": "url", "domains": {"files": [empty, absent]}, "robots_files": [empty]},
        {"kind": "classifier", "model": damaged("quality")},
        {"kind": "classifier", "model": damaged("fasttext.bin"), "label": "good"},
        {"kind": "classifier", "model": str(tmp_path / "states")},
        {"kind": "perplexity", "model": damaged("ngrams")},
        {
            "kind": "perplexity",
            "model": damaged("words.arpa", arpa),
            "max_head": 9,
            "max_middle": 9,
        },
        {"kind": "perplexity", "checkpoint": {"path": str(tmp_path / "weights")}},
        {"kind": "decontaminate", "benchmarks": {"quiz": [broken], "blank": [empty]}},
        {"kind": "near_dedup", "earlier": [absent]},
    ]
    monkeypatch.setattr(preparation, "list_inputs", None)
    with pytest.raises(ConfigError) as caught:
        do(run_config(pipeline={"steps": steps}))
    found = {
        problem.path.removeprefix("data.pipeline.steps."): problem.text
        for problem in caught.value.problems
    }
    expected = {
        "0.lexicon.files": "empty.txt: no entry, so nothing would be found; fill the files",
        "0.model": "only the step `classifier`",
        "1.domains.files.1": "absent: there is no such file",
        "1.robots_files.0": "put a line `Host: example.com` above",
        "2.model": "quality: not a classifier",
        "3.model": "fasttext.bin: not a supervised model of fastText",
        "4.model": "name it as classifier.checkpoint.path",
        "5.model": "ngrams: not an n-gram model",
        "6.model": "words.arpa:5: not ARPA: there is no <unk>",
        "7.checkpoint.path": "config.json: damaged",
        "8.benchmarks.quiz": "bad.jsonl, of quiz: unexpected end",
        "8.benchmarks.blank": "no text of at least 8 words",
        "9.earlier.0": "absent: no index of documents",
    }
    assert found.keys() == expected.keys()
    for path, text in expected.items():
        assert text in found[path]
        assert found[path].startswith(f"data.pipeline.steps.{path}: ")
