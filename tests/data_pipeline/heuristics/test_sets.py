"""Each published rule against a second, plain implementation of its definition."""

from collections import Counter

import pytest

from data_pipeline.heuristics.rules import Broken
from data_pipeline.heuristics.sets import RULE_SETS
from data_pipeline.heuristics.text import Text
from maxlm.config.pipeline.filters.heuristics import HeuristicsConfig
from tests.data_pipeline.heuristics import definitions
from tests.data_pipeline.heuristics.generated import TEXTS


def apply(section, text, words="tokens", **meta):
    """Return the rule that a text breaks, or the text that is left; `text` may be a Text."""
    [config] = HeuristicsConfig.model_validate({"rules": section}).rules
    text = text if isinstance(text, Text) else Text(text, meta, words)
    result = RULE_SETS[config.kind](config)(text)
    return result.rule if isinstance(result, Broken) else result.content


@pytest.mark.parametrize("text", TEXTS[:100])
def test_tokens(text: str) -> None:
    words = Text(text, {}, "tokens").words
    names = list(words.unique)
    assert [names[number] for number in words.ids] == definitions.tokens(text)


def test_signs_of_scripts_without_spaces_are_words() -> None:
    words = Text("abc \u4f60\u597d\u3002x\u3053 don't", {}, "tokens").words
    assert list(words.unique) == ["abc", "\u4f60", "\u597d", "\u3002", "x", "\u3053", "don't"]


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "fineweb"])
@pytest.mark.parametrize("words", ["tokens", "whitespace"])
def test_one_rule_at_a_time(name: str, words: str) -> None:
    """With all other rules off, a rule drops exactly the texts that its definition drops."""
    [published] = HeuristicsConfig.model_validate({"rules": name}).rules
    rules = [field for field in type(published).model_fields if field.startswith(("min_", "max_"))]
    define, seen = getattr(definitions, name), Counter()
    broken_by = [
        define(text, definitions.tokens(text) if words == "tokens" else text.split())
        for text in TEXTS
    ]
    shared = [Text(text, {}, words) for text in TEXTS]
    for rule in rules:
        section = {"kind": name, **{other: None for other in rules if other != rule}}
        for text, broken in zip(shared, broken_by, strict=True):
            assert apply(section, text) == (rule if rule in broken else text.content)
            seen[rule, rule in broken] += 1
    rare = {"max_doc_words"}  # 100,000 words: below
    assert not [rule for rule in rules if rule not in rare and not seen[rule, True]]
    assert not [rule for rule in rules if not seen[rule, False]]


@pytest.mark.parametrize("name", ["gopher_quality", "gopher_repetition", "fineweb"])
def test_together_the_first_broken_rule_is_named(name: str) -> None:
    for text in TEXTS:
        broken = getattr(definitions, name)(text, definitions.tokens(text))
        result = apply(name, text)
        assert result in broken if broken else result == text


