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

from maxlm.checkpoint import CheckpointReader, layout
from maxlm.checkpoint.hf.load import load as load_published
from maxlm.checkpoint.hf.published import Published, is_published, open_published
from maxlm.config.checks import resolve_mesh
from maxlm.config.errors import UserError
from maxlm.config.reading.explain import explain
from maxlm.config.schema import MESH_AXES, MeshConfig, RunConfig
from maxlm.data.tokenizers import Tokenizer, open_tokenizer
from maxlm.models.decoder import Decoder
from maxlm.models.saved import restore_decoder
from maxlm.runtime import compute_dtype_of
from maxlm.sharding.fsdp import cast
from maxlm.sharding.mesh import build_mesh
from maxlm.sharding.parameters import shardings

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")


class Source(NamedTuple):
    """Where a model is.

    Attributes:
      path: as it was named.
      reader: of its checkpoints.
      step: the one that is meant; None: the newest.
      tokenizer: the folder of its tokenizer, which may not be there.
      published: what it is, if it is a folder of published weights.
    """

    path: Path
    reader: CheckpointReader
    step: int | None
    tokenizer: Path
    published: Published | None = None


class Loaded(NamedTuple):
    """A model on its devices.

    Attributes:
      config: the model's settings, on this mesh; its data are none.
      mesh: the devices.
      decoder: parameters, those that are not used in fp32 in the compute dtype.
      dtype: the compute dtype.
      tokenizer: None where there is none.
      step: of the checkpoint.
    """

    config: RunConfig
    mesh: Mesh
    decoder: Decoder
    dtype: jnp.dtype
    tokenizer: Tokenizer | None
    step: int


def find(named: Path | str, step: int | None) -> Source:
    """Return what a path means: a run directory, a folder of checkpoints, one checkpoint, or a
    folder of published weights.

    Raises:
      UserError: it is none of them.
    """
    path = Path(named)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the run_dir of a run that was trained")
    if is_published(path):
        if step is not None:
            raise UserError(f"{path} has published weights, and no steps; do not give one")
        return Source(path, CheckpointReader(path), None, path, open_published(path))
    if (path / layout.RECORD).is_dir():
        if step is not None or path.resolve() != layout.step_path(
            path.resolve().parent, _number(path)
        ):
            raise UserError(
                f"{path} is one checkpoint, whose folder must have its step for a name, with eight digits; rename it, "
                "and do not give a step besides"
            )
        path, step = path.resolve().parent, _number(path)
    inside = path / "checkpoints"
    checkpoints = inside if inside.is_dir() else path
    beside = checkpoints.absolute().parent / "tokenizer"
    places = [folder / "tokenizer" for folder in (Path(named), path)]
    tokenizer = next((place for place in places if place.is_dir()), beside)
    return Source(Path(named), CheckpointReader(checkpoints), step, tokenizer)


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
    record = _record(source) if source.published is None else _published_record(source.published)
    config = _settings(record, source.path, _mesh(mesh, len(devices)))
    tokenizer = _tokenizer(source, record)
    compute_dtype = _dtype(dtype, config, devices[0])
    built = build_mesh(config.mesh, devices[: math.prod(config.mesh.sizes.values())])
    decoder, step = _read(source, config, built, compute_dtype)
    return Loaded(config, built, decoder, compute_dtype, tokenizer, step)


def _number(path: Path) -> int:
    name = path.resolve().name
    return int(name) if name.isdecimal() else -1


def _published_record(published: Published) -> dict[str, Any]:
    """Return what the record of a checkpoint would say of published weights."""
    record: dict[str, Any] = {"config": {"model": published.model.model_dump()}, "step": 0}
    try:
        return {**record, "tokenizer": open_tokenizer(published.folder).fingerprint}
    except UserError as error:
        log.warning("without a tokenizer that can be used: %s", error)
        return record


def _record(source: Source) -> dict[str, Any]:
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


def _settings(record: Mapping[str, Any], path: Path, mesh: MeshConfig) -> RunConfig:
    """Read what matters here of the settings that were saved with a checkpoint: of the run the
    model, its objective, which decides what tokens see, and its precision.

    Raises:
      UserError: this version does not know them, or the model does not divide by the mesh.
    """
    saved = record["config"]
    train = {"num_steps": 1, "batch_size": mesh.batch_devices}
    if "compute_dtype" in saved.get("train", {}):
        train["compute_dtype"] = saved["train"]["compute_dtype"]
    settings = {
        "run_dir": "none",
        "model": saved["model"],
        "data": {
            "sources": {"none": {"path": "none"}},
            "tokenizer": "none",
            "sequence_length": mesh.tensor,
        },
        "train": train,
        **({"objective": saved["objective"]} if "objective" in saved else {}),
    }
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        version = record.get("versions", {}).get("maxlm", "another version")
        listed = "\n  ".join(str(problem) for problem in explain(error, {}))
        text = f"{path}: the settings of its checkpoint are those of maxlm {version}, which this one cannot read"
        raise UserError(f"{text}; use that version:\n  {listed}") from None
    here = config.model_copy(update={"mesh": mesh})
    return here.model_copy(update={"mesh": resolve_mesh(here, math.prod(mesh.sizes.values()))})


def _dtype(asked: str | None, config: RunConfig, device: Any) -> jnp.dtype:
    if asked is None:
        return compute_dtype_of(config.train.compute_dtype, device.platform)
    if asked not in DTYPES:
        raise UserError(
            f"dtype={asked!r} must be one of {', '.join(DTYPES)}, or None: that of the training"
        )
    return jnp.dtype(asked)


def _tokenizer(source: Source, record: Mapping[str, Any]) -> Tokenizer | None:
    """Open a model's tokenizer, which is proved to be the one it was trained with.

    Raises:
      UserError: it is missing, cannot be read, or is another one.
    """
    path, expected = source.tokenizer, record.get("tokenizer")
    if expected is None:
        return None
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


def _read(source: Source, config: RunConfig, mesh: Mesh, dtype: jnp.dtype) -> tuple[Decoder, int]:
    """Read the decoder, its layers in their order, and return the step of its checkpoint."""
    if source.published is not None:
        decoder, step = load_published(source.published, Decoder(config.model), mesh), 0
    else:
        decoder, step = restore_decoder(source.reader, config.model, mesh, source.step)
    # Once, and not whenever they are used: half the memory, and half of what a token reads.
    layouts = shardings(decoder, mesh)
    narrow = jax.jit(lambda module: cast(module, dtype), out_shardings=layouts, donate_argnums=0)
    return decoder if dtype == jnp.float32 else narrow(decoder), step
