"""Bring checkpoints back from a store: the newest whole one, believed only if every file is what was
copied.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from maxlm.checkpoint import layout
from maxlm.checkpoint.layout import DamagedError
from maxlm.checkpoint.remote.copier import SMALL_FILES
from maxlm.checkpoint.remote.identity import agree_on_the_run
from maxlm.checkpoint.remote.place import SETTING, StoreError
from maxlm.checkpoint.remote.store import Store
from maxlm.checkpoint.run_directory import RunDirectory
from maxlm.config.errors import RunFailedError, UserError
from maxlm.events import event

log = logging.getLogger(__name__)

FETCHING = ".orbax-checkpoint-tmp-fetching"  # swept like a save that was killed


def bring_back_newer(store: Store, run: RunDirectory, asked: int | None) -> None:
    """Fetch the newest whole checkpoint, with the run's small files, if the folder has none or an
    older one; and that of the step that is asked for, if it is here no more.

    Raises:
      UserError: the store is another run's, or all its copies are damaged and the folder is empty,
        or that of the step that is asked for is.
      RunFailedError: the store does not answer and the folder is empty.
    """
    here = _newest_readable(run.checkpoints)
    try:
        agree_on_the_run(store, run.path, fresh=here is None)
        _fetch_if_newer(store, run, here)
        if asked is not None and _is_missing(run.checkpoints, asked) and asked in store.steps():
            _fetch(store, run.checkpoints, asked)
    except DamagedError as error:
        raise UserError(f"checkpoint.resume_from={asked}: its copy is damaged: {error}") from error
    except StoreError as error:
        if here is None:
            raise RunFailedError(
                f"{SETTING}={store.url} could not be read ({error}), and {run.path} has no checkpoint: the run does "
                "not begin anew while there may be one; start the same command again, or without checkpoint.store"
            ) from error
        log.warning(
            "%s could not be read: going on from %s, step %d: %s",
            *(store.url, run.path, here, error),
            extra=event("failed_fetch", step=here, url=store.url, cause=str(error)),
        )


def _fetch_if_newer(store: Store, run: RunDirectory, here: int | None) -> None:
    newest = next(iter(store.steps()), None)
    if newest is None or (here is not None and newest <= here):
        return
    log.info(
        "the newest checkpoint in %s is of step %s, in %s of step %d",
        *(run.path, here if here is not None else "(none)", store.url, newest),
    )
    # First: where the checkpoint is, nobody asks for them any more.
    _fetch_small_files(store, run.path)
    fetch_newest(store, run.path, -1 if here is None else here)


def _is_missing(checkpoints: Path, asked: int) -> bool:
    """Tell whether a run is to go back to a step that its folder does not have; one that went back
    there before goes on.
    """
    newest = _newest_readable(checkpoints)
    if newest is None or asked in layout.saved_steps(checkpoints):
        return False
    record = layout.read_sealed(layout.step_path(checkpoints, newest))["record"]
    before = record.get("config", {}).get("checkpoint", {}).get("resume_from")
    return newest > asked and before != asked


def _newest_readable(checkpoints: Path) -> int | None:
    """Return the newest step in a folder of which at least the record is whole."""
    for step in layout.saved_steps(checkpoints):
        try:
            layout.read_sealed(layout.step_path(checkpoints, step))
        except DamagedError:
            continue
        return step
    return None


def fetch_newest(store: Store, run_dir: Path, than: int) -> int | None:
    """Fetch the newest copy after a step that is whole; return its step, None if there is none.

    Raises:
      UserError: there are some, none is whole, and the folder has no checkpoint.
      StoreError: the store does not answer.
    """
    causes = []
    for step in store.steps():
        if step <= than:
            break
        try:
            _fetch(store, run_dir / "checkpoints", step)
        except DamagedError as error:
            causes.append(f"step {step}: {error}")
            log.warning(
                "the copy of step %d in %s is damaged: %s",
                *(step, store.url, error),
                extra=event("damaged_copy", step=step, url=store.url, cause=str(error)),
            )
        else:
            return step
    if causes and than < 0:
        listed = "\n  ".join(causes)
        raise UserError(
            f"{run_dir} has no checkpoint, and no copy in {store.url} is whole:\n  {listed}\nbring back a whole "
            "one, or give another checkpoint.store.url to begin anew"
        )
    return None


def _fetch(store: Store, checkpoints: Path, step: int) -> None:
    path = layout.step_path(checkpoints, step)
    unfinished = path.with_name(path.name + FETCHING)
    shutil.rmtree(unfinished, ignore_errors=True)
    needed, free = (
        sum(one.size for one in store.sums(step).values()),
        shutil.disk_usage(checkpoints).free,
    )
    if needed > free:
        raise UserError(
            f"{checkpoints} has {free / 1e6:.1f} MB free, the checkpoint of step {step} in {store.url} has "
            f"{needed / 1e6:.1f} MB; make room, or choose another run_dir"
        )
    began = time.monotonic()
    try:
        size = store.fetch(step, unfinished)
        if path.exists():  # its record is damaged, or it would not have been fetched
            layout.set_aside(path, "damaged")
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    seconds = time.monotonic() - began
    log.info(
        "fetched the checkpoint of step %d (%.1f MB) from %s in %.1f s",
        *(step, size / 1e6, store.url, seconds),
        extra=event("fetched", step=step, url=store.url, bytes=size, seconds=seconds),
    )


def _fetch_small_files(store: Store, run_dir: Path) -> None:
    """Fetch what is not here, or was longer when it was copied: these files only grow."""
    for name, size in store.small_files().items():
        if name.partition("/")[0] not in SMALL_FILES:
            continue
        path = run_dir / name
        if path.exists() and path.stat().st_size >= size:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".unfinished")
        try:
            store.get(name, unfinished)
            unfinished.replace(path)
        except FileNotFoundError as error:
            log.warning("%s is not in %s any more: %s", name, store.url, error)
        finally:
            unfinished.unlink(missing_ok=True)


def fetch_or_warn(store: Store, run_dir: Path, than: int) -> int | None:
    """Fetch the newest whole copy after a step, for one that proved damaged; return its step."""
    try:
        return fetch_newest(store, run_dir, than)
    except StoreError as error:
        log.warning("%s could not be read: %s", store.url, error)
        return None


def pass_over_newer(store: Store, step: int) -> None:
    """Let no copy after a step be fetched any more."""
    try:
        for newer in store.steps():
            if newer > step:
                store.pass_over(newer)
                log.warning(
                    "the copy of step %d in %s is passed over from now on", newer, store.url
                )
    except StoreError as error:
        log.warning("copies newer than step %d may still be in %s: %s", step, store.url, error)
