"""Which run a store is of: two runs in one would take each other's checkpoints for their own."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from maxlm.checkpoint.layout import DamagedError
from maxlm.checkpoint.remote.place import SETTING
from maxlm.checkpoint.remote.store import RUN, Store
from maxlm.config.errors import UserError
from maxlm.files import write_whole

FILE = "store.json"
"""In RUN_DIR: the identity that the store has, too."""


def agree_on_the_run(store: Store, run_dir: Path, *, fresh: bool) -> None:
    """Give a store to the run that uses it first; a folder that is `fresh` becomes that run's.

    Raises:
      UserError: it is of another run.
      StoreError: the store does not answer.
    """
    path = run_dir / FILE
    try:
        mine = str(json.loads(path.read_bytes())["run"]) if path.exists() else None
        theirs = store.run()
    except (DamagedError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} or {store.url}/{RUN} cannot be read ({error}); delete it"
        ) from None
    if mine is not None and mine == theirs:
        return
    if theirs is not None and (mine is not None or not fresh):
        raise UserError(
            f"{SETTING}={store.url} has the checkpoints of another run than run_dir={run_dir}; give each run a "
            "folder of its own"
        )
    agreed = theirs or mine or secrets.token_hex(8)
    if theirs is None:
        store.claim(agreed)
    write_whole(path, json.dumps({"run": agreed}).encode())
