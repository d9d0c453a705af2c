import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.config.errors import UserError
from maxlm.data.tokenizer import Tokenizer, replace_surrogates

HARD_TEXTS = [
    "",
    " ",
    "\n",
    "  x  \n\n\ty\t\t \r\n\r",
    "\0\x01\x7f",
    "\u2581 \u2581\u2581a\u2581",
    "\u2585 \u2047 \u2588",
    "<s></s><unk><0x41><pad>",
    "\ufeffx\ufffe\uffff",
    "e\u0301 \u00e9 \u65e5\u672c \U0001f600\u200d",
    "x" * 10_000,
    " " * 10_000,
    "    def f(x):\n        return x\n",
]


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts_come_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_exactly_and_its_bytes_are_counted(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)


def test_lone_surrogates_are_replaced(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"
    assert replace_surrogates("\ud83d\ude00") == "\U0001f600"  # two halves that belong together


def test_many_texts_at_once_are_the_texts_one_by_one(tokenizer):
    assert tokenizer.encode_all(HARD_TEXTS, num_threads=3) == [
        tokenizer.encode(text) for text in HARD_TEXTS
    ]
    assert tokenizer.encode_all([]) == []


def test_specials_stand_for_no_bytes(tokenizer):
    assert tokenizer.token_bytes.dtype == np.int32
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes[[0, tokenizer.bos_id, tokenizer.eos_id]].tolist() == [0, 0, 0]
    assert (tokenizer.token_bytes[3:] > 0).all()


def test_fingerprint_is_of_the_file(tokenizer, tmp_path):
    copy = tmp_path / "copy.model"
    copy.write_bytes(tokenizer.path.read_bytes())
    assert Tokenizer(copy).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"\x00\xff" * 50])
def test_file_that_is_no_tokenizer_is_refused(tmp_path, data):
    path = tmp_path / "bad.model"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"bad\.model.*maxlm prepare"):
        Tokenizer(path)


def test_tokenizer_that_is_not_there_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"no such tokenizer; run: maxlm prepare"):
        Tokenizer(tmp_path / "none.model")
    with pytest.raises(UserError, match=r"data\.tokenizer"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{"normalization_rule_name": "nmt_nfkc"}, {"add_dummy_prefix": True}, {"byte_fallback": False}],
)
def test_tokenizer_that_loses_text_is_refused(tmp_path, train_other, settings):
    with pytest.raises(UserError, match="changes text|byte fallback"):
        Tokenizer(train_other(tmp_path / "other.model", **settings))


@pytest.fixture
def train_other():
    def train(path, **settings):
        model = io.BytesIO()
        lossless = {
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
        }
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some text to learn from, some more"] * 20),
            model_writer=model,
            model_type="bpe",
            vocab_size=300,
            hard_vocab_limit=False,
            minloglevel=2,
            **(lossless | settings),
        )
        path.write_bytes(model.getvalue())
        return path

    return train
