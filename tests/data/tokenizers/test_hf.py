"""`tokenizer.json`: the same ids as the library's, by both ways of encoding, and what is refused."""

import copy
import json

import pytest
import tiktoken
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maxlm.config.errors import UserError
from maxlm.data.tokenizers import open_tokenizer
from maxlm.data.tokenizers.byte_level import PATTERNS, alphabet, has_long_run, same_by_ranks
from maxlm.data.tokenizers.hf import encoder
from tests.data.tokenizers.kinds import (
    BOS,
    EOS,
    HARD_TEXTS,
    byte_level,
    byte_level_text,
    corpus,
    marked,
    write_hf,
)

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
TEXTS = st.one_of(
    # Special tokens are text for us, and not for the library; hypothesis finds their names in here.
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")).filter(
        lambda text: not any(name in text for name in ("<unk>", BOS, EOS))
    ),
    st.lists(
        st.sampled_from(
            ["  ", "\n", "\t", "if", "'s", "12345", "\u0301", "e", "(", "\u3000", " zqzqz"]
        )
    ).map("".join),
    st.integers(0, 50_000).map(lambda start: corpus()[start : start + 300]),
)
MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
OF_THE_LIBRARY = [
    "byte-level",
    "byte-level, NFC",
    "marked",
    "marked, prepend",
    "marked, first",
    "marked, always",
]


def library(path):
    return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))


@pytest.mark.parametrize("kind", OF_THE_LIBRARY)
@MANY
@given(text=TEXTS)
def test_ids_and_texts_are_the_library_s(paths, opened, kind, text):
    reference = library(paths[kind])
    ids = reference.encode(text, add_special_tokens=False).ids
    assert opened[kind].encode(text) == ids
    assert opened[kind].decode(ids) == reference.decode(ids)


@pytest.mark.parametrize("kind", OF_THE_LIBRARY)
def test_special_tokens_that_are_asked_for_are_the_library_s(paths, opened, kind):
    reference = library(paths[kind])
    for text in (f"{BOS}one {EOS} two{EOS}", f"one{BOS} two", f"{EOS}{EOS}", "none"):
        ids = reference.encode(text, add_special_tokens=False).ids
        assert opened[kind].encode(text, allow_special=True) == ids


def added(tree, content, **flags):
    """Add a token that is not special, as in published files, and return the tree."""
    last = max(tree["model"]["vocab"].values(), default=0)
    last = max([last, *(token["id"] for token in tree["added_tokens"])])
    defaults = {
        "special": False,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
    }
    tree["added_tokens"].append({"id": last + 1, "content": content, **defaults, **flags})
    return tree


def whole_words(tree):
    """Let words that are tokens be whole, and add one that no merge makes."""
    tree["model"]["ignore_merges"] = True
    vocab = tree["model"]["vocab"]
    vocab["\u0120zqzqz"] = len(vocab)
    return tree


def with_gaps(tree):
    tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\d"
    return tree


FAST = {
    "cl100k": lambda: json.loads(byte_level_text("cl100k")),
    "o200k": lambda: json.loads(byte_level_text("o200k")),
    "r50k": lambda: byte_level() | {"pre_tokenizer": BYTES},
    "removed": lambda: byte_level() | {"pre_tokenizer": removed(byte_level()["pre_tokenizer"])},
    "NFC": lambda: byte_level() | {"normalizer": {"type": "NFC"}},
    "whole words": lambda: whole_words(byte_level()),
    "added": lambda: added(added(added(byte_level(), "  "), "    "), "if"),
    "gaps": lambda: with_gaps(byte_level()),
}


