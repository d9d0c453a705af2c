"""Checks that need more than one setting: each names the settings, their values, and numbers that
would work.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from maxlm.config.divisible import divisible
from maxlm.config.errors import ConfigError, Problem
from maxlm.config.fitting.product import wrong_product
from maxlm.config.mixture.stages import mixture_problems
from maxlm.config.model import BLOCK_ACTIVATIONS, MupParametrisation
from maxlm.config.pipeline.filters.word_list import MissingFileProblem
from maxlm.config.positions.embedded import LearnedPosition, SinusoidalPosition
from maxlm.config.schema import DataConfig, MeshConfig, RunConfig
from maxlm.files import place_of, why_unstorable


class _InvalidSectionError(Exception):
    """A section that a check asks for is not valid by itself, which has been told already."""


class _ValidSections(RunConfig):
    """A run of which only the valid sections are there."""

    def __getattr__(self, name: str) -> Any:
        raise _InvalidSectionError(name)


MAX_STEP_TOKENS = 2**27  # of 16 bytes, which few tokens have, they make 2^31


def find_problems(valid: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong between settings; `valid` holds the sections of a RunConfig that are
    valid by themselves.

    A mesh axis of -1 counts as 1 here; `resolve_mesh` checks again once the device count is known.
    """
    run = _ValidSections.model_construct(**valid)
    for name in set(RunConfig.model_fields) - set(valid):
        run.__dict__.pop(name, None)  # pydantic fills in defaults
    problems: list[Problem] = []
    for check in _CHECKS:
        try:
            problems.extend(check(run))
        except _InvalidSectionError:
            continue
    return problems


def resolve_mesh(config: RunConfig, device_count: int) -> MeshConfig:
    """Return the mesh with its -1 filled in, checked against the number of devices over all
    processes.

    Raises:
        ConfigError: the mesh does not fit the devices, or the model, data or batch do not fit the
          mesh.
    """
    sizes = config.mesh.sizes
    fixed = math.prod(size for size in sizes.values() if size != -1)
    problems = list(_mesh_axes(config))
    if not problems:
        filled = {
            axis: device_count // fixed if size == -1 else size for axis, size in sizes.items()
        }
        mesh = config.mesh.model_copy(update=filled)
        if math.prod(filled.values()) != device_count:
            problems.append(wrong_product(sizes, device_count))
        else:
            resolved = config.model_copy(update={"mesh": mesh})
            problems = find_problems(
                {name: getattr(resolved, name) for name in RunConfig.model_fields}
            )
        if not problems:
            return mesh
    raise ConfigError(
        problems, f"the configuration on {device_count} device{'s' * (device_count > 1)}"
    )


# --- mesh -----------------------------------------------------------------------------------------


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
        yield Problem(
            fills[0], f"{names}: only one axis can take the devices left over; use {cure}"
        )


def _elastic(config: RunConfig) -> Iterator[Problem]:
    """What follows the devices is told by the sizes of a whole mesh."""
    if config.mesh.elastic == "none":
        return
    for axis, size in config.mesh.sizes.items():
        if size == -1:
            text = f"mesh.elastic={config.mesh.elastic} needs the sizes of the whole mesh, from which fewer or more"
            cure = f"use mesh.{axis}=N, as of all devices, or mesh.elastic=none"
            yield Problem(f"mesh.{axis}", f"{text} devices follow, not mesh.{axis}=-1; {cure}")


def _mesh_on_fake_devices(config: RunConfig) -> Iterator[Problem]:
    """A process has `device_count` devices, so a mesh without -1 needs a multiple of it."""
    sizes = config.mesh.sizes
    count = config.runtime.device_count
    if config.mesh.elastic != "none":
        return
    if count and min(sizes.values()) >= 1 and math.prod(sizes.values()) % count:
        yield wrong_product(sizes, count)


def _vocabulary_on_mesh(config: RunConfig) -> Iterator[Problem]:
    yield from divisible(
        "model.vocab_size", config.model.vocab_size, {"mesh.tensor": config.mesh.tensor}
    )


def _width_on_mesh(config: RunConfig) -> Iterator[Problem]:
    mesh = config.mesh
    axes = {"mesh.fsdp": mesh.fsdp, "mesh.expert": mesh.expert, "mesh.context": mesh.context}
    yield from divisible("model.embed_dim", config.model.embed_dim, axes)


