"""Steps that decide over all shards, through the stages: stopped anywhere, and with other files."""

import json

import pytest

from data_pipeline import prepare as prepare_module
from data_pipeline.stages.deciding import Deciding
from data_pipeline.stages.shards import DocumentShard
from data_pipeline.steps import STEPS
from maxlm.config.pipeline import PipelineStep
from maxlm.config.pipeline.dedup.decontaminate import DecontaminateConfig
from maxlm.config.pipeline.step import GlobalStepSection
from maxlm.config.reading.paths import kinds, sections
from tests.data_pipeline.conftest import InProcess

QUESTION = "which of these thirteen words is the one that ends a question of ours"


def test_a_step_and_its_section_agree_on_who_decides():
    for section in sections(PipelineStep):
        (kind,) = kinds(section)
        assert hasattr(STEPS[kind], "reduce") == issubclass(section, GlobalStepSection), kind


class Stopping(InProcess):
    """An engine that is stopped after some tasks."""

    def __init__(self, most):
        super().__init__()
        self.left = most

    def run(self, tasks, done):
        for task in tasks:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            super().run([task], done)


def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bytes(
    raw, run_config, do, make_text, hashes, tmp_path, monkeypatch
):
    monkeypatch.setattr("data_pipeline.stages.reading.LEAST_BYTES", 5000)
    passage = " ".join(f"said{number}" for number in range(60))
    texts = [f"{make_text(seed)} {passage if seed % 2 else ''} {seed}" for seed in range(6)]
    texts += [make_text(9) + QUESTION]
    (raw / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"question": QUESTION}))
    benchmarks = {"quiz": [str(tmp_path / "quiz.jsonl")]}
    steps = [{"kind": "exact_dedup"}, {"kind": "substring_dedup"}]
    steps.append({"kind": "decontaminate", "benchmarks": benchmarks})

    def config(name):
        return run_config(out=tmp_path / name, pipeline={"steps": steps})

    do(config("whole"))
    stops = 0
    with monkeypatch.context() as patch:
        while stops < 100:
            patch.setattr(prepare_module, "build_engine", lambda _: Stopping(12))
            try:
                do(config("stopped"))
                break
            except KeyboardInterrupt:
                stops += 1
    assert stops >= 3
    assert hashes(tmp_path / "stopped") == hashes(tmp_path / "whole")
    manifest = json.loads((tmp_path / "whole/text/manifest.json").read_text())
    assert manifest["steps"][3]["reasons"] == {"decontaminate/quiz": 1}
    assert manifest["steps"][2]["bytes_in"] - manifest["steps"][2]["bytes_out"] >= len(passage) * 2


@pytest.mark.parametrize("changed", ["What is it?", None])
def test_another_evaluation_file_is_another_step(changed, tmp_path):
    path = tmp_path / "quiz.txt"
    path.write_text("What is that?")
    config = DecontaminateConfig(benchmarks={"quiz": (str(path),)})
    before = [DocumentShard(0, tmp_path / "a", "0", "web", 1, 1)]

    def identity():
        stage = Deciding("01-decontaminate", config, tmp_path / "work", protected=frozenset())
        asked = stage.task("over_shard", "01-keys", "0", {"method": "keys"}, ())
        return [asked.identity, stage.tasks(before)[0].identity]

    first = identity()
    if changed:
        path.write_text(changed)
    assert [one == two for one, two in zip(identity(), first, strict=True)] == [not changed] * 2
