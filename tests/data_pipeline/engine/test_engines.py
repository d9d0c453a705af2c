"""The same bytes from any engine and any number of workers, also when one is killed."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from data_pipeline import prepare as prepare_module
from data_pipeline.engine.build import build_engine
from data_pipeline.engine.cluster import ClusterEngine
from data_pipeline.engine.isolation.limits import Limits
from maxlm.config.pipeline.engine import RayEngineConfig

ITEM = "which of these thirteen words is the one that ends a question of ours"
PASSAGE = " ".join(f"said{number}" for number in range(60))


@pytest.fixture
def corpus(raw, make_text):
    """Lines beside the files, copies and near copies, passages that come again and a question, in
    several shards.
    """
    lines = [make_text(seed % 25, 300) + (" end" if seed > 30 else "") for seed in range(40)]
    lines[3] += ITEM
    for seed in (1, 8, 15):
        lines[seed] = f"{lines[seed]} {PASSAGE} {seed}"
    (raw / "lines.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    return raw


@pytest.fixture
def prepared(corpus, run_config, do, hashes, tmp_path, monkeypatch):
    """Return a function that prepares the corpus with an engine, and returns the files' hashes."""
    monkeypatch.setattr("data_pipeline.stages.reading.LEAST_BYTES", 2000)

    def run(name, engine=None):
        evaluation = tmp_path / "quiz.jsonl"
        evaluation.write_text(json.dumps({"question": ITEM}))
        steps = [
            {"kind": "exact_dedup"},
            {"kind": "near_dedup"},
            {"kind": "substring_dedup"},
            {"kind": "decontaminate", "benchmarks": {"quiz": [str(evaluation)]}},
        ]
        pipeline = {"shard_tokens": 3000, "steps": steps} | ({"engine": engine} if engine else {})
        config = run_config(out=tmp_path / name, pipeline=pipeline)
        if engine:
            monkeypatch.setattr(prepare_module, "build_engine", build_engine)
        do(config)
        return hashes(tmp_path / name)

    return run


def test_output_does_not_depend_on_engine_or_workers(prepared, tmp_path):
    expected = prepared("here")
    assert len([name for name in expected if name.endswith(".tokens")]) >= 4
    dropped = pq.read_table(tmp_path / "here/text/dropped.parquet").to_pylist()
    reasons = {"exact_dedup/document", "near_dedup", "decontaminate/quiz"}
    assert {one["reason"] for one in dropped} == reasons | {"substring_dedup"}
    steps = json.loads((tmp_path / "here/text/report.json").read_text())["steps"]
    lost = {step["step"]: step["bytes_in"] - step["bytes_out"] for step in steps}
    assert lost["03-substring_dedup"] >= 2 * len(PASSAGE)
    for workers in (1, 2, 3):
        assert prepared(f"local{workers}", {"kind": "local", "workers": workers}) == expected
    assert prepared("ray", {"kind": "ray", "workers": 2}) == expected


def test_a_killed_worker_of_a_cluster_loses_and_repeats_nothing(obedient, step_task, tmp_path):
    config = RayEngineConfig(workers=2)
    engine = ClusterEngine(config, Limits(2**28, 5.0))
    texts = ["a", f"kill-parent-once {tmp_path}/mark", "b"]
    tasks = [step_task("killed", *texts), step_task("other", "c"), step_task("bad", "raise", "d")]
    done = []
    try:
        engine.run(tasks, lambda task: done.append(task.name))
    finally:
        engine.close()
    assert sorted(done) == ["bad", "killed", "other"]
    assert (tmp_path / "mark").exists()
    figures = {task.name: task.record().figures for task in tasks}
    assert figures["killed"]["documents_out"] == 3
    assert figures["killed"]["reasons"] == figures["other"]["reasons"] == {}
    assert figures["bad"]["reasons"] == {"set_aside": 1}


@pytest.mark.slow
def test_a_cluster_of_three_machines_may_lose_one_of_them(prepared, monkeypatch):
    """A head and two workers, as raylets on loopback; one worker is killed while it has tasks."""
    expected = prepared("here")
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    submitted, done = Counter(), Counter()
    submit, run = ClusterEngine._submit, ClusterEngine.run

    def killing(self, remote, task, limits):
        submitted[f"{task.folder}/{task.name}"] += 1
        reference = submit(self, remote, task, limits)
        if submitted.total() == 40:
            cluster.remove_node(doomed, allow_graceful=False)
        return reference

    def counting(self, tasks, tell):
        def finished(task):
            done[f"{task.folder}/{task.name}"] += 1
            tell(task)

        run(self, tasks, finished)

    try:
        doomed, _ = (cluster.add_node(num_cpus=1) for _ in range(2))
        cluster.wait_for_nodes()
        engine = {"kind": "ray", "address": cluster.address}
        assert prepared("whole", engine) == expected
        monkeypatch.setattr(ClusterEngine, "_submit", killing)
        monkeypatch.setattr(ClusterEngine, "run", counting)
        assert prepared("killed", engine) == expected
    finally:
        cluster.shutdown()
    assert submitted.total() > 60
    assert submitted == done
    assert set(done.values()) == {1}
