"""All devices of a process come to their collectives in one order."""

import jax
import pytest

from maxlm.train.setup import build_program, compile_step
from tests.hlo import unordered
from tests.train.program import make_config

OTHER_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def compile_on(mesh, options=None, **sections):
    config = make_config(mesh=mesh, **sections)
    return compile_step(config, build_program(config, jax.devices()), options).run


@pytest.mark.parametrize(
    ("mesh", "train"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"microbatches": 2}),
        ({"data": 2, "context": 2, "tensor": 2}, {}),
        ({"context": 4, "fsdp": 2}, {"remat": "none"}),
        ({"stage": 2, "fsdp": 2, "tensor": 2}, {"microbatches": 2}),
    ],
    ids=str,
)
def test_no_collective_may_begin_while_a_loop_with_others_runs(mesh, train):
    assert unordered(compile_on(mesh, train=train)) == []


def test_another_order_of_the_compiler_breaks_it():
    assert unordered(compile_on({"data": 2, "context": 2, "tensor": 2}, OTHER_ORDER))
