"""When a task counts as done, and what makes it another task."""

import dataclasses
import json
import os

import pytest

from data_pipeline import libraries
from data_pipeline.engine import code
from data_pipeline.engine.isolation.limits import Limits
from data_pipeline.engine.isolation.watch import Watch
from data_pipeline.engine.task import Task
from data_pipeline.operations import perform
from data_pipeline.stages.mapping import APPLY, MODEL, MappingStage
from data_pipeline.stages.shards import DocumentShard
from data_pipeline.stages.tokens import TOKENIZE
from data_pipeline.steps import STEPS
from maxlm.config.errors import RunFailedError
from maxlm.config.pipeline.filters.classifier import ClassifierConfig
from maxlm.config.pipeline.filters.perplexity import PerplexityConfig
from maxlm.config.pipeline.rewrite import RewriteConfig


def test_a_process_reads_a_step_s_files_once_and_not_for_every_shard(
    step_task, tmp_path, monkeypatch
):
    made = []

    class Counted(STEPS["sample"]):
        def __init__(self, config):
            made.append(config.fraction)
            super().__init__(config)

    monkeypatch.setitem(STEPS, "sample", Counted)

    def do(name, fraction, sha256):
        task = step_task(name, "text")
        settings = {"step": {"kind": "sample", "fraction": fraction}, "source": "s"}
        inputs = (*task.inputs, (tmp_path / "list.txt", sha256))
        perform(
            dataclasses.replace(task, settings=settings, inputs=inputs), Watch(Limits(2**30, 9))
        )

    for number in range(3):
        do(f"a{number}", 1.0, "0")
    assert made == [1.0]
    do("b", 1.0, "1")  # the file is another one
    do("c", 0.5, "1")
    do("d", 1.0, "0")  # one is held, as models are large
    assert made == [1.0, 1.0, 0.5, 1.0]
    with pytest.raises(KeyError):  # another operation lets go of it
        perform(Task("sample_texts", (), tmp_path, "x", {}), Watch(Limits(2**30, 9)))
    do("e", 1.0, "0")
    assert made[4:] == [1.0]


@pytest.fixture
def finished(tmp_path):
    task = Task("read", ("data_pipeline.documents",), tmp_path, "000001", {"a": [1]})
    path = tmp_path / "000001.parquet"
    path.write_bytes(b"12345678")
    task.finish({path: {"documents": 3}}, figures={"x": 1}, cost={})
    return task


def test_a_record_says_what_was_written(finished):
    again = Task.from_json(finished.to_json())
    assert again == finished
    (file,) = again.record().outputs
    assert (file.path.name, file.bytes, file.about) == ("000001.parquet", 8, {"documents": 3})
    assert file.sha256 == "ef797c8118f02dfb649607dd5d3f8c7623048c9c063d532cc95c5ed7a898a64f"


@pytest.mark.parametrize("size", [0, 7, 9, None])
def test_partial_output_never_looks_whole(finished, size):
    path = finished.folder / "000001.parquet"
    path.unlink() if size is None else os.truncate(path, size)
    assert finished.record() is None
    assert finished.record(with_outputs=False) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"identity": 5}'])
def test_a_damaged_record_is_none(finished, text):
    (finished.folder / "000001.json").write_text(text)
    assert finished.record(with_outputs=False) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"a": [2]}},
        {"operation": "step"},
        {"modules": ("data_pipeline.manifest",)},
        {"inputs": ((None, "0"),)},
    ],
)
def test_another_task_is_not_done(finished, changes):
    assert dataclasses.replace(finished, **changes).record() is None


def test_where_an_input_lies_does_not_matter(finished, tmp_path):
    here, there = (dataclasses.replace(finished, inputs=((tmp_path / name, "0"),)) for name in "ab")
    assert here.identity == there.identity


