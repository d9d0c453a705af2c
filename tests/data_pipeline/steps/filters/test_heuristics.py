"""Several sets in a row: the first broken rule is named, lines that one takes out are gone for the next."""

import pytest
from pydantic import ValidationError

from data_pipeline.documents import Document
from data_pipeline.heuristics.sets import RULE_SETS
from data_pipeline.steps.filters.heuristics import Heuristics
from maxlm.config.pipeline.filters.heuristics import HeuristicsConfig
from maxlm.config.pipeline.heuristics import RuleSet
from maxlm.config.reading.paths import kinds, sections

PROSE = "\n".join(
    f"The {noun} of the garden and that house have been with us for {number} years to this day."
    for number, noun in enumerate(["wall", "gate", "roof", "tree", "path", "bench", "pond", "lamp"])
)

NO_NGRAMS = {f"max_top_{n}_gram_char_frac": None for n in (2, 3, 4)}
NO_NGRAMS |= {f"max_dup_{n}_gram_char_frac": None for n in range(5, 11)}


def step(*rules, **settings) -> Heuristics:
    return Heuristics(HeuristicsConfig.model_validate({"rules": list(rules), **settings}))


def test_every_set_of_rules_is_there() -> None:
    assert {kind for section in sections(RuleSet) for kind in kinds(section)} == set(RULE_SETS)


def test_sets_in_their_order(verdicts) -> None:
    lines_alone = {"kind": "gopher_repetition", **NO_NGRAMS}
    chain = step(
        lines_alone, "gopher_quality", "c4", {"kind": "fineweb", "max_char_dup_ratio": 0.1}
    )
    short = "The garden of the house.\n" * 30
    assert verdicts(chain, [PROSE, short, "the and"]) == [
        PROSE,
        "gopher_repetition/max_dup_line_frac",
        "gopher_quality/min_doc_words",
    ]


def test_lines_taken_out_are_gone_for_the_next(verdicts) -> None:
    menu = "\n".join(["Home page", "About us"] * 20)
    text = f"{PROSE}\n{menu}"
    assert verdicts(step("fineweb"), [text]) == ["fineweb/max_short_line_ratio"]
    assert verdicts(step("c4", "fineweb"), [text]) == [PROSE]
    nothing = {"kind": "c4", "min_sentences": None}
    assert verdicts(step(nothing), ["no sentence"]) == ["heuristics/empty"]


def test_a_dropped_document_is_as_it_came_with_what_was_measured() -> None:
    document = Document("a", "s", "the and of", {"url": "u"})
    [dropped] = step("gopher_quality")(iter([document]))
    assert dropped == (document, "gopher_quality/min_doc_words", "3")


def test_words_between_spaces(verdicts) -> None:
    text = "the ( ( ( house ) ) ) and of " * 20
    limit = {"kind": "gopher_quality", "min_doc_words": None, "min_avg_word_length": None}
    assert verdicts(step(limit, words="tokens"), [text]) == ["gopher_quality/min_alpha_words_ratio"]
    glued = "((((house)))) and of the " * 20
    assert verdicts(step(limit, words="whitespace"), [glued]) == [glued]


def test_settings() -> None:
    one = HeuristicsConfig.model_validate({"rules": "gopher_quality"})
    assert one.rules[0].min_doc_words == 50
    for wrong in ([], ["no_such_set"], [{"kind": "c4", "min_doc_words": 3}]):
        with pytest.raises(ValidationError):
            HeuristicsConfig.model_validate({"rules": wrong})


HOSTILE = [
    "a" * 3_00_000,
    "a " * 50_000,
    "!" * 1_00_000,
    "a" + "!" * 1_00_000,
    "\n" * 1_00_000,
    "[" * 50_000,
    ". " * 50_000,
    "'" * 50_000 + '"' * 50_000,
    "/*" * 50_000,
    '"""' * 30_000,
    "0x" * 50_000,
    "ab, " * 250_000,
    "ab " * 250_000 + "x",
    "<a x=" * 20_000,
    "\\" * 50_000,
    "\u4f60" * 1_00_000,
    "1.2k " * 20_000 + "\n1",
    "a-" * 50_000,
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["a.py", "a.js", "a.html", "a.txt"])
def test_hostile_texts_end(path: str, verdicts) -> None:
    """Linear in their length: a quadratic rule would take hours on any of them."""
    off = {"max_line_length": None, "max_avg_line_length": None, "min_alpha_ratio": None}
    code = {"kind": "starcoder", **off, "max_encoded_run": None, "max_encoded_ratio": None}
    chain = [{"kind": "refinedweb", "single_words": False, "max_flagged_word_ratio": None}]
    chain += [
        {"kind": "c4", "terminal_punctuation": False, "min_sentences": None, "curly_bracket": False}
    ]
    chain += [{"kind": "fineweb", "min_line_punct_ratio": None}] if path == "a.txt" else [code]
    chain += ["gopher_repetition", "gopher_quality"] if path == "a.txt" else []
    assert len(verdicts(step(*chain), HOSTILE if path != "a.txt" else HOSTILE[:9], path=path)) >= 9
