"""Whatever a YAML file or an override holds, the answer is a run or a ConfigError, in a moment."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.config import ConfigError, load_run
from maxlm.config.checks import resolve_mesh
from maxlm.config.reading.paths import all_paths

ROOT = Path(__file__).parents[3]
PATHS = sorted(all_paths())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**22),
    st.floats(),
    st.sampled_from(
        ["rope", "none", "full", "010", "off", "3e-4", "", " ", "a: b", "[", "*x", "\ud800", "\x7f"]
    ),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "names", "x", "path"]), inner)
    ),
    max_leaves=5,
)


def put(run: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not isinstance(run.get(parent), dict):
            run[parent] = {}
        run = run[parent]
    run[name] = value


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.sampled_from(PATHS), VALUES), max_size=3),
    devices=st.integers(1, 64),
)
def test_any_yaml(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, Any]], devices: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "run.yaml"
    run: dict[str, Any] = {
        "include": [
            str(ROOT / f"configs/{name}.yaml") for name in ("model/tiny", "data/python_stdlib")
        ]
    }
    run |= {"run_dir": "runs/any", "train": {"num_steps": 10, "batch_size": 64}}
    for name, value in changes:
        put(run, name, value)
    path.write_text(json.dumps(run))
    try:
        resolve_mesh(load_run(path).config, devices)
    except ConfigError as error:
        assert all(problem.text for problem in error.problems)
        assert "Input should" not in str(error)


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(PATHS) | st.text(max_size=12),
    value=st.text(max_size=12) | SCALARS.map(str),
)
def test_any_override(path: str, value: str) -> None:
    try:
        load_run(ROOT / "configs/run/quickstart.yaml", [f"{path}={value}"])
    except ConfigError as error:
        assert error.problems


@pytest.mark.parametrize("value", ["2147483647", "1048575", "1e30", "1e-300"])
def test_any_setting_of_any_size_is_answered_at_once(value: str) -> None:
    for path in PATHS:
        began = time.monotonic()
        try:
            resolve_mesh(
                load_run(ROOT / "configs/run/quickstart.yaml", [f"{path}={value}"]).config, 8
            )
        except ConfigError as error:
            assert error.problems
        assert time.monotonic() - began < 5, path
