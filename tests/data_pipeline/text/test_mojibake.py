"""Wrong decodings are undone, and nothing else is touched."""

import pytest

from data_pipeline.text.mojibake import MAX_LINE_CHARS, MojibakeRepair

RIGHT = "Stra\u00dfe, caf\u00e9, \u201cquoted\u201d \u2013 \u4f60\u597d"


@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_utf8_that_was_read_as_something_else(wrong: str) -> None:
    broken = RIGHT.encode().decode(wrong, "ignore" if wrong == "cp1252" else "strict")
    good = RIGHT if wrong == "latin-1" else RIGHT.encode().decode("cp1252", "ignore")
    if wrong == "latin-1":
        assert MojibakeRepair()(broken) == good
    line = "caf\u00e9 is fine\n" + "caf\u00e9".encode().decode(wrong) + " is not"
    assert MojibakeRepair()(line) == "caf\u00e9 is fine\ncaf\u00e9 is not"


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        "plain",
        "\u041f\u0440\u0438\u0432\u0435\u0442 \u0451\u043b\u043a\u0430",
        "\u00c3 alone",
    ],
)
def test_right_text_stays(text: str) -> None:
    assert MojibakeRepair()(text) == text


def test_endless_lines_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    repair = MojibakeRepair()
    monkeypatch.setattr(repair, "_fix", lambda line: pytest.fail("it was looked at"))
    line = "caf\u00c3\u00a9" * MAX_LINE_CHARS
    assert repair(line) == line