def test_long_documents() -> None:
    text = "the and of to be " * 20_001
    assert apply("gopher_quality", text) == "max_doc_words"
    assert apply("gopher_quality", text.removesuffix("be ")) == "max_doc_words"  # 100,004
    assert apply("gopher_quality", text[: 100_000 * 17 // 5]) != "max_doc_words"  # 100,000


def test_c4() -> None:
    results = Counter()
    for text in TEXTS:
        expected = definitions.c4(text)
        assert apply("c4", text) == expected
        results[expected if "\n" not in expected and " " not in expected else "kept"] += 1
    assert set(results) >= {"kept", "min_sentences", "curly_bracket", "lorem_ipsum"}


def test_c4_settings() -> None:
    text = (
        "A line without an end\nTwo words.\nWe use cookies here.\nSee [3] this line.\nx {y} z.\n"
        + "w" * 1001
        + " is long."
    )
    off = {
        "kind": "c4",
        "terminal_punctuation": False,
        "min_words_per_line": None,
        "max_word_length": None,
        "javascript": False,
        "policy": False,
        "citations": False,
        "lorem_ipsum": False,
        "curly_bracket": False,
        "min_sentences": None,
    }
    assert apply(off, text) == text
    without = {
        "terminal_punctuation": (True, text.split("\n", 1)[1]),
        "min_words_per_line": (3, text.replace("Two words.\n", "")),
        "max_word_length": (1000, text.rsplit("\n", 1)[0]),
        "policy": (True, text.replace("We use cookies here.\n", "")),
        "citations": (True, text.replace("[3]", "")),
        "curly_bracket": (True, "curly_bracket"),
        "min_sentences": (100, "min_sentences"),
    }
    for setting, (value, expected) in without.items():
        assert apply({**off, setting: value}, text) == expected, setting


LONG = "Read more about this in the book that we all like to read more"
REFINED = {
    "THIS LINE SHOUTS at you": None,
    "THIS one does not": "THIS one does not",
    "\u041f\u0420\u0418\u0412\u0415\u0422 \u043c": None,
    "123 456": None,
    "3 likes": None,
    "1.2k Followers": None,
    "12 replies!": None,
    "3 little pigs": "3 little pigs",
    "word": None,
    "Sign in to see the whole of it": "to see the whole of it",
    "Signing in is easy for all": "Signing in is easy for all",
    "It was a dark night. Read more...": "It was a dark night. ",
    "You have 3 items in cart now": "You have  now",
    LONG: LONG,
    "": "",
}  # fmt: skip


@pytest.mark.parametrize("line", REFINED)
def test_refinedweb_line_by_line(line: str) -> None:
    ordinary = "Here is an ordinary line of text that nobody minds at all."
    text = f"{ordinary}\n{line}\n{ordinary}"
    left = [ordinary, *([] if REFINED[line] is None else [REFINED[line]]), ordinary]
    lenient = {"kind": "refinedweb", "max_flagged_word_ratio": None}
    assert apply(lenient, text) == "\n".join(left)


def test_refinedweb_drops_documents_of_such_lines() -> None:
    ordinary = "ordinary words in a line of ten words each time\n" * 10
    assert apply("refinedweb", ordinary + "3 likes\n5 shares") == ordinary.rstrip("\n")  # 4 of 104
    assert (
        apply("refinedweb", ordinary + "3 likes\n5 shares\n1 view") == "max_flagged_word_ratio"
    )  # 6 of 106


def test_redpajama_code() -> None:
    good = "def double(value):\n    return value + value\n"
    assert apply("redpajama_code", good) == good
    assert apply("redpajama_code", good + "x" * 1001) == "max_line_length"
    assert apply("redpajama_code", ("a" * 101 + "\n") * 3) == "max_avg_line_length"
    assert apply("redpajama_code", "(){}[];=\n" * 5 + "ab") == "min_alnum_ratio"
    assert apply("redpajama_code", "1 2 3 a b\n" * 5) == "min_alpha_token_ratio"


PYTHON = '"""What it does."""\nimport os\n\n\ndef name(x):\n    # why\n    return os.fspath(x)\n'
STARCODER = [
    ("a.py", PYTHON, None),
    ("a.py", PYTHON.replace('"""What it does."""', "").replace("# why", "pass"), "min_comment_ratio"),
    ("a.py", "# only\n" * 20 + "x", "max_comment_ratio"),
    ("a.py", 'x = """\nvalue\n"""\n' * 3, "min_comment_ratio"),
    ("a.rb", "puts 1 # no rule\n", None),
    ("A.java", "// c\nclass A { String url = \"http://x\"; }\n", None),
    ("A.java", "class A { /*" + "c " * 45 + "*/ }\n/*" + "c " * 45 + "*/", "max_comment_ratio"),
    ("a.js", "let a = `// no comment`; let b = '/* nor this */';\n", "min_comment_ratio"),
    ("a.c", "// This file is automatically generated.\nint x;\n", "auto_generated"),
    ("a.c", "int a;\n" * 5 + "// auto-generated\n", None),
    ("a.c", "<?xml version='1.0'?>\n<a/>", "xml"),
    ("a.xml", "<?xml version='1.0'?>\n<a>text</a>", "xml"),
    ("a.xsl", "<?xml version='1.0'?>\n<a>text</a>", None),
    ("a.c", "// an auto generated story\nint x;\n", None),
    ("a.html", "a" * 100_001, "max_long_line_length"),
    ("a.owl", "one line\n" * 513, "max_data_lines"),
    ("a.owl", "one line\n" * 511, None),
    ("docs/README.TXT", "some words\n", None),
    ("my_requirements-dev.txt", "numpy\n", None),
    ("requirements/prose.txt", "some words\n", "text_names"),
    ("a.wat", "(i32 16 32 64 (128))\n" * 9, None),
    ("a.wat", "(){}[]<>:;a\n" * 9, "min_alpha_ratio"),
    ("a.c", "int a;\n" * 100_001, "max_lines"),
    ("a.c", "i" * 1001 + "\n" + "int a;\n" * 100, "max_line_length"),
    ("a.c", ("i" * 101 + "\n") * 3, "max_avg_line_length"),
    ("a.md", "words of prose " * 100, None),
    ("a.c", "{}();\n" * 10 + "i", "min_alpha_ratio"),
    ("a.c", "char x[] = \"" + "QUJD" * 257 + "\";\n" + "int a;\n" * 300, "max_line_length"),
    ("a.md", "data " + "QUJD" * 257 + "\n" + "some words here\n" * 300, "max_encoded_run"),
    ("a.c", "char a[] = {" + "0xab, " * 30 + "};\n", "max_avg_line_length"),
    ("a.md", "bytes " + "ab,0xcd,ef 01 " * 9 + "e", "max_encoded_ratio"),
    ("a.md", "bytes " + "ab, cd, " * 12 + "e", None),  # as published: no space after a comma
    ("a.md", "some text " * 4 + r"\u0041" * 20, "max_encoded_ratio"),
    ("a.html", "<p>" + "visible text " * 20 + "</p>", None),
    ("a.html", "<p>short</p>", "min_html_text_chars"),
    ("a.html", "<script>" + "var x = 1;" * 100 + "</script>" + "text " * 22, "min_html_text_ratio"),
    ("a.json", '{"name": "short"}', "min_data_chars"),
    ("a.yaml", "key: value\n" * 500, "max_data_chars"),
    ("a.yml", "key: value\n" * 10, None),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(STARCODER)))
def test_starcoder(number: int) -> None:
    path, code, rule = STARCODER[number]
    assert apply("starcoder", code, path=path) == (rule or code)


def test_starcoder_stars() -> None:
    section = {"kind": "starcoder", "min_stars": 5}
    assert apply(section, "int abc;", path="a.c", stars=5) == "int abc;"
    assert apply(section, "int abc;", path="a.c", stars=4) == "min_stars"
    assert apply(section, "int abc;", path="a.c") == "min_stars"
