"""The same bytes from any engine and any number of workers, also when one is killed."""

import io
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from ray.cluster_utils import Cluster
from rich.console import Console

from data_pipeline import prepare as prepare_module
from data_pipeline.engine.build import build_engine
from data_pipeline.engine.cluster import ClusterEngine
from data_pipeline.engine.isolation.limits import Limits
from data_pipeline.report import Report
from data_pipeline.steps import STEPS
from maxlm.config import load_data
from maxlm.config.pipeline.engine import RayEngineConfig
from tests.data_pipeline.crawl import train_models, write_web

WEB = Path(__file__).parents[3] / "configs/data/web.yaml"
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


@pytest.fixture(scope="module")
def cluster():
    """A cluster of a head and two workers, as raylets on loopback; the head has no tasks.

    By default Ray's workers let every other process go first, so that they would wait for whatever
    else this machine tests.
    """
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = Cluster()
    try:
        add_node(cluster, num_cpus=0, include_dashboard=False)
        for _ in range(2):
            add_node(cluster, num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
        monkeypatch.undo()


def add_node(cluster, **settings):
    """Start a raylet; Ray gives it half a minute, in which a machine with other work may not do it."""
    for _ in range(2):
        with suppress(Exception):
            return cluster.add_node(**settings)
    return cluster.add_node(**settings)


def test_output_does_not_depend_on_engine_or_workers(prepared, cluster, tmp_path):
    expected = prepared("here")
    assert len([name for name in expected if name.endswith(".tokens")]) >= 4
    dropped = pq.read_table(tmp_path / "here/text/dropped.parquet").to_pylist()
    reasons = {"exact_dedup/document", "near_dedup", "decontaminate/quiz"}
    assert {one["reason"] for one in dropped} == reasons | {"substring_dedup"}
    steps = json.loads((tmp_path / "here/text/report.json").read_text())["steps"]
    lost = {step["step"]: step["bytes_in"] - step["bytes_out"] for step in steps}
    assert lost["03-substring_dedup"] >= 2 * len(PASSAGE)
    for workers in (1, 3):
        assert prepared(f"local{workers}", {"kind": "local", "workers": workers}) == expected
    assert prepared("ray", {"kind": "ray", "address": cluster.address}) == expected


@pytest.fixture
def web_prepared(published, hashes, tmp_path, monkeypatch):
    """Return a function that sends a crawl through the preset for pages and the steps that it has
    not, two sources of unequal weights, and returns the files' hashes.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data_pipeline.stages.reading.LEAST_BYTES", 100_000)
    write_web(tmp_path / "data/web", archives=2)
    train_models(tmp_path / "data/web")
    steps = yaml.safe_load(WEB.read_text())["data"]["pipeline"]["steps"]
    more = [{"kind": "licence", "missing": "keep"}, {"kind": "sample", "fraction": 0.9}]
    buckets = {"kind": "buckets", "score": "perplexity", "keep": ["head", "middle", "tail"]}
    place = 1 + next(n for n, step in enumerate(steps) if step["kind"] == "substring_dedup")
    rewrite = {
        "kind": "rewrite",
        "checkpoint": {"path": str(published)},
        "templates": [{"name": "say", "prompts": ["{text}: "], "with_source": True}],
        "fraction": 0.1,
        "max_source_tokens": 16,
        "max_tokens": 8,
        "batch": 4,
    }
    steps = [*more, *steps[:place], rewrite, *steps[place:-1], buckets, steps[-1]]
    assert {step["kind"] for step in steps} == STEPS.keys()

    def run(name, engine):
        first, second = (
            {"paths": [f"data/web/raw/crawl{number}.warc.gz"], "validation_fraction": 0.2}
            for number in range(2)
        )
        sources = {
            "web": {"path": f"{name}/web", "raw": first},
            "more": {
                "path": f"{name}/more",
                "weight": 0.25,
                "raw": second | {"kind": "files", "licence": "MIT"},
            },
        }
        data = {
            "sources": sources,
            "tokenizer": f"{name}/tokenizer.model",
            "vocab_size": 512,
            "sequence_length": 64,
            "pipeline": {"engine": engine, "shard_tokens": 20_000, "steps": steps},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"include": [str(WEB)], "data": data}))
        report = Report(Console(file=io.StringIO()))
        prepare_module.prepare(load_data(path, []).config, force=False, report=report)
        return hashes(tmp_path / name)

    return run


def test_every_step_gives_the_same_bytes_on_a_cluster(web_prepared, cluster, tmp_path):
    expected = web_prepared("local2", {"kind": "local", "workers": 2})
    assert len([name for name in expected if name.endswith(".tokens")]) >= 6
    dropping = {
        step["step"].partition("-")[2]
        for source in ("web", "more")
        for step in json.loads((tmp_path / f"local2/{source}/report.json").read_text())["steps"]
        if step["reasons"]
    }
    assert dropping >= {"sample", "language", "heuristics", "toxicity", "near_dedup"}
    assert dropping >= {"exact_dedup", "decontaminate", "top_fraction"}
    written = [
        identity
        for path in (tmp_path / "local2").rglob("*.documents.parquet")
        for identity in pq.read_table(path)["id"].to_pylist()
        if identity.endswith("#say")
    ]
    assert len(written) >= 5
    assert web_prepared("local1", {"kind": "local", "workers": 1}) == expected
    assert web_prepared("ray", {"kind": "ray", "address": cluster.address}) == expected


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
def test_a_cluster_of_three_machines_may_lose_one_of_them(prepared, cluster, monkeypatch):
    """A worker is killed while it has tasks."""
    expected = prepared("here")
    doomed = min(cluster.worker_nodes, key=lambda node: node.unique_id)
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

    monkeypatch.setattr(ClusterEngine, "_submit", killing)
    monkeypatch.setattr(ClusterEngine, "run", counting)
    try:
        engine = {"kind": "ray", "address": cluster.address}
        assert prepared("killed", engine) == expected
    finally:
        add_node(cluster, num_cpus=1)
    assert submitted.total() > 60
    assert submitted == done
    assert set(done.values()) == {1}
