"""A copy is whole or not there; a damaged one is never fetched; kills leave nothing that looks whole."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import fsspec
import pytest

from maxlm.checkpoint.layout import DamagedError
from maxlm.checkpoint.remote.place import StoreError, Throttle, in_parallel, open_place
from maxlm.checkpoint.remote.store import Store
from maxlm.config.errors import UserError
from tests.checkpoint.remote.conftest import FaultyFileSystem, contents, save, store_config


def test_what_is_fetched_is_what_was_copied(url, tmp_path):
    store = Store(store_config(url))
    assert store.steps() == store.partial_steps() == []
    folders = {step: save(tmp_path / "run", step) for step in (10, 20)}
    for step, folder in folders.items():
        size = store.copy(step, folder)
        assert size == sum(map(len, contents(folder).values()))
    assert store.steps() == [20, 10]
    store.fetch(10, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folders[10])
    sums = store.sums(10)
    wanted = {name: hashlib.sha256(data) for name, data in contents(folders[10]).items()}
    assert {name: one.sha256 for name, one in sums.items()} == {
        name: digest.hexdigest() for name, digest in wanted.items()
    }
    store.delete(10)
    assert store.steps() == [20]
    system, root = open_place(url)
    assert not system.exists(f"{root}/checkpoints/00000010")


def test_the_same_step_again_replaces_what_was_there(url, tmp_path):
    store = Store(store_config(url))
    folder = save(tmp_path / "run", 10)
    (folder / "state/old").write_text("old")
    store.copy(10, folder)
    (folder / "state/old").unlink()
    (folder / "state/d/0").write_bytes(b"others")
    store.copy(10, folder)
    store.fetch(10, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def damage(system, path, how):
    data = system.cat_file(path)
    if how == "lost":
        system.rm_file(path)
    else:
        flipped = bytes([data[0] ^ 1]) + data[1:]
        system.pipe_file(path, data[:-1] if how == "cut" else flipped)


@pytest.mark.parametrize("how", ["lost", "cut", "flipped"])
@pytest.mark.parametrize("name", ["00000010/state/d/0", "00000010.whole.json"])
def test_damage_is_found_when_it_is_fetched(url, tmp_path, how, name):
    store = Store(store_config(url))
    store.copy(10, save(tmp_path / "run", 10))
    system, root = open_place(url)
    damage(system, f"{root}/checkpoints/{name}", how)
    with pytest.raises(DamagedError):
        store.fetch(10, tmp_path / "back")


@pytest.mark.parametrize("name", ["../../evil", "/evil", "", "a/../../evil", "a\0b"])
def test_a_marker_that_names_places_outside_is_damaged(url, tmp_path, name):
    store = Store(store_config(url))
    store.copy(10, save(tmp_path / "run", 10))
    system, root = open_place(url)
    system.pipe_file(f"{root}/evil", b"")
    path = f"{root}/checkpoints/00000010.whole.json"
    content = json.loads(system.cat_file(path))
    content["files"][name] = [0, hashlib.sha256(b"").hexdigest()]
    del content["checksum"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    system.pipe_file(path, json.dumps(content).encode())
    with pytest.raises(DamagedError, match="not what was written"):
        store.fetch(10, tmp_path / "deep/back")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("fault", ["lose", "cut"])
def test_a_store_that_loses_or_cuts_what_it_takes_is_caught_before_the_marker(
    faulty_url, faults, tmp_path, fault
):
    store = Store(store_config(faulty_url, threads=1))
    folder = save(tmp_path / "run", 10)
    faults(lambda path, number: fault if path.endswith("d/0") else None)
    with pytest.raises(StoreError, match="does not have what was written: state/d/0"):
        store.copy(10, folder)
    assert store.steps() == []
    assert store.partial_steps() == [10]


def test_a_write_that_fails_now_and_then_is_tried_again(faulty_url, faults, tmp_path):
    store = Store(store_config(faulty_url))
    faults(lambda path, number: None if number % 3 else OSError("every third"))
    folder = save(tmp_path / "run", 10)
    store.copy(10, folder)
    assert FaultyFileSystem.writes > 5
    store.fetch(10, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_a_write_that_fails_always_leaves_no_copy(faulty_url, faults, tmp_path):
    store = Store(store_config(faulty_url))
    faults(lambda path, number: RuntimeError("no such bucket") if "state" in path else None)
    with pytest.raises(StoreError, match="was not written: RuntimeError: no such bucket"):
        store.copy(10, save(tmp_path / "run", 10))
    assert store.steps() == []


@pytest.mark.parametrize("writes", range(5))
def test_a_copy_that_ends_anywhere_leaves_nothing_that_looks_whole(
    faulty_url, faults, tmp_path, writes
):
    class Killed(BaseException):
        pass

    def kill(path, number):
        if number > writes:
            raise Killed

    store = Store(store_config(faulty_url, threads=1))
    folder = save(tmp_path / "run", 10)
    faults(kill)
    with pytest.raises(Killed):
        store.copy(10, folder)
    assert store.steps() == []
    faults(lambda path, number: None)
    store.copy(10, folder)
    store.fetch(10, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_copy_leaves_nothing_that_looks_whole(tmp_path):
    run, slow = tmp_path / "run", tmp_path / "slow"
    folder = save(run, 10)
    (folder / "state/large").write_bytes(os.urandom(2**20))
    job = (
        "import sys; from pathlib import Path; from maxlm.checkpoint.remote import transfer\n"
        "from maxlm.checkpoint.remote.store import Store; from maxlm.config.schema import StoreConfig\n"
        "transfer.CHUNK_BYTES = 2**10\n"
        "store = Store(StoreConfig(url=sys.argv[2], megabytes_per_second=0.2))\n"
        "print('begins', flush=True); store.copy(10, Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", job, str(folder), str(slow)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"begins\n"
    copied = slow / "checkpoints/00000010"
    while not (copied / "state/large").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (copied / "state/large").stat().st_size < 2**20
    store = Store(store_config(str(slow)))
    assert store.steps() == []
    assert store.partial_steps() == [10]
    store.copy(10, folder)
    assert contents(copied) == contents(folder)


def test_a_rate_holds_for_all_threads_together():
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)

    throttle = Throttle(1000.0, clock=lambda: now[0], sleep=sleep)
    for _ in range(4):
        throttle.take(500)
    assert slept == pytest.approx([0.5, 1.0, 1.5])
    now[0] = 110.0
    throttle.take(500)
    assert len(slept) == 3
    assert throttle.moved_bytes == 2500


def test_the_first_error_of_a_thread_is_raised_and_ends_the_others():
    done = []

    def work(item):
        if item == 2:
            raise KeyError(item)
        done.append(item)

    with pytest.raises(KeyError):
        in_parallel(work, range(1000), 1)
    assert done == [0, 1]
    in_parallel(done.append, [], 4)


def test_stores_that_cannot_be_opened_are_the_users_mistake(monkeypatch):
    with pytest.raises(UserError, match=r"nowhere://x: Protocol not known: nowhere; give a URL"):
        open_place("nowhere://x")

    def missing(url, **options):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"gs://b/x needs a package .*; run: pip install gcsfs"):
        open_place("gs://b/x")
