"""What may change between a run and its continuation, and what may not."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from maxlm.config.paths import flatten
from maxlm.config.schema import RunConfig

# How a run is executed, watched and stored; none of these changes what the model learns.
# The token data behind the paths is checked by its fingerprint when it is opened.
_FREE = (
    *("run_dir", "mesh.*", "checkpoint.*", "metrics.*"),
    *("data.prefetch_batches", "data.tokenizer", "data.sources.*.path", "data.sources.*.raw", "data.sources.*.raw.*"),
    *("train.num_steps", "train.microbatches", "train.gather"),
    *("train.remat", "train.remat.*", "train.offload", "train.offload.*"),
    *("model.*.ffn.buffer_factor", "train.loss_chunk_tokens", "train.max_skipped_steps"),
    *("train.eval_every", "train.eval_batches", "train.log_every"),
    "runtime.*",
)
_NEVER_FREE = ("runtime.seed",)


@dataclass(frozen=True)
class Change:
    """A setting that differs from the saved run's; None where one of them does not have it."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = ("(none)" if value is None else value for value in (self.old, self.new))
        return f"{self.key}: {old} -> {new}"


def changes_that_matter(old: Mapping[str, Any], new: RunConfig) -> list[Change]:
    """Return the changes that make `new` another run than the saved one.

    Args:
        old: the saved run, `config.model_dump(mode="json")`.
        new: the run that wants to continue it.
    """
    before, after = _resolved(_with_new_defaults(old)), _resolved(new.model_dump(mode="json"))
    keys = dict.fromkeys([*after, *before])
    return [
        Change(key, before.get(key), after.get(key))
        for key in keys
        if before.get(key) != after.get(key) and _matters(key) and not _is_parent(key, before, after)
    ]


def _is_parent(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Tell whether one side has nothing where the other has settings, which tell the change themselves."""
    other = before if key in after else after
    return not (key in before and key in after) and any(name.startswith(f"{key}.") for name in other)


def _matters(key: str) -> bool:
    return key in _NEVER_FREE or not any(fnmatch.fnmatchcase(key, pattern) for pattern in _FREE)


def _resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves, with the decay's end spelt out: extending a decaying run changes every learning rate."""
    flat = flatten(config)
    if flat.get("schedule.total_steps") is None:
        flat["schedule.total_steps"] = flat.get("train.num_steps")
    return flat


def _with_new_defaults(old: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a run saved by an earlier version the settings it did not know yet."""
    try:
        return RunConfig.model_validate(old).model_dump(mode="json")
    except ValidationError:
        return old
