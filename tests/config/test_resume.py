"""Which changes make a continuation another run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from maxlm.config import load_run
from maxlm.config.resume import Change, changes_that_matter

FREE = [
    *["run_dir=elsewhere", "mesh.tensor=2", "mesh.data=2", "checkpoint.every=7", "metrics.tensorboard=false"],
    *["data.prefetch_batches=1", "data.tokenizer=moved", "data.sources.text.path=moved"],
    *["data.sources.text.raw={kind: python_stdlib}", "runtime.device_count=8", "runtime.platform=cpu"],
    *[
        "train.gather=step",
        "train.remat=full",
        "train.remat={query: save}",
        "train.offload=[optimizer]",
        "train.microbatches=2",
    ],
    *["train.eval_every=3", "train.eval_batches=3", "train.log_every=1", "train.loss_chunk_tokens=8"],
    *["train.max_skipped_steps=1", "schedule.total_steps=100", "runtime.compile_cache=cache"],
]
MATTERS = [
    *["model.num_layers=4", "model.norm.kind=layernorm", "data.sequence_length=16", "data.sources.text.weight=2"],
    *["data.shuffle=none", "optimizer.learning_rate=1.0", "optimizer.no_decay=[norms]", "schedule.warmup_steps=1"],
    *["train.batch_size=16", "train.compute_dtype=float32", "train.z_loss=1e-4", "runtime.seed=1"],
    *["schedule.total_steps=200", "optimizer.overrides=[{match: x}]"],
]


@pytest.mark.parametrize("override", FREE)
def test_free(write_run: Callable[..., str], override: str) -> None:
    path = write_run()
    assert changes_that_matter(load_run(path).config.model_dump(mode="json"), load_run(path, [override]).config) == []


@pytest.mark.parametrize("override", MATTERS)
def test_matters(write_run: Callable[..., str], override: str) -> None:
    path = write_run()
    changes = changes_that_matter(load_run(path).config.model_dump(mode="json"), load_run(path, [override]).config)
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
    changes = changes_that_matter(old, load_run(path, ["optimizer.overrides=[{match: x, weight_decay: 0.1}]"]).config)
    assert [str(change) for change in changes] == [
        "optimizer.overrides.0.match: (none) -> x",
        "optimizer.overrides.0.learning_rate_scale: (none) -> 1.0",
        "optimizer.overrides.0.weight_decay: (none) -> 0.1",
    ]


def test_extending_a_decaying_run_is_a_change_of_its_schedule(write_run: Callable[..., str]) -> None:
    path = write_run()
    old = load_run(path).config.model_dump(mode="json")
    changes = changes_that_matter(old, load_run(path, ["train.num_steps=200"]).config)
    assert [str(change) for change in changes] == ["schedule.total_steps: 100 -> 200"]
    assert changes_that_matter(old, load_run(path, ["train.num_steps=200", "schedule.total_steps=100"]).config) == []


def test_settings_that_the_saved_run_did_not_know_yet_had_their_default(write_run: Callable[..., str]) -> None:
    path = write_run()
    old = load_run(path).config.model_dump(mode="json")
    del old["train"]["z_loss"], old["optimizer"]
    assert changes_that_matter(old, load_run(path).config) == []
    assert changes_that_matter(old, load_run(path, ["train.z_loss=0.1"]).config) == [Change("train.z_loss", 0.0, 0.1)]


def test_settings_that_are_gone_are_a_change(write_run: Callable[..., str]) -> None:
    path = write_run()
    old = load_run(path).config.model_dump(mode="json")
    old["model"]["dropout"] = 0.1
    assert changes_that_matter(old, load_run(path).config) == [Change("model.dropout", 0.1, None)]
