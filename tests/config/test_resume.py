"""Which changes make a continuation another run."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config import load_run
from maxlm.config.resume import (
    Change,
    Changes,
    compare_models,
    compare_runs,
    first_changed_rate,
    learning_rate,
)
from maxlm.config.schema import RunConfig
from maxlm.optim.schedule import make_schedule

FREE = [
    *[
        "run_dir=elsewhere",
        "mesh.tensor=2",
        "mesh.data=2",
        "checkpoint.every=7",
        "metrics.tensorboard=false",
    ],
    *["data.prefetch_batches=1", "data.tokenizer=moved", "data.sources.text.path=moved"],
    *[
        "data.sources.text.raw={kind: python_stdlib}",
        "runtime.device_count=8",
        "runtime.platform=cpu",
    ],
    *[
        "train.gather=step",
        "train.remat=full",
        "train.remat={query: save}",
        "train.offload=[optimizer]",
        "train.microbatches=2",
    ],
    *[
        "train.eval_every=3",
        "train.eval_batches=3",
        "train.log_every=1",
        "objective.chunk_tokens=8",
    ],
    *["train.max_skipped_steps=1", "schedule.total_steps=100", "runtime.compile_cache=cache"],
]
MATTERS = [
    *[
        "model.num_layers=4",
        "model.norm.kind=layernorm",
        "data.sequence_length=16",
        "data.sources.text.weight=2",
    ],
    *[
        "data.shuffle=none",
        "optimizer.learning_rate=1.0",
        "optimizer.no_decay=[norm]",
        "schedule.warmup_steps=1",
    ],
    *[
        "train.batch_size=16",
        "train.compute_dtype=float32",
        "objective.z_loss=1e-4",
        "runtime.seed=1",
    ],
    *["schedule.total_steps=200", "optimizer.overrides=[{match: x}]"],
]


def changes_that_matter(old: Mapping[str, Any], new: RunConfig) -> list[Change]:
    return compare_runs(old, new, steps_done=60).matter


@pytest.mark.parametrize("override", FREE)
def test_free(write_run: Callable[..., str], override: str) -> None:
    path = write_run()
    assert (
        changes_that_matter(
            load_run(path).config.model_dump(mode="json"), load_run(path, [override]).config
        )
        == []
    )


@pytest.mark.parametrize("override", MATTERS)
def test_matters(write_run: Callable[..., str], override: str) -> None:
    path = write_run()
    changes = changes_that_matter(
        load_run(path).config.model_dump(mode="json"), load_run(path, [override]).config
    )
    assert changes
    assert all(change.key.startswith(override.split("=")[0]) for change in changes)


def test_a_new_source_matters(write_run: Callable[..., str]) -> None:
    path = write_run()
    new = load_run(path, ["data.sources.more={path: data/more}"]).config
    changes = changes_that_matter(load_run(path).config.model_dump(mode="json"), new)
    assert changes == [Change("data.sources.more.weight", None, 1.0)]


def test_a_first_entry_of_a_list_is_told_once(write_run: Callable[..., str]) -> None:
    path = write_run()
    old = load_run(path).config.model_dump(mode="json")
    changes = changes_that_matter(
        old, load_run(path, ["optimizer.overrides=[{match: x, weight_decay: 0.1}]"]).config
    )
    assert [str(change) for change in changes] == [
        "optimizer.overrides.0.match: (none) -> x",
        "optimizer.overrides.0.weight_decay: (none) -> 0.1",
    ]


def test_extending_a_decaying_run_is_a_change_of_its_schedule(
    write_run: Callable[..., str],
) -> None:
    path = write_run()
    old = load_run(path).config.model_dump(mode="json")
    changes = changes_that_matter(old, load_run(path, ["train.num_steps=200"]).config)
    assert [str(change) for change in changes] == ["schedule.total_steps: 100 -> 200"]
    assert (
        changes_that_matter(
            old, load_run(path, ["train.num_steps=200", "schedule.total_steps=100"]).config
        )
        == []
    )


def test_settings_that_the_saved_run_did_not_know_yet_had_their_default(
    write_run: Callable[..., str],
) -> None:
    path = write_run()
    old = load_run(path).config.model_dump(mode="json")
    del old["objective"]["z_loss"], old["optimizer"]
    assert changes_that_matter(old, load_run(path).config) == []
    assert changes_that_matter(old, load_run(path, ["objective.z_loss=0.1"]).config) == [
        Change("objective.z_loss", 0.0, 0.1)
    ]


def test_settings_that_are_gone_are_a_change(write_run: Callable[..., str]) -> None:
    path = write_run()
    old = load_run(path).config.model_dump(mode="json")
    old["model"]["dropout"] = 0.1
    assert changes_that_matter(old, load_run(path).config) == [Change("model.dropout", 0.1, None)]


def test_names_with_dots_hide_no_change(write_run: Callable[..., str]) -> None:
    path = write_run({"text: {path": "web.raw: {path"})
    old = load_run(path).config.model_dump(mode="json")
    matter = changes_that_matter(old, load_run(path, ["data.sources.web.raw.weight=2"]).config)
    assert matter == [Change("data.sources.web.raw.weight", 1.0, 2.0)]
    assert (
        changes_that_matter(old, load_run(path, ["data.sources.web.raw.path=moved"]).config) == []
    )
    # Two settings with one dotted name: the weight of `a.raw` is not the text for `a`.
    old["data"]["sources"] = {
        "a.raw": {"path": "x", "weight": 1.0},
        "a": {"path": "y", "raw": None},
    }
    new = RunConfig.model_validate(
        old | {"data": old["data"] | {"sources": {**old["data"]["sources"], "b": {"path": "z"}}}}
    )
    assert changes_that_matter(old, new) == [Change("data.sources.b.weight", None, 1.0)]


def test_room_for_experts_may_change_and_their_number_may_not(
    write_run: Callable[..., str],
) -> None:
    path = write_run()
    moe = "model.block.ffn={kind: moe, num_experts: 4, experts_per_token: 2, expert_dim: 8%s}"
    old = load_run(path, [moe % ""]).config.model_dump(mode="json")
    assert changes_that_matter(old, load_run(path, [moe % ", buffer_factor: 3.0"]).config) == []
    matter = changes_that_matter(old, load_run(path, [moe % ", router: {scale: 3.0}"]).config)
    assert matter == [Change("model.segments.0.pattern.0.ffn.router.scale", 1.0, 3.0)]


SCHEDULES = [
    {"kind": "constant"},
    {"kind": "constant", "warmup_steps": 10},
    {"kind": "linear", "warmup_steps": 7, "final_fraction": 0.0},
    {"kind": "cosine"},
    {"kind": "cosine", "warmup_steps": 30, "total_steps": 80, "final_fraction": 0.3},
    {"kind": "wsd", "warmup_steps": 5, "cooldown_steps": 20},
    {"kind": "wsd", "cooldown_steps": 100, "total_steps": 100, "final_fraction": 0.0},
    {"kind": "inverse_sqrt", "warmup_steps": 16},
]


def with_schedule(write_run: Callable[..., str], *overrides: str, **schedule: Any) -> RunConfig:
    run = load_run(write_run(), overrides).config
    return RunConfig.model_validate({**run.model_dump(mode="json"), "schedule": schedule})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates_are_those_that_are_trained_with(
    write_run: Callable[..., str], schedule: dict[str, Any]
) -> None:
    run = with_schedule(write_run, "optimizer.learning_rate=0.02", **schedule)
    trained = make_schedule(run.schedule, peak=0.02, num_steps=100)(jnp.arange(150))
    np.testing.assert_allclose(
        [learning_rate(step, run) for step in range(150)], trained, rtol=2e-6, atol=1e-9
    )


@pytest.mark.parametrize(
    ("schedule", "first"),
    [
        ({"kind": "constant", "warmup_steps": 10}, None),
        ({"kind": "inverse_sqrt", "warmup_steps": 10}, None),
        ({"kind": "cosine", "total_steps": 100}, None),
        ({"kind": "cosine"}, 0),
        ({"kind": "linear", "warmup_steps": 10}, 10),
        ({"kind": "wsd", "cooldown_steps": 20}, 80),
    ],
)
def test_more_steps_are_a_change_where_a_rate_of_a_step_done_changes(
    write_run: Callable[..., str], schedule: dict[str, Any], first: int | None
) -> None:
    old = with_schedule(write_run, **schedule)
    new = with_schedule(write_run, "train.num_steps=200", **schedule)
    assert first_changed_rate(old, new) == first
    change = [Change("schedule.total_steps", 100, 200)]
    for done in (1, 10, 11, 80, 81, 100):
        compared = compare_runs(old.model_dump(mode="json"), new, steps_done=done)
        if first is None:
            assert compared == Changes([], [], [])
        else:
            assert compared == (
                Changes(change, [], []) if first < done else Changes([], change, [])
            )


def test_first_changed_rates_are_those_of_a_search_through_all_steps(
    write_run: Callable[..., str],
) -> None:
    rng = random.Random(0)
    runs = []
    for _ in range(60):
        kind = rng.choice(["constant", "linear", "cosine", "wsd", "inverse_sqrt"])
        total = rng.choice([40, 90, 300])
        schedule = {
            "kind": kind,
            "warmup_steps": rng.choice([1, 5, 30]),
            "final_fraction": rng.choice([0.0, 0.1]),
        }
        schedule |= {"total_steps": total} if rng.random() < 0.5 else {}
        schedule |= {"cooldown_steps": 9} if kind == "wsd" else {}
        overrides = [
            f"train.num_steps={total}",
            f"optimizer.learning_rate={rng.choice([1e-3, 2e-3])}",
        ]
        runs.append(with_schedule(write_run, *overrides, **schedule))
    seen = set()
    for old, new in itertools.product(runs, runs):
        steps = range(min(old.train.num_steps, new.train.num_steps))
        first = next(
            (step for step in steps if learning_rate(step, old) != learning_rate(step, new)), None
        )
        assert first_changed_rate(old, new) == first
        seen.add(first)
    assert len(seen) > 8
    assert None in seen


def test_runs_of_any_length_are_compared_at_once(write_run: Callable[..., str]) -> None:
    for kind, changes in (
        ("constant", False),
        ("inverse_sqrt", False),
        ("cosine", True),
        ("linear", True),
    ):
        ends = ("train.num_steps=2147483000", "train.num_steps=2147483647")
        old, new = (with_schedule(write_run, end, kind=kind, warmup_steps=1000) for end in ends)
        began = time.monotonic()
        assert (first_changed_rate(old, new) is not None) == changes
        assert time.monotonic() - began < 1


def test_an_end_of_decay_that_no_rate_depends_on_may_change(write_run: Callable[..., str]) -> None:
    old = with_schedule(write_run, kind="constant").model_dump(mode="json")
    assert compare_runs(
        old, with_schedule(write_run, kind="constant", final_fraction=0.5), steps_done=9
    ) == ([], [], [])
    slower = with_schedule(write_run, "optimizer.learning_rate=1e-4", kind="constant")
    assert compare_runs(old, slower, steps_done=1).matter == [
        Change("optimizer.learning_rate", 3e-4, 1e-4)
    ]


def test_microbatches_may_change_unless_experts_are_balanced_in_each(
    write_run: Callable[..., str],
) -> None:
    path = write_run()
    moe = "model.block.ffn={kind: moe, num_experts: 4, experts_per_token: 2, expert_dim: 8, balance: {%s}}"
    for balance, matters in (
        ("auxiliary_loss: 0.1", True),
        ("auxiliary_loss: 0.0, bias_update: 0.1", False),
    ):
        old = load_run(path, [moe % balance]).config.model_dump(mode="json")
        new = load_run(path, [moe % balance, "train.microbatches=2"]).config
        expected = [Change("train.microbatches", 1, 2)] if matters else []
        assert changes_that_matter(old, new) == expected


def test_room_for_experts_is_nothing_to_a_trained_model(write_run: Callable[..., str]) -> None:
    """A capacity is a measure of training: used, a model has room for every token."""
    moe = "model.block.ffn={kind: moe, num_experts: 8, experts_per_token: 2, expert_dim: 16%s}"
    path = write_run()
    full, tight = (
        load_run(path, [moe % more]).config.model for more in ("", ", capacity_factor: 1.5")
    )
    assert full != tight
    assert compare_models(tight, full) == []
    assert tight.when_used() == full.when_used() == full
