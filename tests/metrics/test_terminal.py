"""What people see, at several widths and in a pipe."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from maxlm.metrics import terminal
from maxlm.metrics.terminal import Outcome, RunTerminal, Summary

ROOT = Path(__file__).parents[2]
SUMMARY = Summary(
    run_dir="runs/[red]a[/red]",
    num_parameters=5_246_080,
    memory_bytes={"parameters": 20 << 20, "activations": 3 << 30},
    mesh={"data": 1, "stage": 1, "fsdp": 8, "expert": 1, "context": 1, "tensor": 2},
    num_devices=16,
    device_kind="cpu",
    num_steps=600,
    resume_step=0,
    tokens_per_step=16_384,
    total_tokens=600 * 16_384,
    total_flops=3.2345e14,
)
VALUES = {
    "train/loss": 3.14159,
    "optim/learning_rate": 2.9e-4,
    "optim/gradient_norm": 0.8312,
    "throughput/tokens_per_second": 12_345.6,
    "time/input_wait_fraction": 0.0012,
    "time/step_seconds": 0.5,
    "data/token_hash": "00ff",
}
VALIDATION = {
    "val/python/loss": 3.2,
    "val/python/perplexity": 24.5,
    "val/python/bits_per_byte": 1.83,
}
OUTCOME = Outcome(
    step=600,
    num_steps=600,
    values={**VALUES, **VALIDATION},
    baselines={"python": {"uniform": 3.91, "unigram": 2.61, "bigram": 1.802, "gzip -9": 2.15}},
    targets={"python": (32640, 134981)},
    tokens=9_830_400,
    wall_seconds=288.3,
    places={
        "checkpoints": "runs/a/checkpoints",
        "curves": "tensorboard --logdir runs/a/tensorboard",
    },
)


def show(
    outcome=OUTCOME,
    summary=SUMMARY,
    *,
    width=80,
    interactive=False,
    updates=((10, VALUES), (20, VALIDATION)),
):
    """Return everything printed, without colours and cursor movements."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=interactive,
        force_interactive=interactive,
        markup=False,
        highlight=False,
    )
    with RunTerminal(console) as shown:
        shown.show_start(summary)
        shown.show_compiled(3 * 2**30, 12.4)
        for step, values in updates:
            shown.update(step, values)
        shown.note("saved")
        shown.show_end(outcome)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n")


def test_plain_lines():
    assert show(width=20).splitlines() == [  # never wrapped
        "runs/[red]a[/red]",
        "parameters: 5,246,080",
        "memory, estimated: about 3.02 GiB per device: parameters 20 MiB, activations 3 GiB",
        "tokens: 16,384 per step, 9.83M in 600 steps",
        "compute: 3.23e+14 FLOPs",
        "devices: 16 x cpu",
        "mesh: data 1, stage 1, fsdp 8, expert 1, context 1, tensor 2",
        "step compiled in 12 s; it takes 3 GiB per device",
        "step 10/600  loss 3.1416  lr 2.90e-04  grad 0.831  12.3k tok/s  MFU n/a on cpu  input wait 0.1%  ETA 4:55",
        "step 20  validation on python: loss 3.2000, 1.830 bits per byte",
        "saved",
        "done after step 600 of 600",
        "train loss: 3.1416",
        "tokens: 9,830,400 seen",
        "validation: 32,640 of 134,981 tokens of python",
        "wall time: 4:48",
        "validation on python: loss 3.2000, 1.830 bits per byte "
        "(uniform 3.910, unigram 2.610, bigram 1.802, gzip -9 2.150)",
        "checkpoints: runs/a/checkpoints",
        "curves: tensorboard --logdir runs/a/tensorboard",
    ]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_terminal_says_everything_within_its_width(width):
    text = show(width=width, interactive=True)
    # The terminal wraps lines that stay.
    lines = [line for line in text.splitlines() if "validation on" not in line]
    assert max(cell_len(line) for line in lines) <= width
    words = " ".join(text.split())
    for expected in (
        "5,246,080",
        "fsdp",
        "16,384 per step",
        "step 20/600",
        "loss 3.1416",
        "MFU n/a on cpu",
        "9,830,400",
        "32,640 of 134,981 tokens of python",
    ):
        assert expected in words
    for expected in ("validation", "uniform", "gzip -9", "1.830", "1.802") if width >= 80 else ():
        assert expected in words


