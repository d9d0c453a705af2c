"""Ladders from YAML to a prediction."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from maxlm.cli import main
from maxlm.config.errors import ConfigError
from maxlm.config.reading.loader import LoadedRun, load_ladder
from maxlm.config.show import to_yaml
from maxlm.metrics.prediction import read_prediction
from maxlm.scaling.ladder.results import Gathered, Result, gather, read_results, settings_of
from maxlm.scaling.ladder.rungs import build_rungs
from maxlm.scaling.ladder.show.plan import plan_rows
from maxlm.scaling.ladder.show.tables import isoflop_rows
from maxlm.scaling.runs import Runs
from tests.scaling.ladder import conftest
from tests.scaling.ladder.conftest import finish, law


def test_rungs_follow_the_rule(ladder_file: Path):
    rungs = build_rungs(load_ladder(ladder_file))
    assert len(rungs) == 16
    assert [rung.flops for rung in rungs] == sorted(rung.flops for rung in rungs)
    by_name = {rung.name: rung for rung in rungs}
    wide, narrow = by_name["d256-20"].config, by_name["d64-20"].config
    assert (wide.model.num_layers, narrow.model.num_layers) == (8, 2)
    # Heads keep their width, hidden units the multiple; blocks of patterns follow the block.
    assert [c.model.block.mixer.num_heads for c in (wide, narrow)] == [8, 2]
    assert wide.model.layers[-1].ffn.hidden_dim == 688  # 512 x 256 / 192 = 682.7
    rung = by_name["d256-20"]
    per_step = wide.tokens_per_step
    assert abs(rung.tokens - 20 * rung.parameters) <= per_step / 2
    assert rung.tokens == wide.train.num_steps * per_step
    assert wide.schedule.warmup_steps == round(0.05 * wide.train.num_steps)
    base = 2_361_280  # parameters of the base
    expected = 3e-3 * (rung.parameters / base) ** -0.3
    assert wide.optimizer.learning_rate == pytest.approx(expected)


def test_isoflop_budgets_are_spent(ladder_file: Path):
    text = ladder_file.read_text().replace(
        "kind: tokens_per_parameter, ratios: [5, 20, 80, 320]", "kind: flops, flops: [1e14, 3e14]"
    )
    ladder_file.write_text(text)
    for rung in build_rungs(load_ladder(ladder_file)):
        assert rung.flops == pytest.approx(rung.budget, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[5, 20, 80, 320]", "[20]"), "cannot be told apart; give three ratios or more"),
        (("[5, 20, 80, 320]", "[20, 22, 25]"), "have about 22.2 tokens per parameter, so that"),
        (
            ("[32, 64, 128, 256]", "[64, 128]"),
            "have 2 different sizes, and a law needs 3; add sizes",
        ),
        (("[32, 64,", "[64, 64,"), "has one twice; give each once"),
        (("embed_dims", "embed_dim"), "did you mean sizes.embed_dims?"),
        (("kind: width", "kind: widths"), "did you mean width?"),
        (("power_law, parameters", "power_law, params"), "learning_rate.params is not a known key"),
        (("quickstart.yaml", "nowhere.yaml"), "is not a file; give the path of a run's YAML"),
    ],
)
def test_mistakes_are_named_with_their_cure(
    ladder_file: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], message: str
):
    text = ladder_file.read_text()
    assert change[0] in text
    ladder_file.write_text(text.replace(*change))
    assert main(["ladder", "plan", str(ladder_file)]) == 2
    assert message in capsys.readouterr().err


def test_a_size_that_does_not_work_is_named(ladder_file: Path):
    text = ladder_file.read_text().replace("[32, 64, 128, 256]", "[32, 160]")
    ladder_file.write_text(text + "overrides: {mesh.tensor: 2, mesh.fsdp: 1}\n")
    with pytest.raises(ConfigError, match=r"size d160: model.block.mixer.num_heads=5 must be"):
        build_rungs(load_ladder(ladder_file))


def test_plan_shows_every_run(ladder_file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["ladder", "plan", str(ladder_file), "--tflops", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert "16 runs" in shown
    assert "hours" in shown
    assert shown.count("to do") == 16


def test_plan_says_how_many_runs_repeat_data(ladder_file: Path):
    rungs = build_rungs(load_ladder(ladder_file))
    results = [Result(rung, 0, (), 0.0, None) for rung in rungs]
    sixth = sorted(rung.tokens for rung in rungs)[5]
    for most, count in ((1.0, 10), (2.0, None), (None, None)):
        rows = plan_rows(results, sixth if most == 1.0 else 1e15, None, most)
        assert (f"; {count} repeat data" in rows.title) == (count is not None)


def fit_and_predict(ladder_file: Path) -> list[str]:
    """Return the words that fit a ladder and foretell its base."""
    base = ladder_file.with_name("quickstart.yaml")
    return ["ladder", "fit", str(ladder_file), "--predict", str(base)]


def test_fit_recovers_the_law_and_predicts(
    ladder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    finish(ladder_file, noise=1e-3, skip=("d256-320",))
    big = ["model.embed_dim=384", "train.num_steps=4000", f"run_dir={tmp_path / 'big'}"]
    command = fit_and_predict(ladder_file)
    assert main([*command, *big]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "hold-out error: the largest budget, predicted from the 14 smaller runs alone, is off by "
    )
    assert "; 1 of 1 runs lie in their interval (up to " in shown
    assert all(law in shown for law in ("surface", "coupled", "kaplan"))
    assert "left out: to do" in shown
    prediction = read_prediction(str(tmp_path / "ladder" / "prediction.json"))
    truth = law(prediction.parameters, prediction.tokens)
    assert prediction.final.low < truth < prediction.final.high
    assert prediction.final.value == pytest.approx(truth, rel=0.01)
    # On the way the loss is above the final one as it was in the rungs: fraction^-0.1.
    half = prediction.at(0.5)
    assert half is not None
    assert half.value == pytest.approx(prediction.final.value * 0.5**-0.1, rel=1e-3)
    assert prediction.at(0.1) is None
    # Again: nothing is overwritten.
    assert main([*command, *big]) == 2
    assert "prediction.json exists" in capsys.readouterr().err


def test_a_rung_whose_loss_rose_is_left_out(ladder_file: Path, capsys: pytest.CaptureFixture[str]):
    finish(ladder_file)
    for name, factor in (("d64-80", 1.2), ("d128-20", 1.01)):
        rung = next(r for r in build_rungs(load_ladder(ladder_file)) if r.name == name)
        path = Path(rung.config.run_dir) / "metrics.jsonl"
        *before, last = map(json.loads, path.read_text().splitlines())
        last["val/python_stdlib/loss"] = factor * before[-1]["val/python_stdlib/loss"]
        path.write_text("".join(f"{json.dumps(record)}\n" for record in (*before, last)))
    ladder = load_ladder(ladder_file)
    gathered = gather(ladder, read_results(ladder, build_rungs(ladder)))
    ((result, reason),) = gathered.left_out
    assert result.rung.name == "d64-80"
    assert reason.startswith("diverged: its loss rose from ")


def test_a_law_without_a_best_size_is_told_and_ends_nothing(
    ladder_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Losses that do not depend on data: the larger, the better."""
    monkeypatch.setattr(conftest, "law", lambda parameters, _: 1.2 + 60 / parameters**0.3)
    ladder_file.write_text(f"{ladder_file.read_text()}fit: {{laws: [surface], bootstraps: 20}}\n")
    finish(ladder_file)
    command = fit_and_predict(ladder_file)
    assert main(command) == 0
    assert "names no best size" in capsys.readouterr().out
    assert (tmp_path / "ladder" / "prediction.json").exists()
    assert not list((tmp_path / "ladder" / "tensorboard" / "law").glob("*.jsonl"))
    assert main(["ladder", "report", str(ladder_file)]) == 0
    assert main(["optimal", "--flops", "1e18", "--ladder", str(tmp_path / "ladder/fit.json")]) == 2
    assert "names no best size" in capsys.readouterr().err


