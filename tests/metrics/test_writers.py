"""metrics.jsonl and the event files, read back; resume, kills, full disks."""

import errno
import json
import math
import os
import random
from pathlib import Path

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util import tensor_util

from maxlm.config.errors import UserError
from maxlm.metrics import catalog
from maxlm.metrics.writers.curves import add_text
from maxlm.metrics.writers.writer import MetricsWriter

GFLOP, MFLOP = 1e9, 1e6


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def open_curves(folder):
    events = plugin_event_accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0})
    return events.Reload()


def curve(folder, tag):
    """Return [(step, value)] as TensorBoard shows it."""
    events = open_curves(folder).Tensors(tag)
    return [(event.step, tensor_util.make_ndarray(event.tensor_proto).item()) for event in events]


def train_values(step, loss):
    return {"train/loss": loss, "train/flops": step * 5 * GFLOP, "data/token_hash": f"{step:016x}"}


def write_run(run_dir, steps, *, resume_step, offset=0.0, tensorboard=True):
    writer = MetricsWriter(run_dir, tensorboard=tensorboard, resume_step=resume_step)
    for step in steps:
        writer.write(step, train_values(step, offset + step / 3))
    writer.close()


def test_a_text_by_another_thread_hides_nothing_and_is_hidden_by_a_resume(tmp_path):
    """While the writer's own file is open; the run then goes on from step 4."""
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)
    for step in range(1, 7):
        writer.write(step, train_values(step, step / 3))
    add_text(tmp_path / "tensorboard", "events/timeout", "step 7\n  hangs", 6)
    add_text(tmp_path / "tensorboard", "events/timeout", "an early one", 2)
    tag = "events/timeout/text_summary"
    assert [step for step, _ in curve(tmp_path / "tensorboard", "train/loss")] == [*range(1, 7)]
    assert curve(tmp_path / "tensorboard", tag)[0] == (6, b"    step 7\n      hangs")
    writer.close()
    write_run(tmp_path, [5, 6], resume_step=4)
    assert [step for step, _ in curve(tmp_path / "tensorboard", "train/loss")] == [*range(1, 7)]
    assert [step for step, _ in curve(tmp_path / "tensorboard", tag)] == [2]


def test_line_holds_every_metric_and_all_bits_of_losses(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=0)
    loss = 0.1 + 0.2
    writer.write(
        10,
        {
            "train/loss": loss,
            "val/python/loss": 2.5,
            "data/tokens": 2**60,
            "data/token_hash": "00ff",
        },
    )
    writer.close()
    (line,) = lines(tmp_path)
    assert line["step"] == 10
    assert float.fromhex(line["train/loss_hex"]) == line["train/loss"] == loss
    assert float.fromhex(line["val/python/loss_hex"]) == 2.5
    assert line["data/tokens"] == 2**60
    assert line["data/token_hash"] == "00ff"
    assert not any(name.endswith("_hex") and "loss" not in name for name in line)


def test_losses_that_are_not_finite_stay_json(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)
    writer.write(1, {"train/loss": math.nan, "optim/gradient_norm": math.inf})
    writer.close()
    (line,) = lines(tmp_path)
    assert line["train/loss"] is None
    assert line["optim/gradient_norm"] is None
    assert math.isnan(float.fromhex(line["train/loss_hex"]))


def test_two_calls_for_a_step_make_one_line(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=0)
    writer.write(1, {"train/loss": 3.0})
    writer.write(2, {"train/loss": math.nan})
    writer.write(2, {"train/loss": 2.0, "val/a/loss": 1.0})
    writer.write(3, {"train/loss": 1.5})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert lines(tmp_path)[1]["train/loss"] == 2.0
    assert lines(tmp_path)[1]["val/a/loss"] == 1.0


def test_steps_never_go_back(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=0)
    writer.write(2, {"train/loss": 1.0})
    with pytest.raises(AssertionError, match="step 1 logged after step 2"):
        writer.write(1, {"train/loss": 1.0})


def test_unknown_metric_is_refused_before_anything_is_written(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=0)
    with pytest.raises(KeyError, match="train/lost"):
        writer.write(1, {"train/loss": 1.0, "train/lost": 1.0})
    writer.close()
    assert lines(tmp_path) == []


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    write_run(tmp_path, range(10, 60, 10), resume_step=0)
    write_run(tmp_path, range(30, 70, 10), resume_step=20, offset=100.0)
    kept = lines(tmp_path)
    assert [line["step"] for line in kept] == [10, 20, 30, 40, 50, 60]
    assert [line["train/loss"] > 100 for line in kept] == [False, False, True, True, True, True]


