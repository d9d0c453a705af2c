"""`maxlm report` on folders made by hand: whole, damaged, hostile, and no runs at all."""

import html.parser
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maxlm.cli import main
from maxlm.metrics.history import History
from maxlm.report.charts import _thinned
from maxlm.report.record import RunRecord
from maxlm.report.tables import length, start_rows

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J $\\frac{1}{0}$"


def write_metrics(folder, steps, **more):
    lines = []
    for step in steps:
        values = {
            "step": step,
            "train/loss": 5.0 / step,
            "optim/learning_rate": 1e-3,
            "optim/gradient_norm": 1.0 if step != 7 else None,
            "throughput/tokens_per_second": 1000.0,
            "data/tokens": 128 * step,
        }
        if step % 5 == 0:
            values |= {"val/text/loss": 5.5 / step, "val/text/bits_per_byte": 1.5}
        lines.append(json.dumps(values | more))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_run(folder, *, text="step 7 was skipped", end=True):
    """Write a run of two starts, 20 steps and a skipped one."""
    folder.mkdir(exist_ok=True)
    write_metrics(folder, range(1, 21))
    now = time.time() - 100
    spent = [
        (1, 0.0, None, {"start": 4.0}),
        (1, 20.0, 14, {"steps": 16.0, "input": 4.0}),
        (2, 30.0, None, {"start": 2.0}),
        (2, 31.0, 10, {"restore": 1.0}),
        (2, 41.0, 20, {"steps": 9.0, "evaluation": 1.0}),
    ]
    lines = [{"start": s, "time": now + t, "step": n, "spent": w} for s, t, n, w in spent]
    (folder / "time.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    where = {"hosts": ["alpha"], "devices": {"H100": 8}, "versions": {"jax": "0.10.2"}}
    with History() as history:
        history.open(folder, process=0)
        history.time._journal.close()  # its own line would move the clock
        history.time._journal = None
        history.events.note("start", "started", step=0, **where)
        history.events.note("skipped_step", text, step=7, level="WARNING", loss=9.5)
        where["versions"] = {"jax": "0.11.2"}
        where["differences"] = ["warn: jax: 0.10.2 -> 0.11.2"]
        history.events.note("resume", "resumed", step=10, **where)
        if end:
            history.events.note("end", "done after step 20 of 20", step=20, state="done")
    (folder / "time.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("train:\n  num_steps: 20\n")
    saved = folder / "checkpoints" / "00000020" / "record"
    saved.mkdir(parents=True, exist_ok=True)
    content = {"record": {"consumed": {"tokens": 2560}, "token_hash": "abc"}}
    (saved / "record.json").write_text(json.dumps(content))
    (folder / "checkpoints" / "00000010.damaged").mkdir(exist_ok=True)


class Reader(html.parser.HTMLParser):
    """Notes what acts or leads elsewhere, and the text."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {(name, value) for name, value in attrs if tag not in ("path", "use")}

    def handle_data(self, data):
        self.text.append(data)


def report(folder, capsys, *more):
    assert main(["report", str(folder), *more]) == 0
    output = Path(capsys.readouterr().out.strip())
    reader = Reader()
    page = output.read_text()
    reader.feed(page)
    return page, reader


def test_a_whole_run(tmp_path, capsys):
    run = tmp_path / "run"
    write_run(run, text=f"step 7 was skipped {HOSTILE}")
    page, reader = report(run, capsys)
    text = " ".join(reader.text)
    assert page.count("<svg") == 5
    for shown in (
        "done after step 20 of 20",
        "2,560",  # tokens
        "0.2500",  # the last loss
        "step 7 was skipped <script>",
        "loss=9.5",
        "00000010.damaged",
        "its record cannot be read",
        "was 0.10.2",
        "warn: jax: 0.10.2 -> 0.11.2",
        "8 x H100",
        "num_steps: 20",
    ):
        assert shown in text, shown
    # 45 s: steps 16 * 10 / 14 + 9, redone 16 * 4 / 14, input 4, start 6, restore 1, evaluation 1, idle 8 - 4
    shares = dict(re.findall(r"<td>(?:lost: )?(\w+)</td><td>[^<]*</td><td>([\d.]+)%</td>", page))
    assert float(shares["steps"]) == pytest.approx(100 * (160 / 14 + 9) / 45, abs=0.01)
    assert float(shares["redone"]) == pytest.approx(100 * 64 / 14 / 45, abs=0.01)
    assert float(shares["idle"]) == pytest.approx(100 * 8 / 45, abs=0.01)
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.05)
    # Nothing acts, and nothing is asked of a network.
    assert not reader.tags & {"script", "img", "link", "iframe", "a", "object", "form"}
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    links = [value for name, value in reader.attributes if name in ("href", "src", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_a_run_that_goes_on_or_ended_without_a_word(tmp_path, capsys):
    write_run(tmp_path / "run", end=False)
    _, reader = report(tmp_path / "run", capsys, "--output", str(tmp_path / "page.html"))
    assert not (tmp_path / "run" / "report.html").exists()
    assert "going on, or ended without a word: the last line is" in " ".join(reader.text)
    rows = start_rows(RunRecord.read(tmp_path / "run")).rows
    assert [row[-1] for row in rows] == ["no word", "goes on, or no word"]


def test_damaged_lines_are_left_out_and_counted(tmp_path, capsys):
    run = tmp_path / "run"
    write_run(run)
    for name in ("metrics.jsonl", "events.jsonl", "time.jsonl"):
        with (run / name).open("ab") as file:
            file.write(b'null\n{}\n[1,2]\n\xff\n{"step": 1e400}\n{"step": "x"}\n{"torn": ')
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(
            b'\n{"step": 21, "train/loss": {"a": 1}, "data/tokens": []}\n'
            b'{"step": 20, "train/loss": 9.0}\n{"step": 22, "val/text/loss": "x", "train/loss": true}\n'
            b'{"step": 23, "train/lo'  # being written
        )
    (run / "events-x.jsonl").write_text("not ours\n")
    (run / "config.yaml").write_bytes(b"\xff\x00 <b>")
    page, reader = report(run, capsys)
    assert "metrics.jsonl 9, events.jsonl 7, time.jsonl 7" in " ".join(reader.text)
    record = RunRecord.read(run)
    assert [line["step"] for line in record.metrics] == [*range(1, 21), 22]
    assert record.column("train/loss")[1][-2:] == [0.25, 1.0]
    assert page.count("<svg") == 5


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "time.jsonl"])
def test_one_file_alone_is_enough(tmp_path, capsys, name):
    write_run(tmp_path / "whole")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    report(tmp_path / "run", capsys)
    (tmp_path / "run" / name).write_bytes(b"")
    report(tmp_path / "run", capsys)


def test_what_is_no_run_is_a_message(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "metrics.jsonl")
    expected = {
        "nothing": "does not exist",
        "file": "is not a folder",
        "empty": "is no run: it has none of metrics.jsonl, events.jsonl, time.jsonl",
        "fifo": "is a FIFO, not a regular file",
    }
    for name, message in expected.items():
        assert main(["report", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    write_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "no" / "page")]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


def test_the_command_loads_no_jax(tmp_path):
    write_run(tmp_path / "run")
    code = (
        "import sys; from maxlm.cli import main\n"
        f"assert main(['report', {str(tmp_path / 'run')!r}]) == 0\n"
        "print(sorted({'jax', 'flax', 'orbax', 'tensorboardX'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert out.stdout.splitlines()[-1] == "[]"


def test_many_points_are_thinned_and_peaks_stay():
    steps = list(range(100_000))
    values = [1.0] * 100_000
    values[55_555], values[77_777] = 99.0, float("nan")
    kept_steps, kept_values = _thinned(steps, values)
    assert len(kept_steps) < 1500
    assert kept_steps == sorted(set(kept_steps))
    assert (kept_steps[0], kept_steps[-1]) == (0, 99_999)
    assert dict(zip(kept_steps, kept_values, strict=True))[55_555] == 99.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (3661, "1:01:01"), (90061, "1d 01:01:01")],
)
def test_lengths_of_time(seconds, text):
    assert length(seconds) == text
