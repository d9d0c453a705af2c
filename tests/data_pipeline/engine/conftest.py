"""A step that does what documents say, in processes of its own; and tasks for it."""

import os
import signal
from pathlib import Path

import pytest

from data_pipeline.documents import Document
from data_pipeline.engine.task import Task
from data_pipeline.storage.document_files import DocumentWriter
from data_pipeline.storage.whole import file_sha256

# Found by every Python that has its folder on the path, before anything else runs.
OBEDIENT = """
import os, pathlib, signal, time
import data_pipeline.steps.sample as module

def obey(self, documents):
    held = []
    for document in documents:
        order, _, name = document.text.partition(" ")
        if order == "hang":
            while True:
                pass
        if order == "eat":
            while True:
                held.append(bytearray(2**24))
        if order == "raise":
            raise ValueError("no such luck")
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "die-once" and not pathlib.Path(name).exists():
            pathlib.Path(name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "kill-parent-once" and not pathlib.Path(name).exists():
            pathlib.Path(name).touch()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        if order == "load":
            time.sleep(3)
        if order == "sleep":
            pathlib.Path(name).touch()
            time.sleep(600)
        yield document

module.Sample.__call__ = obey
"""


@pytest.fixture
def obedient(tmp_path, monkeypatch):
    """Let the step `sample` of child processes obey the first words of documents."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(OBEDIENT)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))


@pytest.fixture
def step_task(tmp_path):
    """Return a function that makes a task for texts."""

    def make(name, *texts):
        path = tmp_path / f"{name}.parquet"
        with DocumentWriter(path) as writer:
            for number, text in enumerate(texts):
                writer.write(Document(f"s/{name}:{number}", "s", text))
        (tmp_path / "out").mkdir(exist_ok=True)
        return Task(
            "step",
            ("data_pipeline.steps.sample", "data_pipeline.operations.apply"),
            tmp_path / "out",
            name,
            {"step": {"kind": "sample", "fraction": 1.0}, "source": "s"},
            ((path, file_sha256(path)),),
        )

    return make


def children_of(pid):
    """Return the processes that were started to work for `pid`."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                words = Path(f"/proc/{entry.name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"data_pipeline.engine.isolation.child" in words and str(pid).encode() in words:
                found.append(int(entry.name))
    return found


@pytest.fixture
def find_children():
    return children_of


@pytest.fixture(autouse=True)
def no_children_are_left():
    yield
    left = children_of(os.getpid())
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
