"""Mark a line of the log as an event of the run: a spike, a skipped step, a stop, a failed save.

The line goes where lines go; marked, it also stands in RUN_DIR/events.jsonl, with its values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

ATTRIBUTE = "maxlm_event"
"""Of a `logging.LogRecord`: its `Event`, if it is one."""


class Event(NamedTuple):
    """What happened, for a program to read.

    Attributes:
      kind: one word in lower case with underscores, such as skipped_step.
      step: steps done when it happened, None outside of training steps.
      values: figures and names, as JSON can hold them.
      is_last: whether the process ends at once after it, so that nothing else comes to show it.
    """

    kind: str
    step: int | None
    values: dict[str, Any]
    is_last: bool = False


def event(kind: str, *, step: int | None = None, **values: Any) -> dict[str, Any]:
    """Return the `extra` of a line of the log that is an event.

    Example:
      log.warning("step %d was skipped", step, extra=event("skipped_step", step=step, loss=loss))
    """
    return {ATTRIBUTE: Event(kind, step, values)}


def last_event(kind: str, *, step: int | None = None, **values: Any) -> dict[str, Any]:
    """Return the `extra` of the line that a process writes before it ends at once."""
    return {ATTRIBUTE: Event(kind, step, values, is_last=True)}
