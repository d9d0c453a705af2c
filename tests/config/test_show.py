"""`config show` loads again; `config schema` describes every setting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from maxlm.config import load_run
from maxlm.config.reading.loader import LoadedRun
from maxlm.config.reading.paths import all_paths
from maxlm.config.show import to_json_schema, to_yaml

ROOT = Path(__file__).parents[2]


def test_shown_run_loads_again_and_names_origins(
    write_run: Callable[..., str], tmp_path: Path
) -> None:
    replace = {
        "runs/test": "'3e-4'",
        "128}}": "128}}\n  segments: [{pattern: [{}, {mixer: {window: 8}}]}]",
    }
    overrides = ["train.remat={query: save}", "data.tokenizer='off'", "optimizer.epsilon=1e-15"]
    loaded = load_run(write_run(replace), overrides)
    shown = to_yaml(loaded)
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_run("shown.yaml").config == loaded.config
    lines = {
        line.split("#")[0].strip(): line.split("# ")[1]
        for line in shown.splitlines()
        if "#" in line
    }
    assert lines["num_heads: 4"] == "run.yaml:6"
    assert lines["query: save"] == "command line"
    assert lines["window: 8"] == "run.yaml:8"
    assert lines["beta2: 0.95"] == "default"
    plain = to_yaml(LoadedRun(loaded.config, {}))  # of a run whose origins nobody knows
    assert "#" not in plain
    (tmp_path / "plain.yaml").write_text(plain)
    assert load_run("plain.yaml").config == loaded.config


def test_schema_has_every_setting_and_refuses_others() -> None:
    schema = json.loads(to_json_schema())
    assert schema["additionalProperties"] is False
    assert {"include", *(path for path in all_paths() if "." not in path)} == set(
        schema["properties"]
    )
    assert schema["$defs"]["MeshConfig"]["properties"]["tensor"]["description"]
    assert '"required"' not in to_json_schema()


def test_schema_in_configs_is_current() -> None:
    message = "run: .venv/bin/maxlm config schema > configs/schema.json"
    assert (ROOT / "configs/schema.json").read_text() == to_json_schema(), message