def _batch_on_mesh(config: RunConfig) -> Iterator[Problem]:
    mesh = config.mesh
    axes = {"mesh.data": mesh.data, "mesh.fsdp": mesh.fsdp, "mesh.expert": mesh.expert}
    by = {**axes, "train.microbatches": config.train.microbatches}
    yield from divisible("train.batch_size", config.train.batch_size, by)


def _stages(config: RunConfig) -> Iterator[Problem]:
    """Every stage has layers, and computes its share of every microbatch's loss."""
    mesh, train = config.mesh, config.train
    stages = {"mesh.stage": mesh.stage}
    if mesh.stage <= 1:
        if mesh.stage_repeats > 1:
            text = f"mesh.stage_repeats={mesh.stage_repeats} needs mesh.stage of at least 2; use mesh.stage_repeats=1"
            yield Problem("mesh.stage_repeats", text)
        return
    if not list(config.model.problems()):
        yield from _enough_layers(config)
    if mesh.stage_repeats > 1:
        yield from divisible("train.microbatches", train.microbatches, stages)
    split = {"mesh.data": mesh.data, "mesh.fsdp": mesh.fsdp, "mesh.expert": mesh.expert}
    split |= {
        "mesh.context": mesh.context,
        "mesh.tensor": mesh.tensor,
        "train.microbatches": train.microbatches,
    }
    yield from divisible(
        "train.batch_size * data.sequence_length", config.tokens_per_step, {**split, **stages}
    )


def _enough_layers(config: RunConfig) -> Iterator[Problem]:
    """A stage holds whole patterns of the model's segments, at least one."""
    mesh, patterns = config.mesh, sum(config.model.repeats)
    if patterns >= mesh.virtual_stages:
        return
    by = f"mesh.stage={mesh.stage}"
    if mesh.stage_repeats > 1:
        by += f" * mesh.stage_repeats={mesh.stage_repeats} = {mesh.virtual_stages}"
    what = (
        "layers"
        if patterns == config.model.num_layers
        else "repetitions of the patterns in model.segments"
    )
    text = f"{by} is more than the {patterns} {what}, of which each stage needs one"
    yield Problem(
        "mesh.stage", f"{text}; use mesh.stage={max(patterns // mesh.stage_repeats, 1)} or less"
    )


def _sequence_on_mesh(config: RunConfig) -> Iterator[Problem]:
    """Every context device holds two chunks of the sequence (zigzag), and tensor devices equal
    parts of them.
    """
    context, tensor = config.mesh.context, config.mesh.tensor
    axes = {"mesh.context": context, "mesh.tensor": tensor}
    chunks = 2 if context > 1 and tensor % 2 else 1
    yield from divisible("data.sequence_length", config.data.sequence_length, axes, times=chunks)


# --- model ----------------------------------------------------------------------------------------


def _segments(config: RunConfig) -> Iterator[Problem]:
    yield from config.model.problems()


def _layers(config: RunConfig) -> Iterator[Problem]:
    for path, section in config.model.sections():
        try:
            yield from section.problems(path, config)
        except _InvalidSectionError:
            continue


def _further_tokens(config: RunConfig) -> Iterator[Problem]:
    """The modules of `model.mtp` need an objective that has targets for them."""
    if config.model.mtp is not None and not config.objective.FURTHER:
        kind = config.objective.kind
        text = f"model.mtp.depth={config.model.mtp.depth} needs an objective that predicts further tokens, which"
        cure = "use objective.kind=next_token, or model.mtp=null"
        yield Problem("model.mtp", f"{text} objective.kind={kind} does not; {cure}")


def _positions(config: RunConfig) -> Iterator[Problem]:
    position, length = config.model.position, config.data.sequence_length
    if isinstance(position, LearnedPosition) and position.max_length < length:
        text = f"model.position.max_length={position.max_length} is less than data.sequence_length={length}"
        cure = (
            f"use model.position.max_length={length}, or data.sequence_length={position.max_length}"
        )
        yield Problem("model.position.max_length", f"{text}; {cure}")
    dim = config.model.embed_dim
    if isinstance(position, SinusoidalPosition) and dim % 2:
        text = f"model.embed_dim={dim} must be even for model.position.kind=sinusoidal"
        yield Problem("model.embed_dim", f"{text}; use {dim + 1}")


