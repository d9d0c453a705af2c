"""Checks that need more than one setting: each names the settings, their values, and numbers that would work."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from maxlm.config.errors import ConfigError, Problem
from maxlm.config.schema import LearnedPosition, MeshConfig, MoeConfig, RopePosition, RunConfig
from maxlm.files import place_of


def find_problems(valid: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong between settings; `valid` holds the sections of a RunConfig that are valid by themselves.

    A mesh axis of -1 counts as 1 here; `resolve_mesh` checks again once the device count is known.
    """
    config = RunConfig.model_construct(**valid)
    return [problem for needed, check in _CHECKS if all(name in valid for name in needed) for problem in check(config)]


def resolve_mesh(config: RunConfig, device_count: int) -> MeshConfig:
    """Return the mesh with its -1 filled in, checked against the number of devices over all processes.

    Raises:
        ConfigError: the mesh does not fit the devices, or the model, data or batch do not fit the mesh.
    """
    sizes = config.mesh.sizes
    fixed = math.prod(size for size in sizes.values() if size != -1)
    problems = list(_mesh_axes(config))
    if not problems:
        filled = {axis: device_count // fixed if size == -1 else size for axis, size in sizes.items()}
        mesh = config.mesh.model_copy(update=filled)
        if math.prod(filled.values()) != device_count:
            problems.append(_wrong_product(sizes, device_count))
        else:
            resolved = config.model_copy(update={"mesh": mesh})
            problems = find_problems({name: getattr(resolved, name) for name in RunConfig.model_fields})
        if not problems:
            return mesh
    raise ConfigError(problems, f"the configuration on {device_count} device{'s' * (device_count > 1)}")


def _wrong_product(sizes: Mapping[str, int], device_count: int) -> Problem:
    """Explain a mesh whose sizes do not multiply to the device count, and give one near it that does."""
    given = {f"mesh.{axis}": size for axis, size in sizes.items() if size > 1}
    if -1 in sizes.values():
        return replace(next(_divisible("the device count", device_count, given)), path="mesh")
    fixed = math.prod(given.values())
    fits = []
    for axis, size in {"mesh.fsdp": 1, **given}.items():
        if device_count % (fixed // size) == 0:
            fits.append(f"{axis}={device_count // (fixed // size)}")
    names = " * ".join(f"{axis}={size}" for axis, size in given.items()) or "all axes"
    fits = fits or [f"for example {_near_mesh(given, device_count)}"]
    text = f"mesh: {names}{f' = {fixed}' if len(given) != 1 else ''} must equal the device count, {device_count}"
    fake = f"runtime.device_count={fixed} to try it on fake CPU devices"
    return Problem("mesh", f"{text}; use {', or '.join(fits)}, or {fake}")


def _near_mesh(given: Mapping[str, int], device_count: int) -> str:
    """Return sizes at most those given that multiply to the device count, the rest on fsdp."""
    left, near = device_count, {"mesh.fsdp": 1}
    for axis, size in given.items():
        near[axis] = _near_divisors(left, size)[0]
        left //= near[axis]
    near["mesh.fsdp"] *= left
    return " ".join(f"{axis}={size}" for axis, size in near.items())


# --- mesh ------------------------------------------------------------------------------------------------------------


def _mesh_axes(config: RunConfig) -> Iterator[Problem]:
    sizes = config.mesh.sizes
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            text = f"mesh.{axis}={size} must be at least 1, or -1 for the devices left over; use 1 to switch it off"
            yield Problem(f"mesh.{axis}", text)
    fills = [f"mesh.{axis}" for axis, size in sizes.items() if size == -1]
    if len(fills) > 1:
        names = " and ".join(f"{axis}=-1" for axis in fills)
        cure = " ".join(f"{axis}=1" for axis in fills[1:])
        yield Problem(fills[0], f"{names}: only one axis can take the devices left over; use {cure}")


def _mesh_on_fake_devices(config: RunConfig) -> Iterator[Problem]:
    """A process has `device_count` devices, so a mesh without -1 needs a multiple of it."""
    sizes = config.mesh.sizes
    count = config.runtime.device_count
    if count and min(sizes.values()) >= 1 and math.prod(sizes.values()) % count:
        yield _wrong_product(sizes, count)


def _heads_on_mesh(config: RunConfig) -> Iterator[Problem]:
    tensor = {"mesh.tensor": config.mesh.tensor}
    exchanged = config.mesh.context_kind == "ulysses" and config.mesh.context > 1
    heads = {**tensor, "mesh.context": config.mesh.context} if exchanged else tensor
    for name in ("num_heads", "num_kv_heads"):
        for problem in _divisible(f"model.{name}", getattr(config.model, name), heads):
            other_kind = ", or mesh.context_kind=ring, which does not split heads" if exchanged else ""
            yield replace(problem, text=problem.text + other_kind)
    for name in ("mlp_dim", "vocab_size"):
        yield from _divisible(f"model.{name}", getattr(config.model, name), tensor)


def _width_on_mesh(config: RunConfig) -> Iterator[Problem]:
    mesh = config.mesh
    axes = {"mesh.fsdp": mesh.fsdp, "mesh.expert": mesh.expert, "mesh.context": mesh.context}
    yield from _divisible("model.embed_dim", config.model.embed_dim, axes)


def _batch_on_mesh(config: RunConfig) -> Iterator[Problem]:
    mesh = config.mesh
    axes = {"mesh.data": mesh.data, "mesh.fsdp": mesh.fsdp, "mesh.expert": mesh.expert}
    by = {**axes, "train.microbatches": config.train.microbatches}
    yield from _divisible("train.batch_size", config.train.batch_size, by)


def _stages(config: RunConfig) -> Iterator[Problem]:
    """Every stage runs as many layers, as often, and computes its share of every microbatch's loss."""
    mesh, train = config.mesh, config.train
    stages = {"mesh.stage": mesh.stage}
    repeats = {"mesh.stage_repeats": mesh.stage_repeats} if mesh.stage_repeats > 1 else {}
    if mesh.stage <= 1:
        if repeats:
            text = f"mesh.stage_repeats={mesh.stage_repeats} needs mesh.stage of at least 2; use mesh.stage_repeats=1"
            yield Problem("mesh.stage_repeats", text)
        return
    pattern = {"the length of model.pattern": len(config.model.pattern)} if len(config.model.pattern) > 1 else {}
    before = len(config.model.prefix)  # run by the first stage, besides its share of the pattern's layers
    layers, by = max(config.model.num_layers, before), {**stages, **repeats, **pattern}
    for problem in _divisible("model.num_layers", layers, by, without=before, without_name="blocks of model.prefix"):
        yield replace(problem, text=problem.text + _fitting_stages(config))
    if repeats:
        yield from _divisible("train.microbatches", train.microbatches, stages)
    split = {"mesh.data": mesh.data, "mesh.fsdp": mesh.fsdp, "mesh.expert": mesh.expert}
    split |= {"mesh.context": mesh.context, "mesh.tensor": mesh.tensor, "train.microbatches": train.microbatches}
    tokens = train.batch_size * config.data.sequence_length
    yield from _divisible("train.batch_size * data.sequence_length", tokens, {**split, **stages})


def _fitting_stages(config: RunConfig) -> str:
    """List the stage counts, with repeats where they fit, that divide the layers as they are."""
    groups = (config.model.num_layers - len(config.model.prefix)) // len(config.model.pattern)
    fits = [str(stages) for stages in range(2, groups + 1) if groups % (stages * config.mesh.stage_repeats) == 0]
    return f"; with these layers mesh.stage may be {', '.join(fits)}" if fits else ""


def _sequence_on_mesh(config: RunConfig) -> Iterator[Problem]:
    """Every context device holds two chunks of the sequence (zigzag), and tensor devices equal parts of them."""
    context, tensor = config.mesh.context, config.mesh.tensor
    axes = {"mesh.context": context, "mesh.tensor": tensor}
    chunks = 2 if context > 1 and tensor % 2 else 1
    yield from _divisible("data.sequence_length", config.data.sequence_length, axes, times=chunks)


# --- model -----------------------------------------------------------------------------------------------------------


def _pattern(config: RunConfig) -> Iterator[Problem]:
    model = config.model
    length, before = len(model.pattern), len(model.prefix)
    if not before:
        yield from _divisible("model.num_layers", model.num_layers, {"the length of model.pattern": length})
    elif model.num_layers <= before or (model.num_layers - before) % length:
        text = f"model.num_layers={model.num_layers} must be the {before} blocks of model.prefix and a multiple of "
        near = before + max((model.num_layers - before) // length, 1) * length
        text += f"the length of model.pattern, {length}"
        yield Problem("model.num_layers", f"{text}; use model.num_layers={near} or {near + length}")
    for index, block in enumerate(model.prefix):
        if isinstance(block.ffn, MoeConfig):
            path = f"model.prefix.{index}.ffn"
            text = f"{path}.kind=moe: experts can only stand in model.pattern, whose routers are balanced"
            yield Problem(f"{path}.kind", f"{text}; use kind: mlp, or put the block into model.pattern")


# --- experts ---------------------------------------------------------------------------------------------------------


def _moe(config: RunConfig) -> Iterator[tuple[str, MoeConfig]]:
    """Yield the mixtures of experts, with their paths."""
    for index, block in enumerate(config.model.pattern):
        if isinstance(block.ffn, MoeConfig):
            yield f"model.pattern.{index}.ffn", block.ffn


def _experts(config: RunConfig) -> Iterator[Problem]:
    for path, moe in _moe(config):
        experts, choices = moe.num_experts, moe.experts_per_token
        if choices > experts:
            text = f"{path}.experts_per_token={choices} is more than {path}.num_experts={experts}"
            yield Problem(f"{path}.experts_per_token", f"{text}; use {path}.experts_per_token={experts} or less")
        if moe.capacity_factor and moe.capacity_factor * choices >= experts:
            text = f"{path}.capacity_factor={moe.capacity_factor}: an expert would take every token of a sequence"
            cure = f"use less than num_experts / experts_per_token = {experts / choices:g}, or null"
            yield Problem(f"{path}.capacity_factor", f"{text}; {cure}, which drops nothing")


def _expert_groups(config: RunConfig) -> Iterator[Problem]:
    for path, moe in _moe(config):
        router, experts, choices = moe.router, moe.num_experts, moe.experts_per_token
        groups = {f"{path}.router.num_groups": router.num_groups}
        uneven = list(_divisible(f"{path}.num_experts", experts, groups))
        yield from uneven
        if router.top_groups > router.num_groups:
            text = f"{path}.router.top_groups={router.top_groups} is more than {path}.router.num_groups="
            cure = f"use {path}.router.top_groups={router.num_groups} or less"
            yield Problem(f"{path}.router.top_groups", f"{text}{router.num_groups}; {cure}")
        elif not uneven and choices <= experts and choices > experts // router.num_groups * router.top_groups:
            size = experts // router.num_groups
            text = f"{path}.router.top_groups={router.top_groups} groups of {size} experts are fewer than "
            cure = f"use {path}.router.top_groups={-(-choices // size)} or more"
            yield Problem(f"{path}.router.top_groups", f"{text}{path}.experts_per_token={choices}; {cure}")


def _experts_on_mesh(config: RunConfig) -> Iterator[Problem]:
    for path, moe in _moe(config):
        yield from _divisible(f"{path}.num_experts", moe.num_experts, {"mesh.expert": config.mesh.expert})
        for name in ("expert_dim", "shared_dim"):
            yield from _divisible(f"{path}.{name}", getattr(moe, name), {"mesh.tensor": config.mesh.tensor})


def _heads(config: RunConfig) -> Iterator[Problem]:
    model = config.model
    yield from _divisible("model.num_heads", model.num_heads, {"model.num_kv_heads": model.num_kv_heads})
    if "head_dim" not in model.model_fields_set:
        for problem in _divisible("model.embed_dim", model.embed_dim, {"model.num_heads": model.num_heads}):
            text = problem.text.replace("; use", " when model.head_dim is not given; use")
            yield Problem(problem.path, f"{text}, or give model.head_dim")
    elif isinstance(model.position, RopePosition) and model.head_dim % 2:
        near = f"{model.head_dim - 1} or {model.head_dim + 1}" if model.head_dim > 1 else "2"
        text = f"model.head_dim={model.head_dim} must be even for model.position.kind=rope; use {near}"
        yield Problem("model.head_dim", text)


def _positions(config: RunConfig) -> Iterator[Problem]:
    position, length = config.model.position, config.data.sequence_length
    if isinstance(position, LearnedPosition) and position.max_length < length:
        text = f"model.position.max_length={position.max_length} is less than data.sequence_length={length}"
        cure = f"use model.position.max_length={length}, or data.sequence_length={position.max_length}"
        yield Problem("model.position.max_length", f"{text}; {cure}")


def _rope_scaling(config: RunConfig) -> Iterator[Problem]:
    position = config.model.position
    scaling = position.scaling if isinstance(position, RopePosition) else None
    if scaling and scaling.low_frequency_factor >= scaling.high_frequency_factor:
        path = "model.position.scaling"
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        text = f"{path}.low_frequency_factor={low} must be less than {path}.high_frequency_factor={high}"
        yield Problem(f"{path}.low_frequency_factor", f"{text}; use 1.0 and 4.0")


# --- train -----------------------------------------------------------------------------------------------------------


def _offload(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if "activations" in train.offload and train.remat == "none":
        text = "train.offload=[activations] moves the inputs of blocks, but train.remat=none keeps all activations"
        yield Problem("train.offload", f"{text} on the device; use train.remat=full, or train.remat={{query: save}}")


# --- data, optimizer, schedule ---------------------------------------------------------------------------------------


def _data_paths(config: RunConfig) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for name, source in config.data.sources.items():
        path, place = f"data.sources.{name}", place_of(source.path)
        if place in seen:
            text = f"{path}.path={source.path!r} is the folder of data.sources.{seen[place]} too; use another"
            yield Problem(f"{path}.path", f"{text}, or one source with the sum of the weights")
        seen[place] = name
        if source.raw and source.raw.kind == "files" and not source.raw.paths:
            text = f"{path}.raw.kind=files needs {path}.raw.paths; give a list such as [data/raw]"
            yield Problem(f"{path}.raw", text)
        if source.raw and source.raw.kind == "python_stdlib" and source.raw.paths:
            text = f"{path}.raw.paths is not used by {path}.raw.kind=python_stdlib; remove it, or use kind: files"
            yield Problem(f"{path}.raw.paths", text)


def _own_tokenizer(config: RunConfig) -> Iterator[Problem]:
    """`maxlm prepare --force` may train the tokenizer again, but never the copy that a run goes on with."""
    own = f"{config.run_dir}/tokenizer.model"
    if config.run_dir.strip() and place_of(config.data.tokenizer) == place_of(own):
        text = f"data.tokenizer={config.data.tokenizer!r} is where the run keeps its own copy of the tokenizer"
        yield Problem("data.tokenizer", f"{text}; use another, such as data/name/tokenizer.model")


def _empty_paths(config: RunConfig) -> Iterator[Problem]:
    paths = {"run_dir": config.run_dir, "data.tokenizer": config.data.tokenizer}
    paths |= {f"data.sources.{name}.path": source.path for name, source in config.data.sources.items()}
    for path, value in paths.items():
        if not value.strip():
            example = {"run_dir": "runs/name", "data.tokenizer": "data/name/tokenizer.model"}.get(path, "data/name")
            yield Problem(path, f'{path}="" is empty; give a path such as {example}')


def _override_patterns(config: RunConfig) -> Iterator[Problem]:
    for index, override in enumerate(config.optimizer.overrides):
        path = f"optimizer.overrides.{index}.match"
        try:
            re.compile(override.match)
        except re.error as error:
            text = f"{path}={override.match!r} is not a regular expression: {error}"
            yield Problem(path, f"{text}; put a backslash before a special sign that stands for itself")


def _schedule(config: RunConfig) -> Iterator[Problem]:
    schedule = config.schedule
    total = schedule.total_steps or config.train.num_steps
    total_name = f"{'schedule.total_steps' if schedule.total_steps else 'train.num_steps'}={total}"
    if schedule.warmup_steps >= total:
        text = f"schedule.warmup_steps={schedule.warmup_steps} must be less than {total_name}"
        yield Problem("schedule.warmup_steps", f"{text}; use schedule.warmup_steps={total // 10}, or more steps")
    elif schedule.warmup_steps + schedule.cooldown_steps > total:
        both = f"schedule.warmup_steps={schedule.warmup_steps} + schedule.cooldown_steps={schedule.cooldown_steps}"
        cure = f"use schedule.cooldown_steps={total - schedule.warmup_steps} or less"
        yield Problem("schedule.cooldown_steps", f"{both} is more than {total_name}; {cure}")
    if schedule.kind == "wsd" and not schedule.cooldown_steps:
        text = "schedule.kind=wsd needs schedule.cooldown_steps, the steps of the final decay"
        yield Problem("schedule.kind", f"{text}; use schedule.cooldown_steps={max(total // 5, 1)}, or kind: constant")
    if schedule.kind != "wsd" and schedule.cooldown_steps:
        text = f"schedule.cooldown_steps={schedule.cooldown_steps} is for schedule.kind=wsd, not {schedule.kind}"
        yield Problem("schedule.cooldown_steps", f"{text}; use schedule.kind=wsd, or remove it")
    if schedule.kind == "inverse_sqrt" and not schedule.warmup_steps:
        text = "schedule.kind=inverse_sqrt falls from the end of the warm-up and needs schedule.warmup_steps"
        yield Problem("schedule.kind", f"{text}; use schedule.warmup_steps={max(total // 10, 1)}")


# --- checkpoint, runtime ---------------------------------------------------------------------------------------------


def _keep_every(config: RunConfig) -> Iterator[Problem]:
    every, keep = config.checkpoint.every, config.checkpoint.keep_every
    if keep and not every:
        text = f"checkpoint.keep_every={keep} has nothing to keep with checkpoint.every=0 (only at the end)"
        yield Problem("checkpoint.keep_every", f"{text}; use checkpoint.every={keep}, or remove it")
    elif keep:
        yield from _divisible("checkpoint.keep_every", keep, {"checkpoint.every": every})


def _fake_devices(config: RunConfig) -> Iterator[Problem]:
    count, platform = config.runtime.device_count, config.runtime.platform
    if count and platform not in ("auto", "cpu"):
        text = f"runtime.device_count={count} makes fake CPU devices, but runtime.platform={platform}"
        yield Problem("runtime.device_count", f"{text}; use runtime.device_count=null, or runtime.platform=cpu")


def _profile(config: RunConfig) -> Iterator[Problem]:
    profile, total = config.runtime.profile, config.train.num_steps
    if profile and profile.start_step + profile.num_steps > total:
        both = f"runtime.profile.start_step={profile.start_step} + num_steps={profile.num_steps}"
        cure = f"use runtime.profile.start_step={max(total - profile.num_steps, 0)}"
        if profile.num_steps > total:
            cure = f"use runtime.profile.num_steps={total} and start_step=0"
        yield Problem("runtime.profile.start_step", f"{both} is after the last step, train.num_steps={total}; {cure}")


# --- numbers ---------------------------------------------------------------------------------------------------------


def _divisible(
    path: str, value: int, by: Mapping[str, int], *, times: int = 1, without: int = 0, without_name: str = ""
) -> Iterator[Problem]:
    """Yield a problem if `value` is not a multiple of the product of `by`; name values of each that would work.

    `times` is one more factor, which is not a setting; `without` is taken off the value first.
    """
    whole, value = value, value - without
    factors = {name: size for name, size in by.items() if size > 1}
    product = times * math.prod(factors.values())
    if value % product == 0:
        return
    names = " * ".join([str(times)] * (times > 1) + [f"{name}={size}" for name, size in factors.items()])
    down = value // product * product
    cures = [f"{path}={f'{down + without} or ' if down else ''}{down + product + without}"]
    for name, size in factors.items():
        rest = product // size
        if value % rest == 0:
            near = _near_divisors(value // rest, size)
            cures.append(f"{name}={' or '.join(str(divisor) for divisor in near)}")
    names += f" = {product}" if len(factors) + (times > 1) > 1 else ""
    taken = f" without the {without} {without_name}, {value}," if without else ""
    yield Problem(path, f"{path}={whole}{taken} must be divisible by {names}; use {', or '.join(cures)}")


def _near_divisors(value: int, size: int) -> list[int]:
    """Return the divisors of `value` next to `size`: the one below, and the one above if it is not far."""
    below = next(n for n in range(min(size, value), 0, -1) if value % n == 0)
    above = next((n for n in range(size + 1, min(2 * size, value) + 1) if value % n == 0), None)
    return [below] if above is None else [below, above]


_CHECKS: tuple[tuple[tuple[str, ...], Callable[[RunConfig], Iterator[Problem]]], ...] = (
    (("run_dir", "data"), _empty_paths),
    (("run_dir", "data"), _own_tokenizer),
    (("model",), _pattern),
    (("model",), _experts),
    (("model",), _expert_groups),
    (("model",), _heads),
    (("model",), _rope_scaling),
    (("model", "data"), _positions),
    (("mesh",), _mesh_axes),
    (("mesh", "runtime"), _mesh_on_fake_devices),
    (("model", "mesh"), _heads_on_mesh),
    (("model", "mesh"), _width_on_mesh),
    (("model", "mesh"), _experts_on_mesh),
    (("train", "mesh"), _batch_on_mesh),
    (("train",), _offload),
    (("data", "mesh"), _sequence_on_mesh),
    (("model", "data", "train", "mesh"), _stages),
    (("data",), _data_paths),
    (("optimizer",), _override_patterns),
    (("schedule", "train"), _schedule),
    (("checkpoint",), _keep_every),
    (("runtime",), _fake_devices),
    (("runtime", "train"), _profile),
)
