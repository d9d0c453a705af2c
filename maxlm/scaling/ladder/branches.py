"""Budgets of one size as cool-downs of one run at a constant rate (arXiv:2405.18392).

A budget of n steps cools down over its last f n. Its run saves its state where the cool-down begins,
and the next budget's run starts from that state: the constant part of a size is trained once, spread
over its rungs, and a larger budget can be added to a ladder that is done. No step differs from those
of the same run in one go: the learning rate is the peak until each run's own cool-down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from maxlm.config.errors import ConfigError, Problem
from maxlm.config.ladder import CooldownBranch
from maxlm.config.schema import RunConfig
from maxlm.scaling.ladder.rung import Rung


def branched(
    rungs: Sequence[Rung], branch: CooldownBranch, validated: Callable[[dict[str, Any]], RunConfig]
) -> Iterator[Rung]:
    """Yield the rungs of one size and seed, each from the second on starting from the one before.

    Args:
      rungs: with the base's schedule.
      branch: how they cool down.
      validated: makes a run of settings.

    Raises:
      ConfigError: two budgets cool down from the same step.
    """
    ordered = sorted(rungs, key=lambda rung: rung.config.train.num_steps)
    warmup = ordered[0].config.schedule.warmup_steps
    before: Rung | None = None
    start = 0
    for rung in ordered:
        steps = rung.config.train.num_steps
        leaves = steps - max(round(branch.fraction * steps), 1)
        if leaves <= max(start, warmup - 1):
            raise ConfigError([_too_near(rung, leaves, start, warmup)], "the rungs")
        data = rung.config.model_dump(mode="json")
        data["schedule"] |= {
            "kind": "wsd",
            "warmup_steps": warmup,
            "cooldown_steps": steps - leaves,
            "total_steps": None,
        }
        data["checkpoint"]["at_steps"] = sorted({*rung.config.checkpoint.at_steps, leaves})
        if before is not None:
            source = {"path": before.config.run_dir, "checkpoint": start}
            data["train"]["init_from"] = {**source, "optimizer": True, "step": True}
        before, start = rung._replace(config=validated(data), after=before), leaves
        yield before


def _too_near(rung: Rung, leaves: int, start: int, warmup: int) -> Problem:
    steps = rung.config.train.num_steps
    text = (
        f"budget {rung.budget:g} has {steps} steps and would cool down from step {leaves}, where "
    )
    text += (
        f"{'the budget before it does' if start else f'its warm-up of {warmup} steps is not over'}"
    )
    return Problem("budgets", f"{text}; use budgets further apart, or a smaller train.batch_size")
