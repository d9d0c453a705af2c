"""The checkpoints of one run: saved in the background, some kept, resumed from the newest whole one
or from the one that was asked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from maxlm.checkpoint import layout
from maxlm.checkpoint.reader import CheckpointReader, Restored
from maxlm.checkpoint.remote import SlowTier
from maxlm.checkpoint.writer import CheckpointWriter
from maxlm.config.errors import RunFailedError, UserError, make_possible
from maxlm.config.resume import compare_runs
from maxlm.config.schema import CheckpointConfig, RunConfig
from maxlm.events import event
from maxlm.runtime import on_first_process
from maxlm.runtime.notice import StopTime, notice_seconds

log = logging.getLogger(__name__)

LONG_WAIT_SECONDS = 1.0
"""A save that waits so long for the one before says so."""


class Checkpointer:
    """The checkpoints of one run; all processes make the same calls.

    Use as a context manager, or `close`.
    """

    def __init__(
        self, directory: Path | str, config: CheckpointConfig, tier: SlowTier | None = None
    ) -> None:
        """`tier`: where whole checkpoints are copied to, and come back from."""
        self._tier = tier
        self._reader = CheckpointReader(directory)
        self._directory = self._reader.directory
        self._config = config
        self._writer = CheckpointWriter(self._directory, config, self._written)
        self.stop_time = StopTime(notice_seconds(config.notice_seconds))
        self._deleter = ThreadPoolExecutor(1, "delete-checkpoint")
        self._made = self._directory.is_dir()
        self._replaces = True  # whether older ones may be deleted for the one in flight
        self._resume_step: int | None = None  # None: the newest whole one's
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
        if error is None:
            self.close()
        elif jax.process_count() == 1:
            try:
                self.close()
            except (UserError, RunFailedError) as failure:  # what ended the run is told last
                log.error("%s", failure)

    def save(
        self,
        step: int,
        state: Any,
        record: dict[str, Any],
        *,
        wait: bool = False,
        replaces: bool = True,
    ) -> None:
        """Save `state` (a tree of jax.Array) and `record` (anything JSON can hold) as the
        checkpoint of `step`.

        Waits for the save before, if that is not whole yet: none is left out, so which checkpoints
        there are depends on the settings alone, and the host holds one state at a time. Returns
        when the arrays are copied off the devices, so they may be donated; writing goes on in the
        background, and reading back (`checkpoint.verify`). Does nothing if `step` is saved already.
        A failure of the save before surfaces here.

        Args:
            step: the checkpoint's; what `state` and `record` say of the step and of the tokens must
              agree with it (`layout.disagreement`).
            state: what is saved.
            record: what is saved with it.
            wait: return when it counts as whole.
            replaces: older ones may be deleted for it then.

        Raises:
            UserError: disk full, quota, read-only or forbidden directory; earlier checkpoints are
              intact. Or the folder was removed; the state is saved in a new one if one can be made.
            RunFailedError: the save before did not succeed for another reason, or the state is not
              finite.
        """
        lost = on_first_process(self._make_again)
        before, begin = self._writer.in_flight, time.perf_counter()
        self._wait(lost=lost)
        if before is not None and before != step:
            self._tell_of_wait(step, before, time.perf_counter() - begin)
        begin = time.perf_counter()
        if step not in on_first_process(self._sweep_and_list):
            self._replaces = replaces
            self._writer.start(step, state, record)
            self._made = True
        self.stall_seconds += time.perf_counter() - begin
        if wait or lost:
            self.wait()
        if lost:
            raise UserError(
                f"{self._directory} was removed while the run went on; step {step} is saved there again, what else "
                "was in it is lost; start the same command again to resume"
            )

    def wait(self) -> None:
        """Wait for the save in the background to count as whole, then delete the checkpoints that
        are not to be kept.

        Raises:
            UserError, RunFailedError: as `save`.
        """
        self._wait(lost=False)

    def close(self) -> None:
        """Wait for the save and the deletions in the background."""
        try:
            self.wait()
        finally:
            self._writer.close()
            self._deleter.shutdown(wait=True)

    def steps(self) -> list[int]:
        """Return the saved steps, newest first."""
        return self._reader.steps()

    def records(self) -> list[dict[str, Any]]:
        """Return the readable records, newest first, without touching any array."""
        return self._reader.records()

    def latest_record(self) -> dict[str, Any] | None:
        """Return the record that the run goes on from: the newest readable one, or that of the step
        it goes back to; None if there is none.
        """
        if self._resume_step is not None:
            return self._reader.record(self._resume_step)
        return self._reader.latest_record()

    def go_back(self, config: RunConfig) -> None:
        """Let the run go on from the checkpoint of `checkpoint.resume_from`, if it is asked to and
        has not done so yet.

        It has if its newest checkpoint was saved after it went back there, with the settings that
        matter as they are now: a start that is repeated goes on.

        Raises:
            UserError: that checkpoint is not there, or its record is damaged.
        """
        asked, newest = self._config.resume_from, self._reader.latest_record()
        if asked is None or (newest is not None and newest["step"] == asked):
            return
        if newest is not None and newest["step"] > asked and _went_back(newest, config):
            log.info(
                "checkpoint.resume_from=%d is done: going on after step %d", asked, newest["step"]
            )
            return
        saved = self.steps()
        if asked not in saved or self._reader.record(asked) is None:
            raise UserError(
                f"checkpoint.resume_from={asked}: {self._directory} has no whole checkpoint of that step; "
                f"it has {saved or 'none'}; give one of them, or null for the newest"
            )
        self._resume_step = asked

    def restore(
        self, abstract_state: Any, *, saved_as: Callable[[dict[str, Any]], Any] | None = None
    ) -> Restored | None:
        """Restore the newest whole checkpoint (or that of the step that `go_back` has chosen) onto
        the shardings of `abstract_state`; see CheckpointReader.restore.

        Newer ones, damaged or gone behind, are set aside (renamed, never deleted) once it has
        proved whole.
        """
        self.wait()
        restored = self._restore(abstract_state, saved_as)
        if restored is not None and self._tier is not None:
            behind = restored.damaged and self._resume_step is None
            if behind and self._tier.fetch_newer(restored.step):
                restored = self._restore(abstract_state, saved_as) or restored
            self._tier.resume_from(restored.step)
        self._resume_step = None
        return restored

    def _restore(
        self, abstract_state: Any, saved_as: Callable[[dict[str, Any]], Any] | None
    ) -> Restored | None:
        restored = self._reader.restore(abstract_state, step=self._resume_step, saved_as=saved_as)
        if restored is not None:
            on_first_process(lambda: self._set_aside(restored))
        return restored

    def _written(self, step: int, copy_seconds: float, seconds: float) -> None:
        """Take note, in the background, that what this process wrote reads back as it was."""
        self.stop_time.saved(
            step, copy_seconds=copy_seconds, write_seconds=max(seconds - copy_seconds, 0.0)
        )
        if jax.process_count() == 1:  # of several, others may still find what they wrote damaged
            self._is_whole(step)

    def _is_whole(self, step: int) -> None:
        # A state of skipped steps takes no good copy's place either.
        if self._tier is not None and self._replaces:
            self._tier.add(step)

    def _tell_of_wait(self, step: int, before: int, seconds: float) -> None:
        # The processes wait for each other, so the first one's time is that of all.
        if seconds < LONG_WAIT_SECONDS or jax.process_index() > 0:
            return
        log.warning(
            "training waited %.1f s to save step %d, as the checkpoint of step %d was still being written and read "
            "back: raise checkpoint.every, or use a faster run_dir",
            *(seconds, step, before),
            extra=event("slow_save", step=step, before=before, seconds=round(seconds, 3)),
        )

    def _wait(self, *, lost: bool) -> None:
        """See `wait`; `lost`: its folder was removed meanwhile."""
        begin = time.perf_counter()
        try:
            whole = self._writer.wait()
        except (UserError, RunFailedError):
            if lost and jax.process_count() == 1:  # several may still wait for each other in it
                return
            raise
        finally:
            self.stall_seconds += time.perf_counter() - begin
        if whole is not None:
            self._is_whole(whole)
        if whole is not None and self._replaces and jax.process_index() == 0:
            self._delete_old()

    def _make_again(self) -> bool:
        """Make the folder again if it was removed; return whether it was.

        Raises:
            UserError: it cannot be made.
        """
        if not self._made or self._directory.is_dir():
            return False
        try:
            self._directory.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"{self._directory} was removed while the run went on, and cannot be made again: "
                f"{error.strerror or error}; {make_possible(error)}; what was not copied from it is lost"
            ) from error
        return True

    def _sweep_and_list(self) -> list[int]:
        # Parts of a failed save may have been written after it was known to have failed, and swept.
        layout.sweep(self._directory, deletions=False)
        return layout.saved_steps(self._directory)

    def _delete_old(self) -> None:
        steps = layout.saved_steps(self._directory)
        every = self._config.keep_every
        for step in steps[self._config.keep_last :]:
            kept = step in self._config.at_steps or (every is not None and step % every == 0)
            # A slow store does not catch up if what it is to have goes before.
            held = self._tier is not None and self._tier.holds(step)
            if not (kept or held):
                self._deleter.submit(_delete, layout.step_path(self._directory, step))

    def _set_aside(self, restored: Restored) -> None:
        step = restored.step
        for path in restored.damaged:
            aside = layout.set_aside(path, "damaged")
            log.warning(
                "resuming from step %d; the damaged checkpoint is now %s",
                *(step, aside),
                extra=event("fallback", step=step, damaged=str(aside)),
            )
        if self._resume_step is None:
            return
        for later in layout.saved_steps(self._directory):
            if later > step:
                aside = layout.set_aside(layout.step_path(self._directory, later), "later")
                log.warning(
                    "going back to step %d (checkpoint.resume_from); the checkpoint of step %d is now %s",
                    *(step, later, aside),
                    extra=event("gone_back", step=step, later=later, path=str(aside)),
                )


def _went_back(record: dict[str, Any], config: RunConfig) -> bool:
    """Tell whether the run of a record went back as `config` says, and is no other since."""
    went = record["config"].get("checkpoint", {}).get("resume_from")
    changes = compare_runs(record["config"], config, steps_done=record["step"])
    return went == config.checkpoint.resume_from and not any(changes)


def _delete(path: Path) -> None:
    try:
        layout.remove(path)
    except OSError as error:  # in the background: nobody would see it
        log.warning("the old checkpoint %s could not be deleted: %s", path, error)