def test_parabolas_stand_beside_the_law():
    """Losses that are parabolas, lowest where N is C^0.6."""
    flops = np.repeat([1e16, 1e17, 1e18], 4)
    best = flops**0.6
    sizes = best * np.tile([0.5, 1.5, 2.0, 4.0], 3)
    losses = 2 + 0.1 * np.log(sizes / best) ** 2
    runs = Runs.of(sizes, flops / (6 * sizes), losses)
    (rows,) = isoflop_rows(Gathered((), runs, flops, flops, ()))
    assert "best N grows as C^0.600" in rows.title
    assert rows.rows[0] == ("1.00e+16", "3.98e+09", "2.0000", "yes")
    assert not list(isoflop_rows(Gathered((), runs.only(np.arange(2)), flops[:2], flops[:2], ())))


def test_repeated_data_are_known_to_forecasts(
    ladder_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    finish(ladder_file)
    command = fit_and_predict(ladder_file)
    path, losses = ladder_file.parent / "prediction.json", dict[str, float]()
    for laws in ("surface", "repeated"):
        ladder_file.write_text(
            f"{ladder_file.read_text().split('fit:')[0]}fit: {{laws: [{laws}], bootstraps: 20}}\n"
        )
        for unique in (None, 2e4):
            monkeypatch.setattr("maxlm.scaling.ladder.command.unique_tokens", lambda _, u=unique: u)
            assert main([*command, "--output", str(path)]) == 0
            warned = "times, as if all were new to the laws" in capsys.readouterr().out
            assert warned == (laws == "surface" and unique is not None)
            losses[f"{laws} {unique}"] = read_prediction(str(path)).final.value
    assert losses["surface 20000.0"] == losses["surface None"]
    assert losses["repeated 20000.0"] > 1.1 * losses["repeated None"]


def test_tensorboard_has_rungs_and_frontier_in_one_chart(ladder_file: Path, tmp_path: Path):
    ladder_file.write_text(f"{ladder_file.read_text()}fit: {{bootstraps: 20}}\n")
    finish(ladder_file)
    assert main(["ladder", "fit", str(ladder_file)]) == 0
    folder = tmp_path / "ladder" / "tensorboard"
    curves = {}
    for path in [*folder.glob("law*"), *(folder / "rungs").iterdir()]:
        events = EventAccumulator(str(path))
        events.Reload()
        curves[path.name] = [
            (point.step, point.value)
            for point in events.Scalars("ladder/loss_over_1000_log10_flops")
        ]
    assert len(curves) == 16 + 3
    assert len(curves["d64-20"]) == 4
    rung = next(r for r in build_rungs(load_ladder(ladder_file)) if r.name == "d64-20")
    assert curves["d64-20"][-1][0] == round(1000 * np.log10(rung.flops))
    low, middle, high = (
        np.array(curves[name])[:, 1] for name in ("law_5_percent", "law", "law_95_percent")
    )
    assert np.all(low <= middle + 1e-6)
    assert np.all(middle <= high + 1e-6)
    fit = EventAccumulator(str(folder / "fit"))
    fit.Reload()
    charts = ("frontier", "isoflop", "residuals", "measured")
    assert set(fit.Tags()["images"]) == {f"ladder/{name}" for name in charts}
    assert len(fit.PluginTagToContent("text")) >= 5
    of_rung = EventAccumulator(str(folder / "rungs" / "d64-20")).Reload()
    start = parse_session_start_info_plugin_data(
        of_rung.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    )
    assert start.hparams["size"].string_value == "d64"
    assert start.hparams["tokens"].number_value == rung.tokens
    (final,) = of_rung.Scalars("ladder/final_loss")
    assert final.value == pytest.approx(law(rung.parameters, rung.tokens))


def test_report_is_one_page_that_needs_nothing_else(
    ladder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ladder_file.write_text(
        f"{ladder_file.read_text()}fit: {{count: non_embedding, laws: [surface], bootstraps: 20}}\n"
    )
    finish(ladder_file)
    assert main(["ladder", "fit", str(ladder_file)]) == 0
    assert main(["ladder", "report", str(ladder_file)]) == 0
    page = (tmp_path / "ladder" / "report.html").read_text()
    assert page.count("<svg") == 4
    assert 'href="d64-20/metrics.jsonl"' in page
    command = ["optimal", "--flops", "1e16", "--ladder", str(tmp_path / "ladder" / "fit.json")]
    capsys.readouterr()
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "fit.json, N without embeddings:" in shown
    for name in ("N", "D", "D/N", "loss"):  # each with its interval
        value, low, high = map(
            float,
            re.search(
                rf"^  {name} +(\S+) +\(90 %: (\S+) to (\S+)\)$", shown, re.MULTILINE
            ).groups(),
        )
        assert low <= value <= high
    for foreign in ("<script", 'http-equiv="refresh', 'src="http', "@import"):
        assert foreign not in page


def test_a_report_of_an_older_fit_is_refused(ladder_file: Path, capsys: pytest.CaptureFixture[str]):
    finish(ladder_file, skip=("d256-320",))
    assert main(["ladder", "fit", str(ladder_file)]) == 0
    rung = next(r for r in build_rungs(load_ladder(ladder_file)) if r.name == "d256-320")
    folder = Path(rung.config.run_dir)
    folder.mkdir()
    record = {"step": rung.config.train.num_steps, "val/python_stdlib/loss": 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps(record))
    assert main(["ladder", "report", str(ladder_file)]) == 2
    assert "fit again: maxlm ladder fit" in capsys.readouterr().err


def test_too_few_rungs_cannot_be_fitted(ladder_file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["ladder", "fit", str(ladder_file)]) == 2
    assert "0 rungs can be used and a law needs 5 or more" in capsys.readouterr().err


def test_run_goes_on_after_a_failure_and_starts_again(
    ladder_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A stand-in for Python trains each rung: one fails the first time."""
    finish(ladder_file, skip=("d32-5", "d32-20"))
    program = tmp_path / "python"
    program.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
text = pathlib.Path(sys.argv[-1]).read_text()
lines = [line.split("#")[0].strip() for line in text.splitlines()]
find = lambda key: next(line.split(":")[1].strip() for line in lines if line.startswith(key))
mark = pathlib.Path({str(tmp_path)!r}) / "failed_once"
if "d32-5" in sys.argv[-1] and not mark.exists():
    mark.touch()
    print("no memory left")
    sys.exit(1)
folder = pathlib.Path(find("run_dir"))
folder.mkdir(parents=True)
(folder / "metrics.jsonl").write_text(json.dumps({{"step": int(find("num_steps")), "val/python_stdlib/loss": 3.0}}))
"""
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert main(["ladder", "run", str(ladder_file)]) == 1
    shown = capsys.readouterr().out
    assert "d32-5: failed with exit code 1: no memory left" in shown
    assert "d32-20: loss 3.0000" in shown
    assert main(["ladder", "run", str(ladder_file)]) == 0
    shown = capsys.readouterr().out
    assert "15 of 16 rungs are done" in shown
    assert main(["ladder", "status", str(ladder_file)]) == 0
    assert "to do" not in capsys.readouterr().out


def test_a_rung_that_was_trained_with_other_settings_is_refused(
    ladder_file: Path, capsys: pytest.CaptureFixture[str]
):
    finish(ladder_file, skip=("d32-5",))
    ladder = load_ladder(ladder_file)
    for rung in build_rungs(ladder):
        path = settings_of(ladder, rung)
        path.parent.mkdir(exist_ok=True)
        path.write_text(to_yaml(LoadedRun(rung.config, {})))
    assert main(["ladder", "status", str(ladder_file)]) == 0
    text = ladder_file.read_text()
    changes = "  optimizer.clip_norm: 0.5\n  train.eval_batches: 3\n  train.log_every: 7\n"
    ladder_file.write_text(f"{text}overrides:\n{changes}")
    capsys.readouterr()
    for action in ("status", "fit", "run"):
        assert main(["ladder", action, str(ladder_file)]) == 2
        shown = capsys.readouterr().err
        assert "d32-20: optimizer.clip_norm: 1.0 -> 0.5" in shown
        assert "d32-20: train.eval_batches: " in shown
        assert "d32-5:" not in shown  # it was not trained
        assert "log_every" not in shown
        assert "set them back, or name another run_dir" in shown


@pytest.mark.parametrize(
    ("law_name", "numbers"),
    [
        ("chinchilla", (406.4, 410.7, 0.34, 0.28)),
        ("replication", (482.01, 2085.43, 0.3478, 0.3658)),
    ],
)
def test_optimal_by_published_laws(
    law_name: str, numbers: tuple[float, ...], capsys: pytest.CaptureFixture[str]
):
    command = ["optimal", "--flops", "5.76e23", "--law", law_name, "--device", "H100"]
    assert main([*command, "--devices", "1024"]) == 0
    shown = capsys.readouterr().out
    found = float(shown.split("N ")[1].split()[0])
    of_size, of_tokens, a, b = numbers
    factor = (a * of_size / (b * of_tokens)) ** (1 / (a + b))  # arXiv:2203.15556, eq. 4
    assert found == pytest.approx(factor * (5.76e23 / 6) ** (b / (a + b)), rel=1e-3)
    assert "hours" in shown


def test_a_budget_without_a_best_size_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["optimal", "--flops", "1e6"]) == 2
    assert "give 1e12 to 1e30" in capsys.readouterr().err


def test_mup_keeps_the_learning_rate_and_sets_the_base_width(ladder_file: Path):
    text = ladder_file.read_text().replace("kind: power_law, parameters: -0.3", "kind: mup")
    ladder_file.write_text(text)
    for rung in build_rungs(load_ladder(ladder_file)):
        assert rung.config.optimizer.learning_rate == 3e-3
        assert rung.config.model.parametrisation.base_width == 192
        assert rung.config.model.width_factor == rung.config.model.embed_dim / 192
