"""Names of files as UTF-8."""

from __future__ import annotations

import hashlib

from maxlm.data.tokenizers import replace_surrogates


def readable(name: str) -> str:
    """Return a file's name as UTF-8; names of other bytes (PEP 383) get a hash of theirs, so that
    different names stay different.
    """
    clean = replace_surrogates(name)
    if clean == name:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{clean}~{digest[:12]}"
