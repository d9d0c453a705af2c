"""SentencePiece models: which are read, and that a space in front is that of the library."""

import pytest
import sentencepiece

from maxlm.config.errors import UserError
from maxlm.data.tokenizers import open_tokenizer
from tests.data.tokenizers.kinds import HARD_TEXTS, write_sentencepiece


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece, prefix"])
def test_ids_are_the_library_s(opened, kind):
    tokenizer = opened[kind]
    library = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    texts = [text for text in HARD_TEXTS if "\u2581" not in text]
    assert tokenizer.encode_all(texts) == library.encode(texts)
    assert all(tokenizer.decode(library.encode(text)) == text for text in texts)
    assert len(texts) > 10


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"\x00\xff" * 50])
def test_file_that_is_no_tokenizer_is_refused(tmp_path, data):
    path = tmp_path / "bad.model"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"bad\.model.*maxlm prepare"):
        open_tokenizer(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False},
        {"eos_id": -1},
    ],
)
def test_tokenizer_that_loses_text_is_refused(tmp_path, settings):
    with pytest.raises(UserError, match="changes text|byte fallback|no EOS"):
        open_tokenizer(write_sentencepiece(tmp_path / "other.model", **settings))
