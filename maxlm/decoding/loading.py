"""From a path to a model on its devices: which checkpoint is meant, its settings, its tokenizer, its
parameters.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from pydantic import ValidationError

from maxlm.checkpoint import CheckpointReader, RunDirectory, layout
from maxlm.checkpoint.hf import load as published_weights
from maxlm.checkpoint.hf.published import Published, is_published, open_published
from maxlm.config.checks import resolve_mesh
from maxlm.config.errors import ConfigError, UserError
from maxlm.config.model import ModelConfig
from maxlm.config.reading.explain import explain
from maxlm.config.schema import MESH_AXES, MeshConfig, RunConfig
from maxlm.data.tokenizers import Tokenizer, end_ids, open_tokenizer
from maxlm.models.decoder import Decoder
from maxlm.models.saved import SavedSettings, restore_decoder, saved_settings
from maxlm.runtime import compute_dtype_of
from maxlm.sharding.fsdp import cast
from maxlm.sharding.mesh import build_mesh
from maxlm.sharding.parameters import shardings

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")


class Checkpoints(NamedTuple):
    """A folder with checkpoints.

    Attributes:
      path: as it was named.
      reader: of its checkpoints.
      step: the one that is meant; None: the newest.
      run: the run directory, as far as there is one around it.
    """

    path: Path
    reader: CheckpointReader
    step: int | None
    run: RunDirectory


Source = Checkpoints | Published


class Loaded(NamedTuple):
    """A model on its devices.

    Attributes:
      config: the model's settings, on this mesh; its data are none.
      mesh: the devices.
      decoder: parameters, those that are not used in fp32 in the compute dtype.
      dtype: the compute dtype.
      tokenizer: None where there is none.
      num_ids: how many of the vocabulary's rows mean something.
      ends: ids that end an answer.
      step: of the checkpoint; None: these are published weights.
    """

    config: RunConfig
    mesh: Mesh
    decoder: Decoder
    dtype: jnp.dtype
    tokenizer: Tokenizer | None
    num_ids: int
    ends: frozenset[int]
    step: int | None


def find(named: Path | str, step: int | None) -> Source:
    """Return what a path means: a run directory, a folder of checkpoints, one checkpoint, or
    published weights, of which names and shapes are read.

    Raises:
      UserError: it is none of them.
    """
    path = Path(named)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the run_dir of a run that was trained")
    if is_published(path):
        if step is not None:
            raise UserError(f"{path} is a folder of published weights, which has no step {step}")
        return open_published(path)
    if (path / layout.RECORD).is_dir():
        own = _number(path.resolve())
        if step is not None or own is None:
            raise UserError(
                f"{path} is one checkpoint, whose folder must have its step for a name, with eight digits; rename it, "
                "and do not give a step besides"
            )
        path, step = path.resolve().parent, own
    inside = RunDirectory(path).checkpoints
    run = path if inside.is_dir() else path.absolute().parent
    # A checkpoint that was carried elsewhere may have its tokenizer inside.
    places = (folder for folder in (Path(named), path) if RunDirectory(folder).tokenizer.is_dir())
    reader = CheckpointReader(inside if inside.is_dir() else path)
    return Checkpoints(Path(named), reader, step, RunDirectory(next(places, run)))


def load(
    source: Source, mesh: Mapping[str, int], dtype: str | None, *, devices: list[Any]
) -> Loaded:
    """Read a model onto the first of the devices, as many as the mesh needs.

    Args:
      source: where it is.
      mesh: devices along the axes that are not 1.
      dtype: of weights and activations; None: that of its training.
      devices: those of this process.

    Raises:
      UserError: there is no checkpoint, or it, its settings or its tokenizer cannot be read here.
    """
    sizes = _mesh(mesh, len(devices))
    if isinstance(source, Published):
        settings, tokenizer = SavedSettings(model=source.model), _published_tokenizer(source.folder)
        num_rows, ends = source.vocab_size, source.ends
    else:
        record = _record(source)
        settings, tokenizer = saved_settings(record, str(source.path)), _tokenizer(source, record)
        published = record.get("published", {})
        num_rows = published.get("vocab_size", settings.model.vocab_size)
        ends = published.get("ends", ())
    config = _run_of(settings, sizes)
    compute_dtype = _dtype(dtype, config, devices[0])
    built = build_mesh(config.mesh, devices[: math.prod(config.mesh.sizes.values())])
    decoder, step = _read(source, config.model, built)
    num_ids = min(tokenizer.vocab_size if tokenizer else num_rows, config.model.vocab_size)
    narrow = _narrow(decoder, built, compute_dtype)
    all_ends = frozenset(end_ids(tokenizer, ends))
    return Loaded(config, built, narrow, compute_dtype, tokenizer, num_ids, all_ends, step)


def _number(path: Path) -> int | None:
    """Return the step of a checkpoint's folder, None if it does not say it as it must."""
    own = path.name.isdecimal() and layout.step_path(path.parent, int(path.name)) == path
    return int(path.name) if own else None


