"""What a TPU computes inside the matrix products of a block, by its compiler, which needs no TPU
(scripts/setup dev).
"""

import importlib.util

import jax
import pytest

from maxlm.plan.hlo import parse, product_flops
from maxlm.plan.topology import devices_of, parse_topology
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import batch_shapes, build_program
from tests.train.program import make_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu is not installed: scripts/setup tpu",
    ),
]


def products_of(layer, pattern, saved):
    """Return, for each matrix product of a layer, the operations that the compiler put into it."""
    model = {"embed_dim": 1024, "num_heads": 8, "head_dim": 128, "mlp_dim": 4096}
    train = {"batch_size": 4, "compute_dtype": "bfloat16", "remat": dict.fromkeys(saved, "save")}
    config = make_config(
        model={**model, "pattern": [pattern]}, mesh={"fsdp": 4}, length=4096, train=train
    )
    program = build_program(config, devices_of(parse_topology("v5p:2x2x1")))
    gradients = jax.jit(make_gradients(program.declared, program.mesh, program.execution))
    shapes = batch_shapes(config, program.mesh)
    module = parse(gradients.lower(program.state.decoder, shapes).compile().as_text())
    return [
        {inner.op for inner in module.fused(instruction)}
        for instruction, computation, _ in module.runs(lambda *_: 1)
        if f"{layer}/" in (instruction.attribute(r'op_name="([^"]*)') or "")
        and product_flops(module, instruction, computation)
    ]


def test_products_of_an_ffn_compute_neither_gate_nor_norm():
    inside = products_of("ffn", {"mixer": {"kind": "none"}}, ("mlp_hidden", "mlp_gate"))
    assert len(inside) == 9, "three products, and two gradients of each"
    # The gate has an exponential, the norm a root, and their gradients sums over a token's numbers.
    assert not set().union(*inside) & {"exponential", "logistic", "tanh", "rsqrt", "reduce"}


def test_no_product_of_attention_sums_its_result_times_its_gradient():
    saved = ("query", "key", "value", "attention_out", "attention_lse")
    inside = products_of("mixer", {"ffn": {"kind": "none"}}, saved)
    assert len(inside) == 12, "four products, and two gradients of each"
    assert sum("reduce" in ops for ops in inside) == 1, "the norm's gradient alone"
