"""On TPU slices, gradients of parameters are scattered in the background, never summed whole on
every chip.
"""

import importlib.util
import math
from collections import Counter

import jax
import pytest

from maxlm.plan.hlo import collective_of, parse
from maxlm.plan.topology import devices_of, parse_topology
from maxlm.sharding.mesh import FSDP_AXES
from maxlm.sharding.parameters import named_parameters
from maxlm.train.setup import build_program, compile_step, compiler_options
from tests.train.program import make_config


def test_options_are_those_of_the_device():
    assert compiler_options("cpu") == {}
    offload = "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter"
    kinds = [
        "TPU v4",
        "TPU v5 lite",
        "TPU v5e",
        "TPU v5",
        "TPU v5p",
        "TPU v6 lite",
        "TPU v6e",
        "TPU7x",
    ]
    assert [kind for kind in kinds if offload in compiler_options(kind)] == kinds[3:7]
    fused = kinds if jax.__version_info__ < (0, 11) else kinds[1:3]
    assert [
        kind for kind in kinds if "xla_enable_async_all_gather" in compiler_options(kind)
    ] == fused


@pytest.mark.slow
@pytest.mark.tpu_aot
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: scripts/setup tpu"
)
@pytest.mark.parametrize(
    ("slices", "name", "dim"),
    [(1, "v5p:4x4x4", 2048), (1, "v6e:16x16", 4096), (2, "v5p:2x2x2", 512)],
)
def test_weight_gradients_are_scattered_in_the_background(slices, name, dim):
    topology = parse_topology(name, slices)
    fsdp = topology.device_count // slices
    model = {
        "vocab_size": 512,
        "num_layers": 4,
        "embed_dim": dim,
        "num_heads": 8,
        "head_dim": 128,
        "mlp_dim": 2 * dim,
    }
    train = {"batch_size": topology.device_count, "gather": "layer"}
    config = make_config(model=model, mesh={"data": slices, "fsdp": fsdp}, train=train, length=1024)
    program = build_program(config, devices_of(topology))
    module = parse(compile_step(config, program).run.as_text(), slices=slices)

    moved = Counter()
    for instruction, computation, times in module.runs(lambda *_: 1):
        collective = collective_of(module, instruction, computation)
        if collective is not None and collective.phase != "done":
            across = slices > 1 and "megascale" in instruction.attributes
            moved[collective.kind, collective.phase, across] += collective.bytes * times

    split = [
        p for _, p in named_parameters(program.declared) if FSDP_AXES in p.get_metadata("spec")
    ]
    matrices = sum(math.prod(p.get_value().shape) for p in split if len(p.get_metadata("spec")) > 1)
    scattered = {phase: moved["reduce-scatter", phase, False] for phase in ("start", "sync")}
    assert sum(scattered.values()) >= 2 * matrices  # bytes, in bfloat16
    assert scattered["start"] >= 0.9 * 2 * matrices
    # Vectors of norms are too short to be split into tiles; statistics are scalars.
    assert (
        moved["all-reduce", "sync", False] + moved["all-reduce", "start", False]
        < 0.05 * 2 * matrices
    )
    if slices > 1:  # only the fp32 shard crosses the network between slices
        shard = (
            4
            * sum(math.prod(p.get_value().shape) for _, p in named_parameters(program.declared))
            // fsdp
        )
        assert shard <= moved["all-reduce", "start", True] < 1.05 * shard
