"""Which files are read: suffixes, links, special files; and that everything skipped is counted with
an example.
"""

import os
import socket

import fsspec
import pytest

from data_pipeline.readers.listing import Skipped, list_inputs, printable
from maxlm.config.errors import UserError
from maxlm.config.pipeline.raw import RawTextConfig


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.txt").write_text("a")
    return tmp_path / "folder"


def test_suffixes_in_capitals_are_read_as_what_they_are(folder, read):
    (folder / "UPPER.TXT").write_text("upper")
    (folder / "up.JSONL").write_text('{"text": "line"}\n')
    (folder / "latin.PY").write_bytes(b"# coding: latin-1\n# \xe9\n")
    assert read(folder).texts == ["upper", "a", "# coding: latin-1\n# \u00e9\n", "line"]
    assert read(folder / "up.JSONL").texts == ["line"]


def test_everything_in_a_folder_is_read_or_counted(folder, read):
    (folder / "image.png").write_bytes(b"x")
    (folder / "lines.zip").write_bytes(b"x")
    (folder / "no_suffix").write_text("x")
    os.mkfifo(folder / "fifo.txt")
    (folder / "nowhere.txt").symlink_to(folder / "nothing")
    (folder / "round.txt").symlink_to(folder / "round.txt")
    (folder / "device.txt").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.txt"))
        reading = read(folder)
    assert reading.texts == ["a"]
    assert reading.skipped.counts == {
        "other suffix": 2,
        "archive": 1,
        "neither file nor folder": 2,
        "link to nothing": 2,
        "link that leads out of raw.paths": 1,
    }
    assert reading.skipped.examples["neither file nor folder"] == (folder / "fifo.txt").as_posix()
    assert f"skipped 1: archive, such as {folder}/lines.zip" in reading.skipped.lines()


def test_a_link_to_a_device_is_not_read_though_links_are_followed(folder, read):
    (folder / "device.txt").symlink_to("/dev/zero")
    reading = read(folder, follow_links=True)
    assert reading.texts == ["a"]
    assert reading.skipped.counts == {"neither file nor folder": 1}


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_named_special_file_is_refused_at_once(tmp_path, kind, read):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    path = path if kind == "fifo" else "/dev/zero"
    with pytest.raises(
        UserError, match=rf"raw\.paths: {path} is a {kind.replace('fifo', 'FIFO')}; name a file"
    ):
        read(path)


def test_a_named_archive_is_counted(tmp_path, read):
    (tmp_path / "x.ZIP").write_bytes(b"PK")
    assert read(tmp_path / "x.ZIP").skipped.counts == {"archive": 1}


def test_patterns_name_files_and_folders_by_their_suffix(folder, read):
    (folder / "b.bin").write_text("b")
    (folder / "more").mkdir()
    (folder / "more/c.txt").write_text("c")
    assert read(f"{folder}/*").texts == ["a", "c"]
    assert read(f"{folder}/**/*.txt").texts == ["a", "c"]
    (folder / "[x].txt").write_text("literal")
    assert read(folder / "[x].txt").texts == ["literal"]
    with pytest.raises(UserError, match=r"raw\.paths: .*nothing\*: there is no such"):
        read(f"{folder}/nothing*")


def test_code_is_read_if_its_suffixes_are_named(folder, read):
    (folder / "x.c").write_text("int x;")
    (folder / "y.H").write_text("int y;")
    assert read(folder).texts == ["a"]
    assert read(folder, suffixes=(".c", ".h")).texts == ["a", "int x;", "int y;"]


def test_object_stores_are_read_like_folders(read):
    store = fsspec.filesystem("memory")
    for name, text in {"b.txt": "b", "deep/a.jsonl": '{"text": "a"}', "c.bin": "c"}.items():
        store.pipe(f"/bucket/{name}", text.encode())
    try:
        found = read("memory://bucket")
        assert found.texts == ["b", "a"]
        assert found.skipped.counts == {"other suffix": 1}
        assert found.names == ["memory:///bucket/b.txt", "memory:///bucket/deep/a.jsonl:1"]
        assert read("memory://bucket/*.txt").texts == ["b"]
        assert read("memory://bucket/c.bin").texts == ["c"]
        again = read("memory://bucket/*.txt", "memory://bucket")
        assert again.texts == ["b", "a"]
        assert again.skipped.counts == {"file that was read already": 1, "other suffix": 1}
        with pytest.raises(UserError, match=r"raw\.paths: memory://bucket/nothing"):
            read("memory://bucket/nothing")
        with pytest.raises(UserError, match=r"raw\.paths: nowhere://x"):
            read("nowhere://x")
    finally:
        store.rm("/bucket", recursive=True)


def test_a_file_named_twice_is_read_once(folder, read):
    (folder / "again.txt").symlink_to(folder / "a.txt")
    reading = read(folder, folder / "a.txt", f"{folder}/../folder")
    assert reading.texts == ["a"]
    assert reading.skipped.counts == {
        "file that was read already": 2,
        "folder that was read already": 1,
    }


def test_links_within_the_folders_are_read_and_go_round_nowhere(folder, read):
    (folder / "loop").symlink_to(folder)
    (folder / "named.txt").symlink_to(folder / "LICENSE")
    (folder / "LICENSE").write_text("licence")
    reading = read(folder)
    assert reading.texts == ["a", "licence"]
    assert reading.skipped.counts == {"link to a folder that is read anyway": 1, "other suffix": 1}


def test_links_that_lead_elsewhere_are_followed_only_if_asked(folder, tmp_path, read):
    other = tmp_path / "other"
    other.mkdir()
    (other / "secret.txt").write_text("secret")
    (other / "up").symlink_to(tmp_path)  # which holds both folders
    (folder / "link").symlink_to(other)
    (folder / "link.txt").symlink_to(other / "secret.txt")
    reading = read(folder)
    assert reading.texts == ["a"]
    assert reading.skipped.counts == {"link that leads out of raw.paths": 2}
    reading = read(folder, follow_links=True)
    assert reading.texts == ["a", "secret"]
    assert reading.skipped.counts == {
        "folder that was read already": 2,
        "file that was read already": 1,
    }


def test_a_named_link_is_followed(folder, tmp_path, read):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "link.txt").symlink_to(folder / "a.txt")
    assert read(tmp_path / "link").texts == read(tmp_path / "link.txt").texts == ["a"]


def test_names_are_shown_without_what_a_terminal_would_obey():
    assert printable("a\x1b[31m\udcff\n\u00e9") == "a\\x1b[31m\\udcff\\n\u00e9"


@pytest.mark.parametrize("key", ["ETag", "mtime", "created", None])
def test_files_of_a_store_without_a_stamp_are_others_each_time(monkeypatch, key):
    store = fsspec.filesystem("memory")
    about = {"name": "/bucket/a.txt", "size": 3, "type": "file"} | ({key: "x"} if key else {})
    monkeypatch.setattr(type(store), "info", lambda self, path: about)
    raw = RawTextConfig(kind="files", paths=("memory://bucket/a.txt",))
    ((one,), (two,)) = (list_inputs(raw, Skipped()) for _ in range(2))
    assert (one == two) == (key is not None)