def test_resume_adds_to_the_line_of_the_step_resumed_from(tmp_path):
    write_run(tmp_path, [10, 20, 30], resume_step=0)
    writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=20)
    writer.write(20, {"val/a/loss": 1.0})
    writer.write(30, {"train/loss": 7.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]
    assert lines(tmp_path)[1]["train/loss"] == 20 / 3
    assert lines(tmp_path)[1]["val/a/loss"] == 1.0


def test_starting_anew_keeps_what_was_there_under_another_name(tmp_path, caplog):
    write_run(tmp_path, [0, 10], resume_step=0)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    write_run(tmp_path, [3], resume_step=0)
    write_run(tmp_path, [5], resume_step=0)
    assert [line["step"] for line in lines(tmp_path)] == [5]
    kept = sorted(tmp_path.glob("metrics.jsonl.before-*"), key=lambda path: len(path.read_bytes()))
    assert len(kept) == 2
    assert kept[1].read_bytes() == before
    assert f"kept as {kept[0]}" in caplog.text
    assert f"kept as {kept[1]}" in caplog.text
    assert [step for step, _ in curve(tmp_path / "tensorboard", "train/loss")] == [5]


def test_resume_after_kills_anywhere_in_a_line(tmp_path, caplog):
    write_run(tmp_path, [10, 20, 30], resume_step=0)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in random.Random(0).sample(range(1, len(whole)), 40):
        path.write_bytes(whole[:cut])
        write_run(tmp_path, [40], resume_step=30, tensorboard=False)
        # Without its newline a line is whole all the same.
        num_whole = sum(end - 1 <= cut for end in ends)
        assert [line["step"] for line in lines(tmp_path)] == [*[10, 20, 30][:num_whole], 40]
    assert "no line of metrics, put aside" in caplog.text


def test_tensorboard_shows_every_metric_of_the_catalogue(tmp_path):
    names = [
        metric.name.replace("<source>", "python").replace("<layer>", "3")
        for metric in catalog.METRICS
    ]
    values = {name: 1.5 for name in names if not name.startswith(tuple(catalog.FLOPS_CURVES))}
    values |= {"data/token_hash": "abc", "train/flops": 1e24}
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)
    writer.write(10, values)
    writer.write(20, {**values, "train/flops": 1e25})
    writer.close()
    tags = set(open_curves(tmp_path / "tensorboard").Tags()["tensors"])
    flops_tags = {
        tag
        for group in catalog.FLOPS_CURVES
        for tag in open_curves(tmp_path / "tensorboard" / group).Tags()["tensors"]
    }
    shown = {tag.removesuffix("/text_summary") for tag in tags} | flops_tags
    assert shown == set(names)


def test_resumed_curve_is_one_curve(tmp_path):
    # Twice, as TensorBoard treats a folder's first start differently from the later ones.
    write_run(tmp_path, range(10, 60, 10), resume_step=0)
    write_run(tmp_path, range(30, 70, 10), resume_step=20, offset=100.0)
    write_run(tmp_path, range(50, 90, 10), resume_step=40, offset=200.0)
    expected = [
        (step, 0.0 if step <= 20 else 100.0 if step <= 40 else 200.0) for step in range(10, 90, 10)
    ]
    shown = curve(tmp_path / "tensorboard", "train/loss")
    assert [step for step, _ in shown] == [step for step, _ in expected]
    assert [value for _, value in shown] == pytest.approx(
        [offset + step / 3 for step, offset in expected]
    )
    over_flops = curve(tmp_path / "tensorboard" / "mflop", "mflop/train_loss")
    assert [(step / 5000, value) for step, value in over_flops] == shown
    assert not (tmp_path / "tensorboard" / "gflop").exists()


def test_curves_are_on_disk_after_every_write(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)
    for step in range(1, 4):
        writer.write(step, train_values(step, 1.0))
        assert [line["step"] for line in lines(tmp_path)] == list(range(1, step + 1))
        assert [seen for seen, _ in curve(tmp_path / "tensorboard", "train/loss")] == list(
            range(1, step + 1)
        )
    writer.close()


def test_loss_over_flops_of_the_largest_runs_fits(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)
    for step, flops in enumerate((9e24, 9.3e24, 1e27), 1):
        writer.write(step, {"train/loss": step, "train/flops": flops})
    writer.close()
    assert curve(tmp_path / "tensorboard" / "mflop", "mflop/train_loss") == [(9 * 10**18, 1.0)]
    assert curve(tmp_path / "tensorboard" / "gflop", "gflop/train_loss") == [
        (93 * 10**14, 2.0),
        (10**18, 3.0),
    ]


