"""Whether a folder is that of a run with checkpoints: known before JAX is loaded to read them."""

from __future__ import annotations

from pathlib import Path

from maxlm.config.errors import UserError


def check_run(run_dir: Path | str, step: int) -> None:
    """Refuse what has no batch of a step.

    Raises:
      UserError: the step is below 0, or the folder has no checkpoints.
    """
    if step < 0:
        raise UserError(f"--step {step}: give 0 or more")
    folder = Path(run_dir) / "checkpoints"
    if not folder.is_dir() or not any(path.name.isdecimal() for path in folder.iterdir()):
        raise no_run(run_dir)


def no_run(run_dir: Path | str) -> UserError:
    """Return what is said of a folder that has no whole checkpoint of a run."""
    return UserError(
        f"{run_dir}: no run with a checkpoint, so what it read is not known; give the run_dir of one"
    )
