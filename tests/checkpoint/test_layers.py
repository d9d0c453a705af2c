"""Every layer keeps its identity, on the disk and from one pipeline to another."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.checkpoint import Checkpointer, CheckpointReader
from maxlm.checkpoint.rearrange import rearrange_layers
from maxlm.config.schema import CheckpointConfig
from maxlm.sharding.stages import EMPTY


def on_stages(rows, stages):
    """Place rows of layers on the stages of a pipeline, on four devices."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(stages, -1), ("stage", "fsdp"))
    return jax.device_put(jnp.asarray(rows), NamedSharding(mesh, PartitionSpec("stage")))


def layers(step):
    return np.random.default_rng(step).standard_normal((4, 8, 16)).astype(np.float32)


@pytest.mark.parametrize("stages", [1, 4])
def test_layers_that_change_places_on_the_disk_are_damage(stages, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    with Checkpointer(folder, CheckpointConfig()) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"stack": on_stages(layers(step), stages=4)}, {})
    base = {"driver": "file", "path": f"{folder / '00000002' / 'state'}/"}
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    first, third = (store.read(f"stack/{row}.0.0").result().value for row in (0, 2))
    store.write("stack/0.0.0", third).result()
    store.write("stack/2.0.0", first).result()
    wanted = on_stages(layers(0), stages)
    abstract = jax.ShapeDtypeStruct(wanted.shape, wanted.dtype, sharding=wanted.sharding)
    # One by one the layers are as they were: their order alone is wrong.
    restored = CheckpointReader(folder).restore({"stack": abstract})
    assert restored.step == 1
    assert "1 of 1 arrays do not fit their fingerprints: ['stack']" in caplog.text
    np.testing.assert_array_equal(restored.state["stack"], layers(1))


def test_layers_come_to_the_rows_of_any_other_pipeline():
    rng, by_layer = random.Random(0), layers(3)
    for _ in range(6):
        saved, wanted = (shuffled(rng, empty) for empty in (rng.choice((0, 4)), 4))
        rows = np.stack([by_layer[layer] if layer != EMPTY else by_layer[0] for layer in saved])
        before = {"w": nnx.Param(on_stages(rows, stages=4), layers=saved)}
        place = on_stages(np.zeros((len(wanted), 8, 16), np.float32), stages=2)
        declared = jax.ShapeDtypeStruct(place.shape, place.dtype, sharding=place.sharding)
        after = rearrange_layers(before, {"w": nnx.Param(declared, layers=wanted)})["w"]
        found = np.asarray(after.get_value())
        for row, layer in enumerate(wanted):
            expected = by_layer[layer] if layer != EMPTY else np.zeros((8, 16))
            np.testing.assert_array_equal(found[row], expected, f"{saved} -> {wanted}, row {row}")


def shuffled(rng, empty):
    rows = [0, 1, 2, 3] + [EMPTY] * empty
    rng.shuffle(rows)
    return tuple(rows)
