"""Processes that agree are seen to wait for each other: who does not is who the others wait for."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from maxlm.process.phases import current
from maxlm.runtime import all_true, on_first_process


@pytest.fixture
def waits(monkeypatch):
    """Two processes, of which this is the first; collects whether it waits in their collectives."""
    seen = []

    def collective(value):
        seen.append(current().waits)
        return np.asarray(value)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", collective)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", collective)
    return seen


def test_a_process_waits_in_what_all_come_to(waits):
    assert all_true(True)
    assert not all_true(False)
    assert waits == [True, True]
    assert not current().waits


def test_what_the_first_process_does_alone_is_no_waiting(waits):
    assert on_first_process(lambda: [current().waits, "done"]) == [False, "done"]
    assert waits == [True, True]
