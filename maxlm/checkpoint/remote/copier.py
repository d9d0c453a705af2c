"""Copy whole checkpoints to a store in the background, one after the other, and keep some there.

What fails there stops nothing here: it is told, and the next checkpoint is the next try.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from maxlm.checkpoint import layout
from maxlm.checkpoint.layout import DamagedError
from maxlm.checkpoint.remote.identity import agree_on_the_run
from maxlm.checkpoint.remote.place import StoreError
from maxlm.checkpoint.remote.store import Store
from maxlm.config.errors import UserError
from maxlm.config.schema import CheckpointConfig
from maxlm.events import event

log = logging.getLogger(__name__)

SMALL_FILES = (
    *("metrics.jsonl", "events.jsonl", "time.jsonl", "config.yaml"),
    *("tokenizer", "published", "tensorboard"),
)
"""Of RUN_DIR, what goes with the checkpoints: a run goes on elsewhere with its record, curves and
tokenizer."""


class Copier:
    """Copies the checkpoints of a run, on its first process.

    A checkpoint that is whole while another is being copied waits; if a newer one comes, that one
    is copied in its place.

    Attributes:
      cause: why the newest copy that was tried did not succeed, or nothing.
    """

    def __init__(self, store: Store, run_dir: Path, config: CheckpointConfig) -> None:
        assert config.store is not None
        self._store, self._run_dir, self._config = store, run_dir, config
        self._kept, self.cause = config.store, ""
        self._condition = threading.Condition()
        self._wanted: int | None = None
        self._copying: int | None = None
        self._copied: int | None = None
        self._sizes: dict[str, tuple[int, int]] = {}
        threading.Thread(target=self._run, name="copy-checkpoint", daemon=True).start()

    def add(self, step: int, *, last: bool = False) -> None:
        """Copy the checkpoint of `step`, which is whole, when there is time; does not wait.

        `last` ones are copied whatever `checkpoint.store.every` says.
        """
        every = self._kept.every
        due = last or every is None or step % every == 0 or step in self._config.at_steps
        with self._condition:
            if due and step not in (self._copying, self._copied):
                self._wanted = step
                self._condition.notify_all()

    def holds(self, step: int) -> bool:
        """Tell whether a checkpoint is being copied or will be: it must not be deleted here."""
        with self._condition:
            return step in (self._wanted, self._copying)

    def wait(self, seconds: float) -> bool:
        """Wait until all is copied or has failed, so long at most; tell whether it is."""
        with self._condition:
            return self._condition.wait_for(
                lambda: self._wanted is None and self._copying is None, seconds
            )

    def copy_small_files(self) -> None:
        """Copy those of the run's small files that have changed since.

        Raises:
          StoreError: the store refuses.
        """
        for path in sorted(_files(self._run_dir)):
            name = path.relative_to(self._run_dir).as_posix()
            about = path.stat()
            stamp = about.st_size, about.st_mtime_ns
            if self._sizes.get(name) != stamp:
                self._store.put(name, path)
                self._sizes[name] = stamp

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._wanted is not None)
                self._copying, self._wanted = self._wanted, None
                step = self._copying
            assert step is not None
            self._tell(step)
            with self._condition:
                self._copying = None
                self._condition.notify_all()

    def _tell(self, step: int) -> None:
        """Copy a checkpoint, and say how it went."""
        began, url = time.monotonic(), self._store.url
        try:
            size = self._copy(step)
        except Exception as error:  # noqa: BLE001 (in the background nobody else would see it)
            expected = isinstance(error, StoreError | DamagedError | UserError | OSError)
            self.cause = str(error) if expected else f"{type(error).__name__}: {error}"
            log.warning(
                "the checkpoint of step %d was not copied to %s: %s; the next one is the next try",
                *(step, url, self.cause),
                extra=event("failed_copy", step=step, url=url, cause=self.cause),
            )
            return
        self.cause, self._copied = "", step
        if size is None:
            return
        seconds = time.monotonic() - began
        log.info(
            "the checkpoint of step %d (%.1f MB) was copied to %s in %.1f s",
            *(step, size / 1e6, url, seconds),
            extra=event("copied", step=step, url=url, bytes=size, seconds=seconds),
        )

    def _copy(self, step: int) -> int | None:
        """Copy a checkpoint; return its bytes, None if it is there already."""
        folder = layout.step_path(self._run_dir / "checkpoints", step)
        layout.read_sealed(folder)  # what is damaged or gone is no copy
        # Again, as it may not have answered when the run began.
        agree_on_the_run(self._store, self._run_dir, fresh=False)
        # Before the checkpoint, which so always has the record up to it beside it.
        self.copy_small_files()
        size = None if self._store.has(step, folder) else self._store.copy(step, folder)
        for old in self._to_delete(self._store.steps()):
            self._store.delete(old)
        for partial in self._store.partial_steps():
            self._store.delete(partial)
        return size

    def _to_delete(self, steps: list[int]) -> list[int]:
        """Return those of the copied steps, newest first, that are not to be kept."""
        every = self._kept.keep_every
        return [
            step
            for step in steps[self._kept.keep_last :]
            if step not in self._config.at_steps and (every is None or step % every)
        ]


def _files(run_dir: Path) -> list[Path]:
    """Return the run's small files."""
    roots = [run_dir / name for name in SMALL_FILES]
    files = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*"))]
    return [path for path in files if path.is_file() and path.suffix not in (".tmp", ".unfinished")]
