"""A ladder's curves in TensorBoard, as a browser shows them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from maxlm.cli import main
from tests.scaling.ladder.conftest import finish

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture
def address(ladder_file: Path, tmp_path: Path) -> Iterator[str]:
    """TensorBoard of a fitted ladder, on this machine alone."""
    finish(ladder_file, noise=1e-3)
    assert main(["ladder", "fit", str(ladder_file)]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1"]
    logdir = ["--logdir", str(tmp_path / "ladder" / "tensorboard"), "--port", str(port)]
    server = subprocess.Popen([*command, *logdir], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_for(address)
        yield address
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    pytest.fail("TensorBoard did not answer")


def page(address: str) -> str:
    """Return the page's markup after its scripts have run."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=40000"]
    options.append("--window-size=1400,1800")  # charts outside of it are not drawn
    command = [str(CHROMIUM), *options, "--timeout=60000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def read(address: str, posted: str | None = None) -> str:
    """Return what a page asks TensorBoard for."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, posted and posted.encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()


def test_a_browser_shows_curves_pictures_and_tables(address: str):
    # As SVG, lines are in the markup.
    curves = page(f"{address}?forceSVG=true#timeseries")
    for name in ("ladder/loss_over_1000_log10_flops", "ladder/frontier", "rungs/d64-20", "law"):
        assert name in curves
    # A line for each of the 16 rungs, the law and the two ends of its interval, and each smoothed.
    lines = re.findall(r'<path d="M[\d., L-]+" style="fill: none; stroke: rgb\([\d, ]+\)', curves)
    assert len(lines) >= 2 * 19
    assert "No dashboards are active" not in curves
    # What these two pages show lies in shadow trees, which are in no markup.
    assert "tf-text-dashboard" in page(f"{address}#text")
    tables = {1: "budgets predicted from smaller ones alone", 3: "compute-optimal"}
    for number, title in tables.items():
        tag = f"ladder/table_{number}/text_summary"
        assert title in read(f"{address}data/plugin/text/text?run=fit&tag={tag}")
    assert "tf-hparams-dashboard" in page(f"{address}#hparams")
    question = json.dumps({"experimentName": "", "hparamsLimit": 20})
    assert "learning_rate" in read(f"{address}data/plugin/hparams/experiment", question)
