import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from maxlm.checkpoint import RunDirectory, tokenizer_of_checkpoint, tokenizer_to_open
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


FORKS = """
import os, sys
from maxlm.checkpoint import RunDirectory, tokenizer_of_checkpoint, tokenizer_to_open
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


def test_the_tokenizer_is_copied_once_and_never_replaced(tmp_path):
    with RunDirectory.open(tmp_path / "run") as run:
        run.keep_tokenizer(b"model")
        run.keep_tokenizer(b"model")
        assert run.tokenizer.read_bytes() == b"model"
        with pytest.raises(
            UserError, match=r"run/tokenizer\.model is another tokenizer .* choose another run_dir"
        ):
            run.keep_tokenizer(b"another")
        assert run.tokenizer.read_bytes() == b"model"
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "lock", "tokenizer.model"]


def test_a_stop_while_the_tokenizer_is_copied_leaves_none(tmp_path, monkeypatch):
    def stop(descriptor):
        raise KeyboardInterrupt

    with RunDirectory.open(tmp_path / "run") as run:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", stop)
            with pytest.raises(KeyboardInterrupt):
                run.keep_tokenizer(b"model")
        assert not run.tokenizer.exists()
        run.keep_tokenizer(b"model")


def test_a_tokenizer_that_cannot_be_kept(tmp_path):
    with RunDirectory.open(tmp_path / "run") as run:
        run.tokenizer.mkdir()
        with pytest.raises(
            UserError, match=r"tokenizer\.model: Is a directory; .*move away what is in its place"
        ):
            run.keep_tokenizer(b"model")


def test_a_run_with_checkpoints_starts_with_its_own_tokenizer(tmp_path):
    with RunDirectory.open(tmp_path / "run") as run:
        run.keep_tokenizer(b"model")
        assert tokenizer_to_open(run.path, "named") == "named"
        (run.checkpoints / "00000010").mkdir()
        assert tokenizer_to_open(run.path, "named") == str(run.tokenizer)
        run.tokenizer.unlink()
        assert tokenizer_to_open(run.path, "named") == "named"
    assert tokenizer_to_open(tmp_path / "none", "named") == "named"


def test_the_tokenizer_of_a_checkpoint_is_proved_to_be_it(tmp_path):
    fingerprint = hashlib.sha256(b"model").hexdigest()
    record = {"step": 7, "tokenizer": fingerprint}
    with pytest.raises(UserError, match=rf"cannot be read: No such file .* SHA-256 {fingerprint}"):
        tokenizer_of_checkpoint(tmp_path, record)
    (tmp_path / "tokenizer.model").write_bytes(b"model")
    assert tokenizer_of_checkpoint(tmp_path, record) == tmp_path / "tokenizer.model"
    (tmp_path / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(
        UserError, match=rf"not the tokenizer that the checkpoint of step 7 .* not {fingerprint}"
    ):
        tokenizer_of_checkpoint(tmp_path, record)
    with pytest.raises(UserError, match="step 7 is of an earlier version"):
        tokenizer_of_checkpoint(tmp_path, {"step": 7})


@pytest.mark.parametrize("name", ["a[1]", "a*b", "a?", "back\\\\slash", "a[1]/inside"])
def test_names_that_checkpoints_cannot_be_read_back_from(tmp_path, name):
    message = r"run_dir=.* could not be read back; choose another run_dir"
    with pytest.raises(UserError, match=message), RunDirectory.open(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []
