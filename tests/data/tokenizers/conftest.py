"""A tokenizer of every kind."""

import pytest

from maxlm.data.tokenizers import open_tokenizer
from tests.data.tokenizers.kinds import KINDS, all_kinds


@pytest.fixture(scope="session")
def paths(tmp_path_factory):
    """Return the path of a tokenizer by its kind."""
    return all_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="session")
def opened(paths):
    assert tuple(paths) == KINDS
    return {kind: open_tokenizer(path) for kind, path in paths.items()}


@pytest.fixture(params=KINDS)
def any_kind(opened, request):
    return opened[request.param]
