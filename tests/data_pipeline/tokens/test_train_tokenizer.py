import pytest

from data_pipeline.tokens import train_tokenizer as train_tokenizer_module
from data_pipeline.tokens.train_tokenizer import train_tokenizer
from maxlm.config.errors import UserError
from maxlm.data.tokenizers import open_tokenizer


@pytest.fixture
def train(tmp_path):
    def trained(texts, vocab_size):
        path = tmp_path / "tokenizer.model"
        path.write_bytes(train_tokenizer({"a": texts}, {"a": 1.0}, vocab_size))
        return open_tokenizer(path)

    return trained


def test_indentation_and_line_ends_are_pieces_and_digits_are_single(train, make_text):
    tokenizer = train(
        [make_text(seed).replace("\n    ", "\n        ") + " 1234 " * 20 for seed in range(30)], 400
    )
    assert len(tokenizer.encode("        ")) == 1
    assert len(tokenizer.encode("1234")) == 4
    assert len(tokenizer.encode("\n")) == 1
    assert tokenizer.vocab_size == 400


def test_same_texts_same_file(make_text):
    documents = [make_text(seed) for seed in range(20)]
    assert train_tokenizer({"a": documents}, {"a": 1.0}, 400) == train_tokenizer(
        {"a": documents}, {"a": 1.0}, 400
    )


def test_small_text_gives_a_smaller_vocabulary(train):
    assert 259 < train(["hello world"], 10_000).vocab_size < 400


def test_text_of_reserved_characters_only(train):
    tokenizer = train(["\0\t\u2581\u2585" * 10, "a"], 300)
    assert tokenizer.decode(tokenizer.encode("\0\t\u2581\u2585a")) == "\0\t\u2581\u2585a"


@pytest.mark.parametrize("vocab_size", [1, 100, 260])
def test_vocabulary_that_is_too_small_is_refused(train, vocab_size):
    with pytest.raises(UserError, match=rf"model\.vocab_size={vocab_size}.*take a larger one"):
        train(["some text with characters"], vocab_size)


def test_no_text_is_refused(train):
    with pytest.raises(UserError, match="no tokenizer can be trained"):
        train(["\t\t"], 400)


def test_text_without_a_space_leaves_spaces_intact(train):
    tokenizer = train(["abc" * 50, "bca"], 300)
    assert tokenizer.decode(tokenizer.encode(" a  b ")) == " a  b "


def test_sources_share_the_sample_by_weight(monkeypatch):
    monkeypatch.setattr(train_tokenizer_module, "SAMPLE_BYTES", 100_000)
    texts = {name: [f"{name} " * 50_000] * 3 for name in "ab"}
    sample = "".join(train_tokenizer_module._sample(texts, {"a": 3.0, "b": 1.0}))
    assert sample.count("a") == pytest.approx(75_000 / 2, rel=0.2)
    assert sample.count("b") == pytest.approx(25_000 / 2, rel=0.2)
