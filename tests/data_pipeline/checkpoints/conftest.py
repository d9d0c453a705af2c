"""The small model, loaded."""

import pytest

import maxlm


@pytest.fixture(scope="session")
def model(published):
    return maxlm.load(published)
