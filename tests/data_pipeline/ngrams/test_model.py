"""Trained models against the definition, and what is written against what is read."""

import json
import math
import random

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_pipeline.ngrams import smoothing
from data_pipeline.ngrams.arpa import read_arpa, write_arpa
from data_pipeline.ngrams.runs import Layout, Runs
from data_pipeline.ngrams.storage import load_ngrams, save_ngrams
from data_pipeline.ngrams.training import Recipe, _part, train
from data_pipeline.ngrams.words import Vocabulary, sentences
from maxlm.config.errors import UserError
from tests.data_pipeline.ngrams.definition import Definition

WORDS = [f"w{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


def generated(seed, number, lines=4):
    """Texts in which a word depends on the one before."""
    chosen = random.Random(seed)
    texts = []
    for _ in range(number):
        text = []
        for _ in range(lines):
            place, line = chosen.randrange(26), []
            for _ in range(chosen.randrange(1, 9)):
                line.append(WORDS[place])
                place = (place * 3 + chosen.choice([0, 0, 0, 1, 2, 7])) % 26
            text.append(" ".join(line))
        texts.append("\n".join(text))
    return texts


def zipfian(seed, number):
    """Texts whose words are as unequal as those of a language."""
    chosen = random.Random(seed)
    return [
        " ".join(f"z{int(min(chosen.paretovariate(0.8), 500))}" for _ in range(20))
        for _ in range(number)
    ]


def recipe(**values) -> Recipe:
    return Recipe(**{"held_out": 0.3, "memory_bytes": 2**20, **values})


def learned(texts, own: Recipe):
    """Return what a model learns from, as sentences of words."""
    return [
        ["<s>", *words, "</s>"]
        for text in _part(texts, own, held_out=False)
        for words in sentences(text, own.form)
    ]


def as_known(sentence, vocabulary):
    return [word if word in vocabulary else "<unk>" for word in sentence]


@pytest.mark.parametrize(
    ("order", "texts", "vocabulary", "estimated"),
    [
        (5, generated(5, 60), 100, {2, 3, 4, 5}),
        (4, generated(4, 50), 12, {2, 3, 4}),
        (3, zipfian(3, 60), 1000, {2, 3}),
        (2, zipfian(2, 80), 60, set()),
    ],
)
def test_probabilities_are_those_of_the_definition(
    tmp_path, order, texts, vocabulary, estimated
) -> None:
    own = recipe(order=order, vocabulary=vocabulary)
    model, without_estimate = train(texts, own, tmp_path)
    assert set(range(1, order + 1)).difference(without_estimate) == estimated
    words = model.vocabulary.words
    data = [as_known(sentence, words) for sentence in learned(texts, own)]
    expected = Definition(data, words, order, list(smoothing.FALLBACK))
    assert np.allclose(model.header.discounts, expected.discounts, rtol=1e-12)
    for text in [*texts[:15], *generated(99, 15), "wa unknown wb\nnever seen before"]:
        logs = model.logs(list(model.vocabulary.encode(text, own.form)))
        cut = [["<s>", *as_known(line, words), "</s>"] for line in sentences(text, own.form)]
        wanted = [log for sentence in cut for log in expected.logs(sentence)]
        assert np.allclose(logs, wanted, rtol=0, atol=2e-6)
        assert model.perplexity(text) == pytest.approx(10 ** -(sum(wanted) / len(wanted)), rel=1e-5)


def test_probabilities_of_a_context_add_up_to_one(tmp_path) -> None:
    model, _ = train(generated(1, 80), recipe(order=4), tmp_path)
    ids = range(len(model.vocabulary.words))
    for context in ([1], [1, 5], [1, 5, 3, 4], [0, 0], [7, 20, 9], [1, 9, 9, 9, 12]):
        total = sum(10 ** model.logs([np.array([*context, word])])[-1] for word in ids if word != 1)
        assert total == pytest.approx(1, abs=1e-6)


def test_sentences_shorter_than_the_longest_ngrams(tmp_path) -> None:
    texts = [f"{first}\n{second}" for first in WORDS for second in WORDS]
    model, _ = train(texts, recipe(order=5), tmp_path)
    assert [level.logs.size for level in model.levels] == [29, 52, 26, 0, 0]
    save_ngrams(model, tmp_path / "model")
    write_arpa(model, tmp_path / "model.arpa")
    for again in (
        model,
        load_ngrams(tmp_path / "model"),
        read_arpa(tmp_path / "model.arpa", "normalised"),
    ):
        # Any of 26 words, then the end: less what is put aside for words that were not seen.
        assert 26 < again.perplexity("wa") ** 2 < 52
        assert again.perplexity("wa") == model.perplexity("wa")


def test_what_fits_memory_does_not_matter(tmp_path, monkeypatch) -> None:
    models = []
    for name, rows, block in (("one", 10**6, 2**18), ("many", 64, 50)):
        monkeypatch.setattr("data_pipeline.ngrams.runs._LEAST_BLOCK", min(rows, 64))
        monkeypatch.setattr("data_pipeline.ngrams.runs.BYTES_PER_ROW", 2**20 // (3 * rows) + 1)
        monkeypatch.setattr("data_pipeline.ngrams.counting._WORDS_AT_ONCE", block)
        monkeypatch.setattr("data_pipeline.ngrams.smoothing._ROWS_AT_ONCE", block)
        monkeypatch.setattr("data_pipeline.ngrams.model._WORDS_AT_ONCE", block)
        (tmp_path / name).mkdir()
        models.append(train(generated(2, 50), recipe(order=3), tmp_path / name).model)
    one, many = models
    for first, second in zip(one.levels, many.levels, strict=True):
        assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert np.allclose(one.header.percentiles, many.header.percentiles, rtol=1e-12)


def test_runs_against_sorting(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("data_pipeline.ngrams.runs._LEAST_BLOCK", 8)
    random_state = np.random.default_rng(0)
    for trial in range(20):
        keys = random_state.integers(0, 5, (random_state.integers(0, 200), 2)).astype(np.uint64)
        counts = random_state.integers(1, 9, len(keys)).astype(np.uint64)
        runs = Runs(tmp_path, str(trial), 0)
        for start in range(0, len(keys), 7):
            runs.add(keys[start : start + 7], counts[start : start + 7])
        found = [tuple(row) for block in runs.merged() for row in block.tolist()]
        wanted: dict[tuple[int, int], int] = {}
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            wanted[tuple(key)] = wanted.get(tuple(key), 0) + count
        assert found == [(*key, count) for key, count in sorted(wanted.items())]


@pytest.mark.parametrize(("order", "bits"), [(2, 24), (5, 21), (3, 7), (8, 16)])
def test_packed_words_come_back_and_sort_as_words(order, bits) -> None:
    random_state, layout = np.random.default_rng(order), Layout(order, bits)
    for length in range(1, order + 1):
        columns = list(random_state.integers(0, 2**bits, (length, 50)))
        columns[0][:25] = columns[0][25:]
        keys = layout.pack(columns)
        assert all(
            (a == b).all() for a, b in zip(layout.unpack(keys, length), columns, strict=True)
        )
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        packed = [tuple(key) for key in keys.tolist()]
        assert [rows[place] for place in sorted(range(50), key=packed.__getitem__)] == sorted(rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(generated(3, 60), recipe(order=3), tmp_path_factory.mktemp("work")).model


def test_files_come_back(model, tmp_path) -> None:
    save_ngrams(model, tmp_path / "model")
    write_arpa(model, tmp_path / "model.arpa")
    arrays = load_file(tmp_path / "model")  # the library reads what was written without it
    assert (arrays["3.keys"] == model.levels[2].keys).all()
    for again in (
        load_ngrams(tmp_path / "model"),
        read_arpa(tmp_path / "model.arpa", "normalised"),
    ):
        assert again.vocabulary.words == model.vocabulary.words
        for first, second in zip(model.levels, again.levels, strict=True):
            assert (first.keys == second.keys).all()
            assert (first.logs == second.logs).all()
            assert (first.backoffs == second.backoffs[: first.backoffs.size]).all()
        for text in generated(4, 10):
            assert again.perplexity(text) == model.perplexity(text)
    assert load_ngrams(tmp_path / "model").header == model.header


ARPA = """made by hand

\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-99 <s> -0.3
-0.9 </s>
-2 <unk>
-0.5 a -0.25
-0.7 b

\\2-grams:
-0.2 <s> a
-0.4 a b
-0.1 b </s>

\\end\\
"""


def test_arpa_by_hand(tmp_path) -> None:
    path = tmp_path / "x.arpa"
    path.write_text(ARPA)
    model = read_arpa(path, "whitespace")
    logs = model.logs(list(model.vocabulary.encode("a b\na a b B", "whitespace")))
    assert np.allclose(logs, [-0.2, -0.4, -0.1, -0.2, -0.25 - 0.5, -0.4, -2, -0.9])


def test_words_of_an_arpa_file_end_at_ascii_s_white_space(tmp_path) -> None:
    path = tmp_path / "x.arpa"
    path.write_text(ARPA.replace("b", "b\u00a0c\u3000d"))
    assert read_arpa(path, "whitespace").vocabulary.words[-1] == "b\u00a0c\u3000d"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", "there is no"),
        ("ngram 2=3", "ngram 3=3", "do not follow"),
        ("-0.4 a b", "-0.4 a", "x.arpa:16: not ARPA: a logarithm and 2 words"),
        ("-0.4 a b", "x a b", "no number"),
        ("-0.4 a b", "nan a b", "no logarithm"),
        ("-0.4 a b", "-0.4 a c", "'c' is in a 2-gram, but no 1-gram"),
        ("-0.4 a b", "-0.4 <s> a", "twice"),
        ("-2 <unk>", "-2 c", "there is no <unk>"),
        ("-0.7 b", "-0.7 a", "1-gram is there twice"),
        ("\\2-grams:", "\\3-grams:", "2-grams: is to stand here"),
    ],
)
def test_wrong_arpa(tmp_path, old, new, message) -> None:
    path = tmp_path / "x.arpa"
    path.write_text(ARPA.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_arpa(path, "whitespace")
    longer = ARPA.replace("ngram 2=3", "ngram 2=3\nngram 3=1")
    path.write_text(longer.replace("\\end", "\\3-grams:\n-1 a a a\n\n\\end"))
    with pytest.raises(UserError, match="`a a a` is there without its first words"):
        read_arpa(path, "whitespace")


def test_files_that_are_no_models(model, tmp_path) -> None:
    path = tmp_path / "model"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_ngrams(path)
    save_ngrams(model, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])

    def written(change) -> None:
        own = json.loads(json.dumps(table))
        change(own)
        header = json.dumps(own).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])

    damages = {
        "cut or damaged": lambda own: own["1.logs"].update(data_offsets=[0, 8]),
        "no array '2.keys'": lambda own: own.pop("2.keys"),
        "do not fit": lambda own: own.update({"2.logs": own["3.logs"]}),
        "not an n-gram model": lambda own: own.pop("__metadata__"),
    }
    for message, change in damages.items():
        written(change)
        with pytest.raises(UserError, match=message):
            load_ngrams(path)
    for cut in (b"", data[:7], data[:200], data[:-4]):
        path.write_bytes(cut)
        with pytest.raises(UserError, match="not an n-gram model"):
            load_ngrams(path)


def test_sentences_and_words() -> None:
    text = "Hello, World 42!\n\n  \nx"
    assert list(sentences(text, "normalised")) == [["hello", ",", "world", "00", "!"], ["x"]]
    assert list(sentences(text, "whitespace")) == [["Hello,", "World", "42!"], ["x"]]
    for number in (2500, 40_000):  # the latter is too long to be cut into words at once
        lengths = [len(part) for part in sentences("a " * number, "normalised")]
        assert lengths == [1024] * (number // 1024) + [number % 1024]
    vocabulary = Vocabulary.of(["b b a <s>", "a b c"], "whitespace", 5)
    assert vocabulary.words == ["<unk>", "<s>", "</s>", "b", "a"]
    assert [part.tolist() for part in vocabulary.encode("c <s> b", "whitespace")] == [
        [1, 0, 0, 3, 2]
    ]


def test_a_text_without_words_has_no_perplexity(model) -> None:
    assert math.isnan(model.perplexity(" \n "))