def test_code_is_that_of_a_module_and_what_it_imports(monkeypatch):
    read = code.code_of("data_pipeline.operations.read")
    apply = code.code_of("data_pipeline.operations.apply")
    sample = code.code_of("data_pipeline.steps.sample")

    def others(changed):
        """Return which of the three are others once a file is."""
        paths = code._path

        def path(module):
            found = paths(module)
            return (
                type("Changed", (), {"read_bytes": lambda self: found.read_bytes() + b"\n"})()
                if (module == changed)
                else found
            )

        with monkeypatch.context() as patch:
            patch.setattr(code, "_path", path)
            code.code_of.cache_clear()
            names = ("operations.read", "operations.apply", "steps.sample")
            now = [code.code_of(f"data_pipeline.{name}") for name in names]
        code.code_of.cache_clear()
        return [one != two for one, two in zip(now, (read, apply, sample), strict=True)]

    assert others("data_pipeline.readers.warc") == [True, False, False]
    assert others("data_pipeline.storage.document_files") == [True, True, False]
    assert others("data_pipeline.steps.sample") == [False, False, True]
    assert others("data_pipeline.documents") == [True, True, True]
    assert others("data_pipeline.engine.local") == [False, False, False]
    assert others("data_pipeline.report") == [False, False, False]


def test_a_model_s_code_counts_for_steps_that_run_one(tmp_path):
    names = {
        step: [
            name
            for task in MappingStage("01", section, tmp_path).tasks(
                [DocumentShard(0, tmp_path / "0", "0" * 64, "s", 1, 1)]
            )
            for name in task.modules
        ]
        for step, section in {
            "words": ClassifierConfig(model=__file__),
            "states": ClassifierConfig(model=__file__, checkpoint={"path": "runs/x"}),
            "perplexity": PerplexityConfig(checkpoint={"path": "runs/x"}),
            "rewrite": RewriteConfig(checkpoint={"path": "x"}, templates=[{"name": "paraphrase"}]),
        }.items()
    }
    assert {step for step, modules in names.items() if MODEL in modules} == {
        "states",
        "perplexity",
        "rewrite",
    }
    # All of maxlm that a model is made of, and nothing of it for other steps.
    code.code_of.cache_clear()
    found = set()
    with pytest.MonkeyPatch.context() as patch:
        paths = code._path
        patch.setattr(code, "_path", lambda name: found.add(name) or paths(name))
        code.code_of(MODEL)
    assert found >= {
        "maxlm.layers.mixers.attention",
        "maxlm.decoding.forward",
        "maxlm.checkpoint.reader",
    }
    assert not any(name.startswith("data_pipeline") for name in found)
    code.code_of.cache_clear()


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("resiliparse", {"read", "extract"}),
        ("py3langid", {"language"}),
        ("jax", {"rewrite"}),
        ("pyarrow", {"read", "extract", "language", "rewrite", "near_dedup", "tokenize"}),
    ],
)
def test_a_library_counts_for_tasks_that_use_it(finished, monkeypatch, library, expected):
    steps = "data_pipeline.steps"
    modules = {
        "read": ("data_pipeline.operations.read",),
        "extract": (f"{steps}.clean.extract", APPLY),
        "language": (f"{steps}.filters.language", APPLY),
        "rewrite": (f"{steps}.rewrite", APPLY, MODEL),
        "near_dedup": (f"{steps}.dedup.near_dedup", APPLY),
        "tokenize": TOKENIZE,
    }
    tasks = {name: dataclasses.replace(finished, modules=used) for name, used in modules.items()}
    before = {name: task.identity for name, task in tasks.items()}
    other = {**libraries.versions(), library: "99.0"}
    monkeypatch.setattr("data_pipeline.engine.task.versions", lambda: other)
    after = {name: dataclasses.replace(task).identity for name, task in tasks.items()}
    assert {name for name in modules if before[name] != after[name]} == expected


def test_what_other_versions_have_done_is_no_result(finished, workshop, monkeypatch):
    """As when something is installed while tasks run, or a cluster's machines differ."""
    done = dataclasses.replace(finished, folder=workshop.folder)

    class Other:
        def run(self, tasks, tell):
            monkeypatch.setattr("data_pipeline.engine.task.versions", lambda: {"python": "9"})
            dataclasses.replace(tasks[0]).finish({}, figures={}, cost={})
            monkeypatch.undo()

    with pytest.raises(RunFailedError, match="read: tasks were done by other code or libraries"):
        dataclasses.replace(workshop, engine=Other()).finish("read", [done], lambda _: (1, 1))


def test_identity_is_what_it_was(finished):
    """Settings in another order are the same settings."""
    one = dataclasses.replace(finished, settings={"a": 1, "b": 2})
    two = dataclasses.replace(finished, settings=json.loads('{"b": 2, "a": 1}'))
    assert one.identity == two.identity
