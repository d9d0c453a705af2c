"""fastText's models: probabilities as the library itself gives them.

Models and figures are of scripts/make_fasttext_fixtures.py.
"""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.documents import Document, Dropped
from data_pipeline.fasttext.binary import is_fasttext, read_fasttext
from data_pipeline.fasttext.model import LABEL, label_number, load_fasttext
from data_pipeline.steps.filters.classifier import ClassifierStep
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.classifier import ClassifierConfig

MODELS = Path(__file__).parent / "models"
EXPECTED = json.loads((MODELS / "expected.json").read_text())
KINDS = ("softmax", "characters", "ova", "hs", "ns")
ADDED = 1e-5
"""What the library adds to a probability before it takes its logarithm, of hs at each node."""


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_the_library(kind):
    model = load_fasttext(MODELS / f"{kind}.bin")
    seen = []
    for text, expected in zip(EXPECTED["texts"], EXPECTED["probabilities"][kind], strict=True):
        found = model.probabilities(text)
        # Of a text without a known word the library says nothing, nor of labels below what it adds.
        unsaid = [
            n for n, label in enumerate(model.labels) if LABEL.decode() + label not in expected
        ]
        assert found[unsaid].max(initial=0) < 2 * ADDED
        for label, value in expected.items():
            number = label_number(model, label, "model")
            assert found[number] == pytest.approx(value, abs=5 * ADDED), (text, label)
            seen.append(value)
    assert max(seen) > 0.9
    assert min(seen) < 0.1


def test_a_label_goes_by_its_name_with_or_without_the_prefix():
    model = load_fasttext(MODELS / "softmax.bin")
    assert label_number(model, "good", "m") == label_number(model, "__label__good", "m")
    with pytest.raises(UserError, match=r"m: it has no label 'fine'; give one of bad, "):
        label_number(model, "fine", "m")


def test_a_line_is_its_words_however_they_are_spaced():
    model = load_fasttext(MODELS / "characters.bin")
    one, two = model.probabilities("buy cheap now"), model.probabilities(" buy\ncheap\r\n\tnow ")
    np.testing.assert_array_equal(one, two)


def test_damage_is_a_message(tmp_path):
    whole = (MODELS / "softmax.bin").read_bytes()
    path = tmp_path / "model.bin"
    for size in [*range(0, 200, 7), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"model\.bin: not a supervised model of fastText"):
            read_fasttext(path)
    generator = np.random.default_rng(0)
    for _ in range(200):  # whatever a flipped bit does, it is a model or a message
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            load_fasttext(path).probabilities("buy cheap")
        except UserError as error:
            assert "model.bin: not a supervised model" in str(error)
    with pytest.raises(UserError, match="No such file"):
        read_fasttext(tmp_path / "none.bin")
    assert not is_fasttext(tmp_path / "none.bin")


def test_what_is_no_classifier_or_quantised_is_refused_by_name(tmp_path):
    whole = bytearray((MODELS / "softmax.bin").read_bytes())
    assert is_fasttext(MODELS / "softmax.bin")
    path = tmp_path / "model.bin"
    vectors = bytes(whole[:36]) + struct.pack("<i", 1) + bytes(whole[40:])
    path.write_bytes(vectors)
    with pytest.raises(UserError, match="trained without labels"):
        read_fasttext(path)
    pruned = 8 + 56 + 20  # of the dictionary's counts the last
    path.write_bytes(bytes(whole[:pruned]) + struct.pack("<q", 5) + bytes(whole[pruned + 8 :]))
    with pytest.raises(UserError, match=r"quantised \(\.ftz\); give the \.bin file"):
        read_fasttext(path)


def test_the_step_scores_by_a_label():
    config = {"model": str(MODELS / "softmax.bin"), "label": "good", "threshold": 0.5}
    step = ClassifierStep(ClassifierConfig.model_validate(config))
    good, bad = step(
        iter([Document("a", "a", "theorem\nproof lemma"), Document("b", "a", "buy cheap offer")])
    )
    assert good.meta["classifier_score"] == pytest.approx(
        EXPECTED["probabilities"]["softmax"][0]["__label__good"], abs=2e-5
    )
    assert isinstance(bad, Dropped)
    for change in ({"label": None}, {"model": "x.model"}):
        section = ClassifierConfig.model_validate(config | change)
        assert any("label" in problem.path for problem in section.problems("p", None))
