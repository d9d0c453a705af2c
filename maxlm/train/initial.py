"""The state that a run starts from: its own checkpoint, weights of `train.init_from`, or random
ones.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from maxlm.checkpoint import CheckpointReader, Restored, RunDirectory
from maxlm.checkpoint.hf.load import load
from maxlm.checkpoint.hf.published import Published, is_published, open_published
from maxlm.checkpoint.rearrange import rearrange_layers
from maxlm.config.errors import UserError
from maxlm.config.model import ModelConfig
from maxlm.config.resume import compare_models
from maxlm.config.schema import InitFromConfig, RunConfig
from maxlm.models.decoder import Decoder
from maxlm.models.saved import saved_model
from maxlm.sharding.parameters import named_parameters
from maxlm.train.faults.spikes import fit_window
from maxlm.train.setup import Program, state_as_saved
from maxlm.train.state import Consumed, TrainState, create_state, state_around

log = logging.getLogger(__name__)

Record = dict[str, Any]
_NOTHING = Consumed(rows=0, tokens=0, flops=0)


@dataclass(frozen=True)
class Source:
    """Where weights come from; nothing but names and shapes has been read.

    Attributes:
      asked: the setting.
      published: the folder, if it is one of published weights.
      reader: of the checkpoints, if it has some.
      record: of the checkpoint that will be read first.
    """

    asked: InitFromConfig
    published: Published | None = None
    reader: CheckpointReader | None = None
    record: Record | None = None


class Start(NamedTuple):
    """What a run begins with.

    Attributes:
      state: parameters and all else, on the mesh.
      step: how many steps are done.
      consumed: by them.
      published: what is known of the published weights that it began with, if it did.
    """

    state: TrainState
    step: int
    consumed: Consumed
    published: Record | None


def open_source(config: RunConfig, tokenizer: str) -> Source | None:
    """Look at what `train.init_from` names, before any device work; None if nothing is read of it.

    Args:
      config: the run. One that has checkpoints of its own goes on with them.
      tokenizer: fingerprint of the run's.

    Raises:
      UserError: it is missing or damaged, is of another model (all differences are named), or has
        not what is asked of it.
    """
    asked, own = config.train.init_from, RunDirectory(Path(config.run_dir)).checkpoints
    if asked is None or CheckpointReader(own).steps():
        return None
    if is_published(asked.path):
        return _published_source(asked, config.model)
    return _checkpoint_source(asked, config, tokenizer)


def start_of(
    restored: Restored | None, source: Source | None, program: Program, config: RunConfig
) -> Start:
    """Return what the run begins with: its own checkpoint, a source, or random parameters."""
    if restored is not None:
        state = with_own_window(restored.state, program)
        consumed = Consumed(**restored.record["consumed"])
        return Start(state, restored.step, consumed, restored.record.get("published"))
    if source is None:
        return Start(_random_state(program, config), 0, _NOTHING, None)
    log.info("starting from the weights of %s", source.asked.path)
    if source.published is not None:
        decoder = load(source.published, program.declared, program.mesh)
        state = _around(decoder, program, config)
        return Start(state, 0, _NOTHING, source.published.record())
    return _from_checkpoint(source, program, config)


def with_own_window(saved: TrainState, program: Program) -> TrainState:
    """Bring a state that was restored into this run's layout of layers, and give it this run's
    window of spikes: an empty one, if the saved run had another.
    """
    window = fit_window(saved.spikes, program.state.spikes)
    state: TrainState = rearrange_layers(saved._replace(spikes=window), program.state)
    return state


# --- published weights ----------------------------------------------------------------------------


def _published_source(asked: InitFromConfig, model: ModelConfig) -> Source:
    if asked.optimizer or asked.step or asked.checkpoint is not None:
        raise UserError(
            f"train.init_from: {asked.path} is a folder of published weights, which has no "
            "checkpoints, optimizer or steps; give its path alone"
        )
    # A run may have a larger vocabulary: what is added is zeros, and never predicted.
    published = open_published(asked.path, text_only=asked.text_only)
    published = published.for_vocabulary(model.vocab_size)
    _refuse_another_model(asked.path, published.model, model)
    published.parts(Decoder(model))
    for note in published.notes:
        log.warning("%s: %s", asked.path, note)
    return Source(asked, published=published)


# --- checkpoints ----------------------------------------------------------------------------------


def _checkpoint_source(asked: InitFromConfig, config: RunConfig, tokenizer: str) -> Source:
    reader = CheckpointReader(RunDirectory(Path(asked.path)).checkpoints)
    records = {record["step"]: record for record in reader.records()}
    if not records:
        raise UserError(
            f"train.init_from: {asked.path} has neither checkpoints nor published weights "
            "(config.json); give a run_dir, what maxlm import wrote, or such a folder"
        )
    if asked.text_only:
        raise UserError(
            f"train.init_from: {asked.path} has checkpoints, of which text_only takes no part; give "
            "published weights, or leave it out"
        )
    step = max(records) if asked.checkpoint is None else asked.checkpoint
    if step not in records:
        raise UserError(
            f"train.init_from.checkpoint={step}: {asked.path} has {sorted(records, reverse=True)}"
        )
    record = records[step]
    if (asked.optimizer or asked.step) and "consumed" not in record:
        raise UserError(
            f"train.init_from: {asked.path} was imported, and has no optimizer and no steps; give "
            "its path alone"
        )
    if asked.step and step >= config.train.num_steps:
        raise UserError(
            f"train.init_from.step: {asked.path} is at step {step}, not below "
            f"train.num_steps={config.train.num_steps}; use more steps, or step: false"
        )
    saved = saved_model(record, asked.path)
    _refuse_another_model(asked.path, saved, config.model)
    _refuse_other_parameters(asked.path, saved, config.model)
    if record.get("tokenizer", tokenizer) != tokenizer:
        log.warning(
            "%s was trained with another tokenizer than data.tokenizer: its ids mean other text",
            asked.path,
        )
    return Source(asked, reader=reader, record=record)


def _from_checkpoint(source: Source, program: Program, config: RunConfig) -> Start:
    assert source.reader is not None
    asked = source.asked
    names = ["decoder"] + ["optimizer"] * asked.optimizer
    names += ["step", "token_hash", "skipped"] * asked.step

    # Spikes are told from the steps before, whichever run did them.
    window = ["spikes"] * asked.step

    def saved_as(record: Record) -> Record:
        state = state_as_saved(record, config, program)
        return {name: getattr(state, name) for name in names + window}

    restored = source.reader.restore(None, step=asked.checkpoint, partial=True, saved_as=saved_as)
    assert restored is not None, "it had a record"
    wanted = {name: getattr(program.state, name) for name in names}
    parts = rearrange_layers({name: restored.state[name] for name in names}, wanted)
    counters = {name: parts[name] for name in names if name not in ("decoder", "optimizer")}
    for name in window:
        counters[name] = fit_window(restored.state[name], program.state.spikes)
    state = _around(parts["decoder"], program, config, slots=parts.get("optimizer"))
    published = restored.record.get("published")
    if not asked.step:
        return Start(state, 0, _NOTHING, published)
    consumed = Consumed(**restored.record["consumed"])
    return Start(state._replace(**counters), restored.step, consumed, published)


def _refuse_another_model(path: str, found: ModelConfig, wanted: ModelConfig) -> None:
    changes = compare_models(found, wanted)
    if changes:
        listed = "\n  ".join(map(str, changes))
        raise UserError(
            f"train.init_from: {path} is of another model than this run (there -> here):\n  {listed}"
            "\ninclude the model.yaml that maxlm import wrote, or the model section of that run"
        )


def _refuse_other_parameters(path: str, found: ModelConfig, wanted: ModelConfig) -> None:
    """Refuse what only shows in names: layers in other patterns, biases that balance experts."""
    there, here = (
        {path for path, _ in named_parameters(Decoder(model))} for model in (found, wanted)
    )
    if there != here:
        differing = ", ".join(sorted(there ^ here)[:3])
        raise UserError(
            f"train.init_from: {path} and this run do not have the same parameters ({differing}); "
            "write model.segments and the balance of experts as they are there"
        )


# --- whole states ---------------------------------------------------------------------------------


def _around(decoder: Decoder, program: Program, config: RunConfig, slots: Any = None) -> TrainState:
    sequences = config.train.batch_size
    return state_around(
        decoder, program.optimizer, program.state, batch_size=sequences, slots=slots
    )


def _random_state(program: Program, config: RunConfig) -> TrainState:
    return create_state(
        program.state,
        program.optimizer,
        program.mesh,
        seed=config.runtime.seed,
        batch_size=config.train.batch_size,
    )
