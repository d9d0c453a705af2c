"""One of several processes that save and restore together. Arguments: run directory, what to do."""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm import runtime
from maxlm.checkpoint import Checkpointer, RunDirectory, read_back
from maxlm.config.errors import RunFailedError, UserError
from maxlm.config.schema import CheckpointConfig, RuntimeConfig


def make_state(step, spec):
    mesh = Mesh(np.array(jax.devices()).reshape(2, -1), ("a", "b"))
    values = np.random.default_rng(step).standard_normal((64, 256)).astype(np.float32)

    def put(array):
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return {
        "w": put(values),
        "b": put(values.astype(jnp.bfloat16)),
        "u": put(values.view(np.uint32)),
    }


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def equal(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(
        np.asarray(a.data).tobytes() == np.asarray(b.data).tobytes()
        for x, y in pairs
        for a, b in zip(x.addressable_shards, y.addressable_shards, strict=True)
    )


def save(run_dir):
    with (
        RunDirectory.open(run_dir) as run,
        Checkpointer(run.checkpoints, CheckpointConfig(keep_last=2)) as saver,
    ):
        for step in (1, 2, 3):
            saver.save(
                step, make_state(step, PartitionSpec("a", "b")), {"token_hash": f"{step:016x}"}
            )
    return {"processes": jax.process_count()}


def restore(run_dir):
    other = PartitionSpec(None, ("b", "a"))
    with (
        RunDirectory.open(run_dir) as run,
        Checkpointer(run.checkpoints, CheckpointConfig()) as saver,
    ):
        latest = saver.latest_record()
        restored = saver.restore(abstract(make_state(0, other)))
        whole = equal(restored.state, make_state(restored.step, other))
        saver.save(4, restored.state, {})
    return {
        "latest": latest["step"],
        "step": restored.step,
        "record": restored.record,
        "equal": whole,
    }


def misread(run_dir):
    """Save twice; what the second process reads back of the second one is wrong."""
    with (
        RunDirectory.open(run_dir) as run,
        Checkpointer(run.checkpoints, CheckpointConfig(keep_last=1, verify="all")) as saver,
    ):
        saver.save(1, make_state(1, PartitionSpec("a", "b")), {}, wait=True)
        if jax.process_index() == 1:
            read_back.fingerprint_values = lambda *arguments: -1
        saver.save(2, make_state(2, PartitionSpec("a", "b")), {})
        try:
            saver.save(3, make_state(3, PartitionSpec("a", "b")), {})
        except RunFailedError as error:
            return {"error": str(error)}


def second_job(run_dir):
    with RunDirectory.open(run_dir):
        return {}


def mistake(run_dir):
    raise (
        UserError("only this process has a wrong path")
        if jax.process_index() == 1
        else SystemExit(hang())
    )


def crash(run_dir):
    raise KeyError("lost") if jax.process_index() == 1 else SystemExit(hang())


def mistake_while_saving(run_dir):
    with (
        RunDirectory.open(run_dir) as run,
        Checkpointer(run.checkpoints, CheckpointConfig()) as saver,
    ):
        saver.save(1, make_state(1, PartitionSpec("a")), {})
        return mistake(run_dir)


def hang():
    """Wait in a collective for a process that never comes."""
    return runtime.all_true(True)


def wait(run_dir):
    runtime.all_true(True)
    (run_dir / f"ready{jax.process_index()}").touch()
    return time.sleep(100) if jax.process_index() == 1 else hang()


def stop(run_dir):
    steps = 0
    with runtime.StopSignal() as signal_:
        for steps in range(1, 1000):
            if steps == 5 and jax.process_index() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            if signal_.requested(steps):
                break
    return {"steps": steps}


def main():
    logging.basicConfig(format="%(message)s")
    run_dir = Path(sys.argv[1])
    runtime.start(RuntimeConfig(device_count=2))
    with runtime.fail_together():
        result = globals()[sys.argv[2]](run_dir)
    (run_dir / f"result{jax.process_index()}").write_text(json.dumps(result))


main()
