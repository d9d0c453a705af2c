"""Copies in the background: nothing waits for them, what fails is told and tried again, some are kept."""

import logging
import threading
import time

import pytest

from maxlm.checkpoint import layout
from maxlm.checkpoint.remote.copier import Copier
from maxlm.checkpoint.remote.store import Store
from maxlm.events import ATTRIBUTE
from tests.checkpoint.remote.conftest import checkpoint_config, contents, save

PATIENCE = 60


@pytest.fixture
def make_copier(tmp_path):
    """make_copier(url, **settings) -> (copier of tmp_path / "run", store)."""

    def make(url, **settings):
        config = checkpoint_config(url, **settings)
        return Copier(Store(config.store), tmp_path / "run", config), Store(config.store)

    return make


def events(caplog):
    found = (getattr(record, ATTRIBUTE, None) for record in caplog.records)
    return [(one.kind, one.step) for one in found if one]


def test_copies_are_kept_as_asked(url, make_copier, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    copier, store = make_copier(url, keep_last=2, keep_every=20)
    for step in (10, 20, 30, 40, 50):
        save(tmp_path / "run", step)
        copier.add(step)
        assert copier.wait(PATIENCE)
    assert store.steps() == [50, 40, 20]
    assert events(caplog) == [("copied", step) for step in (10, 20, 30, 40, 50)]
    # With each, the run's own small files, as they are now.
    assert set(store.small_files()) == {"metrics.jsonl", "tokenizer/tokenizer.json"}
    store.get("metrics.jsonl", tmp_path / "got")
    assert contents(tmp_path / "run")["metrics.jsonl"] == (tmp_path / "got").read_bytes()


def test_only_multiples_are_copied_and_the_last(url, make_copier, tmp_path):
    copier, store = make_copier(url, every=20)
    for step, last in ((10, False), (20, False), (30, False), (35, True)):
        save(tmp_path / "run", step)
        copier.add(step, last=last)
        assert copier.wait(PATIENCE)
    assert store.steps() == [35, 20]


def test_a_failed_copy_is_told_and_the_next_one_is_the_next_try(
    faulty_url, faults, make_copier, tmp_path, caplog
):
    copier, store = make_copier(faulty_url)
    faults(lambda path, number: OSError("no route") if "00000010" in path else None)
    for step in (10, 20):
        save(tmp_path / "run", step)
        copier.add(step)
        assert copier.wait(PATIENCE)
        assert ("no route" in copier.cause) == (step == 10)
    assert "step 10 was not copied to faulty://" in caplog.text
    assert events(caplog)[0] == ("failed_copy", 10)
    assert store.steps() == [20]
    assert store.partial_steps() == []  # what was left of the failed one is swept


def test_a_slow_store_holds_nobody_up_and_skips_to_the_newest(
    faulty_url, faults, make_copier, tmp_path
):
    goes_on, began = threading.Event(), threading.Event()

    def wait(path, number):
        if "00000010" in path:
            began.set()
            assert goes_on.wait(PATIENCE)

    faults(wait)
    copier, store = make_copier(faulty_url)
    save(tmp_path / "run", 10)
    copier.add(10)
    assert began.wait(PATIENCE)
    start = time.perf_counter()
    for step in (20, 30):
        save(tmp_path / "run", step)
        copier.add(step)
    assert time.perf_counter() - start < 1
    # Neither the one that is being copied nor the one that is next may be deleted.
    assert [step for step in (10, 20, 30) if copier.holds(step)] == [10, 30]
    assert not copier.wait(0.01)
    goes_on.set()
    assert copier.wait(PATIENCE)
    assert store.steps() == [30, 10]
    assert not copier.holds(30)


def test_what_is_there_is_not_copied_again(url, make_copier, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save(tmp_path / "run", 10)
    for _ in range(2):  # as after a restart
        copier, _ = make_copier(url)
        copier.add(10)
        assert copier.wait(PATIENCE)
    assert events(caplog) == [("copied", 10)]
    # Another checkpoint of the same step is.
    layout.remove(tmp_path / "run/checkpoints/00000010")
    save(tmp_path / "run", 10, went_back=5)
    copier, _ = make_copier(url)
    copier.add(10)
    assert copier.wait(PATIENCE)
    assert events(caplog) == [("copied", 10)] * 2


def test_a_checkpoint_that_is_gone_is_no_copy(url, make_copier, tmp_path):
    copier, store = make_copier(url)
    save(tmp_path / "run", 10)
    copier.add(20)
    assert copier.wait(PATIENCE)
    assert "00000020" in copier.cause
    assert store.steps() == []
