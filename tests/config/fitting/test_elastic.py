"""Which mesh and how many microbatches fewer or more devices get."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from maxlm.config import ConfigError, RunConfig, load_run
from maxlm.config.checks import resolve_mesh
from maxlm.config.fitting.elastic import explain, fit_to_devices

WRITTEN = [
    *("mesh.elastic=batch", "mesh.data=2", "mesh.fsdp=4", "train.batch_size=32"),
    "train.microbatches=2",
]


def load(write_run: Callable[..., str], *more: str) -> RunConfig:
    return load_run(write_run(), [*WRITTEN, *more]).config


@pytest.mark.parametrize(
    ("more", "devices", "data", "fsdp", "microbatches"),
    [
        # Written for 8 devices, on each of which 2 sequences are worked on at a time.
        ([], 8, 2, 4, 2),
        ([], 4, 1, 4, 4),
        ([], 16, 4, 4, 1),
        ([], 32, 8, 4, 1),
        # `data` alone cannot: `fsdp` follows.
        ([], 2, 1, 2, 8),
        ([], 1, 1, 1, 16),
        # The axes that cut the model stay.
        (["mesh.tensor=2"], 8, 1, 4, 4),
        (["mesh.tensor=2"], 4, 1, 2, 8),
        (["mesh.context=2"], 8, 1, 4, 4),
        # A pipeline whose stages repeat wants multiples of its stages.
        (["mesh.stage=2", "mesh.stage_repeats=1", "model.num_layers=2"], 8, 1, 4, 4),
        # More sequences at a time than a device has: all of them at once.
        (["train.microbatches=1"], 4, 1, 4, 2),
    ],
)
def test_data_then_fsdp_and_microbatches_follow(
    write_run: Callable[..., str],
    more: list[str],
    devices: int,
    data: int,
    fsdp: int,
    microbatches: int,
) -> None:
    config = load(write_run, *more)
    fitted = fit_to_devices(config, devices)
    assert (fitted.mesh.data, fitted.mesh.fsdp) == (data, fsdp)
    assert fitted.train.microbatches == microbatches
    assert resolve_mesh(fitted, devices) == fitted.mesh
    at_a_time = [
        run.train.batch_size // (run.mesh.batch_devices * run.train.microbatches)
        for run in (config, fitted)
    ]
    assert at_a_time[1] <= at_a_time[0]
    # Nothing else changes, and back on all devices it is as it was written.
    same = {"mesh": config.mesh, "train": config.train}
    assert fitted.model_copy(update=same) == config
    assert fit_to_devices(config, math.prod(config.mesh.sizes.values())) is config


def test_microbatches_that_a_layer_judges_stay(write_run: Callable[..., str]) -> None:
    moe = (
        "model.block.ffn={kind: moe, num_experts: 4, experts_per_token: 2, expert_dim: 8, "
        "balance: {auxiliary_loss: 0.1}}"
    )
    fitted = fit_to_devices(load(write_run, moe), 4)
    assert (fitted.mesh.data, fitted.train.microbatches) == (1, 2)


def test_what_fits_no_mesh_is_refused_with_counts_that_do(write_run: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"fit 7 devices.*use 4 or 8 devices, or another batch"):
        fit_to_devices(load(write_run), 7)
    with pytest.raises(ConfigError, match=r"fit 3 devices.*use 2 or 4 devices"):
        fit_to_devices(load(write_run, "mesh.tensor=2"), 3)


def test_other_devices_are_refused_unless_it_is_asked_for(write_run: Callable[..., str]) -> None:
    config = load(write_run, "mesh.elastic=none")
    assert fit_to_devices(config, 4) is config
    with pytest.raises(ConfigError, match="must equal the device count, 4"):
        resolve_mesh(config, 4)


def test_a_mesh_that_takes_what_is_there_says_nothing_of_the_whole(
    write_run: Callable[..., str],
) -> None:
    with pytest.raises(
        ConfigError, match=r"mesh\.elastic=batch needs the sizes.*not mesh\.fsdp=-1"
    ):
        load(write_run, "mesh.fsdp=-1")


def test_what_was_changed_is_said(write_run: Callable[..., str]) -> None:
    config = load(write_run)
    assert explain(config, fit_to_devices(config, 4)) == (
        "4 devices, and the mesh was written for 8: mesh.data 2 -> 1, train.microbatches 2 -> 4; "
        "the batch stays 32 sequences"
    )
    assert explain(config, fit_to_devices(config, 8)) == ""
