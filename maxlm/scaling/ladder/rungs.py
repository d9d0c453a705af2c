"""From a ladder's YAML to its rungs: ordinary runs, each with its size, its budget and its seed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from maxlm.config import load_run
from maxlm.config.checks import find_problems
from maxlm.config.errors import ConfigError, Problem
from maxlm.config.ladder import LadderConfig, Mup, NamedSize, PowerLaw, Rule, WidthSizes
from maxlm.config.schema import RunConfig
from maxlm.models.cost import flops_per_token, parameter_parts
from maxlm.models.width import at_width
from maxlm.scaling.ladder.branches import branched
from maxlm.scaling.ladder.rung import Rung


class Scale(NamedTuple):
    """N, D and the width of a run, from which `transfer` goes."""

    parameters: float
    tokens: float
    width: int


def build_rungs(ladder: LadderConfig) -> list[Rung]:
    """Return every rung, cheapest first.

    Raises:
      ConfigError: with every problem of every size.
    """
    base = load_run(ladder.base, _as_overrides(ladder.overrides)).config
    reference = Scale(
        _count(base)[0], base.train.num_steps * base.tokens_per_step, base.model.embed_dim
    )
    rungs, problems = [], list[Problem]()
    for size, at_size in _sizes(ladder, base):
        try:
            rungs += list(_of_size(ladder, size, at_size(), reference))
        except ConfigError as error:
            problems += [Problem(one.path, f"size {size}: {one.text}") for one in error.problems]
    if problems:
        raise ConfigError(problems, f"the rungs of {ladder.base}")
    return sorted(rungs, key=lambda rung: (rung.flops, rung.name))


def run_at_width(ladder: LadderConfig, width: int) -> RunConfig:
    """Return the base at a width, with as many layers, and what `transfer` says of that size.

    Raises:
      ConfigError: the width does not work.
    """
    base = load_run(ladder.base, _as_overrides(ladder.overrides)).config
    tokens = base.train.num_steps * base.tokens_per_step
    reference = Scale(_count(base)[0], tokens, base.model.embed_dim)
    multiple = ladder.sizes.multiple_of if isinstance(ladder.sizes, WidthSizes) else 1
    sized = _at_width(base, width, WidthSizes(embed_dims=(width,), multiple_of=multiple))
    return _transferred(ladder, sized, Scale(_count(sized)[0], tokens, width), reference)


def _sizes(ladder: LadderConfig, base: RunConfig) -> Iterator[tuple[str, Callable[[], RunConfig]]]:
    """Yield the name of each size, with what makes the base of that size."""
    sizes = ladder.sizes
    if isinstance(sizes, WidthSizes):
        for width in sizes.embed_dims:
            yield f"d{width}", functools.partial(_at_width, base, width, sizes)
    else:
        for size in sizes.sizes:
            yield size.name, functools.partial(_with_settings, ladder, size)


def _with_settings(ladder: LadderConfig, size: NamedSize) -> RunConfig:
    settings = {**ladder.overrides, **size.settings}
    return load_run(ladder.base, _as_overrides(settings)).config


def _as_overrides(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _at_width(base: RunConfig, width: int, sizes: WidthSizes) -> RunConfig:
    """Return the base with `embed_dim` = width and everything that follows it."""
    model = at_width(base.model, width, multiple_of=sizes.multiple_of)
    if sizes.aspect_ratio:
        length = sum(len(segment.blocks) for segment in base.model.segments)
        layers = max(round(width / sizes.aspect_ratio / length), 1) * length
        model["num_layers"] = layers
    return _validated({**base.model_dump(mode="json"), "model": model})


def _of_size(ladder: LadderConfig, size: str, sized: RunConfig, reference: Scale) -> Iterator[Rung]:
    for seed in ladder.seeds:
        rungs = [
            _rung(ladder, size, sized, budget, seed, reference) for budget in ladder.budget_values
        ]
        yield from branched(rungs, ladder.branch, _validated) if ladder.branch else rungs


def _rung(
    ladder: LadderConfig, size: str, sized: RunConfig, budget: float, seed: int, reference: Scale
) -> Rung:
    parameters, embedding = _count(sized)
    per_token = flops_per_token(sized.model, sized.data.sequence_length)
    counted = parameters - (embedding if ladder.fit.count == "non_embedding" else 0)
    tokens = {
        "tokens_per_parameter": budget * counted,
        "flops": budget / per_token,
        "tokens": budget,
    }[ladder.budgets.kind]
    name = f"{size}-{_short(budget)}" + (f"-s{seed}" if len(ladder.seeds) > 1 else "")
    config = _transferred(
        ladder, sized, Scale(parameters, tokens, sized.model.embed_dim), reference
    )
    runtime = config.runtime.model_copy(update={"seed": seed})
    run_dir = str(Path(ladder.run_dir) / name)
    config = config.model_copy(update={"runtime": runtime, "run_dir": run_dir})
    return Rung(name, size, budget, seed, config, parameters, embedding, per_token)


def _transferred(
    ladder: LadderConfig, sized: RunConfig, scale: Scale, reference: Scale
) -> RunConfig:
    """Return the run with what `transfer` says of its size and budget, for so many tokens."""
    rules = ladder.transfer
    data = sized.model_dump(mode="json")
    optimizer, train, model = data["optimizer"], data["train"], data["model"]
    for rule, section, name in (
        (rules.learning_rate, optimizer, "learning_rate"),
        (rules.weight_decay, optimizer, "weight_decay"),
        (rules.init_std, model, "init_std"),
    ):
        section[name] *= _factor(rule, scale, reference)
    if isinstance(rules.learning_rate, Mup):
        width = rules.learning_rate.base_width or reference.width
        model["parametrisation"] = {"kind": "mup", "base_width": width}
    unit = sized.train.microbatches * max(sized.mesh.batch_devices, 1)
    wanted = train["batch_size"] * _factor(rules.batch_size, scale, reference)
    train["batch_size"] = max(round(wanted / unit), 1) * unit
    per_step = train["batch_size"] * sized.data.sequence_length
    train["num_steps"] = max(round(scale.tokens / per_step), 1)
    if rules.warmup_fraction is not None:
        data["schedule"]["warmup_steps"] = round(rules.warmup_fraction * train["num_steps"])
    cooldown = sized.schedule.cooldown_steps
    if cooldown:  # the share that it has in the base
        share = cooldown / sized.train.num_steps
        data["schedule"]["cooldown_steps"] = max(round(share * train["num_steps"]), 1)
    data["schedule"]["total_steps"] = None
    return _validated(data)


def _factor(rule: Rule | Mup, scale: Scale, reference: Scale) -> float:
    if not isinstance(rule, PowerLaw):
        return 1.0
    size, tokens = scale.parameters / reference.parameters, scale.tokens / reference.tokens
    return float(size**rule.parameters * tokens**rule.tokens)


def _validated(data: dict[str, Any]) -> RunConfig:
    config = RunConfig.model_validate(data)
    problems = find_problems({name: getattr(config, name) for name in RunConfig.model_fields})
    if problems:
        raise ConfigError(problems, "a rung")
    return config


def _count(config: RunConfig) -> tuple[int, int]:
    """Return the parameters, and of them those of tables and the output projection."""
    parts = parameter_parts(config.model)
    return sum(parts.values()), parts["embedding"] + parts["head"]


def _short(value: float) -> str:
    return f"{value:.3g}".replace("+", "")
