"""`maxlm data train-classifier`: from two sets of texts to a file by which documents are judged."""

import json
import random
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_pipeline.classifier.examples import WordFeatures, read_examples
from data_pipeline.classifier.model import Classifier, Header, load_classifier
from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.filters.classifier import ClassifierStep
from maxlm import cli
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.classifier import ClassifierConfig

GOOD = [
    "theorem",
    "proof",
    "lemma",
    "follows",
    "because",
    "therefore",
    "we",
    "show",
    "that",
    "the",
    "result",
    "holds",
]
BAD = [
    "buy",
    "cheap",
    "click",
    "here",
    "now",
    "free",
    "offer",
    "best",
    "price",
    "online",
    "shop",
    "the",
    "deal",
]


def texts(words, other, number, seed):
    """Texts of which one word in four is of the other kind."""
    chosen = random.Random(seed)
    return [
        " ".join(chosen.choice(words if chosen.random() < 0.75 else other) for _ in range(12))
        for _ in range(number)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    (folder / "good").mkdir()
    for number, text in enumerate(texts(GOOD, BAD, 300, 0)):
        (folder / f"good/{number}.txt").write_text(text)
    lines = [json.dumps({"body": text}) for text in texts(BAD, GOOD, 300, 1)]
    (folder / "bad.jsonl").write_text("\n".join([*lines, "{broken"]))
    argv = ["data", "train-classifier", str(folder / "good"), str(folder / "bad.jsonl")]
    argv += ["--output", str(folder / "model"), "--bits", "12", "--text-key", "body"]
    return folder, argv


@pytest.fixture(scope="module")
def model(trained):
    folder, argv = trained
    assert cli.main(argv) == 0
    return folder / "model"


def test_it_tells_the_kinds_apart(model) -> None:
    step = ClassifierStep(ClassifierConfig(model=str(model)))
    good, bad = (
        list(step(Document("a", "s", text) for text in sample))
        for sample in (texts(GOOD, BAD, 200, 2), texts(BAD, GOOD, 200, 3))
    )
    assert sum(isinstance(result, Document) for result in good) >= 180
    reasons = [result.reason for result in bad if isinstance(result, Dropped)]
    assert len(reasons) >= 180
    assert set(reasons) == {"classifier/classifier_score"}
    figures = load_classifier(model).header.figures
    assert figures["auc"] > 0.97
    assert figures["train"] + figures["calibrate"] + figures["test"] == 600
    assert figures["good_share"] == 0.5


def test_what_is_printed(trained, capsys, tmp_path) -> None:
    _, argv = trained
    argv = [*argv[:5], str(tmp_path / "model"), *argv[6:]]
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    assert "BAD: skipped 1: line that is not JSON" in printed
    assert re.search(r"accuracy 0\.9\d+, auc (0\.9\d+|1\.0+), calibration_error 0\.\d+", printed)


def test_a_document_keeps_its_probability(model) -> None:
    config = ClassifierConfig(model=str(model), score="quality", threshold=None)
    document = Document("a", "s", " ".join(BAD), {"url": "u"})
    [result] = ClassifierStep(config)(iter([document]))
    assert result.meta["url"] == "u"
    assert 0 <= result.meta["quality"] < 0.2
    # One with a threshold just above it goes; the threshold itself stays.
    for more, kind in ((0, Document), (1e-6, Dropped)):
        config = ClassifierConfig(model=str(model), threshold=result.meta["quality"] + more)
        assert isinstance(next(ClassifierStep(config)(iter([document]))), kind)


def test_a_saved_model_is_the_same(model) -> None:
    loaded = load_classifier(model)
    weights = np.zeros(2**8, np.float32)
    weights[3] = 1.5
    header = Header(bits=8, bias=0.25, slope=2.0, shift=-1.0)
    Classifier(header, weights).save(model.with_name("other"))
    again = load_classifier(model.with_name("other"))
    assert again.header == header
    assert again.score("") == 0.25
    assert again.probability("") == pytest.approx(1 / (1 + np.exp(0.5)))
    assert loaded.score("theorem proof") > loaded.score("cheap offer")


def test_equal_texts_are_in_one_part_and_count_once() -> None:
    good, bad = texts(GOOD, BAD, 50, 4), texts(BAD, GOOD, 50, 5)
    header = WordFeatures(Header(bits=10))
    once = read_examples(good, bad, header, most=1000, held_out=0.4)
    twice = read_examples(good * 2, bad[::-1] + bad, header, most=1000, held_out=0.4)
    for name, part in once.items():
        assert (part.features != twice[name].features).nnz == 0
        assert part.labels.tolist() == twice[name].labels.tolist()
    sizes = [part.labels.size for part in once.values()]
    assert sum(sizes) == 100
    assert 45 < sizes[0] < 75
    few = read_examples(good, bad, header, most=7, held_out=0.4)
    assert sum(part.labels.size for part in few.values()) == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--bits", "40"], "--bits 40: give 8 to 28"),
        (["--l2", "0"], "--l2 0.0: give 1e-12"),
        (["--output", "nowhere/x/model"], "there is no folder"),
        (["--max-documents", "20"], "GOOD: .* different texts to .*, of 5 at least"),
    ],
)
def test_mistakes(trained, tmp_path, capsys, change, message) -> None:
    _, argv = trained
    assert cli.main([*argv[:5], str(tmp_path / "model"), *argv[6:], *change]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_model_that_is_there_is_not_overwritten(trained, model, capsys) -> None:
    before = model.read_bytes()
    assert cli.main(trained[1]) == 2
    assert "exists already" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_files_that_are_no_classifiers(tmp_path, model) -> None:
    path = tmp_path / "model"
    with pytest.raises(UserError, match="not a classifier"):
        load_classifier(path)
    path.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a classifier"):
        load_classifier(path)
    save_file({"weights": np.zeros(4, np.float32)}, path)
    with pytest.raises(UserError, match="not a classifier"):
        load_classifier(path)
    header = {"maxlm": Header(bits=8).model_dump_json()}
    save_file({"weights": np.zeros(4, np.float32)}, path, header)
    with pytest.raises(UserError, match=r"weights are float32 \(4,\), not float32 \(256,\)"):
        load_classifier(path)
    save_file({"weights": np.full(256, np.nan, np.float32)}, path, header)
    with pytest.raises(UserError, match="not finite"):
        load_classifier(path)


def test_problems() -> None:
    [problem] = ClassifierConfig(model="nowhere").problems("steps.0", None)
    assert problem.text.startswith("steps.0.model: nowhere: there is no such file")
