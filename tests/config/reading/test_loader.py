"""Includes, overrides, and where values come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from maxlm.config import ConfigError, load_run
from maxlm.config.positions.embedded import LearnedPosition
from maxlm.config.positions.none import NoPosition
from maxlm.config.positions.rope import RopePosition


def test_later_files_win_and_the_including_file_wins_over_all(
    write_run: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/a.yaml").write_text(
        "optimizer: {learning_rate: 1e-3, beta1: 0.8}\nmodel: {block: {mixer: {num_heads: 2}}}\n"
    )
    (tmp_path / "presets/b.yaml").write_text("optimizer:\n  learning_rate: 2e-3\n")
    loaded = load_run(write_run(append="include: [presets/a.yaml, presets/b.yaml]\n"))
    assert (loaded.config.optimizer.learning_rate, loaded.config.optimizer.beta1) == (2e-3, 0.8)
    assert loaded.config.model.block.mixer.num_heads == 4
    assert loaded.origins["optimizer.learning_rate"] == "presets/b.yaml:2"
    assert loaded.origins["optimizer.beta1"] == "presets/a.yaml:1"
    assert loaded.origins["model.block.mixer.num_heads"] == "run.yaml:6"
    assert loaded.origins["optimizer.beta2"] == "default"


def test_include_is_relative_to_the_including_file(
    write_run: Callable[..., str], tmp_path: Path
) -> None:
    write_run(append="include: ../preset.yaml\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run.yaml").rename(tmp_path / "run/run.yaml")
    (tmp_path / "preset.yaml").write_text("mesh: {tensor: 2}\n")
    loaded = load_run("run/run.yaml")
    assert loaded.config.mesh.tensor == 2
    assert loaded.origins["mesh.tensor"] == "preset.yaml:1"


def test_lists_are_replaced(write_run: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "preset.yaml").write_text("optimizer: {no_decay: [norm, bias]}\n")
    loaded = load_run(
        write_run(append="include: preset.yaml\noptimizer: {no_decay: [embedding]}\n")
    )
    assert loaded.config.optimizer.no_decay == ("embedding",)


def test_another_kind_drops_the_settings_of_the_old_kind(
    write_run: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "preset.yaml").write_text(
        "model: {block: {mixer: {position: {kind: rope, theta: 5e5}}}}\n"
    )
    append, position = "include: preset.yaml\n", "model.block.mixer.position"
    replaced = {"head_dim: 16": "head_dim: 16, position: {kind: none}"}
    assert load_run(write_run(replaced, append)).config.model.block.mixer.position == NoPosition()
    path = write_run({}, append)
    assert (
        load_run(path, [f"{position}.kind=none"]).config.model.block.mixer.position == NoPosition()
    )
    assert load_run(
        path, [f"{position}.kind=rope"]
    ).config.model.block.mixer.position == RopePosition(theta=5e5)
    learned = "model.position={kind: learned, max_length: 64}"
    assert load_run(path, [learned]).config.model.position == LearnedPosition(max_length=64)
    schedule = load_run(
        write_run({}, "schedule: {warmup_steps: 7}\n"), ["schedule.kind=linear"]
    ).config.schedule
    # One section with many kinds keeps its settings.
    assert (schedule.kind, schedule.warmup_steps) == ("linear", 7)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {},
            "run.yaml:16: include: tiny.yaml is not a file; give a path relative to the including file",
        ),
        (
            {"tini.yaml": ""},
            "run.yaml:16: include: tiny.yaml is not a file; did you mean tini.yaml?",
        ),
        (
            {"tiny.yaml": "a: 1\ninclude: x.yaml\n"},
            "tiny.yaml:2: include: tiny.yaml is itself included",
        ),
        ({"tiny.yaml": "- 1\n"}, "tiny.yaml: the file must hold `key: value` lines"),
        ({"tiny.yaml": "a: [\n"}, "tiny.yaml:2: not valid YAML"),
        (
            {"tiny.yaml": "model:\n  num_layer: 3\n"},
            "tiny.yaml:2: model.num_layer is not a known key",
        ),
    ],
)
def test_bad_includes(
    write_run: Callable[..., str], tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_run(write_run(append="include: tiny.yaml\n"))
    assert expected in str(caught.value)


@pytest.mark.parametrize("value", ["3", "[3]", "''", "{a: b}", "[a.yaml, null]"])
def test_include_must_be_paths(write_run: Callable[..., str], value: str) -> None:
    with pytest.raises(ConfigError, match="include must be a path or a list of paths"):
        load_run(write_run(append=f"include: {value}\n"))


def test_all_bad_includes_are_told(write_run: Callable[..., str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(write_run(append="include: [a.yaml, b.yaml]\n"))
    assert len(caught.value.problems) == 2


def test_empty_file(write_run: Callable[..., str], tmp_path: Path) -> None:
    write_run()
    (tmp_path / "run.yaml").write_text("")
    with pytest.raises(
        ConfigError, match="4 problems in run.yaml:\n  run.yaml: run_dir is missing"
    ):
        load_run("run.yaml")


def test_overrides(write_run: Callable[..., str]) -> None:
    append = "optimizer: {overrides: [{match: a}, {match: b}]}\nruntime: {profile: null}\n"
    path = write_run({"text: {path": "my.text: {path"}, append)
    loaded = load_run(
        path,
        [
            "optimizer.learning_rate=3e-4",
            "optimizer.overrides.1.learning_rate_scale=0.5",
            "data.sources.my.text.weight=2",
            "data.sources.more={path: data/more, weight: 3.0}",
            "train.remat={query: save, key: offload}",
            "runtime.profile.start_step=5",
            "schedule.warmup_steps=10",
            "mesh.fsdp=-1",
            "run_dir=runs/a=b",
            "run_dir='12'",
        ],
    )
    config = loaded.config
    assert config.optimizer.learning_rate == 3e-4
    assert [item.learning_rate_scale for item in config.optimizer.overrides] == [None, 0.5]
    assert {name: source.weight for name, source in config.data.sources.items()} == {
        "my.text": 2.0,
        "more": 3.0,
    }
    assert config.train.remat == {"query": "save", "key": "offload"}
    assert config.runtime.profile is not None
    assert config.runtime.profile.start_step == 5
    assert config.run_dir == "12"  # the last one wins
    assert loaded.origins["data.sources.my.text.weight"] == "command line"
    assert loaded.origins["data.sources.my.text.path"] == "run.yaml:10"
    assert loaded.origins["train.remat.key"] == "command line"


def test_all_bad_overrides_are_told(write_run: Callable[..., str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(write_run(), ["x", "y=", "mesh.tensor=2"])
    assert len(caught.value.problems) == 2


def test_paths_in_messages_are_short(write_run: Callable[..., str], tmp_path: Path) -> None:
    write_run({"num_heads: 4": "num_heads: x"})
    with pytest.raises(ConfigError, match=r"\n  run.yaml:6: "):
        load_run(tmp_path / "run.yaml")


def test_missing_run_file(write_run: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="none.yaml: No such file or directory"):
        load_run("none.yaml")


def test_a_file_with_data_alone_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    path.write_text("data: {sources: {text: {path: x}}}\n")
    with pytest.raises(ConfigError, match=r"^1 problem.*\n.*data.yaml: it has `data` alone.*run"):
        load_run(path)