def _record(source: Checkpoints) -> dict[str, Any]:
    reader, step = source.reader, source.step
    if step is not None and step not in reader.steps():
        raise UserError(
            f"{reader.directory} has no checkpoint of step {step}; it has {reader.steps() or 'none'}"
        )
    record = reader.latest_record() if step is None else reader.record(step)
    if record is None:
        cure = "train first: maxlm train RUN.yaml"
        raise UserError(
            f"{source.path} has no checkpoint{' that can be read' * (step is not None)}; {cure}"
        )
    return record


def _mesh(sizes: Mapping[str, Any], available: int) -> MeshConfig:
    """Check the axes that a user gives.

    Raises:
      UserError: an axis does not exist or cannot be used here, or there are too few devices.
    """
    usable = [axis for axis in MESH_AXES if axis not in ("stage", "context")]
    for axis, size in sizes.items():
        if axis not in usable:
            raise UserError(
                f"mesh: {axis!r} is none of the axes that a loaded model is split over: {', '.join(usable)}"
            )
        if not isinstance(size, int) or size < 1:
            raise UserError(f"mesh: {axis}={size!r} must be a whole number, at least 1")
    if math.prod(sizes.values()) > available:
        shown = " * ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UserError(f"mesh: {shown} must be at most {available}, the devices of this machine")
    return MeshConfig.model_validate({"fsdp": 1, **sizes})


def _run_of(saved: SavedSettings, mesh: MeshConfig) -> RunConfig:
    """Return a run of the model on a mesh, as whoever chooses kernels and lays out models wants it.

    Raises:
      UserError: the model does not divide by the mesh.
    """
    none = {"sources": {"none": {"path": "none"}}, "tokenizer": "none"}
    train = {"num_steps": 1, "batch_size": mesh.batch_devices}
    settings = {
        "run_dir": "none",
        "model": saved.model.when_used(),
        "objective": saved.objective,
        "data": {**none, "sequence_length": mesh.tensor},
        "train": {**train, "compute_dtype": saved.train.compute_dtype},
    }
    try:
        here = RunConfig.model_validate(settings).model_copy(update={"mesh": mesh})
    except ValidationError as error:
        raise ConfigError(explain(error, {}), "the settings of the checkpoint") from None
    return here.model_copy(update={"mesh": resolve_mesh(here, math.prod(mesh.sizes.values()))})


def _dtype(asked: str | None, config: RunConfig, device: Any) -> jnp.dtype:
    if asked is None:
        return compute_dtype_of(config.train.compute_dtype, device.platform)
    if asked not in DTYPES:
        raise UserError(
            f"dtype={asked!r} must be one of {', '.join(DTYPES)}, or None: that of the training"
        )
    return jnp.dtype(asked)


def _tokenizer(source: Checkpoints, record: Mapping[str, Any]) -> Tokenizer | None:
    """Open a model's tokenizer, which is proved to be the one it was trained with.

    Raises:
      UserError: it is missing, cannot be read, or is another one.
    """
    path, expected = source.run.tokenizer, record.get("tokenizer")
    if expected is None:  # imported, and not trained on
        return _published_tokenizer(source.run.published)
    if not path.exists():
        raise UserError(
            f"{path}: the model's tokenizer is missing; put back the folder of that with fingerprint {expected}"
        )
    tokenizer = open_tokenizer(path)
    if tokenizer.fingerprint != expected:
        raise UserError(
            f"{path} is not the tokenizer that the checkpoint of step {record['step']} was trained with: its "
            f"fingerprint is {tokenizer.fingerprint[:12]}..., not {expected}; put back that one"
        )
    return tokenizer


def _published_tokenizer(folder: Path) -> Tokenizer | None:
    """Open the tokenizer that came with published weights; where it cannot be used, say why: the
    model knows ids all the same.
    """
    try:
        return open_tokenizer(folder)
    except UserError as error:
        log.warning("the model takes token ids, and no texts: %s", error)
        return None


def _read(source: Source, model: ModelConfig, mesh: Mesh) -> tuple[Decoder, int | None]:
    if isinstance(source, Published):
        return published_weights.load(source, Decoder(model), mesh), None
    return restore_decoder(source.reader, model, mesh, source.step)


def _narrow(decoder: Decoder, mesh: Mesh, dtype: jnp.dtype) -> Decoder:
    """Cast the parameters once, and not whenever they are used: half the memory, and half of what a
    token reads.
    """
    if dtype == jnp.float32:
        return decoder
    layouts = shardings(decoder, mesh)
    narrow = jax.jit(lambda module: cast(module, dtype), out_shardings=layouts, donate_argnums=0)
    result: Decoder = narrow(decoder)
    return result
