"""The mesh on a number of devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from maxlm.config import ConfigError, load_run
from maxlm.config.checks import resolve_mesh
from maxlm.config.schema import MeshConfig


@pytest.mark.parametrize(
    ("overrides", "device_count", "expected"),
    [
        ([], 1, {"fsdp": 1}),
        ([], 8, {"fsdp": 8}),
        (["mesh.tensor=2"], 8, {"fsdp": 4, "tensor": 2}),
        (["mesh.data=-1", "mesh.fsdp=2"], 8, {"data": 4, "fsdp": 2}),
        (["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"], 8, {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_fills_the_devices_left_over(
    write_run: Callable[..., str], overrides: list[str], device_count: int, expected: dict[str, int]
) -> None:
    config = load_run(write_run(), overrides).config
    assert resolve_mesh(config, device_count) == MeshConfig(**{"fsdp": 1, **expected})


@pytest.mark.parametrize(
    ("overrides", "device_count", "expected"),
    [
        (
            ["mesh.data=2", "mesh.fsdp=1", "mesh.tensor=2"],
            8,
            "mesh: mesh.data=2 * mesh.tensor=2 = 4 must equal the device count, 8; use mesh.fsdp=2, or mesh.data=4, "
            "or mesh.tensor=4, or runtime.device_count=4 to try it on fake CPU devices",
        ),
        (
            ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=4"],
            6,
            "must equal the device count, 6; use for example mesh.fsdp=1 mesh.data=2 mesh.tensor=3, or runtime",
        ),
        (
            ["mesh.fsdp=4"],
            1,
            "mesh: mesh.fsdp=4 must equal the device count, 1; use mesh.fsdp=1, or runtime",
        ),
        (
            ["mesh.fsdp=1"],
            8,
            "mesh: all axes = 1 must equal the device count, 8; use mesh.fsdp=8, or runtime",
        ),
        (
            ["mesh.tensor=4"],
            6,
            "the device count=6 must be divisible by mesh.tensor=4; use the device count=4 or 8, or mesh.tensor=3 or 6",
        ),
        (
            ["train.batch_size=12"],
            8,
            "train.batch_size=12 must be divisible by mesh.fsdp=8; use train.batch_size=8 or 16, or mesh.fsdp=6 or 12",
        ),
        (
            ["model.embed_dim=60", "train.batch_size=16"],
            8,
            "model.embed_dim=60 must be divisible by mesh.fsdp=8; use model.embed_dim=56 or 64",
        ),
    ],
)
def test_tells_what_does_not_fit(
    write_run: Callable[..., str], overrides: list[str], device_count: int, expected: str
) -> None:
    config = load_run(write_run(), overrides).config
    with pytest.raises(ConfigError) as caught:
        resolve_mesh(config, device_count)
    assert expected in str(caught.value)


def test_tells_all_that_does_not_fit(write_run: Callable[..., str]) -> None:
    config = load_run(write_run(), ["model.embed_dim=60", "train.batch_size=12"]).config
    with pytest.raises(ConfigError) as caught:
        resolve_mesh(config, 8)
    assert [problem.path for problem in caught.value.problems] == [
        "model.embed_dim",
        "train.batch_size",
    ]
    assert "2 problems in the configuration on 8 devices" in str(caught.value)


def test_one_folder_by_a_link_and_by_its_name(
    write_run: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    more = "data.sources.more={path: " + str(tmp_path / "link") + "}"
    with pytest.raises(
        ConfigError, match=r"sources\.more\.path=.*/link' is the folder of data\.sources\.text too"
    ):
        load_run(write_run(), [f"data.sources.text.path={tmp_path}/folder", more])
    (tmp_path / "link").unlink()
    load_run(write_run(), [f"data.sources.text.path={tmp_path}/folder", more])


@pytest.mark.parametrize(
    ("run_dir", "shown", "reason"),
    [
        ("runs/[a]", "'runs/[a]'", "["),
        ("runs/a*?", "'runs/a*?'", "* and ?"),
        ("runs/a\\b", "'runs/a\\\\b'", "\\"),
        ("runs/logs:gs:/b", "'runs/logs:gs:/b'", "a name that ends in gs:"),
        ("runs/gs:", "'runs/gs:'", "a name that ends in gs:"),
        ("runs/\udcff", "'runs/\\udcff'", "bytes that are no UTF-8"),
    ],
)
def test_a_folder_that_checkpoints_could_not_be_read_back_from(
    write_run: Callable[..., str], run_dir: str, shown: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_run(write_run(), [f"run_dir={json.dumps(run_dir)}"])
    (problem,) = error.value.problems
    assert problem.path == "run_dir"
    assert problem.text == (
        f"run_dir={shown}: checkpoints in a folder with {reason} in its path could not be read back; "
        "choose another run_dir, such as runs/name"
    )


def test_a_relative_folder_below_such_a_one(
    write_run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / write_run())
    for name, fine in (("\u00fc #1 %2F {a}", True), ("[x]", False)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        if fine:
            load_run(path)
        else:
            with pytest.raises(ConfigError, match="could not be read back"):
                load_run(path)


def test_a_checkpoint_to_go_back_to_is_before_the_last_step(write_run: Callable[..., str]) -> None:
    load_run(write_run(), ["checkpoint.resume_from=0"])
    message = r"checkpoint.resume_from=99999 is not before train.num_steps=\d+; use an earlier"
    with pytest.raises(ConfigError, match=message):
        load_run(write_run(), ["checkpoint.resume_from=99999"])
