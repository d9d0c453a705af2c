"""Read checkpoints, newest first; believe none before its arrays fit their fingerprints; change
nothing on disk.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from maxlm.checkpoint import layout, leaves
from maxlm.config.errors import UserError
from maxlm.events import event
from maxlm.runtime import all_true, on_first_process

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """A state on its devices, the record saved with it, and newer checkpoints that were passed over
    as damaged.
    """

    step: int
    state: Any
    record: dict[str, Any]
    damaged: tuple[Path, ...] = ()


class CheckpointReader:
    """The checkpoints in `directory`, for any number of processes; every process must make the same
    calls.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).absolute()

    def steps(self) -> list[int]:
        """Return the saved steps, newest first."""
        steps: list[int] = on_first_process(lambda: layout.saved_steps(self.directory))
        return steps

    def records(self) -> list[dict[str, Any]]:
        """Return the readable records, newest first, without touching any array; warn about the
        others.
        """
        sealed = [(step, self._read_record(step)) for step in self.steps()]
        for step, content in sealed:
            if "cause" in content:
                self._warn(step, content["cause"])
        return [content["record"] for _, content in sealed if "record" in content]

    def latest_record(self) -> dict[str, Any] | None:
        """Return the newest readable record, or None."""
        for step in self.steps():
            content = self._read_record(step)
            if "record" in content:
                return dict(content["record"])
            self._warn(step, content["cause"])
        return None

    def record(self, step: int) -> dict[str, Any] | None:
        """Return the record of a step, or None if it cannot be read."""
        content = self._read_record(step)
        if "cause" in content:
            self._warn(step, content["cause"])
        return content.get("record")

    def restore(
        self,
        abstract_state: Any,
        *,
        step: int | None = None,
        partial: bool = False,
        saved_as: Callable[[dict[str, Any]], Any] | None = None,
    ) -> Restored | None:
        """Restore the newest whole checkpoint (or that of `step`) onto the shardings of
        `abstract_state`.

        Args:
            abstract_state: any tree of jax.ShapeDtypeStruct with a sharding; modules are trees.
            step: restore this checkpoint and no other.
            partial: `abstract_state` may lack saved leaves, e.g. `{"model": ...}` without the
              optimizer's.
            saved_as: returns, from a checkpoint's record, the tree that is in it where that is not
              `abstract_state`.

        Returns:
            None if there is no checkpoint at all.

        Raises:
            UserError: the checkpoint is of another model, `step` was not saved, or all checkpoints
              are damaged.
        """
        saved = self.steps()
        if step is not None and step not in saved:
            raise UserError(
                f"{self.directory} has no checkpoint of step {step}; it has {saved or 'none'}"
            )
        causes: dict[Path, str] = {}
        for candidate in saved if step is None else [step]:
            try:
                state, record = self._restore_step(
                    candidate, saved_as or (lambda _: abstract_state), partial=partial
                )
            except layout.DamagedError as error:
                self._warn(candidate, str(error))
                causes[layout.step_path(self.directory, candidate)] = str(error)
            else:
                return Restored(candidate, state, record, tuple(causes))
        if causes:
            raise UserError(
                "no checkpoint could be restored:\n  "
                + "\n  ".join(f"{path}: {cause}" for path, cause in causes.items())
                + f"\nnothing was changed; bring back a whole copy, or move {self.directory} away to start anew"
            )
        return None

    def _restore_step(
        self, step: int, saved_as: Callable[[dict[str, Any]], Any], *, partial: bool
    ) -> tuple[Any, dict[str, Any]]:
        path = layout.step_path(self.directory, step)
        content = self._read_record(step)
        if "cause" in content:
            raise layout.DamagedError(content["cause"])
        manifest: leaves.Manifest = content["leaves"]
        abstract_state = saved_as(content["record"])
        wanted = leaves.flatten(abstract_state)
        leaves.check_fits(manifest, wanted, partial=partial, where=str(path))
        arrays = _read_arrays(path / layout.STATE, wanted)
        found = leaves.fingerprints(arrays)
        wrong = [name for name in wanted if found[name] != manifest[name]["fingerprint"]]
        if wrong:
            raise layout.DamagedError(
                f"{len(wrong)} of {len(wanted)} arrays do not fit their fingerprints: {wrong[:3]}"
            )
        return leaves.unflatten(abstract_state, arrays), content["record"]

    def _read_record(self, step: int) -> dict[str, Any]:
        """Return {"record", "leaves"}, or {"cause"} if the record is damaged: the same on every
        process.
        """

        def read() -> dict[str, Any]:
            try:
                return layout.read_sealed(layout.step_path(self.directory, step))
            except layout.DamagedError as error:
                return {"cause": str(error)}

        return dict(on_first_process(read))

    def _warn(self, step: int, cause: str) -> None:
        log.warning(
            "damaged checkpoint %s: %s",
            *(layout.step_path(self.directory, step), cause),
            extra=event("damaged_checkpoint", step=step, cause=cause),
        )


def _read_arrays(path: Path, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Read the wanted leaves; all processes succeed, or all raise DamagedError."""
    cause = ""
    arrays: dict[str, jax.Array] = {}
    try:
        # This process alone: a process that fails must not leave the others waiting at orbax's
        # barrier.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None,
            active_processes={jax.process_index()},
            barrier_sync_key_prefix="read",
        )
        with ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone
        ) as checkpointer:
            arguments = ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            )
            arrays = checkpointer.restore(path, args=arguments)
            jax.block_until_ready(arrays)
    except Exception as error:  # orbax raises nearly any kind for a damaged checkpoint
        if "RESOURCE_EXHAUSTED" in str(error):  # too little memory is no damage
            raise
        cause = textwrap.shorten(f"{type(error).__name__}: {error}", layout.CAUSE_LENGTH)
    if not all_true(not cause):
        raise layout.DamagedError(cause or "another process could not read its part")
    return arrays
