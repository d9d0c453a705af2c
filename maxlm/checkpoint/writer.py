"""Write one checkpoint at a time in the background, and read it back.

What fails is explained in the words of the user's disk.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from maxlm.checkpoint import layout, leaves, read_back
from maxlm.checkpoint.fingerprint import fingerprint_blocks
from maxlm.config.errors import RunFailedError, UserError
from maxlm.config.schema import CheckpointConfig
from maxlm.events import event
from maxlm.runtime import all_true, on_first_process

log = logging.getLogger(__name__)

# The storage library reports the operating system's errors as text.
_STORAGE_ERRORS = {
    errno.ENOSPC: ("No space left on device", "the disk is full"),
    errno.EDQUOT: ("Disk quota exceeded", "your disk quota is used up"),
    errno.EROFS: ("Read-only file system", "the file system is read-only"),
    errno.EACCES: ("Permission denied", "writing there is not permitted"),
}
_SHOWN = 3


class _Save(NamedTuple):
    """A save in the background.

    Attributes:
        step: of the checkpoint.
        nbytes: of its arrays.
        damage: how it reads back as something else, or nothing.
    """

    step: int
    nbytes: int
    damage: Future[str]


class CheckpointWriter:
    """Writes checkpoints into `directory`; all processes make the same calls.

    Args:
        directory: of the checkpoints.
        config: of the checkpoints.
        written: called in the background when what this process wrote is read back: with the step,
            the seconds of the copy off the devices, and all seconds.
    """

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        written: Callable[[int, float, float], None],
    ) -> None:
        self._written = written
        self._directory, self._verify = directory, config.verify
        self._saver = _make_saver()
        self._background = ThreadPoolExecutor(1, "write-checkpoint")
        self._in_flight: _Save | None = None
        self._existed = False  # the folder, when the save began

    def start(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Copy a state off the devices, and go on in the background; nothing may be in flight.

        Raises:
            UserError: the disk refuses.
            RunFailedError: the state is not finite, or cannot be written for another reason.
            ValueError: the step, the state and the record are not of one step.
        """
        began, self._existed = time.perf_counter(), self._directory.is_dir()
        arrays = leaves.flatten(state)
        blocks = fingerprint_blocks(arrays)
        manifest, infinite = leaves.make_manifest(arrays, blocks)
        if infinite:
            shown = ", ".join(infinite[:_SHOWN]) + (", ..." if len(infinite) > _SHOWN else "")
            raise RunFailedError(
                f"the state after step {step} is not saved: there is nan or infinity in {len(infinite)} of its "
                f"{len(arrays)} arrays ({shown}); {self._intact(step)}"
            )
        content = layout.seal({"leaves": manifest, "record": {**record, "step": step}})
        differing = layout.disagreement(step, content)
        if differing:
            raise ValueError(f"the checkpoint of step {step} is not saved: {differing}")
        nbytes = sum(array.nbytes for array in arrays.values())
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays), record=ocp.args.JsonSave(content)
        )
        try:
            self._saver.save(layout.step_path(self._directory, step), args=arguments)
        except Exception as error:
            _tell_failure(step, error)
            raise self._explained(step, nbytes, error) from error
        written, copied = read_back.Written(step, content, blocks), time.perf_counter() - began
        future = self._background.submit(self._finish, self._saver, written, began, copied)
        self._in_flight = _Save(step, nbytes, future)

    @property
    def in_flight(self) -> int | None:
        """The step of the save in the background, None if there is none."""
        return None if self._in_flight is None else self._in_flight.step

    def wait(self) -> int | None:
        """Return the step of the checkpoint that was in flight, once it counts as whole; None if
        none was.

        Raises:
            UserError: the disk refuses.
            RunFailedError: it is not whole for another reason.
        """
        save, self._in_flight = self._in_flight, None
        if save is None:
            return None
        try:
            damage = save.damage.result()
        except Exception as error:
            raise self._explained(save.step, save.nbytes, error) from error
        # Each has read back what it wrote itself.
        if not all_true(not damage):
            cause = damage or "what another process read back is not what it wrote"
            on_first_process(lambda: self._set_aside(save.step, cause))
            raise RunFailedError(
                f"the checkpoint of step {save.step} was not saved: {cause}; it was renamed; "
                f"{self._intact(save.step)}; look at the disk and the memory of this machine, and start the "
                "same command again to resume"
            )
        return save.step

    def close(self) -> None:
        """End the threads; nothing may be in flight."""
        self._saver.close()
        self._background.shutdown(wait=True)

    def _finish(
        self,
        saver: ocp.AsyncCheckpointer,
        written: read_back.Written,
        began: float,
        copy_seconds: float,
    ) -> str:
        """Wait for what is written, and read it back; return how it is damaged, or nothing."""
        step, path = written.step, layout.step_path(self._directory, written.step)
        try:
            saver.wait_until_finished()
            count = read_back.read_back(path, written, self._verify)
        except layout.DamagedError as error:
            if path.is_dir():
                return str(error)
            _tell_failure(step, error)
            raise
        except Exception as error:
            _tell_failure(step, error)  # now; the training thread hears of it when it saves again
            raise
        seconds = time.perf_counter() - began
        values = {"path": str(path), "seconds": seconds, "blocks_read_back": count}
        log.info(
            "checkpoint of step %d is in %s", step, path, extra=event("saved", step=step, **values)
        )
        self._written(step, copy_seconds, seconds)
        return ""

    def _set_aside(self, step: int, cause: str) -> None:
        aside = layout.set_aside(layout.step_path(self._directory, step), "damaged")
        values = {"cause": cause, "path": str(aside)}
        log.error(
            "the checkpoint of step %d is now %s: %s",
            *(step, aside, cause),
            extra=event("failed_save", step=step, **values),
        )

    def _explained(self, step: int, nbytes: int, error: Exception) -> Exception:
        """Explain a failed save, and clear its remains so that the next one can work."""
        self._saver = _make_saver()  # a failed one may hold on to the failed save
        if jax.process_index() == 0:
            layout.sweep(self._directory, deletions=False)
        cause, failed = _storage_cause(error), f"the checkpoint of step {step}"
        if self._existed and not self._directory.is_dir():
            return UserError(
                f"{failed} was not saved: {self._directory} was removed while the run went on; put it back if it "
                "was moved, and start the same command again to resume"
            )
        if cause is None:
            return RunFailedError(
                f"{failed} was not saved: {type(error).__name__}: {error}; {self._intact(step)}"
            )
        return UserError(
            f"{failed} ({nbytes / 1e6:.1f} MB) was not saved: {cause} ({self._directory}, "
            f"{_free_bytes(self._directory) / 1e6:.1f} MB free); {self._intact(step)}; "
            "make room (or lower checkpoint.keep_last, or move the run to another run_dir) and start the same command "
            "again to resume"
        )

    def _intact(self, step: int) -> str:
        others = (saved for saved in layout.saved_steps(self._directory) if saved != step)
        newest = next(others, None)
        which = (
            "there is none before"
            if newest is None
            else f"the newest whole one is of step {newest}"
        )
        return f"earlier checkpoints are intact, {which}"


def _make_saver() -> ocp.AsyncCheckpointer:
    return ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(
            # In the format that `read_back` reads.
            state=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
            record=ocp.JsonCheckpointHandler(filename=layout.RECORD_FILE),
        ),
        # Made in the background, folders that cannot be made leave threads that wait five minutes
        # for them.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )


def _tell_failure(step: int, error: Exception) -> None:
    cause = _storage_cause(error) or f"{type(error).__name__}: {error}"
    log.error(
        "the checkpoint of step %d could not be saved: %s",
        *(step, cause),
        extra=event("failed_save", step=step, cause=cause),
    )


def _storage_cause(error: BaseException | None) -> str | None:
    """Say in words which storage error is in the chain of causes of `error`, or None."""
    while error is not None:
        for number, (text, words) in _STORAGE_ERRORS.items():
            if text in str(error) or getattr(error, "errno", None) == number:
                return words
        error = error.__cause__ or error.__context__
    return None


def _free_bytes(directory: Path) -> int:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(existing).free
