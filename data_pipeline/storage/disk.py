"""What a disk refuses, as a message for the user."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maxlm.config.errors import UserError


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into a message for the user."""
    cures = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EROFS: "use another path",
        errno.EACCES: "use another path, or change its permissions",
        errno.EPERM: "use another path, or change its permissions",
        errno.EEXIST: "use another path",
        errno.ENOTDIR: "use another path",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in cures:
            raise
        raise UserError(
            f"{error.filename or folder}: {error.strerror}; {cures[error.errno]}"
        ) from None
