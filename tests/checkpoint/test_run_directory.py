import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from maxlm.checkpoint import RunDirectory, run_directory, tokenizer_to_open
from maxlm.config.errors import UserError


def test_is_made_and_given_back(tmp_path):
    for _ in range(2):
        with RunDirectory.open(tmp_path / "a" / "run") as run:
            assert run.path == tmp_path / "a" / "run"
            assert run.checkpoints.is_dir()
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "lock"]


def test_leftovers_are_swept_and_nothing_else(tmp_path, caplog):
    checkpoints = tmp_path / "checkpoints"
    kept = ["00000010", "00000030.damaged", "00000030.damaged-2", "notes"]
    swept = [
        "00000020.orbax-checkpoint-tmp",
        "00000020.orbax-checkpoint-tmp-123",
        "00000005.deleting",
    ]
    for name in kept + swept:
        (checkpoints / name / "state").mkdir(parents=True)
    with RunDirectory.open(tmp_path):
        assert sorted(p.name for p in checkpoints.iterdir()) == sorted(kept)
    assert all(name in caplog.text for name in swept)


def test_path_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            UserError,
            match=r"run_dir=.*/file/run cannot be written: Not a directory .*; .* or move away",
        ),
        RunDirectory.open(tmp_path / "file" / "run"),
    ):
        pass


def test_read_only(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with (
        pytest.raises(UserError, match="cannot be written: Read-only file system"),
        RunDirectory.open(small_disk / "run"),
    ):
        pass


def test_nearly_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with (
        pytest.raises(UserError, match=r"has 1.0 MiB left on its disk, .* at least 32 MiB"),
        RunDirectory.open(tmp_path),
    ):
        pass


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**12))


@pytest.mark.parametrize("resumes", [False, True])
def test_full(small_disk, resumes):
    """With nothing left at all, the first file cannot be written; the message is the same."""
    run_dir = small_disk / "a" / "run"
    if resumes:
        (run_dir / "checkpoints").mkdir(parents=True)
    fill(small_disk)
    message = r"the disk is full\. It has 0\.0 MiB left on its disk, .* at least 32 MiB; make room"
    with pytest.raises(UserError, match=message), RunDirectory.open(run_dir):
        pass


def test_no_room_for_names_though_there_is_some_for_bytes(tmp_path, monkeypatch):
    def refuse(directory):
        raise OSError(errno.ENOSPC, "No space left on device", str(directory))

    monkeypatch.setattr(run_directory, "_check_writable", refuse)
    with (
        pytest.raises(UserError, match=r"cannot be written: No space left on device .*make room"),
        RunDirectory.open(tmp_path),
    ):
        pass


FORKS = """
import os, sys
from maxlm.checkpoint import RunDirectory
with RunDirectory.open(sys.argv[1]):
    if os.fork() == 0:  # the worker: lives until the test closes its end of the pipe
        os.close(1)
        os.read(0, 1)
    os._exit(0)
"""


def test_lock_is_not_inherited_by_forks(tmp_path):
    """A data worker that outlives a killed trainer must not keep the run from resuming."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, tmp_path],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
    ) as trainer:
        assert trainer.wait(timeout=60) == 0
        with RunDirectory.open(tmp_path):
            pass


FILES = {"tokenizer.json": b"model", "tokenizer_config.json": b"{}"}


def test_the_tokenizer_is_copied_once_and_never_replaced(tmp_path):
    with RunDirectory.open(tmp_path / "run") as run:
        run.keep_tokenizer(FILES)
        run.keep_tokenizer(FILES)
        assert {path.name: path.read_bytes() for path in run.tokenizer.iterdir()} == FILES
        for other in ({**FILES, "tokenizer_config.json": b"[]"}, {"tokenizer.json": b"model"}):
            message = (
                r"run/tokenizer is another tokenizer .*\(tokenizer_config\.json\); choose another"
            )
            with pytest.raises(UserError, match=message):
                run.keep_tokenizer(other)
        assert {path.name: path.read_bytes() for path in run.tokenizer.iterdir()} == FILES
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "lock", "tokenizer"]


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stop_while_the_tokenizer_is_copied_leaves_none(tmp_path, monkeypatch, stopped):
    synced, sync = [], os.fsync

    def stop(descriptor):
        synced.append(descriptor)
        if len(synced) > stopped:
            raise KeyboardInterrupt
        sync(descriptor)

    with RunDirectory.open(tmp_path / "run") as run:
        (run.path / "tokenizer.unfinished").mkdir()  # of a process that was killed
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", stop)
            with pytest.raises(KeyboardInterrupt):
                run.keep_tokenizer(FILES)
        assert not run.tokenizer.exists()
        run.keep_tokenizer(FILES)
        assert {path.name: path.read_bytes() for path in run.tokenizer.iterdir()} == FILES


def test_a_tokenizer_that_cannot_be_kept(tmp_path):
    with RunDirectory.open(tmp_path / "run") as run:
        run.tokenizer.touch()
        with pytest.raises(
            UserError, match=r"run/tokenizer: Not a directory; .*move away what is in its place"
        ):
            run.keep_tokenizer(FILES)


def test_a_run_with_checkpoints_starts_with_its_own_tokenizer(tmp_path):
    with RunDirectory.open(tmp_path / "run") as run:
        run.keep_tokenizer(FILES)
        assert tokenizer_to_open(run.path, "named") == "named"
        (run.checkpoints / "00000010").mkdir()
        assert tokenizer_to_open(run.path, "named") == str(run.tokenizer)
        shutil.rmtree(run.tokenizer)
        assert tokenizer_to_open(run.path, "named") == "named"
    assert tokenizer_to_open(tmp_path / "none", "named") == "named"


@pytest.mark.parametrize(
    "name", ["a[1]", "a*b", "a?", "back\\slash", "a[1]/inside", "gs:", "mygs:/run", "\udcff"]
)
def test_names_that_checkpoints_cannot_be_read_back_from(tmp_path, name):
    message = r"run_dir=.* could not be read back; choose another run_dir"
    with pytest.raises(UserError, match=message), RunDirectory.open(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []
