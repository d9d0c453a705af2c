"""Save checkpoints in the background, keep some, and resume from the newest whole one."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from maxlm.checkpoint import layout, leaves
from maxlm.checkpoint.reader import CheckpointReader, Restored
from maxlm.config.errors import UserError
from maxlm.config.schema import CheckpointConfig
from maxlm.runtime import on_first_process

log = logging.getLogger(__name__)

# The storage library reports the operating system's errors as text.
_STORAGE_ERRORS = {
    errno.ENOSPC: ("No space left on device", "the disk is full"),
    errno.EDQUOT: ("Disk quota exceeded", "your disk quota is used up"),
    errno.EROFS: ("Read-only file system", "the file system is read-only"),
    errno.EACCES: ("Permission denied", "writing there is not permitted"),
}


class Checkpointer:
    """The checkpoints of one run; all processes make the same calls.

    Use as a context manager, or `close`.
    """

    def __init__(self, directory: Path | str, config: CheckpointConfig) -> None:
        self._reader = CheckpointReader(directory)
        self._directory = self._reader.directory
        self._config = config
        self._saver = _make_saver()
        # Step and bytes of the save that runs in the background.
        self._in_flight: tuple[int, int] | None = None
        self._deleter = ThreadPoolExecutor(1, "delete-checkpoint")
        self.stall_seconds = 0.0  # time the caller spent in `save` and `wait`, in total

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error in one of several processes, waiting for the others would keep it from
        # being seen.
        if error is None or jax.process_count() == 1:
            self.close()

    def save(self, step: int, state: Any, record: dict[str, Any], *, wait: bool = False) -> None:
        """Save `state` (a tree of jax.Array) and `record` (anything JSON can hold) as the
        checkpoint of `step`.

        Returns when the arrays are copied off the devices, so they may be donated; writing goes on
        in the background. Does nothing if `step` is saved already. A failure of the save before
        surfaces here.

        Raises:
            UserError: disk full, quota, read-only or forbidden directory; earlier checkpoints are
              intact.
        """
        self.wait()
        begin = time.perf_counter()
        if step not in on_first_process(self._sweep_and_list):
            arrays = leaves.flatten(state)
            content = layout.seal(
                {"leaves": leaves.make_manifest(arrays), "record": {**record, "step": step}}
            )
            arguments = ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays),
                record=ocp.args.JsonSave(content),
            )
            self._in_flight = step, sum(array.nbytes for array in arrays.values())
            try:
                self._saver.save(layout.step_path(self._directory, step), args=arguments)
            except Exception as error:
                raise self._failure(error) from error
        self.stall_seconds += time.perf_counter() - begin
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait for the save in the background, then delete the checkpoints that are not to be kept.

        Raises:
            UserError: as `save`.
        """
        if self._in_flight is None:
            return
        begin = time.perf_counter()
        try:
            self._saver.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error
        finally:
            self.stall_seconds += time.perf_counter() - begin
        step, _ = self._in_flight
        self._in_flight = None
        log.info("checkpoint of step %d is in %s", step, layout.step_path(self._directory, step))
        if jax.process_index() == 0:
            self._delete_old()

    def close(self) -> None:
        """Wait for the save and the deletions in the background."""
        try:
            self.wait()
        finally:
            self._saver.close()
            self._deleter.shutdown(wait=True)

    def records(self) -> list[dict[str, Any]]:
        """Return the readable records, newest first, without touching any array."""
        return self._reader.records()

    def latest_record(self) -> dict[str, Any] | None:
        """Return the newest readable record, or None."""
        return self._reader.latest_record()

    def restore(
        self, abstract_state: Any, *, saved_as: Callable[[dict[str, Any]], Any] | None = None
    ) -> Restored | None:
        """Restore the newest whole checkpoint onto the shardings of `abstract_state`; see
        CheckpointReader.restore.

        Newer, damaged ones are set aside (renamed, never deleted) once an older one has proved
        whole.
        """
        self.wait()
        restored = self._reader.restore(abstract_state, saved_as=saved_as)
        if restored is not None and restored.damaged:
            on_first_process(lambda: _set_aside(restored))
        return restored

    def _sweep_and_list(self) -> list[int]:
        # Parts of a failed save may have been written after it was known to have failed, and swept.
        layout.sweep(self._directory, deletions=False)
        return layout.saved_steps(self._directory)

    def _delete_old(self) -> None:
        steps = layout.saved_steps(self._directory)
        every = self._config.keep_every
        for step in steps[self._config.keep_last :]:
            kept = step in self._config.at_steps or (every is not None and step % every == 0)
            if not kept:
                self._deleter.submit(_delete, layout.step_path(self._directory, step))

    def _failure(self, error: Exception) -> Exception:
        """Explain a failed save, and clear its remains so that the next one can work."""
        assert self._in_flight is not None
        step, size = self._in_flight
        self._in_flight = None
        self._saver = _make_saver()  # a failed one may hold on to the failed save
        if jax.process_index() == 0:
            layout.sweep(self._directory, deletions=False)
        cause = _storage_cause(error)
        if cause is None:
            return RuntimeError(
                f"the checkpoint of step {step} was not saved: {type(error).__name__}: {error}"
            )
        newest = next(iter(layout.saved_steps(self._directory)), None)
        intact = (
            f"the newest whole one is of step {newest}"
            if newest is not None
            else "there is none before"
        )
        return UserError(
            f"the checkpoint of step {step} ({size / 1e6:.1f} MB) was not saved: {cause} ({self._directory}, "
            f"{_free_bytes(self._directory) / 1e6:.1f} MB free); earlier checkpoints are intact, {intact}; "
            "make room (or lower checkpoint.keep_last, or move the run to another run_dir) and start the same command "
            "again to resume"
        )


def _make_saver() -> ocp.AsyncCheckpointer:
    return ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(),
            record=ocp.JsonCheckpointHandler(filename=layout.RECORD_FILE),
        ),
        # Made in the background, folders that cannot be made leave threads that wait five minutes
        # for them.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )


def _delete(path: Path) -> None:
    try:
        layout.remove(path)
    except OSError as error:  # in the background: nobody would see it
        log.warning("the old checkpoint %s could not be deleted: %s", path, error)


def _set_aside(restored: Restored) -> None:
    for path in restored.damaged:
        aside = layout.set_aside(path)
        log.warning("resuming from step %d; the damaged checkpoint is now %s", restored.step, aside)


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