def test_no_two_points_of_a_curve_share_a_place(tmp_path):
    """Steps of 0.4 MFLOP: of those within one MFLOP the first is drawn, also over a restart."""
    for resume, steps in ((0, range(1, 8)), (5, range(6, 11))):
        writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=resume)
        for step in steps:
            writer.write(step, {"train/loss": step, "train/flops": 0.4 * MFLOP * step})
            writer.write(step, {"val/a/loss": -step})
        writer.close()
    expected = [(0, 1), (1, 3), (2, 5), (3, 8), (4, 10)]
    shown = curve(tmp_path / "tensorboard" / "mflop", "mflop/train_loss")
    assert shown == expected
    shown = curve(tmp_path / "tensorboard" / "mflop", "mflop/val_a_loss")
    assert shown == [(place, -step) for place, step in expected]


def test_steps_that_are_not_finite_are_curves_too_and_nobody_else_speaks(tmp_path, caplog, capfd):
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)
    for step, value in enumerate((1.0, math.nan, math.inf, 1e300), 1):
        writer.write(
            step, {"train/loss": value, "train/perplexity": value, "train/flops": step * MFLOP}
        )
    writer.close()
    (_, first), (_, second), (_, third), (_, fourth) = curve(
        tmp_path / "tensorboard", "train/perplexity"
    )
    assert (first, third, fourth) == (1.0, math.inf, math.inf)  # TensorBoard holds single precision
    assert math.isnan(second)
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "text",
    [
        "model:\n  num_layers: 2\n\n  name: <script>alert(1)</script>\n",
        "```\n# no heading\n````\n| a | b |\n",
        "tab\there *stars* <b>&amp; \x00 \u2028 \ud800 end",
        "",
    ],
)
def test_text_is_a_code_block_whatever_it_contains(tmp_path, text):
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)
    writer.text("config", text, 3)
    writer.close()
    (event,) = open_curves(tmp_path / "tensorboard").Tensors("config/text_summary")
    assert event.step == 3
    shown = tensor_util.make_ndarray(event.tensor_proto).item().decode()
    assert all(line.startswith("    ") for line in shown.split("\n"))
    assert shown.replace("\n    ", "\n")[4:] == text.replace("\ud800", "?")


def test_hparams(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)
    config = {
        "model": {"num_layers": 2, "pattern": [{"mixer": "attention"}]},
        "run_dir": "runs/a",
        "limit": None,
    }
    writer.hparams(config, ["train/loss"])
    writer.close()
    content = open_curves(tmp_path / "tensorboard").PluginTagToContent("hparams")
    start = hparams_metadata.parse_session_start_info_plugin_data(
        content["_hparams_/session_start_info"]
    ).hparams
    assert start["model.num_layers"].number_value == 2
    assert start["model.pattern.0.mixer"].string_value == "attention"
    assert start["run_dir"].string_value == "runs/a"
    assert start["limit"].string_value == "null"
    experiment = hparams_metadata.parse_experiment_plugin_data(content["_hparams_/experiment"])
    assert [info.name.tag for info in experiment.metric_infos] == ["train/loss"]
    assert "_hparams_/session_end_info" in content


def test_without_tensorboard_there_is_no_folder(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=0)
    writer.write(1, train_values(1, 1.0))
    writer.text("config", "x")
    writer.hparams({"a": 1}, ["train/loss"])
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.jsonl.tmp", "metrics.jsonl.aside"])
def test_a_pipe_in_the_way_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(
        UserError, match=rf"{name}: .*is not a file; move away what is in its place"
    ):
        MetricsWriter(tmp_path, tensorboard=False, resume_step=3)


def test_missing_run_directory_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"absent.*No such file or directory"):
        MetricsWriter(tmp_path / "absent", tensorboard=True, resume_step=0)


@pytest.mark.parametrize("victim", ["_lines", "_curves"])
def test_full_disk_says_so_and_does_not_hang(tmp_path, monkeypatch, victim):
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(getattr(writer, victim), "write", full)
    for step in range(30):
        with pytest.raises(UserError, match=r"No space left on device.*resume"):
            writer.write(step, train_values(step, 1.0))


def test_real_full_disk(tmp_path):
    """/dev/full refuses every write the way a full disk does."""
    writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=0)
    with Path("/dev/full").open("r+b", buffering=0) as full:
        writer._lines._file.close()
        writer._lines._file = full
        with pytest.raises(UserError, match="No space left on device"):
            writer.write(1, train_values(1, 1.0))
