"""Sizes of activations over widths: flat under muP, not without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from maxlm import runtime
from maxlm.cli import main
from maxlm.scaling.coordcheck.activations import LOGITS, Sizes
from maxlm.scaling.coordcheck.judge import lines_of


def sizes(step: int, size: float, change: float) -> Sizes:
    return Sizes(step, {"block 0": size, LOGITS: size}, {"block 0": change, LOGITS: change})


def test_what_grows_with_the_width_is_not_flat():
    measured = {
        width: [
            one
            for seed in (0.9, 1 / 0.9)  # geometric mean 1
            for one in (sizes(0, seed, 0.0), sizes(1, seed * (width / 64) ** 0.25, seed))
        ]
        for width in (64, 256, 1024)
    }
    lines = {(line.layer, line.kind, line.step): line for line in lines_of(measured)}
    assert lines["block 0", "size", 0].is_flat(0.01)
    assert lines["block 0", "change", 1].is_flat(0.01)
    growing = lines["block 0", "size", 1]
    assert growing.growth == pytest.approx(2)  # 16^0.25
    np.testing.assert_allclose(growing.sizes, (1, 2**0.5, 2))
    assert not growing.is_flat(0.99)
    assert growing.is_flat(1.01)
    # Falling counts as growing does.
    falling = dict(zip((1024, 256, 64), measured.values(), strict=True))
    (line,) = [one for one in lines_of(falling) if one[:3] == ("block 0", "size", 1)]
    assert line.growth == pytest.approx(0.5)
    assert not line.is_flat(0.99)
    # Logits may fall, as they do under muP before they are learned; what is learned may not.
    assert not lines[LOGITS, "size", 1].judged
    assert lines[LOGITS, "change", 1].judged


def write_ladder(prepared: Path, run_dir: Path, learning_rate: dict[str, Any]) -> Path:
    ladder = {
        "base": str(prepared / "base.yaml"),
        "run_dir": str(run_dir),
        "sizes": {"kind": "width", "embed_dims": [16]},
        "budgets": {"kind": "tokens", "tokens": [5120.0]},
        "overrides": {"model.num_layers": 1, "optimizer.weight_decay": 0.0},
        "transfer": {"learning_rate": learning_rate},
    }
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(ladder))
    return path


def test_muP_is_flat_and_standard_is_not(
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(runtime, "start", lambda settings: None)  # JAX runs here already
    how = ["--widths", "64,256", "--steps", "1", "--seeds", "2", "--tolerance", "0.4"]
    codes, shown = [], []
    for name, rule in (
        ("mup", {"kind": "mup", "base_width": 64}),
        ("standard", {"kind": "fixed"}),
    ):
        path = write_ladder(prepared, tmp_path / name, rule)
        codes.append(main(["ladder", "coordcheck", str(path), *how]))
        shown.append(capsys.readouterr().out)
    assert codes == [0, 1], shown
    assert "NOT FLAT" not in shown[0]
    assert "all sizes are flat" in shown[0]
    # Adam's first step moves what is looked up by the learning rate, 1e-2, at any width.
    (line,) = [
        one
        for one in shown[0].splitlines()
        if one.startswith("embedding") and " 1 " in one and "change" in one
    ]
    # Where one of the 8 tokens ends a document, there is nothing to predict, and it stays.
    (narrow, wide), all_move = (
        (float(value) for value in line.split()[3:5]),
        pytest.approx(0.01, rel=0.02),
    )
    assert narrow == wide
    assert narrow == all_move or narrow == pytest.approx(0.01 * (7 / 8) ** 0.5, rel=1e-3)
    not_flat = [one for one in shown[1].splitlines() if "NOT FLAT" in one]
    assert any(one.startswith("block 0") and "change" in one for one in not_flat)
    page = (tmp_path / "mup" / "coordcheck.html").read_text()
    assert page.count("<svg") == 2
    assert "<script" not in page


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--widths", "64"), "give two or more, ascending"),
        (("--widths", "256,64"), "give two or more, ascending"),
        (("--widths", "a,b"), "give numbers, such as 64,128,256"),
        (("--steps", "0"), "--steps=0 must be 1 or more"),
        (("--tolerance", "0"), "--tolerance=0.0 must be above 0"),
    ],
)
def test_what_shows_nothing_is_refused(
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: tuple[str, str],
    message: str,
):
    path = write_ladder(prepared, tmp_path / "ladder", {"kind": "fixed"})
    assert main(["ladder", "coordcheck", str(path), *option]) == 2
    assert message in capsys.readouterr().err
