"""Opens all that steps need before the first document is read: a run of days does not end at its last
step because of a file that was damaged from the start.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.steps import STEPS
from data_pipeline.steps.step import Checkable
from maxlm.config.checks import missing_step_files
from maxlm.config.errors import ConfigError, Problem
from maxlm.config.pipeline.step import StepSection
from maxlm.config.schema import DataConfig


def check_steps(data: DataConfig) -> None:
    """Open the files, models and libraries of a pipeline's steps.

    Raises:
      ConfigError: all that is not there, cannot be read, or is not what a step needs.
    """
    missing = missing_step_files(data)
    known = [f"{problem.path}." for problem in missing]
    found = [
        problem
        for number, section in enumerate(data.pipeline.steps)
        for problem in _problems(section, f"data.pipeline.steps.{number}")
        # What is not there cannot be opened either: one message for one mistake.
        if not any(path.startswith(f"{problem.path}.") for path in known)
    ]
    if missing or found:
        raise ConfigError([*missing, *found], "data.pipeline")


def _problems(section: StepSection, path: str) -> Iterator[Problem]:
    step = STEPS[section.kind](section)
    if isinstance(step, Checkable):
        yield from step.problems(path)