# --- train ----------------------------------------------------------------------------------------


def _tokens_of_a_step(config: RunConfig) -> Iterator[Problem]:
    batch_size, length = config.train.batch_size, config.data.sequence_length
    if batch_size * length > MAX_STEP_TOKENS:
        both = f"train.batch_size={batch_size} * data.sequence_length={length} = {batch_size * length} tokens a step"
        most = f"must be at most {MAX_STEP_TOKENS}: the bytes of their text are counted in int32"
        fewer = f"use train.batch_size={MAX_STEP_TOKENS // length} or less"
        cure = (
            fewer
            if length <= MAX_STEP_TOKENS
            else f"use data.sequence_length={MAX_STEP_TOKENS} or less"
        )
        yield Problem("train.batch_size", f"{both} {most}; {cure}")


def _offload(config: RunConfig) -> Iterator[Problem]:
    train = config.train
    if "activations" in train.offload and train.remat == "none":
        text = "train.offload=[activations] moves the inputs of blocks, but train.remat=none keeps all activations"
        yield Problem(
            "train.offload",
            f"{text} on the device; use train.remat=full, or train.remat={{query: save}}",
        )


def _remat_names(config: RunConfig) -> Iterator[Problem]:
    """A choice is for an activation that some layer of the model names."""
    known = dict(BLOCK_ACTIVATIONS)
    for _, section in config.model.sections():
        known |= section.activations
    for name in config.train.remat_choices:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            yield Problem(
                f"train.remat.{name}",
                f"train.remat.{name} is no activation of this model's layers; {cure}",
            )


def _spikes(config: RunConfig) -> Iterator[Problem]:
    """A window cannot hold more than itself, and only what is skipped can be too much."""
    spikes, path = config.train.spikes, "train.spikes"
    for name in ("min_steps", "max_skipped"):
        value = getattr(spikes, name)
        if value > spikes.window:
            text = f"{path}.{name}={value} must be at most {path}.window={spikes.window}"
            yield Problem(f"{path}.{name}", f"{text}; use {path}.{name}={spikes.window // 2}")
    if spikes.then == "roll_back" and spikes.kind != "skip":
        text = f"{path}.then=roll_back needs {path}.kind=skip, not {spikes.kind}"
        yield Problem(f"{path}.then", f"{text}; use {path}.kind=skip, or {path}.then=stop")
        return
    if spikes.then == "roll_back" and not config.checkpoint.every:
        text = f"{path}.then=roll_back goes back to a checkpoint, and checkpoint.every=0 saves none before the end"
        yield Problem(f"{path}.then", f"{text}; use checkpoint.every=100, or {path}.then=stop")


# --- data, objective, optimizer, schedule ---------------------------------------------------------


def _pipeline(config: RunConfig) -> Iterator[Problem]:
    """Files that only `maxlm prepare` reads may be missing: a run trains without them."""
    for problem in _step_problems(config.data):
        if not isinstance(problem, MissingFileProblem):
            yield problem


def missing_step_files(data: DataConfig) -> list[Problem]:
    """Return the files that steps of the pipeline need and that are not there."""
    return [one for one in _step_problems(data) if isinstance(one, MissingFileProblem)]


def _step_problems(data: DataConfig) -> Iterator[Problem]:
    for index, step in enumerate(data.pipeline.steps):
        yield from step.problems(f"data.pipeline.steps.{index}", data)


def _mixture(config: RunConfig) -> Iterator[Problem]:
    yield from mixture_problems(config.data)


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


def _trained_tokenizer(config: RunConfig) -> Iterator[Problem]:
    asked, most = config.data.vocab_size, config.model.vocab_size
    if asked is not None and asked > most:
        text = f"data.vocab_size={asked} is more than model.vocab_size={most}, which must hold the tokenizer's pieces"
        yield Problem("data.vocab_size", f"{text}; use data.vocab_size={most} or less, or null")


def _own_tokenizer(config: RunConfig) -> Iterator[Problem]:
    """`maxlm prepare --force` may train the tokenizer again, but never the copy that a run goes on
    with.
    """
    own, named = place_of(f"{config.run_dir}/tokenizer"), place_of(config.data.tokenizer)
    if config.run_dir.strip() and (named == own or named.startswith(own + os.sep)):
        text = f"data.tokenizer={config.data.tokenizer!r} is where the run keeps its own copy of the tokenizer"
        yield Problem("data.tokenizer", f"{text}; use another, such as data/name/tokenizer.model")


