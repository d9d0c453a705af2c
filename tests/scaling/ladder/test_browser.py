"""A ladder's curves in TensorBoard, as a browser shows them."""

from __future__ import annotations

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
    command = [str(CHROMIUM), *options, "--timeout=60000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def test_a_browser_shows_curves_pictures_and_tables(address: str):
    curves = page(f"{address}#timeseries")
    for name in ("ladder/loss_over_1000_log10_flops", "ladder/frontier", "rungs/d64-20", "law"):
        assert name in curves
    # Two charts with axes: the curves and the final losses.
    assert curves.count("<line-chart") >= 2
    assert "No dashboards are active" not in curves
    tables = page(f"{address}#text")
    assert "budgets predicted from smaller ones alone" in tables
    assert "ladder/table_3/text_summary" in tables
    assert "learning_rate" in page(f"{address}#hparams")
