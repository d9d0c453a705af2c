"""Exact copies of documents, paragraphs and lines, against dictionaries."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup.exact import digests, units_of
from data_pipeline.steps.dedup.exact_dedup import ExactDedup
from maxlm.config.errors import UserError
from maxlm.config.pipeline.dedup.exact_dedup import ExactDedupConfig

TEXT = st.text(st.sampled_from("ab \n\t\r\u2028"), max_size=30)


@settings(max_examples=200, deadline=None)
@given(TEXT, st.sampled_from(["document", "paragraph", "line"]))
def test_units_make_up_the_text(text, unit):
    units = units_of(text, unit)
    assert "".join(units) == text
    if unit == "line":
        assert [line.removesuffix("\n") for line in units] == text.split("\n")
    if unit == "paragraph":
        lines = [line.strip(" \t\r\u2028") for line in text.split("\n")]
        # Blank lines end a paragraph: none is inside one.
        for paragraph in units[1:]:
            assert paragraph.split("\n")[0].strip() or paragraph == units[-1] or not any(lines)


def test_an_indented_paragraph_keeps_its_indentation():
    assert units_of("one\n \n    two\n\n\nthree", "paragraph") == [
        "one\n \n",
        "    two\n\n\n",
        "three",
    ]


def test_digests_see_words_and_not_the_space_between():
    rows, same = digests(["a b", " a\n\tb ", "A b", "ab"], ignore_case=False, min_words=0)
    assert rows.tolist() == [0, 1, 2, 3]
    same = same.T.tolist()
    assert same[0] == same[1]
    assert len({tuple(one) for one in same}) == 3
    rows, folded = digests(["a B\u00df", "one", "A bSS", ""], ignore_case=True, min_words=2)
    assert rows.tolist() == [0, 2]
    assert folded[:, 0].tolist() == folded[:, 1].tolist()


@pytest.mark.parametrize("unit", ["document", "paragraph", "line"])
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("memory_bytes", [2**30, 500])
def test_the_first_of_equal_units_stays(run_step, in_shards, unit, shards, memory_bytes):
    lines = ["the first line", "b", "", "the second line", "  the first   line", "}"]
    starts = (0, 1, 2, 3, 0, 4, 5, 2, 1)
    texts = ["\n".join(lines[(start + i) % 6] for i in range(4)) for start in starts]
    texts += ["", " ", "the second line"]
    step = ExactDedup(ExactDedupConfig(unit=unit, min_words=1 if unit == "document" else 2))
    outcome = run_step(step, in_shards(texts, shards), memory_bytes=memory_bytes)
    assert (outcome.rounds["copies"] > 1) == (memory_bytes == 500)
    seen, expected = set(), []
    for text in texts:
        left = ""
        for one in units_of(text, unit):
            words = one.split()
            if tuple(words) in seen and (unit == "document" or len(words) >= 2):
                continue
            seen.add(tuple(words))
            left += one
        changed = left != text
        if left.strip() or not changed:
            expected.append(left)
    assert [document.text for document in outcome.kept] == expected
    assert {one.reason for one in outcome.dropped} == {f"exact_dedup/{unit}"}


def test_documents_of_one_address(run_step, in_shards):
    keys = ["a.org/x", None, "b.org/", "a.org/x", "A.org/x", None, "b.org/"]
    (first, second) = in_shards([f"text {number}" for number in range(len(keys))], 2)
    for document in [*first, *second]:
        key = keys[int(document.id.removeprefix("web/"))]
        document.meta |= {} if key is None else {"url_key": key}
    step = ExactDedup(ExactDedupConfig(unit="url", min_words=9))
    outcome = run_step(step, [first, second])
    gone = {one.document.id: (one.reason, one.detail) for one in outcome.dropped}
    kept = {int(one.id.removeprefix("web/")) for one in outcome.kept}
    for twins in ({0, 3}, {2, 6}):
        (stays,) = twins & kept
        (goes,) = twins - kept
        assert gone[f"web/{goes}"] == ("exact_dedup/url", f"same as web/{stays}")
    assert kept >= {1, 4, 5}
    assert len(gone) == 2
    with pytest.raises(UserError, match=r"unit=url: no document has an address.*raw\.meta_keys"):
        run_step(step, in_shards(["one", "two"]))
    assert not run_step(step, []).kept


def test_addresses_need_a_step_that_makes_them_comparable(run_config):
    def problems(steps):
        data = run_config(pipeline={"steps": steps}).data
        return [
            p for n, one in enumerate(data.pipeline.steps) for p in one.problems(f"s.{n}", data)
        ]

    by_url = {"kind": "exact_dedup", "unit": "url"}
    assert not problems([{"kind": "url"}, by_url])
    (problem,) = problems([by_url, {"kind": "url"}])
    assert problem.path == "s.0.unit"
    assert "put a step {kind: url} before it" in problem.text


def test_a_protected_source_loses_nothing_and_comes_first(run_step, in_shards):
    web = in_shards(["same text", "other"], source="web")
    books = in_shards(["same text", "same text"], source="books")
    outcome = run_step(ExactDedup(ExactDedupConfig()), [*web, *books], protected=["books"])
    assert [document.id for document in outcome.kept] == ["web/1", "books/0", "books/1"]
    assert outcome.dropped[0].detail == "same as books/0"


def test_of_every_copy_the_document_that_stays_is_named(run_step, in_shards):
    texts = [f"{number % 7} a text" for number in range(40)]
    outcome = run_step(ExactDedup(ExactDedupConfig()), in_shards(texts, 5), memory_bytes=5000)
    assert outcome.rounds["named"] > 1
    named = {int(one.document.id.removeprefix("web/")): one.detail for one in outcome.dropped}
    assert named == {number: f"same as web/{number % 7}" for number in range(7, 40)}


def test_metadata_and_ids_stay_when_lines_go(run_step, in_shards):
    (documents,) = in_shards(["one line\ntwo lines\none line\nthree"])
    documents[0].meta["licence"] = "mit"
    (left,) = run_step(ExactDedup(ExactDedupConfig(unit="line")), [documents]).kept
    assert (left.id, left.text, left.meta) == (
        "web/0",
        "one line\ntwo lines\nthree",
        {"licence": "mit"},
    )