def removed(pre_tokenizer):
    """Write the pattern as some files do: what does not match is removed, and that is nothing."""
    pre_tokenizer["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    return pre_tokenizer


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast")
    return {name: open_tokenizer(write_hf(folder / name, tree())) for name, tree in FAST.items()}


@pytest.mark.parametrize("name", FAST)
def test_much_text_is_encoded_by_tiktoken_with_the_same_ids(fast, name, monkeypatch):
    tokenizer, reference = fast[name], library(fast[name].path.parent)
    monkeypatch.setattr(encoder, "MUCH_TEXT", 0)
    calls = []
    batch = tiktoken.Encoding.encode_ordinary_batch
    count = lambda self, texts, **more: calls.append(len(texts)) or batch(self, texts, **more)  # noqa: E731
    monkeypatch.setattr(tiktoken.Encoding, "encode_ordinary_batch", count)

    @MANY
    @given(text=TEXTS)
    def same(text):
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids

    same()
    assert len(calls) > 100
    texts = [text for text in HARD_TEXTS if "<s>" not in text and "\u2581" not in text]
    ids = [reference.encode(text, add_special_tokens=False).ids for text in [corpus(), *texts]]
    assert tokenizer.encode_all([corpus(), *texts], num_threads=2) == ids


@pytest.mark.parametrize(
    ("name", "tree"),
    {
        "several patterns": lambda: (
            byte_level()
            | {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Digits", "individual_digits": True},
                        BYTES,
                    ],
                }
            }
        ),
        "found in normalised text": lambda: (
            added(byte_level(), "if", normalized=True) | {"normalizer": {"type": "NFC"}}
        ),
        "whole words alone": lambda: added(byte_level(), "if", single_word=True),
        "no words": lambda: byte_level() | {"pre_tokenizer": {**BYTES, "use_regex": False}},
    }.items(),
)
def test_what_tiktoken_would_not_do_alike_is_left_to_the_library(name, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "MUCH_TEXT", 0)
    monkeypatch.setattr(tiktoken.Encoding, "encode_ordinary_batch", None)
    tokenizer = open_tokenizer(write_hf(tmp_path, tree()))
    reference = library(tmp_path)
    text = corpus()[:3000] + "if x: iffy e\u0301 123"
    assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_ranks_that_merge_otherwise_than_the_list_are_not_used():
    """b+c come first, so the list never makes abc of its text; tiktoken would, of a and bc."""
    vocab = {letter: index for index, letter in enumerate(alphabet())}
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    vocab |= {first + second: 256 + index for index, (first, second) in enumerate(merges)}
    ranks = {name.encode(): rank for name, rank in vocab.items() if name.isascii()}
    ranks |= {bytes([byte]): 1000 + byte for byte in range(256) if bytes([byte]) not in ranks}
    naive = tiktoken.Encoding("n", pat_str=".+", mergeable_ranks=ranks, special_tokens={})
    by_list = tokenizers.models.BPE(vocab=vocab, merges=merges)
    assert naive.encode_ordinary("xabc") != [token.id for token in by_list.tokenize("xabc")]
    assert same_by_ranks(vocab, merges, ignore_merges=False) is None
    good = same_by_ranks(vocab, merges[:2], ignore_merges=False)
    assert good is not None
    assert (good[b"bc"], good[b"\xff"], b"abc" in good) == (
        256,
        alphabet()["\u00ff"] and vocab["\u00ff"],
        False,
    )
    # Out of order; and a whole word that tiktoken would also make of two tokens.
    assert same_by_ranks(vocab, merges[1::-1], ignore_merges=False) is None
    assert same_by_ranks(vocab, merges[:2], ignore_merges=True) is None


def test_long_white_space_is_not_given_to_tiktoken(fast, monkeypatch):
    text = "a" + " " * 1_000_000 + "\n\n"
    assert has_long_run(text)
    assert not has_long_run(text.replace("  ", "xy"))
    ids = fast["cl100k"].encode_all([text, corpus()])
    reference = library(fast["cl100k"].path.parent)
    assert ids[0] == reference.encode(text, add_special_tokens=False).ids
    assert fast["cl100k"].decode(ids[0]) == text


@pytest.mark.parametrize("make", [byte_level, marked])
def test_merges_that_spell_a_special_token_do_not_make_it(make, tmp_path):
    tree = make()
    vocab, merges = tree["model"]["vocab"], tree["model"]["merges"]
    spelling = [["<", "/"], ["</", "s"], ["</s", ">"]]
    for first, second in spelling:
        vocab.setdefault(first + second, len(vocab))
    tree["model"]["merges"] = [*spelling, *(pair for pair in merges if pair not in spelling)]
    if make is byte_level:  # the whole text is a word
        tree["pre_tokenizer"] = {**BYTES, "use_regex": False}
    bare = tokenizers.Tokenizer.from_str(json.dumps(tree))
    bare.encode_special_tokens = True  # the library's way of taking special tokens for text
    assert bare.encode(EOS, add_special_tokens=False).ids == [vocab[EOS]]
    tokenizer = open_tokenizer(write_hf(tmp_path, tree))
    assert vocab[EOS] not in tokenizer.encode(EOS)
    assert tokenizer.decode(tokenizer.encode(EOS)) == EOS


def test_nothing_is_cut_off_filled_up_or_put_in_front(tmp_path):
    tree = byte_level()
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fill = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    front = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": BOS, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [1], "tokens": [BOS]}},
    }
    tree |= {"truncation": cut, "padding": fill, "post_processor": front}
    tree["model"]["dropout"] = 0.5
    path = write_hf(tmp_path, tree)
    assert len(library(path).encode("one two three four five six seven").ids) == 64
    plain = open_tokenizer(write_hf(tmp_path / "plain", byte_level()))
    assert open_tokenizer(path).encode(corpus()[:2000]) == plain.encode(corpus()[:2000])


def test_added_tokens_that_are_text_keep_the_white_space_beside_them(tmp_path):
    tree = added(byte_level(), "<think>", lstrip=True, rstrip=True)
    tokenizer = open_tokenizer(write_hf(tmp_path, tree))
    ids = tokenizer.encode("a  <think> \n b")
    assert tokenizer.decode(ids) == "a  <think> \n b"
    assert tree["added_tokens"][-1]["id"] in ids
    assert "<think>" not in tokenizer.specials


