"""metrics.jsonl as it may be found: lines that are none, history that a restart would erase, gaps."""

import json
import random

import pytest

from maxlm.metrics.writers.lines import ASIDE, read_lines, read_metrics
from maxlm.metrics.writers.writer import MetricsWriter

NO_LINES = [
    *[b"null", b"{}", b"[1,2]", b"3", b"true", b'"step"', b"", b"\xff\xfe", b"{", b"\x00" * 4096],
    *[b'{"step": "4"}', b'{"step": true}', b'{"step": 4.0}', b'{"step": null}', b'{"step": -1}'],
    *[b'{"step": 4, "train/loss": NaN}', b'{"step": 4, "train/loss": 1e999}'],
    *[b'{"step": 4, "train/loss": [1]}', b'{"step": 4, "train/flops": {}}'],
    *[b'{"step": 4, "train/flops": 1' + b"0" * 400 + b"}", b"1" * 5000, b"[" * 100_000],
    *[b'{"step": 2, "train/loss": 9.0}', b'{"step": 3}'],  # steps that do not ascend
]


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def resume(run_dir, step, *, writes, log_every=1):
    writer = MetricsWriter(run_dir, tensorboard=True, resume_step=step, log_every=log_every)
    for one in writes:
        writer.write(one, {"train/loss": float(one), "train/flops": 1e9 * one})
    writer.close()


@pytest.mark.parametrize("wrong", NO_LINES, ids=lambda text: repr(text[:30]))
def test_what_is_no_line_is_put_aside_named_and_blocks_nothing(tmp_path, caplog, wrong):
    resume(tmp_path, 0, writes=[1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + wrong + b"\n" + b'{"step": 5, "train/flops": 5e9}\n')
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 5]
    assert f"{path}: line 4, no line of metrics, left out" in caplog.text
    resume(tmp_path, 5, writes=[6])
    assert path.read_bytes().startswith(good)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 5, 6]
    assert f"{path}: line 4, no line of metrics, put aside in {tmp_path / ASIDE}" in caplog.text
    header, kept = (tmp_path / ASIDE).read_bytes().split(b"\n", 1)
    assert json.loads(header)["reason"] == "no line of metrics"
    assert kept == wrong + b"\n"


def test_any_damage_to_the_file_lets_a_run_go_on_and_loses_no_byte(tmp_path, caplog):
    rng, path = random.Random(0), tmp_path / "metrics.jsonl"
    resume(tmp_path, 0, writes=range(1, 9))
    whole = path.read_bytes()
    tensorboard = tmp_path / "tensorboard"
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.randint(0, 20)] = rng.randbytes(rng.randint(0, 20))
        path.write_bytes(damaged)
        (tmp_path / ASIDE).unlink(missing_ok=True)
        wrong = [line for line in read_lines(path) if line.record is None]
        writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=8)
        writer.write(9, {"train/loss": 1.0})
        writer.close()
        assert lines(tmp_path)[-1]["step"] == 9
        aside = (tmp_path / ASIDE).read_bytes() if wrong else b""
        for line in wrong:
            assert line.text.rstrip(b"\n") in aside
    assert tensorboard.is_dir()


@pytest.mark.parametrize(
    ("steps", "good"),
    [
        ([1, 2, 80, 4, 5], [1, 2, 4, 5]),
        ([80, 1, 2], [1, 2]),
        ([1, 2, 0, 3], [1, 2, 3]),
        ([1, 2, 3, 3, 4], [1, 2, 3, 4]),
        ([1, 2, 3, 1, 2, 3, 4], [1, 2, 3, 4]),
        ([5], [5]),
        ([], []),
    ],
)
def test_one_wrong_step_does_not_put_the_others_in_the_wrong(tmp_path, steps, good):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\nnull\n' for step in steps))
    assert [record["step"] for record in read_metrics(path)] == good
    found = list(read_lines(path))
    assert [line.number for line in found] == list(range(1, 2 * len(steps) + 1))


def test_a_line_that_is_being_written_is_left_out_without_a_word(tmp_path, caplog):
    resume(tmp_path, 0, writes=[1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "tr')
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    assert "left out" not in caplog.text
    assert read_metrics(tmp_path / "absent") == []


def test_steps_that_are_done_again_are_kept_aside_and_the_restart_is_marked(tmp_path):
    resume(tmp_path, 0, writes=range(10, 60, 10), log_every=10)
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    resume(tmp_path, 25, writes=[30, 40], log_every=10)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [10, 20, 30, 40]
    assert [line.get("run/resumed_from") for line in found] == [None, None, 25, None]
    assert not any("run/gap_after" in line for line in found)
    header, *kept = (tmp_path / ASIDE).read_bytes().splitlines(keepends=True)
    assert json.loads(header)["reason"] == "after step 25, which the run went on from"
    assert json.loads(header)["lines"] == 3
    assert kept == before[2:]
    # A second lot goes behind the first.
    resume(tmp_path, 35, writes=[40], log_every=10)
    assert len((tmp_path / ASIDE).read_bytes().splitlines()) == 4 + 2


def test_lines_that_are_missing_are_marked(tmp_path, caplog):
    resume(tmp_path, 0, writes=[10, 20], log_every=10)
    resume(tmp_path, 55, writes=[60, 70], log_every=10)
    assert "no lines between steps 20 and 55" in caplog.text
    found = lines(tmp_path)
    assert [line.get("run/gap_after") for line in found] == [None, None, 20, None]
    (record,) = [one for one in caplog.records if hasattr(one, "maxlm_event")]
    assert record.maxlm_event[:3] == ("metrics_gap", 55, {"after": 20})
    # A run that begins with the steps of another has no lines before them, and no gap.
    (tmp_path / "other").mkdir()
    resume(tmp_path / "other", 55, writes=[60], log_every=10)
    assert "run/gap_after" not in lines(tmp_path / "other")[0]
