"""Documents lose their personal data; those that are made of it go."""

from data_pipeline.documents import Document
from data_pipeline.steps.clean.pii import Pii
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
    assert result.meta == {"url": "u", "pii": 2}
    assert document == Document("a", "s", TEXT, {"url": "u"})
    assert verdicts(Pii(config(max_found=1)), [TEXT]) == ["pii/max_found"]
    assert verdicts(Pii(config(max_found=2)), [TEXT]) == ["Mail [EMAIL] or call [PHONE]."]
