"""Tasks that fail: run again alone, then without the document at fault, which is counted and named."""

import random
import subprocess
import sys
import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.engine.isolation.limits import Limits, Outcome
from data_pipeline.engine.local import LocalEngine
from data_pipeline.engine.task import Task
from data_pipeline.storage.document_files import read_documents
from maxlm.config.errors import RunFailedError


@pytest.fixture
def engine():
    engine = LocalEngine(2, Limits(2**28, 2.0))
    yield engine
    engine.close()


def outcome(task):
    record = task.record()
    kept = [document.text for document in read_documents(record.outputs[0].path)]
    dropped = pq.read_table(record.outputs[1].path).to_pylist()
    return kept, {one["id"]: (one["reason"], one["detail"]) for one in dropped}


def test_documents_that_a_step_cannot_work_on_are_set_aside_and_named(obedient, step_task, engine):
    good = step_task("good", "a", "b")
    bad = step_task("bad", "a", "hang", "b", "eat", "raise", "c", "die", "d")
    done = []
    engine.run([bad, good], lambda task: done.append(task.name))
    assert done == ["good", "bad"]
    assert outcome(good) == (["a", "b"], {})
    kept, dropped = outcome(bad)
    assert kept == ["a", "b", "c", "d"]
    assert dropped == {
        "s/bad:1": ("set_aside", "it takes longer than 2 s"),
        "s/bad:3": ("set_aside", "it takes more than 256 MiB"),
        "s/bad:4": ("set_aside", "ValueError: no such luck"),
        "s/bad:6": ("set_aside", "its process ended by SIGKILL"),
    }
    assert bad.record().figures["reasons"] == {"set_aside": 4}
    assert bad.record().figures["documents_in"] == 8


def test_what_is_loaded_at_the_first_document_may_take_longer(obedient, step_task, engine):
    task = step_task("loading", "load", "a")
    engine.run([task], lambda _: None)
    assert outcome(task) == (["load", "a"], {})


def test_a_process_that_died_by_chance_loses_nothing(obedient, step_task, engine, tmp_path):
    task = step_task("once", "a", f"die-once {tmp_path}/mark", "b")
    engine.run([task], lambda _: None)
    assert outcome(task) == (["a", f"die-once {tmp_path}/mark", "b"], {})


def test_a_step_that_always_raises_ends_the_run_with_its_traceback(obedient, step_task, engine):
    task = step_task("bug", *["raise"] * 150)
    with pytest.raises(RunFailedError, match=r"(?s)out/bug.*ValueError: no such luck.*what is fin"):
        engine.run([task], lambda _: None)
    assert task.record() is None
    assert not list(task.folder.glob("*.unfinished"))


def test_a_model_that_takes_too_much_ends_the_run_with_the_cure(step_task):
    model = {"path": "runs/x", "rows": 8, "max_tokens": 1024}
    step = {"kind": "perplexity", "checkpoint": model}
    task = replace(step_task("big", "a"), settings={"step": step, "source": "s"})
    alone = Limits(2**30, 2.0).after(Outcome("memory", 3), task)
    assert alone.one_by_one
    cure = (
        r"also when it ran alone; lower checkpoint.rows=8 or checkpoint.max_tokens=1024 of the step "
        r"perplexity, raise data.pipeline.engine.memory_mb, or, .* data.pipeline.engine.workers=1$"
    )
    for outcome, what in (
        (Outcome("memory", 3), "it takes more than 1024 MiB"),
        (Outcome("memory", 3, "a model does not fit its device"), "does not fit its device"),
        (Outcome("lost", 3, "its process ended by SIGABRT"), "its process ended by SIGABRT"),
    ):
        with pytest.raises(RunFailedError, match=f"out/big: .*{what}, {cure}"):
            alone.after(outcome, task)
    rewrite = {"kind": "rewrite", "checkpoint": {"path": "x"}, "batch": 16, "max_tokens": 512}
    other = replace(task, settings={"step": rewrite, "source": "s"})
    with pytest.raises(
        RunFailedError, match="lower batch=16 or max_tokens=512 of the step rewrite"
    ):
        alone.after(Outcome("memory", 3), other)
    # What a document is at fault for sets it aside, as everywhere.
    assert alone.after(Outcome("time", 3), task).set_aside == {3: "it takes longer than 2 s"}
    words = replace(task, settings={"step": {"kind": "perplexity", "checkpoint": None}})
    assert alone.after(Outcome("memory", 3), words).set_aside.keys() == {3}


