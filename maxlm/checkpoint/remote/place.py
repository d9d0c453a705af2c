"""Where copies go: a bucket or folder by its URL, asked in parallel, at a limited rate; whatever its
library raises is one kind of error here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import fsspec

from maxlm.config.errors import UserError

T = TypeVar("T")

SETTING = "checkpoint.store.url"
TRIES = 3
FIRST_PAUSE_SECONDS = 0.5
_CAUSE_LENGTH = 300
# What installs the libraries that fsspec asks for.
_PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
}


class StoreError(Exception):
    """The store did not do what it was asked for; the text is the cause."""


class Takes(Protocol):
    """What is told of bytes before they are moved, and lets the caller wait."""

    def take(self, count: int) -> None:
        """Wait until so many bytes more may be moved."""


class Throttle:
    """Lets at most so many bytes a second through, for all threads together.

    Args:
      bytes_per_second: None for no limit.
      clock: returns seconds.
      sleep: waits so many seconds.

    Attributes:
      moved_bytes: let through so far.
    """

    def __init__(
        self,
        bytes_per_second: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = bytes_per_second, clock, sleep
        self._lock, self._free_at = threading.Lock(), 0.0
        self.moved_bytes = 0

    def take(self, count: int) -> None:
        """Wait until so many bytes more may be moved."""
        with self._lock:
            self.moved_bytes += count
            if self._rate is None:
                return
            now = self._clock()
            start = max(now, self._free_at)
            self._free_at = start + count / self._rate
        if start > now:
            self._sleep(start - now)


def open_place(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, or of a folder's path, and the path in it.

    Raises:
      UserError: nothing is known of such URLs, or a package is missing.
    """
    scheme = url.partition("://")[0] if "://" in url else "file"
    # A folder's files need their folders first; a bucket has none, and none is to be made.
    options = {"auto_mkdir": True} if scheme in ("file", "local") else {}
    try:
        system, path = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        cure = f"run: pip install {package}" if package else "install it"
        raise UserError(
            f"{SETTING}={url} needs a package that is missing ({error}); {cure}"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(
            f"{SETTING}={url}: {error}; give a URL such as gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, or a "
            "folder's path"
        ) from None
    return system, str(path).rstrip("/")


def tried(what: str, once: Callable[[], T]) -> T:
    """Ask a store for something up to TRIES times, with growing pauses between; `what` is not so if
    it fails.

    Raises:
      FileNotFoundError: it is not there.
      StoreError: in place of whatever else its library raises.
    """
    for number in range(TRIES):
        try:
            return once()
        except FileNotFoundError:
            raise
        except Exception as error:
            if number + 1 == TRIES:
                text = " ".join(f"{type(error).__name__}: {error}".split())
                raise StoreError(f"{what}: {text[:_CAUSE_LENGTH]}") from error
        time.sleep(FIRST_PAUSE_SECONDS * 2**number)
    raise AssertionError


def in_parallel(work: Callable[[T], None], items: Iterable[T], threads: int) -> None:
    """Do `work` for each item; after the first error no further one is begun, and it is raised.

    The threads are daemons: a store that hangs must not keep a process from ending, as those of
    `concurrent.futures` would.
    """
    queue, errors = deque(items), deque[BaseException]()

    def run() -> None:
        while not errors:
            try:
                item = queue.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException as error:  # noqa: BLE001 (raised below, whatever it is)
                errors.append(error)

    workers = [threading.Thread(target=run, daemon=True) for _ in range(min(threads, len(queue)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
