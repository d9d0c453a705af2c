"""Documents lose their personal data; those that are made of it go."""

from data_pipeline.card.charts import _numbers
from data_pipeline.documents import Document
from data_pipeline.steps.clean.pii import Pii
from data_pipeline.storage.tally import Tally
from maxlm.config.pipeline.clean.pii import PiiConfig

TEXT = "Mail jane@mail.com or call 212-555-0123."


def config(**settings) -> PiiConfig:
    return PiiConfig.model_validate(settings)


def test_placeholders(verdicts) -> None:
    assert verdicts(Pii(config()), [TEXT, "nothing"]) == [
        "Mail [EMAIL] or call [PHONE].",
        "nothing",
    ]
    chosen = config(types=["email"], placeholder="<{type}>")
    assert verdicts(Pii(chosen), [TEXT]) == ["Mail <EMAIL> or call 212-555-0123."]


def test_how_many_is_said_and_too_many_are_dropped(verdicts) -> None:
    document = Document("a", "s", TEXT, {"url": "u"})
    [result] = Pii(config())(iter([document]))
    assert result.meta == {"url": "u", "pii": 2, "pii_email": 1, "pii_phone": 1}
    assert document == Document("a", "s", TEXT, {"url": "u"})
    assert verdicts(Pii(config(max_found=1)), [TEXT]) == ["pii/max_found"]
    assert verdicts(Pii(config(max_found=2)), [TEXT]) == ["Mail [EMAIL] or call [PHONE]."]


def test_what_was_found_is_counted_by_its_type_and_drawn() -> None:
    tally = Tally()
    documents = [Document(str(n), "s", text) for n, text in enumerate([TEXT, "b@mail.com", "none"])]
    for result in Pii(config())(iter(documents)):
        assert isinstance(result, Document)
        tally.kept(result)
    values = tally.figures()["values"]
    assert values == {"pii": {"1": 1, "2": 1}, "pii_email": {"1": 2}, "pii_phone": {"1": 1}}
    assert _numbers("pii_email", values["pii_email"]) is not None
