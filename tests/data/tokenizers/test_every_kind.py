"""What holds for every kind of tokenizer."""

import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maxlm.config.errors import UserError
from maxlm.data.tokenizers import open_tokenizer
from tests.data.tokenizers.kinds import BOS, EOS, HARD_TEXTS, KINDS

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(
        st.sampled_from(
            [" ", "\n", "a", "\u2581", "\u0301", "e", BOS, EOS, "<0x41>", "\0", "\U0001f600"]
        )
    ).map("".join),
)
ALL_TEXTS = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def count_bytes(tokenizer, ids):
    document = np.asarray([tokenizer.bos_id, *ids], np.int64)
    return int(tokenizer.bytes_of(document[1:], document[:-1]).sum())


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_hard_texts_come_back_exactly(any_kind, text):
    assert any_kind.decode(any_kind.encode(text)) == any_kind.normalise(text)


@ALL_TEXTS
@given(text=TEXTS)
def test_every_text_comes_back_and_its_bytes_are_counted(any_kind, text):
    ids = any_kind.encode(text)
    back = any_kind.decode(ids)
    assert back == any_kind.normalise(text)
    assert count_bytes(any_kind, ids) == len(back.encode())
    assert not set(any_kind.specials.values()) & set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_given_back(opened, kind):
    """Only what says so composes characters, and only published conversions drop a space."""
    text = " \u2581e\u0301 "
    want = unicodedata.normalize("NFC", text) if kind == "byte-level, NFC" else text
    want = want[1:] if kind in ("marked, first", "marked, always", "unigram") else want
    assert opened[kind].normalise(text) == want


def test_lone_surrogates_are_replaced(any_kind):
    assert any_kind.decode(any_kind.encode("a\ud800b\udfff")) == "a\ufffdb\ufffd"
    assert any_kind.decode(any_kind.encode("\ud83d\ude00")) == "\U0001f600"


def test_many_texts_at_once_are_the_texts_one_by_one(any_kind):
    one_by_one = [any_kind.encode(text) for text in HARD_TEXTS]
    assert any_kind.encode_all(HARD_TEXTS, num_threads=3) == one_by_one
    assert any_kind.encode_all([]) == []


def test_special_tokens_are_asked_for(any_kind):
    bos, eos = any_kind.bos_id, any_kind.eos_id
    ids = any_kind.encode(f"a{BOS}b{EOS}{EOS}", allow_special=True)
    specials = [token for token in ids if token in any_kind.specials.values()]
    assert specials == [any_kind.specials.get(BOS, bos), eos, eos]
    assert any_kind.decode(ids).replace(" ", "") == "ab"
    start = ids[: ids.index(specials[0])]
    assert start == any_kind.encode("a")
    assert any_kind.encode(EOS, allow_special=True) == [eos]
    assert any_kind.encode("a b", allow_special=True) == any_kind.encode("a b")


def test_special_tokens_and_unused_ids_stand_for_no_bytes(any_kind):
    tokens = np.arange(any_kind.vocab_size)
    sizes = any_kind.bytes_of(tokens, tokens)
    assert sizes.dtype == np.int32
    assert sizes[[any_kind.bos_id, any_kind.eos_id]].tolist() == [0, 0]
    assert (sizes > 0).sum() >= 300
    for token in np.flatnonzero(sizes == 0):
        assert any_kind.decode([token]) == ""


@ALL_TEXTS
@given(text=TEXTS, cut=st.integers(1, 5))
def test_streams_show_whole_characters_and_take_nothing_back(any_kind, text, cut):
    ids, stream = any_kind.encode(text + "\U0001f600"), any_kind.stream()
    shown = ""
    whole = any_kind.decode(ids)
    for start in range(0, len(ids), cut):
        shown += stream.push(ids[start : start + cut])
        assert whole.startswith(shown)
    assert shown + stream.end() == whole


def test_a_stream_ends_with_what_is_no_character(any_kind):
    emoji = any_kind.encode("x\U0001f600")
    stream = any_kind.stream()
    assert stream.push(emoji[:-1]) == "x"
    assert stream.end() == "\ufffd"
    for wrong in (-1, any_kind.vocab_size):
        with pytest.raises(ValueError, match=f"token id {wrong} is not in"):
            any_kind.decode([wrong])


def test_a_folder_of_its_files_is_the_same_tokenizer(any_kind, tmp_path):
    for name, data in any_kind.files.items():
        (tmp_path / name).write_bytes(data)
    copy = open_tokenizer(tmp_path)
    assert copy.fingerprint == any_kind.fingerprint
    assert copy.files == any_kind.files
    ids = "vocab_size", "bos_id", "eos_id", "specials"
    assert [getattr(copy, name) for name in ids] == [getattr(any_kind, name) for name in ids]


def test_every_tokenizer_has_a_fingerprint_of_its_own(opened):
    assert len({tokenizer.fingerprint for tokenizer in opened.values()}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused(paths, kind, tmp_path):
    path = paths[kind] / "tokenizer.json" if paths[kind].is_dir() else paths[kind]
    for beside in path.parent.iterdir():
        (tmp_path / beside.name).write_bytes(beside.read_bytes())
    whole, copy = path.read_bytes(), tmp_path / path.name
    for damaged in (whole[: len(whole) // 2], whole[:-7], whole[:1]):
        copy.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{copy.name}.*(damaged|base64|bytes have no token)"):
            open_tokenizer(copy)


def test_tokenizers_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no such tokenizer; run: maxlm prepare"):
        open_tokenizer(tmp_path / "none.model")
    with pytest.raises(UserError, match=r"this has none; data\.tokenizer must name such a folder"):
        open_tokenizer(tmp_path)
    for name in ("a.tiktoken", "b.tiktoken"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"this has several \(a\.tiktoken, b\.tiktoken\)"):
        open_tokenizer(tmp_path)
