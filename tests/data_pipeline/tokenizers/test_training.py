import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tokenizers
from pydantic import TypeAdapter

from data_pipeline.tokenizers import train_tokenizer
from data_pipeline.tokenizers.hf_json import CONTINUES
from data_pipeline.tokenizers.sample import take_sample
from maxlm.config.errors import UserError
from maxlm.config.pipeline.tokenizer import TrainedTokenizer
from maxlm.data.tokenizers import open_tokenizer

KINDS = ("bpe", "unigram", "byte_bpe", "wordpiece")
HARD = "  if x:\n\treturn '\u00e9\U0001f600\u65e5\\n' \u2581\u2581 \0 12345  \r\n\n <s></s><unk>\u203fab"


def section(kind, **settings):
    return TypeAdapter(TrainedTokenizer).validate_python({"kind": kind, **settings})


def files_of(kind, texts, vocab_size, **settings):
    return train_tokenizer(section(kind, **settings), {"a": texts}, {"a": 1.0}, vocab_size)


@pytest.fixture
def train(tmp_path):
    def trained(kind, texts, vocab_size, **settings):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name, data in files_of(kind, texts, vocab_size, **settings).items():
            (folder / name).write_bytes(data)
        return open_tokenizer(folder)

    return trained


@pytest.fixture
def documents(make_text):
    return [make_text(seed).replace("\n    ", "\n        ") + " 1234 " * 20 for seed in range(30)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_comes_back_and_bytes_are_counted(train, documents, kind):
    tokenizer = train(kind, documents, 600)
    for text in (HARD, *documents[:2], "\u00a0\u3000 x" * 3):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        before = [tokenizer.bos_id, *ids[:-1]]
        assert sum(tokenizer.bytes_of(ids, before)) == len(text.encode())
    assert tokenizer.vocab_size <= 600
    assert len(tokenizer.encode(documents[0])) < len(documents[0]) / 3, "it learned words"
    assert len({tokenizer.bos_id, tokenizer.eos_id}) == 2


def test_wordpieces_are_the_longest_in_front_and_hold_every_byte(documents, tmp_path):
    """The library's encoding against the definition: greedy, over the bytes of each word."""
    content = json.loads(files_of("wordpiece", documents, 700)["tokenizer.json"])
    vocab, model = content["model"]["vocab"], content["model"]
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert [token["content"] for token in content["added_tokens"]] == ["<unk>", "<s>", "</s>"]
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert {CONTINUES + sign for sign in alphabet} | alphabet <= vocab.keys()
    text = " ".join([*documents[:3], "\u00e9\U0001f600\u65e5 unseen\u203fwords, " + "a" * 300])
    words = [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)]
    assert max(map(len, words)) < model["max_input_chars_per_word"]
    pieces = [piece for word in words for piece in greedy(word, vocab)]
    assert library.encode(text).tokens == pieces
    joined = "".join(piece.removeprefix(CONTINUES) for piece in pieces)
    assert tokenizers.decoders.ByteLevel().decode([joined]) == text
    assert library.decode(library.encode(text).ids) == text
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    own = open_tokenizer(tmp_path)
    assert own.encode(text) == library.encode(text).ids
    without = [name for name in vocab if name != "Q"]
    for message, spoilt in (
        ("1 of its 2 x 256 bytes", {name: number for number, name in enumerate(without)}),
        ("ids are not one", {**vocab, "Q": 3}),
    ):
        content["model"]["vocab"] = spoilt
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            open_tokenizer(tmp_path)


def greedy(word, vocab):
    """Yield the pieces of a word (arXiv:1609.08144; Devlin et al. 2019, as published)."""
    start = 0
    while start < len(word):
        mark = CONTINUES if start else ""
        stop = next(end for end in range(len(word), start, -1) if mark + word[start:end] in vocab)
        yield mark + word[start:stop]
        start = stop


PROGRAM = """
import hashlib, random
from data_pipeline.tokenizers import TRAINERS
from maxlm.config.pipeline.tokenizer import BpeConfig, ByteBpeConfig, UnigramConfig, WordPieceConfig
draw = random.Random(0)
texts = [" ".join("".join(draw.choices("abcdefgh", k=draw.randint(1, 4))) for _ in range(5000))]
for config in (BpeConfig(), UnigramConfig(), ByteBpeConfig(), WordPieceConfig()):
    files = TRAINERS[config.kind](config, texts, 800)
    print(config.kind, hashlib.sha256(b"".join(files.values())).hexdigest())
"""


def test_same_texts_same_bytes_with_any_number_of_threads():
    root = Path(__file__).parents[3]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(root)},
            capture_output=True,
            check=True,
            cwd=root,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().split()) == 8


def test_indentation_and_line_ends_are_pieces_and_digits_are_single(train, documents):
    tokenizer = train("bpe", documents, 400)
    assert len(tokenizer.encode("        ")) == 1
    assert len(tokenizer.encode("1234")) == 4
    assert len(tokenizer.encode("\n")) == 1
    assert tokenizer.vocab_size == 400


def test_settings_matter(train, documents):
    assert len(train("bpe", documents, 400, split_digits=False).encode("1234")) == 1
    assert len(train("byte_bpe", documents, 600, pattern="r50k").encode(" 1234")) == 1
    assert len(train("byte_bpe", documents, 600, pattern="cl100k").encode(" 1234")) > 1
    short = train("unigram", documents, 400, max_piece_characters=3)
    assert max(len(short.decode([piece])) for piece in range(short.vocab_size)) == 3
    rare = train("byte_bpe", ["abcabc x"], 300, min_frequency=3)
    assert rare.vocab_size == 258, "no pair stands three times"


def test_small_text_gives_a_smaller_vocabulary(train):
    assert 259 < train("bpe", ["hello world"], 10_000).vocab_size < 400


def test_text_of_reserved_characters_only(train):
    tokenizer = train("bpe", ["\0\t\u2581\u2585" * 10, "a"], 300)
    assert tokenizer.decode(tokenizer.encode("\0\t\u2581\u2585a")) == "\0\t\u2581\u2585a"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [1, 257])
def test_vocabulary_that_is_too_small_is_refused(kind, vocab_size):
    with pytest.raises(UserError, match=rf"model\.vocab_size={vocab_size}.*take a larger one"):
        files_of(kind, ["some text with characters"], vocab_size)


def test_no_text_is_refused():
    with pytest.raises(UserError, match="no tokenizer can be trained"):
        files_of("bpe", ["\t\t"], 400)


def test_text_without_a_space_leaves_spaces_intact(train):
    tokenizer = train("bpe", ["abc" * 50, "bca"], 300)
    assert tokenizer.decode(tokenizer.encode(" a  b ")) == " a  b "


def test_sources_share_the_sample_by_weight():
    texts = {name: [f"{name} " * 500_000] * 3 for name in "ab"}
    sample = "".join(take_sample(texts, {"a": 3.0, "b": 1.0}, 1))
    assert sample.count("a") == pytest.approx(750_000 / 2, rel=0.02)
    assert sample.count("b") == pytest.approx(250_000 / 2, rel=0.02)
