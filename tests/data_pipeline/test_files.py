"""Which files are read: suffixes, links, special files; and that everything skipped is counted with
an example.
"""

import os
import socket

import pytest

from data_pipeline.files import printable
from data_pipeline.reading import read_documents
from maxlm.config.errors import UserError
from maxlm.config.pipeline.raw import RawTextConfig


def read(*paths, **settings):
    return read_documents(RawTextConfig(kind="files", paths=tuple(map(str, paths)), **settings))


def texts(reading):
    return [document.text for document in reading.documents]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.txt").write_text("a")
    return tmp_path / "folder"


def test_suffixes_in_capitals_are_read_as_what_they_are(folder):
    (folder / "UPPER.TXT").write_text("upper")
    (folder / "up.JSONL").write_text('{"text": "line"}\n')
    (folder / "latin.PY").write_bytes(b"# coding: latin-1\n# \xe9\n")
    assert texts(read(folder)) == ["upper", "a", "# coding: latin-1\n# \u00e9\n", "line"]
    assert texts(read(folder / "up.JSONL")) == ["line"]


def test_everything_in_a_folder_is_read_or_counted(folder):
    (folder / "image.png").write_bytes(b"x")
    (folder / "lines.jsonl.gz").write_bytes(b"x")
    (folder / "no_suffix").write_text("x")
    os.mkfifo(folder / "fifo.txt")
    (folder / "nowhere.txt").symlink_to(folder / "nothing")
    (folder / "round.txt").symlink_to(folder / "round.txt")
    (folder / "device.txt").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.txt"))
        reading = read(folder)
    assert texts(reading) == ["a"]
    assert reading.skipped.counts == {
        "other suffix": 2,
        "compressed file": 1,
        "neither file nor folder": 2,
        "link to nothing": 2,
        "link that leads out of raw.paths": 1,
    }
    assert reading.skipped.examples["neither file nor folder"] == (folder / "fifo.txt").as_posix()
    assert f"skipped 1: compressed file, such as {folder}/lines.jsonl.gz" in reading.skipped.lines()


def test_a_link_to_a_device_is_not_read_though_links_are_followed(folder):
    (folder / "device.txt").symlink_to("/dev/zero")
    reading = read(folder, follow_links=True)
    assert texts(reading) == ["a"]
    assert reading.skipped.counts == {"neither file nor folder": 1}


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_named_special_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    path = path if kind == "fifo" else "/dev/zero"
    with pytest.raises(
        UserError, match=rf"raw\.paths: {path} is a {kind.replace('fifo', 'FIFO')}; name a file"
    ):
        read(path)


def test_a_named_compressed_file_is_counted(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"skipped 1: compressed file, such as .*x\.jsonl\.gz"):
        read(tmp_path / "x.jsonl.gz")


def test_a_file_named_twice_is_read_once(folder):
    (folder / "again.txt").symlink_to(folder / "a.txt")
    reading = read(folder, folder / "a.txt", f"{folder}/../folder")
    assert texts(reading) == ["a"]
    assert reading.skipped.counts == {
        "file that was read already": 2,
        "folder that was read already": 1,
    }


def test_links_within_the_folders_are_read_and_go_round_nowhere(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "named.txt").symlink_to(folder / "LICENSE")
    (folder / "LICENSE").write_text("licence")
    reading = read(folder)
    assert texts(reading) == ["a", "licence"]
    assert reading.skipped.counts == {"link to a folder that is read anyway": 1, "other suffix": 1}


def test_links_that_lead_elsewhere_are_followed_only_if_asked(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "secret.txt").write_text("secret")
    (other / "up").symlink_to(tmp_path)  # which holds both folders
    (folder / "link").symlink_to(other)
    (folder / "link.txt").symlink_to(other / "secret.txt")
    reading = read(folder)
    assert texts(reading) == ["a"]
    assert reading.skipped.counts == {"link that leads out of raw.paths": 2}
    reading = read(folder, follow_links=True)
    assert texts(reading) == ["a", "secret"]
    assert reading.skipped.counts == {
        "folder that was read already": 2,
        "file that was read already": 1,
    }


def test_a_named_link_is_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "link.txt").symlink_to(folder / "a.txt")
    assert texts(read(tmp_path / "link")) == texts(read(tmp_path / "link.txt")) == ["a"]


def test_names_are_shown_without_what_a_terminal_would_obey():
    assert printable("a\x1b[31m\udcff\n\u00e9") == "a\\x1b[31m\\udcff\\n\u00e9"
