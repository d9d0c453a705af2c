"""`scripts/gpu_report` without a GPU: its jobs, a failure, and the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.gpu.jobs import PARTS, Job, all_jobs, first_of_each
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
