"""Processes of a job that agree: on a result, on a failure, on the order of programs."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.errors import RunFailedError, UserError
from maxlm.process.phases import waiting
from maxlm.runtime.backend import several_cpu_devices

T = TypeVar("T")

# A collective that fails is mostly the echo of another process that ended: that one is to be seen
# first, and named.
ECHO_SECONDS = 1.0


def on_first_process(work: Callable[[], Any]) -> Any:
    """Run `work` on process 0 alone and give every process its result (anything JSON can hold).

    Raises:
        UserError: on every process, when `work` raises one on process 0.
    """
    if jax.process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": work()}
        except UserError as error:
            answer = {"error": str(error)}
    text = json.dumps(answer).encode()
    with waiting():
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
        buffer = np.zeros(size, np.uint8)
        if jax.process_index() == 0:
            buffer[:] = np.frombuffer(text, np.uint8)
        received = np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8)
    answer = json.loads(received.tobytes())
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def all_true(mine: bool) -> bool:
    """Tell whether `mine` is true on every process; a barrier for all of them."""
    if jax.process_count() == 1:
        return mine
    with waiting():
        return bool(np.all(multihost_utils.process_allgather(np.asarray(mine))))


def settle(results: T) -> T:
    """Wait for the results of a program with collectives, on several CPU devices only.

    There nothing orders the collectives of two programs in flight. Between processes (gloo) they
    can meet the wrong partner; between the fake devices of one process they can take up all its
    threads, each waiting for one that gets none. Either way they wait for ever. Accelerators run
    programs in the order of their dispatch.
    """
    if several_cpu_devices():
        with waiting():
            jax.block_until_ready(results)
    return results


@contextmanager
def fail_together() -> Iterator[None]:
    """End this process at once when the body raises and there are others.

    A Python exit would wait for the others to shut down too, while they wait for this one inside a
    collective. Gone at once, it is missed within seconds and they end as well. With a single
    process the exception just passes.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        here = f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"
        if isinstance(error, UserError | RunFailedError):
            sys.stderr.write(
                f"maxlm: {error}\n" if jax.process_index() == 0 else f"maxlm: {here}: {error}\n"
            )
        else:
            traceback.print_exc()
            sys.stderr.write(f"{here} failed: {type(error).__name__}: {error}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(ECHO_SECONDS)
        os._exit(Exit.MISTAKE if isinstance(error, UserError) else Exit.FAILED)
