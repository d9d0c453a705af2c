"""tiktoken files: the same ids as the library's, and what the JSON file beside them must say."""

import json

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from maxlm.config.errors import UserError
from maxlm.data.tokenizers import open_tokenizer
from maxlm.data.tokenizers.byte_level import LONGEST_RUN, PATTERNS
from tests.data.tokenizers.kinds import BOS, EOS, corpus, write_tiktoken


@pytest.fixture(scope="module")
def library(paths):
    return tiktoken.Encoding(
        "own",
        pat_str=PATTERNS["cl100k"],
        mergeable_ranks=load_tiktoken_bpe(str(paths["tiktoken"])),
        special_tokens=json.loads(paths["tiktoken"].with_name("own.tiktoken.json").read_text())[
            "special_tokens"
        ],
    )


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_ids_are_the_library_s(opened, library, text):
    text += corpus()[:500]
    assert opened["tiktoken"].encode(text) == library.encode_ordinary(text)
    text = f"{text}{BOS}<|x|>{EOS} {text}"
    with_specials = library.encode(text, allowed_special="all")
    assert opened["tiktoken"].encode(text, allow_special=True) == with_specials


def test_ids_between_and_behind_special_tokens_stand_for_nothing(opened):
    tokenizer = opened["tiktoken"]
    assert tokenizer.vocab_size == max(tokenizer.specials.values()) + 1
    unused = tokenizer.specials[EOS] + 1
    assert unused not in tokenizer.specials.values()
    assert tokenizer.decode([unused]) == ""


def test_white_space_that_the_library_panics_at(opened):
    text = "a" + " " * (3 * LONGEST_RUN) + "b\n" * LONGEST_RUN + "\n" * (LONGEST_RUN + 1)
    text += " " * 1_000_000
    assert opened["tiktoken"].decode(opened["tiktoken"].encode(text)) == text


def test_what_no_word_matches_is_kept(tmp_path):
    tokenizer = open_tokenizer(write_tiktoken(tmp_path, pattern=r"\p{L}+|\d"))
    assert tokenizer.decode(tokenizer.encode("ab 12,\n\ncd")) == "ab 12,\n\ncd"


def test_a_tokenizer_without_a_token_for_beginnings(tmp_path):
    tokenizer = open_tokenizer(write_tiktoken(tmp_path, bos_token=None))
    assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.specials[EOS]


def test_the_pattern_and_the_special_tokens_are_in_the_fingerprint(tmp_path, opened):
    prints = {opened["tiktoken"].fingerprint}
    for changed in (
        {"pattern": "o200k"},
        {"bos_token": EOS},
        {"special_tokens": {BOS: 2000, EOS: 2001}},
    ):
        prints.add(open_tokenizer(write_tiktoken(tmp_path, **changed)).fingerprint)
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pattern": "(("},
            r"pattern='\(\(' is no regular expression .*; use one of r50k, cl100k, o200k",
        ),
        ({"eos_token": "<end>"}, "eos_token='<end>' is none of its special_tokens"),
        (
            {"special_tokens": {BOS: 3, EOS: 3000}},
            "ids must be others than all: 3 is a token of own.tiktoken",
        ),
        (
            {"special_tokens": {BOS: 3000, EOS: 3000}},
            "ids must be others than all: two are the same",
        ),
        (
            {"special_tokens": {BOS: "3", EOS: 3000}},
            r"special_tokens\.<s>: Input should be a valid integer",
        ),
        ({"more": 1}, "more: Extra inputs"),
    ],
)
def test_what_the_file_beside_may_not_say(settings, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        open_tokenizer(write_tiktoken(tmp_path, **settings))
    assert str(tmp_path / "own.tiktoken.json") in str(error.value)


def test_files_that_are_missing_or_damaged(tmp_path):
    path = write_tiktoken(tmp_path)
    whole = path.read_bytes()
    beside = path.with_name("own.tiktoken.json")
    beside.write_text("[")
    with pytest.raises(UserError, match=r"own\.tiktoken\.json: .*write, for example, .*cl100k"):
        open_tokenizer(path)
    beside.unlink()
    with pytest.raises(UserError, match=r"own\.tiktoken\.json: missing; .*write, for example"):
        open_tokenizer(path)
    for damaged, message in (
        (whole + b"x", r"line \d+ is no token in base64"),
        (whole + b"IQ==a 5000\n", r"line \d+ is no token in base64"),
        (whole + whole[:7], "a token or a rank is there twice"),
        (whole.split(b"\n", 5)[5], "5 of the 256 bytes have no token"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=message):
            open_tokenizer(path)
