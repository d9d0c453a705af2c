"""Published tensors on any mesh are the same parameters; memory stays below two files of tensors."""

import json
import math
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest

from maxlm.checkpoint.hf.load import load, load_each
from maxlm.checkpoint.hf.published import open_published
from maxlm.config.schema import MeshConfig
from maxlm.models.decoder import Decoder
from maxlm.sharding.mesh import build_mesh
from maxlm.sharding.parameters import layers_of, named_parameters, partition_spec
from maxlm.sharding.stages import EMPTY, lay_out
from scripts.bench_import import write_sparse

FIXTURES = Path(__file__).parent / "fixtures"
ONE = MeshConfig(fsdp=1)
MESHES = {
    "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "stage": {"fsdp": 4, "stage": 2},
    "context": {"fsdp": 2, "context": 2, "tensor": 2},
}


def by_layer(decoder):
    """Return every parameter as numpy, a stacked one as its layers in their order."""
    values = {}
    for path, parameter in named_parameters(decoder):
        value, layers = np.asarray(parameter[...]), layers_of(parameter)
        if layers is None:
            values[path] = value
        else:
            assert not value[[layer == EMPTY for layer in layers]].any()
            values |= {f"{path}/{n}": value[i] for i, n in enumerate(layers) if n != EMPTY}
    return values


def loaded(published, mesh_config):
    mesh = build_mesh(mesh_config, jax.devices()[: math.prod(mesh_config.sizes.values())])
    layout = lay_out(published.model.repeats, stages=mesh_config.stage)
    decoder = load(published, Decoder(published.model, layout), mesh)
    for path, parameter in named_parameters(decoder):
        wanted = jax.sharding.NamedSharding(mesh, partition_spec(parameter))
        assert parameter[...].sharding == wanted, path
    return by_layer(decoder)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["qwen2_windows", "gpt2"])
def test_every_mesh_gets_the_same_parameters(name, mesh):
    published = open_published(FIXTURES / name, vocab_multiple=10)  # with rows of zeros
    alone, spread = loaded(published, ONE), loaded(published, MeshConfig(**MESHES[mesh]))
    assert alone.keys() == spread.keys()
    for path, values in alone.items():
        np.testing.assert_array_equal(spread[path], values, err_msg=path)
    assert alone["embedding/tokens"].shape[0] == 70
    assert not alone["embedding/tokens"][64:].any()


def test_experts_put_together_on_their_devices(monkeypatch):
    """As large parameters are; those before were put together on the host."""
    published = open_published(FIXTURES / "mixtral")
    alone = loaded(published, ONE)
    monkeypatch.setattr("maxlm.checkpoint.hf.load.ON_HOST_BYTES", 30_000)
    spread = loaded(published, MeshConfig(fsdp=2, expert=2, tensor=2))
    for path, values in alone.items():
        np.testing.assert_array_equal(spread[path], values, err_msg=path)


def test_progress_counts_every_element_once():
    published, done = open_published(FIXTURES / "mixtral"), []
    mesh = build_mesh(ONE, jax.devices()[:1])
    decoder = load(published, Decoder(published.model), mesh, done.append)
    assert sum(done) == sum(parameter[...].size for _, parameter in named_parameters(decoder))


def test_memory_is_that_of_less_than_two_files(tmp_path, monkeypatch):
    """Of the host: what lies on devices is theirs (numpy tells the tracer what it allocates)."""
    config = json.loads((FIXTURES / "llama2/config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    config |= {"head_dim": 128, "vocab_size": 64}
    shard = 8_000_000
    assert write_sparse(tmp_path, config, shard) > 5
    monkeypatch.setattr("maxlm.checkpoint.hf.load.ON_HOST_BYTES", 0)
    published = open_published(tmp_path)
    mesh = build_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    tracemalloc.start()
    try:
        for path, value in load_each(published, Decoder(published.model), mesh):
            assert value.is_fully_addressable, path
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2_000_000 < peak < 2 * shard
