"""What a run remembers over two starts: events, time, programs; each program is compiled once."""

import json
import re

from maxlm.metrics.history.events import read_events
from maxlm.metrics.history.goodput import goodput_of
from maxlm.report.record import RunRecord
from tests.train.conftest import read_metrics, train

OF_LOAD = {("slow_step", "WARNING"), ("late_compile", "INFO")}


def test_a_restart_remembers_and_compiles_nothing(write_run, tmp_path, monkeypatch):
    # As a user has it: programs in the run's folder, and TensorBoard.
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    path = write_run(
        train={"eval_every": 4, "log_every": 1},
        runtime={"compile_cache": "auto"},
        metrics={"tensorboard": True},
        checkpoint={"every": 4},
    )
    train(path, "train.num_steps=9", "schedule.total_steps=40")
    output = train(path, "train.num_steps=13", "schedule.total_steps=40")
    found, damaged = read_events(tmp_path / "run")
    assert damaged == 0
    # On a loaded machine steps may be slow, and small programs take long to compile.
    kinds = [event.kind for event in found if (event.kind, event.level) not in OF_LOAD]
    kinds = [kind for kind in kinds if kind not in ("saved", "stop_time")]
    assert kinds == ["start", "compiled", "end", "resume", "compiled", "end"]
    assert [event.step for event in found if event.kind in ("resume", "end")] == [9, 9, 13]
    # Of a start each program is compiled once, with evaluations and saves before and after others.
    for end in (event for event in found if event.kind == "end"):
        programs = end.values["programs"]
        assert programs["jit(train_step)"]["times"] == 1
        assert programs["jit(program)"]["times"] == 1, "of evaluation"
    first, second = (event for event in found if event.kind == "compiled")
    assert "jit(train_step)" in first.values["compiled_anew"]
    assert "jit(train_step)" not in second.values["compiled_anew"]

    run = RunRecord.read(tmp_path / "run")
    assert run.damaged == {}
    goodput = goodput_of(run.spans)
    shown = re.search(
        r"goodput: ([\d.]+)% of [\d:]+ since the run was created; \w+ [\d.]+%", output
    )
    assert abs(float(shown[1]) - 100 * goodput.fraction) < 5  # the end of the process comes on top
    for cause in ("steps", "start", "compile", "restore", "save", "evaluation", "idle"):
        assert goodput.seconds[cause] > 0, cause
    assert goodput.seconds["redone"] == 0
    wall = run.spans[-1].time - (run.spans[0].time - sum(run.spans[0].spent.values()))
    assert abs(goodput.total - wall) < 0.5
    last = read_metrics(tmp_path / "run")[13]
    assert 0 < last["goodput/fraction"] < 1
    assert last["goodput/restore_seconds"] == goodput.seconds["restore"]
    assert "num_steps: 13" in (tmp_path / "run" / "config.yaml").read_text()
    versions = found[0].values["versions"]
    assert json.dumps(versions) == json.dumps(
        next(event for event in found if event.kind == "resume").values["versions"]
    )
    # How long a stop takes is known from the first moment of the second start on.
    until_resume = found[: [event.kind for event in found].index("resume")]
    measured, recalled = [event for event in until_resume if event.kind == "stop_time"][-2:]
    assert "when it was measured before this start" in recalled.text
    assert (recalled.step, recalled.values) == (measured.step, measured.values)
    # A resume says what differs from what was saved.
    allowed = "checkpoint.allow_config_change=true"
    train(path, "train.num_steps=14", "schedule.total_steps=41", allowed)
    resumes = [event for event in read_events(tmp_path / "run")[0] if event.kind == "resume"]
    assert resumes[0].values["differences"] == []
    assert resumes[1].values["differences"] == ["refuse: schedule.total_steps: 40 -> 41"]