def _paths(config: RunConfig) -> Iterator[Problem]:
    yield from _path("run_dir", config.run_dir, "runs/name")
    unsafe = None if "\0" in config.run_dir else why_unstorable(config.run_dir)
    if unsafe is not None:
        text = f"run_dir={config.run_dir!a}: checkpoints in a folder with {unsafe} in its path could not be read back"
        yield Problem("run_dir", f"{text}; choose another run_dir, such as runs/name")
    if config.train.init_from is not None:
        yield from _path("train.init_from.path", config.train.init_from.path, "runs/name")


def _paths_of_data(config: RunConfig) -> Iterator[Problem]:
    yield from _path("data.tokenizer", config.data.tokenizer, "data/name/tokenizer.model")
    for name, source in config.data.sources.items():
        yield from _path(f"data.sources.{name}.path", source.path, "data/name")
        for index, raw in enumerate(source.raw.paths if source.raw else ()):
            yield from _path(f"data.sources.{name}.raw.paths.{index}", raw, "data/raw")


def _compile_cache(config: RunConfig) -> Iterator[Problem]:
    if config.runtime.compile_cache is not None:
        yield from _path("runtime.compile_cache", config.runtime.compile_cache, "compiled")


def _path(path: str, value: str, example: str) -> Iterator[Problem]:
    if not value.strip():
        yield Problem(path, f'{path}="" is empty; give a path such as {example}')
    if "\0" in value:
        yield Problem(
            path, f"{path}={value!a} has a zero byte, which no file name can have; remove it"
        )
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        text = f"{path}={value!a} cannot be a file name here, where names are {sys.getfilesystemencoding()}"
        yield Problem(path, f"{text}; set the environment's LC_ALL=C.UTF-8, or use other signs")


def _objective(config: RunConfig) -> Iterator[Problem]:
    yield from config.objective.problems(config)


def _optimizer(config: RunConfig) -> Iterator[Problem]:
    yield from config.optimizer.problems()


def _parametrisation(config: RunConfig) -> Iterator[Problem]:
    """An optimizer has a rule for widths, and every layer's width can follow the model's."""
    if isinstance(config.model.parametrisation, MupParametrisation):
        kind = config.optimizer.kind
        if config.optimizer.width_rate("matrix", 2.0, 2.0) is None:
            text = f"model.parametrisation.kind=mup has no rule for optimizer.kind={kind}"
            yield Problem(
                "model.parametrisation.kind", f"{text}; use optimizer.kind=adamw, or kind: standard"
            )


def _schedule(config: RunConfig) -> Iterator[Problem]:
    schedule = config.schedule
    total = schedule.total_steps or config.train.num_steps
    total_name = f"{'schedule.total_steps' if schedule.total_steps else 'train.num_steps'}={total}"
    if schedule.warmup_steps >= total:
        text = f"schedule.warmup_steps={schedule.warmup_steps} must be less than {total_name}"
        yield Problem(
            "schedule.warmup_steps",
            f"{text}; use schedule.warmup_steps={total // 10}, or more steps",
        )
    elif schedule.warmup_steps + schedule.cooldown_steps > total:
        both = f"schedule.warmup_steps={schedule.warmup_steps} + schedule.cooldown_steps={schedule.cooldown_steps}"
        cure = f"use schedule.cooldown_steps={total - schedule.warmup_steps} or less"
        yield Problem("schedule.cooldown_steps", f"{both} is more than {total_name}; {cure}")
    if schedule.kind == "wsd" and not schedule.cooldown_steps:
        text = "schedule.kind=wsd needs schedule.cooldown_steps, the steps of the final decay"
        yield Problem(
            "schedule.kind",
            f"{text}; use schedule.cooldown_steps={max(total // 5, 1)}, or kind: constant",
        )
    if schedule.kind != "wsd" and schedule.cooldown_steps:
        text = f"schedule.cooldown_steps={schedule.cooldown_steps} is for schedule.kind=wsd, not {schedule.kind}"
        yield Problem("schedule.cooldown_steps", f"{text}; use schedule.kind=wsd, or remove it")
    if schedule.kind == "inverse_sqrt" and not schedule.warmup_steps:
        text = "schedule.kind=inverse_sqrt falls from the end of the warm-up and needs schedule.warmup_steps"
        yield Problem("schedule.kind", f"{text}; use schedule.warmup_steps={max(total // 10, 1)}")