def test_a_reading_that_takes_too_much_ends_the_run_and_names_its_files(step_task):
    def read(*names):
        files = [[f"/x/{name}", name, 1, ""] for name in names]
        return replace(step_task("000003", "a"), operation="read", settings={"files": files})

    alone = Limits(2**30, 2.0, one_by_one=True)
    where = (
        "it takes more than 1024 MiB, at document 18 of b.parquet, also when it ran alone; raise"
    )
    with pytest.raises(RunFailedError, match=f"out/000003: {where} data.pipeline.engine.memory_mb"):
        alone.after(Outcome("memory", 17), read("b.parquet"))
    with pytest.raises(RunFailedError, match="at document 18 of 2 files from a.txt to c.txt, also"):
        alone.after(Outcome("time", 17), read("a.txt", "c.txt"))


SLOW_READERS = """
import time
import data_pipeline.engine.isolation.watch as watch
import data_pipeline.readers.formats as formats
from data_pipeline.readers.record import Found, Unread

def read(chunks, raw):
    data = b"".join(chunks)
    if data == b"hang":
        time.sleep(30)
    if data == b"slow":
        for number in range(12):
            time.sleep(0.4)
            yield Unread(f":{number}", "nothing that is read")
    yield Found("", data.decode())

watch.LOADING_SECONDS = 3.0
formats.READERS[".txt"] = read

class SlowInput(formats.Input):
    def read(self):
        data = super().read()
        time.sleep(0.6 if len(data) == 2**20 else 0)
        return data

formats.Input = SlowInput
"""


def test_reading_is_timed_from_the_first_file_on_and_at_each_record(tmp_path, monkeypatch, engine):
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(SLOW_READERS)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    (tmp_path / "out").mkdir()
    noise = random.Random(0).randbytes(11 * 2**18).hex()  # 5.5 MiB

    def task(*texts):
        files = []
        for text in texts:
            name = text if text.endswith(".parquet") else f"{text}.txt"
            if name == text:
                pq.write_table(pa.table({"text": ["a", "b"], "more": [noise, ""]}), tmp_path / name)
            else:
                (tmp_path / name).write_text(text)
            files.append([str(tmp_path / name), name, len(text), ""])
        raw = {"kind": "files", "text_key": "text", "meta_keys": [], "licence": None}
        settings = {"source": "s", "raw": raw, "files": files, "shard_bytes": 1000}
        modules = ("data_pipeline.operations.read",)
        return Task("read", modules, tmp_path / "out", "-".join(texts), settings)

    slow = task("first", "slow", "last")  # 12 x 0.4 s at records, of which each may take 2 s
    engine.run([slow], lambda _: None)
    assert slow.record().figures["documents_out"] == 3
    assert slow.record().figures["skipped"]["nothing that is read"]["count"] == 12
    # What is hashed behind the last row is no part of it: five portions of 0.6 s.
    large = task("large.parquet")
    engine.run([large], lambda _: None)
    assert large.record().figures["documents_out"] == 2
    with pytest.raises(RunFailedError, match="hang-first: it takes longer than 2 s, at document 1"):
        engine.run([task("hang", "first")], lambda _: None)


def test_no_process_outlives_the_one_that_leads(obedient, step_task, tmp_path, find_children):
    task = step_task("long", f"sleep {tmp_path}/started")
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from data_pipeline.engine.task import Task\n"
        "from data_pipeline.engine.local import LocalEngine\n"
        "from data_pipeline.engine.isolation.limits import Limits\n"
        "LocalEngine(1, Limits(2**30, 600.0)).run([Task.from_json(sys.argv[1])], lambda task: None)"
    )
    leader = subprocess.Popen([sys.executable, "-c", program, task.to_json(), *sys.path])
    wait_for((tmp_path / "started").exists)
    assert len(find_children(leader.pid)) == 1
    leader.kill()
    leader.wait()
    wait_for(lambda: not find_children(leader.pid))
    assert task.record() is None


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
