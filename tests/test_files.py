"""Only regular files are opened, without waiting; writes are whole; paths of one place are one."""

import os
from pathlib import Path

import pytest

from maxlm.files import open_regular, place_of, read_regular, write_whole


@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    assert read_regular(tmp_path / "file") == read_regular(tmp_path / "link") == b"x"
    for path, what in (
        (tmp_path / "fifo", "a FIFO"),
        ("/dev/zero", "a device"),
        ("/dev/null", "a device"),
    ):
        with pytest.raises(OSError, match=f"it is {what}, not a regular file"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_no_descriptor_is_left_open(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(OSError, match="FIFO"):
            open_regular(tmp_path / "fifo")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_place_has_one_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert {place_of(path) for path in ("a", "./a", "a/", "b/../a", "link", f"{tmp_path}/a")} == {
        f"{tmp_path}/a"
    }
    assert place_of("nowhere") == f"{tmp_path}/nowhere"
    assert place_of("a\0b") == "a\0b"
