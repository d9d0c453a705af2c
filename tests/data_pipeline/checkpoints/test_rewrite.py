"""Documents that a trained model writes: what is asked, what comes of it, and on what it depends."""

import pytest

from data_pipeline.documents import Document, Dropped
from data_pipeline.operations.tokenize import count_places
from data_pipeline.steps.rewrite import Rewrite
from data_pipeline.storage.document_files import DocumentWriter
from data_pipeline.text.places import MASK
from data_pipeline.tokens.order import split_place
from maxlm.config.pipeline.rewrite import PROMPTS, RewriteConfig

TEXTS = ["theorem proof", "", "buy {text} cheap", "proof " * 90, "cheap"]
ONE = {"name": "say", "prompts": ["Say: {text}\nAgain: "]}
TWO = {"name": "turn", "prompts": ["To: {text}\n", "From: {text} back\n"], "with_source": True}


@pytest.fixture
def rewrite(published):
    def made(texts=TEXTS, **settings):
        given = {
            "checkpoint": {"path": str(published)},
            "templates": [ONE, TWO],
            "max_tokens": 8,
            "max_source_tokens": 20,
            "batch": 4,
        }
        step = Rewrite(RewriteConfig.model_validate(given | settings))
        documents = (
            Document(f"a/{n}", "a", text, {"url": "u", MASK: "0-1"}) for n, text in enumerate(texts)
        )
        return list(step(documents))

    return made


def test_answers_are_those_of_the_model_to_the_filled_prompts(rewrite, model):
    found = rewrite(temperature=0.0, top_p=None)
    new = {one.id: one for one in found if "#" in one.id}

    def answer(prompt):
        return model.generate(prompt, max_tokens=8, temperature=0).strip()

    tokenizer = model.tokenizer
    long = tokenizer.decode(tokenizer.encode(TEXTS[3])[:20])
    assert len(long) < len(TEXTS[3])
    expected = {}
    for number, text in enumerate([*TEXTS[:3], long, TEXTS[4]]):
        if not text:
            continue
        once = answer(f"Say: {text}\nAgain: ")
        expected[f"a/{number}#say"] = once
        turned = answer(f"To: {text}\n")
        turned = answer(f"From: {turned} back\n") if turned else ""
        expected[f"a/{number}#turn"] = f"{TEXTS[number]}\n\n{turned}" if turned else ""
    assert {name: one.text for name, one in new.items()} == {k: v for k, v in expected.items() if v}
    assert len(new) >= 6
    for name, one in new.items():
        origin, template = name.split("#")
        assert one.meta == {"url": "u", "origin": origin, "rewritten_by": template}
    # Each is behind its origin, and the documents themselves are as they were.
    assert [one.id for one in found if "#" not in one.id] == [f"a/{n}" for n in range(5)]
    assert [one.text for one in found if "#" not in one.id] == TEXTS
    assert [one.id.partition("#")[0] for one in found] == sorted(
        one.id.partition("#")[0] for one in found
    )


def test_sampled_answers_depend_on_the_document_alone(rewrite):
    settings = {"temperature": 1.3, "top_p": 0.9}
    whole = {one.id: one.text for one in rewrite(**settings)}
    one_by_one = {one.id: one.text for one in rewrite(batch=1, **settings)}
    assert one_by_one == whole
    assert {one.id: one.text for one in rewrite(seed=1, **settings)} != whole
    turned = rewrite(texts=["other text", *TEXTS[1:]], templates=[TWO, ONE], **settings)
    kept = {one.id: one.text for one in turned if not one.id.startswith("a/0")}
    assert kept == {name: text for name, text in whole.items() if not name.startswith("a/0")}


def test_a_share_of_the_documents_and_without_the_source(rewrite):
    found = rewrite([f"proof {n}" for n in range(12)], fraction=0.5, keep_source=False)
    gone = [one for one in found if isinstance(one, Dropped)]
    assert [one.document.id for one in gone] == [f"a/{n}" for n in range(12)]
    assert {one.reason for one in gone} == {"rewrite/source"}
    made = {one.meta["origin"] for one in found if isinstance(one, Document)}
    assert 2 <= len(made) <= 10


def test_what_is_made_of_a_document_goes_to_its_split(rewrite, tmp_path):
    found = rewrite(["proof", "theorem"])
    again = [
        Document(f"{one.id}#x", "a", "t", {"origin": one.meta["origin"]}) for one in found[1:3]
    ]
    with DocumentWriter(tmp_path / "0.parquet") as writer:
        for one in [*found, *again]:
            writer.write(one)

    class Task:
        paths = (tmp_path / "0.parquet",)
        settings = {"threshold": max(split_place("a/0"), split_place("a/1"))}

    figures = count_places(Task, None).figures
    places = {split_place("a/0"), split_place("a/1")}
    assert {figures["least"], figures["largest"]} == places
    assert 0 < figures["held_out"] < figures["documents"] == len(found) + len(again)


def test_settings_that_cannot_be(published, tmp_path):
    def problems(**settings):
        given = {"checkpoint": {"path": str(published)}, "templates": [ONE]}
        section = RewriteConfig.model_validate(given | settings)
        return {problem.path: problem.text for problem in section.problems("p", None)}

    assert problems() == {}
    assert problems(templates=[{"name": name} for name in PROMPTS]) == {}
    found = problems(
        templates=[{"name": "mine"}, ONE, ONE, {"name": "b", "prompts": ["no hole"]}],
        checkpoint={"path": str(tmp_path)},
    )
    assert found.keys() == {
        "p.checkpoint.path",
        "p.templates.0.prompts",
        "p.templates.2.name",
        "p.templates.3.prompts.0",
    }
    assert "paraphrase, back_translation, question_answer" in found["p.templates.0.prompts"]
