"""What the backward pass finds of the forward pass: counted in the traced program, where nothing is
merged yet.
"""

import math

import jax
import pytest
from jax.extend.core import jaxprs_in_params

from maxlm.ops.attention import CHUNKED, Kernel
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import batch_shapes, build_program
from tests.train.program import BATCH, LENGTH, MODEL, make_config

HEADS = (MODEL["num_heads"], MODEL["head_dim"])
LAYERS = MODEL["num_layers"]


def trace(model=None, mesh=None, **train):
    """Return the gradients' jaxpr of the small model, on two devices if nothing else is said."""
    config = make_config(model=model, mesh=mesh or {"fsdp": 2}, train=train)
    program = build_program(config, jax.devices()[: math.prod(config.mesh.sizes.values())])
    gradients = make_gradients(program.declared, program.mesh, program.execution)
    return jax.make_jaxpr(gradients)(
        program.state.decoder, batch_shapes(config, program.mesh)
    ).jaxpr


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def forward_kernels(monkeypatch, remat):
    """Count the places in the program where the forward kernel multiplies queries with keys."""

    def named(*arguments, scoring):
        def forward_kernel(*arguments):
            return CHUNKED.forward(*arguments, scoring=scoring)

        return jax.jit(forward_kernel)(*arguments)

    monkeypatch.setattr("maxlm.ops.attention.CHUNKED", Kernel(named, CHUNKED.backward))
    kernels = [
        e.params["jaxpr"]
        for e in equations(trace(remat=remat))
        if e.params.get("name") == "forward_kernel"
    ]
    # What is the same in every layer, the mask, is moved out of their loop: a part without
    # products.
    return sum("dot_general" in str(jaxpr) for jaxpr in kernels)


BOTH = {"attention_out": "save", "attention_lse": "save"}


@pytest.mark.parametrize(
    ("remat", "count"),
    [
        ("none", 1),
        ("full", 2),
        (BOTH, 1),
        ({"attention_out": "offload", "attention_lse": "offload"}, 1),
        ({"attention_out": "save"}, 2),
        ({"attention_lse": "save", "mixer_out": "save"}, 2),
    ],
    ids=str,
)
def test_forward_kernel_runs_once_where_both_its_results_are_kept(monkeypatch, remat, count):
    assert forward_kernels(monkeypatch, remat) == count


def on_host(model=None, mesh=None, **train):
    """List the shapes of what the loops over layers keep in host memory, layers first."""
    loops = [
        e
        for e in equations(trace(model, mesh, **train))
        if e.primitive.name == "scan" and e.params["length"] == LAYERS
    ]
    kept = [
        x.aval
        for loop in loops
        for x in loop.outvars
        if x.aval.memory_space == jax.memory.Space.Host
    ]
    return sorted(aval.shape for aval in kept)


def test_named_activations_and_block_inputs_lie_in_host_memory():
    heads, inputs = (
        (LAYERS, BATCH // 2, LENGTH, *HEADS),
        (LAYERS, BATCH // 2, LENGTH, MODEL["embed_dim"]),
    )
    assert on_host(remat="full") == on_host(remat={"query": "save"}) == []
    assert on_host(remat="full", offload=["activations"]) == [inputs]
    assert on_host(remat={"query": "offload", "key": "save"}) == [heads]
    assert on_host(remat={"query": "offload"}, offload=["activations"]) == sorted([heads, inputs])
    assert on_host(remat="full", offload=["optimizer"]) == []


def test_latents_are_kept_where_tensor_has_not_gathered_them():
    mixer = {"kind": "mla", "num_heads": 8, "query_rank": 6, "kv_rank": 8, "nope_dim": 4}
    mixer |= {"rope_dim": 2, "value_dim": 4}
    latents = {"query_latent": "offload", "kv_latent": "offload"}
    kept = on_host({"pattern": [{"mixer": mixer}]}, {"fsdp": 2, "tensor": 2}, remat=latents)
    assert kept == [(LAYERS, BATCH // 2, LENGTH // 2, width) for width in (2, 6, 8)]


def test_each_block_of_a_pattern_is_recomputed_by_itself():
    model = {"num_layers": 2 * LAYERS, "pattern": [{}, {"mixer": {"window": 4}}]}
    inputs = (LAYERS, BATCH // 2, LENGTH, MODEL["embed_dim"])
    assert on_host(model, remat="full", offload=["activations"]) == [inputs, inputs]


def test_whole_experts_are_not_kept_by_any_loop():
    width, hidden, experts, holders = MODEL["embed_dim"], 24, 8, 4
    moe = {
        "kind": "moe",
        "num_experts": experts,
        "experts_per_token": 2,
        "expert_dim": hidden,
        "buffer_factor": 0.5,
    }
    jaxpr = trace(
        {"pattern": [{"ffn": moe}]}, {"fsdp": 2, "expert": holders}, remat="none", gather="layer"
    )
    loops = [
        e for e in equations(jaxpr) if e.primitive.name == "scan" and e.params["length"] == LAYERS
    ]
    kept = {x.aval.shape for loop in loops for x in loop.outvars}
    one = (LAYERS, experts // holders)
    assert (*one, width // 2, hidden) in kept, "the gradients' shards, at least"
    assert not kept & {(*one, width, hidden), (*one, hidden, width)}
