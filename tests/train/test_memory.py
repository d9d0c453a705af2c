"""What the compiled step does not hold: whole logits, and with layer-wise gathers whole parameters."""

import math

import jax
import pytest

from maxlm.config.errors import ConfigError
from maxlm.models import cost
from maxlm.train import setup
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import batch_shapes, build_program
from tests.train.program import make_config


def temp_bytes(config):
    """Return the memory that the compiled gradients need besides arguments and results, per device."""
    program = build_program(config, jax.devices()[: math.prod(config.mesh.sizes.values())])
    gradients = make_gradients(program.declared, program.mesh, program.execution)
    lowered = jax.jit(gradients).lower(program.state.decoder, batch_shapes(config, program.mesh))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_offloading_needs_host_memory(monkeypatch):
    monkeypatch.setattr(setup, "has_host_memory", lambda device: False)
    train = {"offload": ["optimizer", "activations"], "remat": {"query": "save", "key": "offload"}}
    with pytest.raises(ConfigError) as caught:
        build_program(make_config(train=train), jax.devices()[:1])
    first, second = caught.value.problems
    assert str(first).startswith(
        "train.offload=[optimizer, activations] needs pinned_host memory, which the cpu devices"
    )
    assert str(first).endswith("use train.offload=[]")
    assert str(second).startswith("train.remat.key=offload needs")
    assert str(second).endswith("=save or recompute")
    build_program(make_config(train={"remat": {"query": "save"}}), jax.devices()[:1])


def test_full_logits_never_exist():
    vocab_size, length, batch_size = 8192, 128, 16
    config = make_config(
        model={
            "vocab_size": vocab_size,
            "num_layers": 1,
            "embed_dim": 16,
            "num_heads": 2,
            "mlp_dim": 16,
        },
        train={"batch_size": batch_size},
        objective={"chunk_tokens": 64},
        length=length,
    )
    logits = batch_size * length * vocab_size * 4
    assert temp_bytes(config) < logits / 4


def test_layerwise_gathers_hold_one_layer_at_a_time():
    def config(gather):
        shape = {
            "num_layers": 16,
            "embed_dim": 64,
            "num_heads": 2,
            "head_dim": 8,
            "mlp_dim": 512,
            "vocab_size": 64,
        }
        train = {"gather": gather, "batch_size": 8, "remat": "none"}
        return make_config(model=shape, mesh={"fsdp": 8}, train=train, length=4)

    layer, microbatch = temp_bytes(config("layer")), temp_bytes(config("microbatch"))
    whole = 4 * cost.parameter_count(config("layer").model)
    # Once a microbatch all parameters are whole, and their gradients; layer by layer an eighth of
    # either, and a layer.
    assert microbatch > 1.5 * whole
    assert layer < 0.6 * whole
