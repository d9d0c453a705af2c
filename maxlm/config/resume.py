"""What may change between a run and its continuation, and what may not."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from maxlm.config.model import ModelConfig
from maxlm.config.reading.paths import child, field
from maxlm.config.schema import RunConfig
from maxlm.config.section import OnResume, Section, Use

Keys = tuple[str | int, ...]  # not a dotted text: names of sources may have dots


@dataclass(frozen=True)
class Change:
    """A setting that differs from the saved run's; None where one of them does not have it."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = ("(none)" if value is None else value for value in (self.old, self.new))
        return f"{self.key}: {old} -> {new}"


class Changes(NamedTuple):
    """What differs from a saved run.

    Attributes:
      matter: changes that make another run.
      later: changes of the schedule that give other learning rates to steps to come alone.
      mixture: changes of which source rows are of; whether rows that were read are among them is
        known once the sources are open.
    """

    matter: list[Change]
    later: list[Change]
    mixture: list[Change]


class _Leaf(NamedTuple):
    value: Any
    mark: OnResume | None


def compare_runs(old: Mapping[str, Any], new: RunConfig, *, steps_done: int) -> Changes:
    """Tell whether `new` goes on with the saved run or is another.

    Args:
      old: the saved run, `config.model_dump(mode="json")`.
      new: the run that wants to continue it.
      steps_done: steps of the saved run; their learning rates may not have been others.
    """
    saved = _validated(old)
    before = _leaves(old if saved is None else saved.model_dump(mode="json"))
    after = _leaves(new.model_dump(mode="json"))
    differing: dict[OnResume | None, list[Change]] = {}
    for path in dict.fromkeys([*after, *before]):
        was, now = before.get(path), after.get(path)
        present = now or was
        assert present is not None
        if (was and was.value) != (now and now.value) and not _is_parent(path, before, after):
            change = Change(".".join(map(str, path)), was and was.value, now and now.value)
            differing.setdefault(present.mark, []).append(change)
    matter, rates = (
        [*differing.get(None, []), *differing.get(OnResume.FIXED, [])],
        differing.get(OnResume.RATE, []),
    )
    if any(section.judges_microbatches for _, section in new.model.sections()):
        matter += differing.get(OnResume.PIECES, [])
    # A run whose settings this version does not know has learning rates that it does not know.
    first = (0 if saved is None else first_changed_rate(saved, new)) if rates else None
    mixture = differing.get(OnResume.MIXTURE, [])
    if first is None:
        return Changes(matter, [], mixture)
    if first < steps_done:
        return Changes(matter + rates, [], mixture)
    return Changes(matter, rates, mixture)


def compare_models(old: ModelConfig, new: ModelConfig) -> list[Change]:
    """Return what two models compute in different ways, layer by layer, however they are written
    as patterns; how they are trained does not count.
    """
    before, after = dict(_computed(old)), dict(_computed(new))
    return [
        Change(path, before.get(path), after.get(path))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def _computed(model: ModelConfig) -> Iterator[tuple[str, Any]]:
    """Yield the settings, by path, that decide what a model computes."""
    yield from _decisive(model, "model", without={"block", "segments"})
    for number, block in enumerate(model.layers):
        yield from _decisive(block, f"layer {number}", without={"repeat"})


def _decisive(section: Section, path: str, without: Set[str] = frozenset()) -> Iterator[Any]:
    for name, info in type(section).model_fields.items():
        value, place = getattr(section, name), f"{path}.{name}"
        if name in without or Use.TRAINING in info.metadata:
            continue
        if isinstance(value, Section):
            yield from _decisive(value, place)
        elif isinstance(value, tuple) and any(isinstance(one, Section) for one in value):
            for index, one in enumerate(value):
                yield from _decisive(one, f"{place}.{index}")
        else:
            yield place, value


def first_changed_rate(old: RunConfig, new: RunConfig) -> int | None:
    """Return the first step, from 0, of those that both runs have whose learning rates differ; None
    if none does.
    """

    def differs(step: int) -> bool:
        return learning_rate(step, old) != learning_rate(step, new)

    end = min(old.train.num_steps, new.train.num_steps)
    edges = {0, end}
    for run in (old, new):
        total = run.schedule.total_steps or run.train.num_steps
        edges |= {run.schedule.warmup_steps, total - run.schedule.cooldown_steps, total}
    # Between two edges each run has one formula, and formulas that agree near both edges are one:
    # there may be 2^31 steps, too many to try. Near is by powers of two, as a slow change only
    # shows when it exceeds rounding.
    near = {
        edge + sign * (2**power - 1) for edge in edges for power in range(32) for sign in (-1, 1)
    }
    places = sorted(step for step in near if 0 <= step < end)
    found = next((index for index, step in enumerate(places) if differs(step)), None)
    if found is None:
        return None
    between = range(places[found - 1] + 1 if found else 0, places[found] + 1)
    return between[bisect.bisect_left(between, True, key=differs)]


def learning_rate(step: int, run: RunConfig) -> float:
    """Return the learning rate of step number `step`, from 0, as `maxlm.optim.schedule` does, but
    without jax.
    """
    schedule, peak = run.schedule, run.optimizer.learning_rate
    warmup, total = schedule.warmup_steps, schedule.total_steps or run.train.num_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    start = total - schedule.cooldown_steps if schedule.kind == "wsd" else warmup
    progress = min(max((step - start + 1) / max(total - start, 1), 0.0), 1.0)
    falling = {
        "constant": 1.0,
        "linear": 1 - progress,
        "wsd": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "inverse_sqrt": math.sqrt(max(warmup, 1) / max(step, warmup, 1)),
    }[schedule.kind]
    final = 0.0 if schedule.kind in ("constant", "inverse_sqrt") else schedule.final_fraction
    return peak * (final + (1 - final) * falling)


def _leaves(config: Mapping[str, Any]) -> dict[Keys, _Leaf]:
    """Return the leaves, with the decay's end spelt out: extending a run moves it."""
    leaves = dict(_walk(dict(config), RunConfig, None, ()))
    end = leaves.get(("schedule", "total_steps"))
    if end is not None and end.value is None:
        num_steps = leaves.get(("train", "num_steps"))
        leaves["schedule", "total_steps"] = end._replace(value=num_steps and num_steps.value)
    return leaves


def _walk(
    value: Any, annotation: Any, mark: OnResume | None, path: Keys
) -> Iterator[tuple[Keys, _Leaf]]:
    """Yield (path, leaf) of everything in a value; the innermost mark on the way to a leaf counts."""
    if not isinstance(value, dict | list) or not value:
        yield path, _Leaf(value, mark)
        return
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found = field(annotation, key, value)
        marks = [data for data in found.metadata if isinstance(data, OnResume)] if found else []
        yield from _walk(item, child(annotation, key, value), [mark, *marks][-1], (*path, key))


def _is_parent(path: Keys, before: Mapping[Keys, _Leaf], after: Mapping[Keys, _Leaf]) -> bool:
    """Tell whether one side has nothing where the other has settings, which tell the change
    themselves.
    """
    other = before if path in after else after
    return not (path in before and path in after) and any(
        len(longer) > len(path) and longer[: len(path)] == path for longer in other
    )


def _validated(old: Mapping[str, Any]) -> RunConfig | None:
    """Return the saved run with the settings that the version which saved it did not know yet, or
    None.
    """
    try:
        return RunConfig.model_validate(old)
    except ValidationError:
        return None