def test_wide_terminal_has_one_progress_line_and_a_narrow_one_two():
    (wide,) = {
        line.rstrip()
        for line in show(width=140, interactive=True).splitlines()
        if "step 20/600" in line
    }
    assert re.fullmatch(r"step 20/600  \S+  loss 3.1416 .*  input wait 0.1%  ETA \d:\d\d", wide)
    narrow = show(width=80, interactive=True).splitlines()
    (line,) = {line.rstrip() for line in narrow if "step 20/600" in line}
    assert re.fullmatch(r"step 20/600  \S+  ETA \d:\d\d", line)
    assert "loss 3.1416 lr 2.90e-04 grad 0.831 12.3k tok/s MFU n/a on cpu input wait 0.1%" in map(
        str.rstrip, narrow
    )


def test_first_step_says_why_it_takes_long():
    assert "compiling and running the first step" in show(interactive=True, updates=())


def test_mfu_where_the_peak_is_known():
    text = show(updates=((10, {**VALUES, "throughput/mfu": 0.4123}),))
    assert "MFU 41.2%" in text
    assert "n/a" not in text


def test_loss_that_is_not_a_number_is_shown():
    assert "loss nan" in show(updates=((10, {**VALUES, "train/loss": float("nan")}),))


def test_moving_the_bar_prints_no_plain_line():
    assert "step 10" not in show(updates=((10, {}),))


def test_eta_follows_the_wall_clock(monkeypatch):
    now = iter(range(1000, 9000, 60))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    text = show(updates=((100, VALUES), (200, VALUES), (300, VALUES)))
    # 100 steps a minute: 300 left, 3 minutes; before there are two updates, time/step_seconds says
    assert re.findall(r"ETA (\S+)", text) == ["4:10", "4:00", "3:00"]


def test_resumed_run_says_so():
    resumed = Summary(**{**vars(SUMMARY), "resume_step": 300})
    assert "resuming: after step 300" in show(summary=resumed)


def test_run_stopped_before_anything_was_logged():
    stopped = Outcome(
        step=3,
        num_steps=600,
        values={},
        baselines={},
        targets={},
        tokens=5,
        wall_seconds=1.0,
        places={"resume": "maxlm train x"},
    )
    lines = show(stopped, updates=()).splitlines()
    assert lines[-4:] == [
        "stopped after step 3 of 600",
        "tokens: 5 seen",
        "wall time: 0:01",
        "resume: maxlm train x",
    ]
    assert "stopped after step 3 of 600" in show(stopped, updates=(), interactive=True)


def test_validation_without_baselines_and_with_many_sources():
    values = {f"val/{source}/{name}": 2.0 for source in "abc" for name in ("loss", "bits_per_byte")}
    outcome = Outcome(**{**vars(OUTCOME), "values": values, "baselines": {"b": {"unigram": 2.5}}})
    rows = [
        line.split()
        for line in show(outcome, interactive=True, updates=()).splitlines()
        if "2.0000" in line
    ]
    assert rows == [
        ["a", "2.0000", "2.000", "-"],
        ["b", "2.0000", "2.000", "2.500"],
        ["c", "2.0000", "2.000", "-"],
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (288, "4:48"), (3723, "1:02:03"), (90_061, "1d 01:01:01")],
)
def test_duration(seconds, text):
    assert terminal.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (12_345, "12.3k"), (9.83e6, "9.83M"), (1.56e13, "15.6T")]
)
def test_count(value, text):
    assert terminal._count(value) == text


SCRIPT = """
import sys
from maxlm.metrics.terminal import RunTerminal
from tests.metrics.test_terminal import SUMMARY, VALUES
with RunTerminal() as shown:
    shown.show_start(SUMMARY)
    shown.update(10, VALUES)
    print("from elsewhere")
    raise SystemExit(3)
"""
COMMAND = [sys.executable, "-c", SCRIPT]


def test_pipe_stays_plain_even_with_force_color():
    environment = {**os.environ, "FORCE_COLOR": "1"}
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 3
    assert "step 10/600  loss 3.1416" in done.stdout
    assert "\r" not in done.stdout
    assert "\x1b[?25l" not in done.stdout


def test_terminal_gets_its_cursor_back_after_an_error():
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    child = subprocess.Popen(COMMAND, stdout=slave, stderr=slave, env=environment, cwd=ROOT)
    os.close(slave)
    output = b""
    while chunk := _read(master):
        output += chunk
    assert child.wait(timeout=60) == 3
    assert output.count(b"\x1b[?25l") == output.count(b"\x1b[?25h") == 1
    assert output.rindex(b"\x1b[?25h") > output.rindex(b"\x1b[?25l")
    assert b"from elsewhere" in output


def _read(master):
    try:
        return os.read(master, 65_536)
    except OSError:  # how Linux says that the other side is closed
        return b""
