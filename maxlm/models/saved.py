"""The model of a checkpoint: its settings, and its parameters on any mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from pydantic import ConfigDict, ValidationError

from maxlm.checkpoint import CheckpointReader
from maxlm.checkpoint.rearrange import rearrange_layers
from maxlm.config.errors import UserError
from maxlm.config.model import ModelConfig
from maxlm.config.objectives import DEFAULT_OBJECTIVE, Objective
from maxlm.config.reading.explain import explain
from maxlm.config.section import Section
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import map_parameters, shardings, with_value
from maxlm.sharding.stages import recorded_layout


class _SavedTrain(Section):
    """Of the training, its precision."""

    model_config = ConfigDict(extra="ignore")

    compute_dtype: str = "auto"


class SavedSettings(Section):
    """Of what was saved, what its use depends on; an imported checkpoint has the model alone.

    The objective decides what tokens see.
    """

    model_config = ConfigDict(extra="ignore")

    model: ModelConfig
    objective: Objective = DEFAULT_OBJECTIVE
    train: _SavedTrain = _SavedTrain()


def saved_model(record: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the model that a checkpoint is of; see `saved_settings`."""
    return saved_settings(record, where).model


def saved_settings(record: Mapping[str, Any], where: str) -> SavedSettings:
    """Return the settings that a checkpoint's use depends on.

    Args:
      record: of the checkpoint.
      where: the folder, for messages.

    Raises:
      UserError: this version does not know its settings.
    """
    try:
        return SavedSettings.model_validate(record["config"])
    except ValidationError as error:
        version = record.get("versions", {}).get("maxlm", "another version")
        listed = "\n  ".join(str(problem) for problem in explain(error, {}))
        text = f"{where}: the settings of its checkpoint are those of maxlm {version}, which this one cannot read"
        raise UserError(f"{text}; use that version:\n  {listed}") from None


def placed(declared: Decoder, mesh: Mesh) -> Decoder:
    """Return a declared decoder with the shardings of its parameters on a mesh."""

    def place(parameter: Any, sharding: Any) -> Any:
        return with_value(parameter, parameter.get_value().update(sharding=sharding))

    return map_parameters(place, declared, shardings(declared, mesh))


def restore_decoder(
    reader: CheckpointReader, model: ModelConfig, mesh: Mesh, step: int | None = None
) -> tuple[Decoder, int]:
    """Read the decoder of a checkpoint, its layers in their order, and return its step too.

    Args:
      reader: of the folder of checkpoints, which has at least one.
      model: as `saved_model` says it.
      mesh: where it goes, without stages.
      step: which checkpoint; the newest whole one by default.

    Raises:
      UserError: `step` was not saved, or all checkpoints are damaged.
    """

    def saved_as(record: dict[str, Any]) -> dict[str, Decoder]:
        return {"decoder": placed(Decoder(model, recorded_layout(record)), mesh)}

    restored = reader.restore(None, step=step, partial=True, saved_as=saved_as)
    assert restored is not None, "the folder has a checkpoint"
    decoder: Decoder = rearrange_layers(restored.state["decoder"], placed(Decoder(model), mesh))
    return jax.block_until_ready(decoder), restored.step
