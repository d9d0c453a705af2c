"""The slow tier of a run: RUN_DIR is the fast one. Copies go there while the run goes on; what is
newer there comes back before it begins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from maxlm.checkpoint.remote.copier import Copier
from maxlm.checkpoint.remote.fetch import bring_back_newer, fetch_or_warn, pass_over_newer
from maxlm.checkpoint.remote.place import StoreError
from maxlm.checkpoint.remote.store import Store
from maxlm.checkpoint.run_directory import RunDirectory
from maxlm.config.errors import RunFailedError, UserError
from maxlm.config.schema import RunConfig
from maxlm.process.phases import beat, phase
from maxlm.runtime import on_first_process
from maxlm.runtime.notice import notice_seconds

log = logging.getLogger(__name__)

_POLL_SECONDS = 2.0


def bring_back(config: RunConfig) -> None:
    """Fetch the newest whole checkpoint from the store, with the run's small files, if the folder
    of the run has none or an older one. All processes call it, before anything else reads the
    folder; nothing happens without `checkpoint.store`.

    Raises:
      UserError: the store is another run's, or all its copies are damaged and the folder is empty.
      RunFailedError: the store does not answer and the folder is empty.
    """
    if config.checkpoint.store is None:
        return
    store = Store(config.checkpoint.store)
    asked = config.checkpoint.resume_from
    with phase("restore"), RunDirectory.open(config.run_dir) as run:
        _patiently(store, lambda: bring_back_newer(store, run, asked))


class SlowTier:
    """Copies of a run's checkpoints in `checkpoint.store`; all processes make the same calls, the
    first copies. A context manager; when a run is done, it waits for the last copy.
    """

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self._config, self._run_dir = config, run_dir
        self._store = None if config.checkpoint.store is None else Store(config.checkpoint.store)
        self._copier: Copier | None = None
        self._last = 0
        if self._store is not None and jax.process_index() == 0:
            self._copier = Copier(self._store, run_dir, config.checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._store is not None:
            self._finish()

    def add(self, step: int) -> None:
        """Take note that the checkpoint of `step` is whole; does not wait."""
        self._last = step
        if self._copier is not None:
            self._copier.add(step)

    def holds(self, step: int) -> bool:
        """Tell whether the checkpoint of `step` must not be deleted yet."""
        return self._copier is not None and self._copier.holds(step)

    def fetch_newer(self, than: int) -> bool:
        """Fetch a whole checkpoint that is newer than a step, for one that proved damaged; tell
        whether there was one.
        """
        store = self._store
        if store is None:
            return False
        step: int | None = _patiently(store, lambda: fetch_or_warn(store, self._run_dir, than))
        return step is not None

    def resume_from(self, step: int) -> None:
        """Let no copy newer than `step` be fetched any more: the run goes on from there."""
        store = self._store
        if store is None:
            return
        self._last = step
        _patiently(store, lambda: pass_over_newer(store, step))
        if self._copier is not None:  # a copy that failed before the run ended is tried again
            self._copier.add(step, last=True)

    def _finish(self) -> None:
        """Wait for the last copy.

        Raises:
          RunFailedError: the run is done, and its last checkpoint is not in the store.
        """
        assert self._store is not None
        assert self._config.checkpoint.store is not None
        done = self._last >= self._config.train.num_steps
        limit = self._config.checkpoint.store.wait_seconds
        notice = notice_seconds(self._config.checkpoint.notice_seconds)
        if not done and notice is not None:  # of which the step and the save have had their part
            limit = min(limit, notice / 2)
        with phase("save"):
            cause: str = _patiently(self._store, lambda: self._copy_last(limit))
        if not cause:
            return
        url = self._config.checkpoint.store.url
        text = (
            f"the checkpoint of step {self._last} is in {self._run_dir}, and not in {url}: {cause}"
        )
        if done:
            raise RunFailedError(
                f"{text}; the run is done: start the same command again to copy it"
            )
        log.warning("%s; the next start copies it", text)

    def _copy_last(self, seconds: float) -> str:
        """Return why the last checkpoint is not in the store, or nothing."""
        assert self._copier is not None
        if self._last == 0:
            return ""
        self._copier.add(self._last, last=True)
        if not self._copier.wait(seconds):
            return f"it took longer than {seconds:g} s"
        try:
            self._copier.copy_small_files()  # what was written since
        except StoreError as error:
            return self._copier.cause or str(error)
        return self._copier.cause


def _patiently(store: Store, work: Callable[[], Any]) -> Any:
    """Do something long on the first process alone; the others ask every few seconds whether it is
    done, as none may sit in one collective for minutes. Return its result, which JSON can hold.

    As long as bytes move, the phase gets on.

    Raises:
      UserError, RunFailedError: as `work`, on every process.
    """
    answer: dict[str, Any] = {}

    def run() -> None:
        try:
            answer["value"] = work()
        except Exception as error:  # noqa: BLE001 (raised below, on every process)
            expected = isinstance(error, UserError | RunFailedError)
            answer["error"] = str(error) if expected else f"{type(error).__name__}: {error}"
            answer["mistake"] = isinstance(error, UserError)

    thread = threading.Thread(target=run, daemon=True)
    if jax.process_index() == 0:
        thread.start()

    def look() -> dict[str, Any]:
        thread.join(_POLL_SECONDS)
        return {"moved": store.moved_bytes} if thread.is_alive() else answer

    moved = 0
    while "moved" in (found := on_first_process(look)):
        if found["moved"] != moved:
            moved = found["moved"]
            beat()
    if "error" in found:
        raise (UserError if found["mistake"] else RunFailedError)(found["error"])
    return found["value"]
