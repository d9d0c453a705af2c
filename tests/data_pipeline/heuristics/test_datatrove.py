"""The same documents judged by datatrove, whose code made FineWeb (extra `bench`)."""

from pydoc_data.topics import topics

import pytest

from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.filters.heuristics import Heuristics
from maxlm.config.pipeline.filters.heuristics import HeuristicsConfig

filters = pytest.importorskip(
    "datatrove.pipeline.filters", reason="datatrove is not installed: pip install 'maxlm[bench]'"
)
datatrove_data = pytest.importorskip("datatrove.data")
pytest.importorskip("spacy", reason="spaCy, which datatrove finds English words with, is missing")

# The reference of the Python language, 80 pages of prose and code.
PAGES = list(topics.values())
SETS = {
    "gopher_repetition": (filters.GopherRepetitionFilter, {}, "gopher_repetition", 0.9),
    "gopher_quality": (filters.GopherQualityFilter, {}, "gopher_quality", 0.9),
    "c4": (filters.C4QualityFilter, {}, "c4", 0.98),
    "c4 of FineWeb": (
        filters.C4QualityFilter,
        {"filter_no_terminal_punct": False},
        {"kind": "c4", "terminal_punctuation": False},
        0.98,
    ),
    "fineweb": (filters.FineWebQualityFilter, {}, "fineweb", 0.98),
}


@pytest.mark.parametrize("name", SETS)
def test_verdicts_agree(name: str) -> None:
    kind, settings, section, least = SETS[name]
    theirs = kind(**settings)
    ours = Heuristics(HeuristicsConfig.model_validate({"rules": [section]}))
    agree = 0
    for text, [verdict] in ((text, ours(iter([Document("a", "s", text)]))) for text in PAGES):
        judged = theirs.filter(datatrove_data.Document(text=text, id="a"))
        agree += (judged is True) is not isinstance(verdict, Dropped)
    print(f"{name}: {agree} of {len(PAGES)} verdicts agree")
    assert agree / len(PAGES) >= least
