"""`maxlm data train-ngrams`, and documents in head, middle and tail."""

import json
import random

import numpy as np
import pytest

from data_pipeline.documents import Document
from data_pipeline.ngrams.arpa import read_arpa
from data_pipeline.ngrams.storage import load_ngrams
from data_pipeline.steps.filters.perplexity import Perplexity
from maxlm import cli
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.perplexity import PerplexityConfig

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "it"]


def text(seed: int, noise: float) -> str:
    """Return a text that goes through the words in their order, and now and then does not."""
    chosen, words, place = random.Random(seed), [], 0
    for _ in range(40):
        place = chosen.randrange(10) if chosen.random() < noise else (place + 1) % 10
        words.append(WORDS[place])
    return " ".join(words)


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    lines = [json.dumps({"text": text(seed, seed % 10 / 20)}) for seed in range(400)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    options = ["--order", "3", "--held-out", "0.5", "--output"]
    return ["data", "train-ngrams", str(folder / "texts.jsonl"), *options, str(folder / "model")]


@pytest.fixture(scope="module")
def model(argv):
    assert cli.main(argv) == 0
    return argv[-1]


def test_buckets_are_shares_of_the_held_out_documents(model, verdicts) -> None:
    texts = [text(seed, seed % 10 / 20) for seed in range(1000, 1300)]
    config = PerplexityConfig(model=model, keep=("head", "middle", "tail"))
    results = list(Perplexity(config)(Document("a", "s", own) for own in texts))
    buckets = [result.meta["perplexity_bucket"] for result in results]
    shares = [buckets.count(name) / 300 for name in ("head", "middle", "tail")]
    assert np.abs(np.array(shares) - [0.3, 0.3, 0.4]).max() < 0.1
    found = {name: [] for name in ("head", "middle", "tail")}
    for result in results:
        found[result.meta["perplexity_bucket"]].append(result.meta["perplexity"])
    assert max(found["head"]) < min(found["middle"])
    assert max(found["middle"]) < min(found["tail"])
    kept = verdicts(Perplexity(PerplexityConfig(model=model)), texts)
    assert kept == [
        "perplexity/tail" if bucket == "tail" else own
        for bucket, own in zip(buckets, texts, strict=True)
    ]


def test_bounds_of_ones_own(model, verdicts) -> None:
    loaded = load_ngrams(model)
    texts = [text(1, 0.0), text(2, 0.5)]
    clean, noisy = (loaded.perplexity(own) for own in texts)
    assert clean < noisy / 2
    bounds = {"max_head": clean + 0.01, "max_middle": noisy - 0.01}
    assert verdicts(Perplexity(PerplexityConfig(model=model, keep=["head"], **bounds)), texts) == [
        texts[0],
        "perplexity/tail",
    ]
    assert verdicts(Perplexity(PerplexityConfig(model=model)), [" "]) == ["perplexity/tail"]
    [kept] = Perplexity(PerplexityConfig(model=model, keep=["tail"]))(
        iter([Document("a", "s", " ")])
    )
    assert kept.meta == {}


def test_arpa(argv, model, verdicts, capsys, tmp_path) -> None:
    path = str(tmp_path / "x.arpa")
    assert cli.main([*argv[:-1], path]) == 0
    printed = capsys.readouterr().out
    assert "n-grams by their words: 13 of 1, " in printed
    assert "perplexity of documents that are held out: " in printed
    own = text(5, 0.2)
    assert read_arpa(path, "normalised").perplexity(own) == load_ngrams(model).perplexity(own)
    config = PerplexityConfig(model=path, max_head=1e6, max_middle=1e6)
    assert verdicts(Perplexity(config), [own]) == [own]
    with pytest.raises(UserError, match="no percentiles"):
        verdicts(Perplexity(PerplexityConfig(model=path)), [own])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--order", "1"], "--order 1: give 2 to 8"),
        (["--order", "8", "--vocabulary", "70000"], "--vocabulary 70000: give 4 to 65536"),
        (["--memory-mb", "1"], "--memory-mb 1: give 16"),
        (["--held-out", "0.005"], "are held out, of 10 at least"),
    ],
)
def test_mistakes(argv, tmp_path, capsys, change, message) -> None:
    assert cli.main([*argv[:-1], str(tmp_path / "model"), *change]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_problems(tmp_path) -> None:
    path = str(tmp_path / "x.arpa")
    config = PerplexityConfig(model=path, head=0.7)
    texts = [problem.text for problem in config.problems("steps.0", None)]
    assert len(texts) == 3
    assert "there is no such file" in texts[0]
    assert "has no percentiles; give both" in texts[1]
    assert "steps.0.head=0.7 is above steps.0.middle=0.6" in texts[2]
    config = PerplexityConfig(model=path, max_head=3.0)
    assert "give both or none" in [problem.text for problem in config.problems("steps.0", None)][1]
