"""A step run over texts."""

import pytest

from data_pipeline.documents import Document, Dropped


def verdicts_of(step, texts, **meta):
    """Return what becomes of each text: the new text, or the reason why it was dropped."""
    documents = [
        Document(f"test/{number}", "test", text, dict(meta)) for number, text in enumerate(texts)
    ]
    return [
        result.reason if isinstance(result, Dropped) else result.text
        for result in step(iter(documents))
    ]


@pytest.fixture
def verdicts():
    return verdicts_of