# --- checkpoint, runtime --------------------------------------------------------------------------


def _keep_every(config: RunConfig) -> Iterator[Problem]:
    every, keep = config.checkpoint.every, config.checkpoint.keep_every
    if keep and not every:
        text = f"checkpoint.keep_every={keep} has nothing to keep with checkpoint.every=0 (only at the end)"
        yield Problem("checkpoint.keep_every", f"{text}; use checkpoint.every={keep}, or remove it")
    elif keep:
        yield from divisible("checkpoint.keep_every", keep, {"checkpoint.every": every})


def _saved_steps(config: RunConfig) -> Iterator[Problem]:
    asked = config.checkpoint.resume_from
    if asked is not None and asked >= config.train.num_steps:
        text = (
            f"checkpoint.resume_from={asked} is not before train.num_steps={config.train.num_steps}"
        )
        cure = "use an earlier checkpoint, more train.num_steps, or null to go on from the newest"
        yield Problem("checkpoint.resume_from", f"{text}; {cure}")
    steps, total = config.checkpoint.at_steps, config.train.num_steps
    late = [step for step in steps if step > total]
    if late:
        text = f"checkpoint.at_steps={list(steps)}: {late[0]} is after the last step"
        cure = f"use steps up to train.num_steps={total}, or more train.num_steps"
        yield Problem("checkpoint.at_steps", f"{text}; {cure}")


def _store(config: RunConfig) -> Iterator[Problem]:
    """Copies lie in a place of their own, and something is copied."""
    store, every = config.checkpoint.store, config.checkpoint.every
    if store is None:
        return
    local = store.url.removeprefix("file://").removeprefix("local://")
    place, run_dir = (f"{place_of(path).rstrip('/')}/" for path in (local, config.run_dir))
    if "://" not in local and (place.startswith(run_dir) or run_dir.startswith(place)):
        text = f"checkpoint.store.url={store.url} and run_dir={config.run_dir} lie in each other"
        yield Problem("checkpoint.store.url", f"{text}; use a folder beside it, on another disk")
    for name in ("every", "keep_every"):
        number = getattr(store, name)
        if number and every and number % every:
            path = f"checkpoint.store.{name}"
            yield from divisible(path, number, {"checkpoint.every": every})


def _fake_devices(config: RunConfig) -> Iterator[Problem]:
    count, platform = config.runtime.device_count, config.runtime.platform
    if count and platform not in ("auto", "cpu"):
        text = (
            f"runtime.device_count={count} makes fake CPU devices, but runtime.platform={platform}"
        )
        yield Problem(
            "runtime.device_count",
            f"{text}; use runtime.device_count=null, or runtime.platform=cpu",
        )


def _profile(config: RunConfig) -> Iterator[Problem]:
    profile, total = config.runtime.profile, config.train.num_steps
    if profile and profile.start_step + profile.num_steps > total:
        both = f"runtime.profile.start_step={profile.start_step} + num_steps={profile.num_steps}"
        cure = f"use runtime.profile.start_step={max(total - profile.num_steps, 0)}"
        if profile.num_steps > total:
            cure = f"use runtime.profile.num_steps={total} and start_step=0"
        yield Problem(
            "runtime.profile.start_step",
            f"{both} is after the last step, train.num_steps={total}; {cure}",
        )


_CHECKS: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    _paths,
    _paths_of_data,
    _own_tokenizer,
    _trained_tokenizer,
    _segments,
    _layers,
    _further_tokens,
    _positions,
    _mesh_axes,
    _elastic,
    _mesh_on_fake_devices,
    _vocabulary_on_mesh,
    _width_on_mesh,
    _batch_on_mesh,
    _tokens_of_a_step,
    _offload,
    _remat_names,
    _spikes,
    _sequence_on_mesh,
    _stages,
    _data_paths,
    _mixture,
    _pipeline,
    _objective,
    _optimizer,
    _parametrisation,
    _schedule,
    _keep_every,
    _saved_steps,
    _store,
    _compile_cache,
    _fake_devices,
    _profile,
)
