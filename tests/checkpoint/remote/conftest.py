"""Runs without arrays, stores in memory, and stores that fail, lose, cut and are slow."""

import json
import threading
import time
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from maxlm.checkpoint import layout
from maxlm.checkpoint.remote import place
from maxlm.config.schema import CheckpointConfig, RunConfig, StoreConfig
from tests.small_models import model_settings


class FaultyFileSystem(MemoryFileSystem):
    """A store in memory, at faulty://, that does to writes what `faults` says.

    faults: function of (path, number of the write) -> None, or something to do to it: an exception
    to raise, "lose", "cut", or seconds to wait.
    """

    protocol = "faulty"
    store, pseudo_dirs = {}, [""]
    faults = staticmethod(lambda path, number: None)
    writes, lock = 0, threading.Lock()

    def _open(self, path, mode="rb", **options):
        if "w" not in mode:
            return super()._open(path, mode, **options)
        with self.lock:
            type(self).writes += 1
            number = self.writes
        fault = type(self).faults(path, number)
        if isinstance(fault, Exception):
            raise fault
        if isinstance(fault, float):
            time.sleep(fault)
        file = super()._open(path, mode, **options)
        if fault in ("lose", "cut"):
            file.close = lambda: self._spoil(path, fault)
        return file

    def pipe_file(self, path, value, mode="overwrite", **options):
        with self.open(path, "wb") as file:
            file.write(value)

    def _spoil(self, path, fault):
        if fault == "lose":
            self.store.pop(path, None)
        else:
            self.store[path].truncate(1)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Tries follow each other at once."""
    monkeypatch.setattr(place, "FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture
def faults(monkeypatch):
    """faults(function): what happens to writes into faulty:// from now on."""
    monkeypatch.setattr(FaultyFileSystem, "writes", 0)

    def set_faults(function):
        monkeypatch.setattr(FaultyFileSystem, "faults", staticmethod(function))
        monkeypatch.setattr(FaultyFileSystem, "writes", 0)

    return set_faults


@pytest.fixture(params=["memory", "folder"])
def url(request, tmp_path):
    """A new place, in memory or a folder."""
    return f"memory://{uuid.uuid4().hex}/run" if request.param == "memory" else f"{tmp_path}/slow"


@pytest.fixture
def faulty_url():
    """A new place whose writes may fail."""
    return f"faulty://{uuid.uuid4().hex}/run"


def store_config(url, **settings):
    return StoreConfig.model_validate({"url": url, **settings})


def checkpoint_config(url, **settings):
    return CheckpointConfig(store=store_config(url, **settings))


def run_config(run_dir, url, num_steps=100, **settings):
    return RunConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "model": model_settings(
                vocab_size=64, num_layers=1, embed_dim=8, num_heads=2, mlp_dim=16
            ),
            "data": {
                "sources": {"none": {"path": "none"}},
                "tokenizer": "none",
                "sequence_length": 8,
            },
            "optimizer": {"learning_rate": 1e-2},
            "train": {"num_steps": num_steps, "batch_size": 1},
            "checkpoint": {"store": {"url": url, **settings}},
        }
    )


def save(run_dir, step, content=b"arrays", went_back=None):
    """Make what looks like a whole checkpoint, and the record beside it."""
    folder = layout.step_path(run_dir / "checkpoints", step)
    for name, data in {"d/0": content * step, "d/1": b"", "manifest": b"m%d" % step}.items():
        path = folder / "state" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    record = folder / layout.RECORD / layout.RECORD_FILE
    record.parent.mkdir()
    settings = {"checkpoint": {"resume_from": went_back}}
    sealed = layout.seal({"leaves": {}, "record": {"step": step, "config": settings}})
    record.write_text(json.dumps(sealed))
    lines = "".join(f'{{"step": {number}}}\n' for number in range(1, step + 1))
    (run_dir / "metrics.jsonl").write_text(lines)
    (run_dir / "tokenizer").mkdir(exist_ok=True)
    (run_dir / "tokenizer/tokenizer.json").write_text("{}")
    (run_dir / "lock").write_text("not to be copied")
    return folder


def contents(folder):
    """Return the bytes of all files below a folder, by their paths in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