def test_tokens_that_the_settings_name_are_special_whatever_the_file_says(tmp_path):
    tree = byte_level()
    for token in tree["added_tokens"]:
        token["special"] = False
    tokenizer = open_tokenizer(write_hf(tmp_path, tree))
    assert tokenizer.specials == {BOS: 1, EOS: 2}
    assert not {1, 2} & set(tokenizer.encode(f"{BOS} {EOS}"))


def test_fingerprint_is_of_what_decides_about_ids(tmp_path):
    def fingerprint(**config):
        path = write_hf(tmp_path, byte_level(), {"eos_token": EOS, **config})
        return open_tokenizer(path).fingerprint

    alone = fingerprint()
    assert fingerprint(chat_template="{{ x }}") == alone
    assert fingerprint(bos_token=EOS) == alone
    assert fingerprint(bos_token=BOS) != alone


def edited(make, **changes):
    """Return a function that makes a tree and changes places of it: `model__type="WordLevel"`."""

    def tree():
        made = copy.deepcopy(make())
        for place, value in changes.items():
            *path, last = place.split("__")
            inner = made
            for key in path:
                inner = inner[key]
            inner[last] = value
        return made

    return tree


REFUSED = {
    "words": (edited(marked, model__type="WordLevel"), "WordLevel; BPE, Unigram and WordPiece can"),
    "no unigram": (edited(marked, model__type="Unigram"), "damaged.: its model's vocab"),
    "no model": (dict, "its model is missing"),
    "a list": (list, "not a tokenizer.json"),
    "lower case": (
        edited(byte_level, normalizer={"type": "Lowercase"}),
        "normalizer Lowercase loses text",
    ),
    "NFKC": (
        edited(
            byte_level,
            normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]},
        ),
        "normalizer NFKC loses text",
    ),
    "another replacement": (
        edited(marked, normalizer={"type": "Replace", "pattern": {"String": "x"}, "content": "y"}),
        "normalizer Replace loses text",
    ),
    "a space in front": (
        edited(byte_level, pre_tokenizer={**BYTES, "add_prefix_space": True}),
        "ByteLevel with add_prefix_space loses text",
    ),
    "white space": (
        edited(
            byte_level,
            pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTES]},
        ),
        "pre_tokenizer Whitespace loses text",
    ),
    "removed": (
        edited(
            byte_level,
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"String": " "},
                        "behavior": "Removed",
                        "invert": False,
                    },
                    BYTES,
                ],
            },
        ),
        "pre_tokenizer Split loses text",
    ),
    "no type": (edited(byte_level, pre_tokenizer={}), "has no type"),
    "no bytes": (
        edited(marked, model__byte_fallback=False),
        "neither byte-level nor has byte fallback",
    ),
    "a byte less": (edited(byte_level, model__vocab__A=None), "damaged"),
    "word ends": (edited(byte_level, model__end_of_word_suffix="</w>"), "the end of words"),
    "a merge of three": (edited(byte_level, model__merges=["a b c"]), "merge 'a b c' is no pair"),
    "a merge of none": (edited(byte_level, model__merges=[["zq", "qz"]]), "damaged"),
    "ids twice": (edited(byte_level, model__vocab__A=7), "ids are not one for each token"),
    "ids of two sayings": (
        edited(byte_level, added_tokens=[{"id": 9, "content": EOS, "special": True}]),
        "ids are not one for each token",
    ),
    "huge ids": (edited(byte_level, model__vocab__A=10**9), "ids are not one for each token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_lose_text_or_is_damaged_is_refused(name, tmp_path):
    tree, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        open_tokenizer(write_hf(tmp_path, tree()) / "tokenizer.json")
    assert str(tmp_path / "tokenizer.json") in str(error.value)
    assert "use its SentencePiece model" in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {},
            r"nothing says which token ends a document; put a tokenizer_config\.json beside it, such as",
        ),
        ({"eos_token": "<none>"}, "it has no token '<none>'"),
        ({"eos_token": "A"}, "1 of the 256 bytes have no token of their own"),
        ([], "nothing says which token ends a document"),
    ],
)
def test_what_ends_a_document_must_be_said(config, message, tmp_path):
    write_hf(tmp_path, byte_level(), config)
    with pytest.raises(UserError, match=message):
        open_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": EOS}}))
    if config in ({}, []):
        assert open_tokenizer(tmp_path).bos_id == open_tokenizer(tmp_path).eos_id == 2
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: no JSON"):
        open_tokenizer(tmp_path)


def test_deep_nesting_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        open_tokenizer(tmp_path)


def test_known_patterns_cut_like_the_library():
    """The one that the library's own pre-tokenizer has is written there, too."""
    own = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS["r50k"]), "isolated")
    to_letters = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    both = tokenizers.pre_tokenizers.Sequence([split, to_letters])
    assert own.pre_tokenize_str(corpus()) == both.pre_tokenize_str(corpus())
