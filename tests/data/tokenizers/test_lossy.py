"""Tokenizers that lose text: Unigram and WordPiece, against the library's own ids and decoding."""

import json

import numpy as np
import pytest
import tokenizers

from maxlm.config.errors import UserError
from maxlm.data.tokenizers import open_tokenizer
from tests.data.tokenizers.kinds import BERT, EOS, HARD_TEXTS, unigram, wordpiece_text, write_hf

TEXTS = [
    *HARD_TEXTS,
    "Don't  stop , I 've  HEARD caf\u00e9s .",
    "x [SEP] y [UNK] \U0001f600 z",
    "\uff1c/s\uff1e \ufb01 \u2160",
    "a\0\0 2 b",
]


@pytest.fixture(scope="module", params=["unigram", "wordpiece", "wordpiece, plain decoder"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("lossy") / "tokenizer"
    if request.param == "unigram":
        return write_hf(path, unigram())
    tree = json.loads(wordpiece_text())
    tree["decoder"]["cleanup"] = request.param == "wordpiece"
    return write_hf(path, tree, BERT)


@pytest.fixture(scope="module")
def own(folder):
    return open_tokenizer(folder)


@pytest.fixture(scope="module")
def library(folder):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_library_s_and_no_text_gives_a_special_one(own, library, text):
    ids = own.encode(text)
    wanted = library.encode(text, add_special_tokens=False).ids
    assert not set(own.specials.values()) & set(ids)
    if not set(own.specials.values()) & set(wanted) and "\0\0" not in text and "<0x" not in text:
        assert ids == wanted


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_is_the_library_s(own, library, text):
    ids = own.encode(text)
    wanted = library.decode(ids, skip_special_tokens=True)
    assert own.decode(ids).strip() == wanted.strip()
    assert own.normalise(text) == own.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_those_of_what_is_left(own, text):
    ids = own.encode(text)
    document = np.asarray([own.bos_id, *ids])
    counted = int(own.bytes_of(document[1:], document[:-1]).sum())
    assert counted == len(own.normalise(text).encode())


def test_streams_are_the_whole_piece_by_piece(own):
    ids, stream = own.encode("Some CAF\u00c9 text, don't you know ? yes"), own.stream()
    shown = [stream.push([one]) for one in ids]
    assert "".join(shown) + stream.end() == own.decode(ids)
    assert all("\ufffd" not in piece for piece in shown)


def test_what_is_lost(own):
    assert not own.lossless
    assert own.normalise("  two   words ") in ("two words", "two words ")
    ids = own.encode("\u65e5")
    assert ids
    assert own.decode(ids) == "", "a character without a token"


def test_special_tokens_are_asked_for(own):
    name = next(name for name, number in own.specials.items() if number == own.eos_id)
    assert own.encode(f"a {name}", allow_special=True)[-1] == own.eos_id


def test_documents_of_a_model_that_fills_gaps(tmp_path):
    """BERT's tokenizers name what stands around a text, and no start or end."""
    tokenizer = open_tokenizer(write_hf(tmp_path, json.loads(wordpiece_text()), BERT))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 3)
    assert tokenizer.specials["[MASK]"] == 4
    assert "[UNK]" not in tokenizer.specials


def damage(tree, **changes):
    return {**tree, **{key: value for key, value in changes.items() if key != "model"}} | {
        "model": tree["model"] | changes.get("model", {})
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"vocab": 3}}, "its model's vocab"),
        ({"model": {"vocab": [["a", 0.0]]}}, "has no token '<s>'|ids are not one for each"),
        ({"model": {"vocab": [[["a"], 0.0]]}}, "its model's vocab"),
        ({"model": {"unk_id": None}}, "has no token for what it does not know"),
        ({"decoder": {"type": "CTC"}}, "its decoder 'CTC' is not known"),
        ({"decoder": {"decoders": [5]}}, "its decoder 5 is not known"),
        ({"decoder": "x"}, "its decoder 'x' is not known"),
        ({"pre_tokenizer": {"type": "Nothing"}}, "not a tokenizer.json"),
        ({"added_tokens": [{"id": "x"}]}, "not a tokenizer.json"),
    ],
)
def test_damaged_ones_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_tokenizer(write_hf(tmp_path, damage(unigram(), **changes)))


def test_a_unigram_with_all_bytes_and_no_normalizer_is_lossless(tmp_path):
    for name, tree in {"a": unigram(exact=True), "b": unigram()}.items():
        assert open_tokenizer(write_hf(tmp_path / name, tree)).lossless == (name == "a")
    bytes_missing = unigram(exact=True)
    bytes_missing["model"]["vocab"].pop()
    assert not open_tokenizer(write_hf(tmp_path / "c", bytes_missing)).lossless
    assert open_tokenizer(tmp_path / "a").eos_id == open_tokenizer(tmp_path / "a").specials[EOS]
