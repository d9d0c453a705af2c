"""`scripts/gpu_report` without a GPU: its jobs, a failure, and the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from scripts.gpu import grouped
from scripts.gpu.jobs import EXPERTS, PARTS, WAYS_TRIED, Job, all_jobs, first_of_each
from scripts.gpu.markdown import write_markdown
from scripts.gpu.report import Report, run

ROOT = Path(__file__).parents[1]


def test_jobs_have_names_of_their_own():
    names = [(job.part, job.name) for job in all_jobs(PARTS)]
    assert len(set(names)) == len(names)
    assert {part for part, _ in names} == set(PARTS)


def test_a_job_that_fails_is_reported_and_the_next_one_done(tmp_path):
    report = Report(tmp_path, facts={"date": "2026-01-01", "scale": "tiny", "missing": {}})
    jobs = [
        Job("checks", "impossible", {"kernel": "no such kernel", "options": {"length": 32}}),
        Job("checks", "causal", {"kernel": "flash_hopper", "options": {"length": 32}}),
        Job("checks", "late", {}, seconds=0.0),
    ]
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    options = {"processes": 1, "scale": "tiny", "lock": tmp_path / "lock", "memory": "0.5"}
    run(jobs, report, end=float("inf"), **options)
    impossible, causal, late = json.loads((tmp_path / "gpu_report.json").read_text())["jobs"]
    assert "no such kernel" in impossible["failed"]
    assert causal["found"]["good"]
    assert causal["found"]["same_bits"]
    assert "took longer than 0 s" in late["failed"]
    page = (tmp_path / "gpu_report.md").read_text()
    assert "impossible failed: KeyError" in page
    assert "| causal | 1.00 |" in page


def test_a_wrong_result_is_said():
    result = {"error": 0.5, "plain": 0.1, "good": False}
    results = dict.fromkeys(("out", "lse", "dq", "dk", "dv"), result)
    found = {"results": results, "same_bits": False, "good": False}
    job = {"part": "checks", "name": "x", "given": {}, "seconds": 1, "found": found}
    page = write_markdown(
        {"date": "d", "scale": "whole", "missing": {"training": ["grain"]}, "jobs": [job]}
    )
    assert "**5.0e-01 / 1.0e-01**" in page
    assert "no | **wrong** |" in page
    assert "training was left out: missing grain" in page


@pytest.mark.parametrize("way", grouped.WAYS)
def test_experts_products_are_compared(way):
    blocks = next(given for name, given in WAYS_TRIED if name == way)
    shape = dict.fromkeys(("rows", "dim", "hidden", "experts"), 8)
    found = grouped.compare(**shape, way=way, given=blocks, alone=nullcontext, tiny=True)
    assert found["good"]
    assert set(found["tflops"]) == set(found["errors"]) == set(grouped.Products._fields)
    job = {"part": "grouped", "name": way, "given": {}, "seconds": 1, "found": found}
    page = write_markdown({"date": "d", "scale": "whole", "missing": {}, "jobs": [job]})
    assert f"| {way} |" in page
    assert " ok |" in page


@pytest.mark.parametrize("blocks", [given for way, given in WAYS_TRIED if way == "mosaic"], ids=str)
def test_jax_has_the_kernels_for_hopper(blocks, monkeypatch):
    """They are made for a GPU that is not here, with the blocks and shapes that a report tries."""
    pytest.importorskip(f"{grouped.MOSAIC}.ragged_dot_mgpu")  # an example of jax, not its interface
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(core_count=132)])
    sizes = EXPERTS["8 experts of 14,336, 16,384 rows of 4,096"]
    rows, dim, hidden, experts = sizes.values()
    x, w, g = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for shape in ((rows, dim), (experts, dim, hidden), (rows, hidden))
    )
    counts = jax.ShapeDtypeStruct((experts,), jnp.int32)
    products = grouped.WAYS["mosaic"](**blocks)
    for product, operands in zip(products, ((x, w), (g, w), (x, g)), strict=True):
        traced = jax.jit(product).trace(*operands, counts)
        assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.slow
def test_rehearsal(tmp_path):
    command = [
        ROOT / "scripts/gpu_report",
        "--rehearse",
        "--out",
        tmp_path,
        "--minutes",
        "20",
        "--processes",
        "1",
    ]
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(command, check=True, env=environment, timeout=1500)
    done = json.loads((tmp_path / "gpu_report.json").read_text())["jobs"]
    assert len(done) == len(first_of_each(all_jobs(PARTS)))
