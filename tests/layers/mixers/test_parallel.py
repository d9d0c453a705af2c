"""Parallel mixers: the sum of the mixers run alone, with the reports of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maxlm.layers import mixers
from maxlm.layers.mixers.attention import Attention
from maxlm.sharding.fsdp import gather, vary
from maxlm.sharding.mesh import BATCH_AXES
from maxlm.sharding.parameters import initialise, map_parameters, partition_specs, with_value
from maxlm.train.setup import build_program
from tests.train.program import BATCH, LENGTH, MODEL, make_batch, make_config

WIDE = {"kind": "attention", "num_heads": 8, "head_dim": 4}
NARROW = {
    "kind": "attention",
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "window": 3,
    "sinks": True,
}
SIDE_BY_SIDE = {"kind": "parallel", "mixers": [WIDE, NARROW]}
NESTED = {"kind": "parallel", "mixers": [NARROW, SIDE_BY_SIDE]}
ROWS = (*BATCH_AXES, "stage")  # of one stage
TOKENS = P(ROWS, ("context", "tensor"), None)


class Telling(Attention):
    """Attention with a report: the sum of what it adds, of which it keeps as much in its first
    query weight.
    """

    def __call__(self, x_BTD, info):
        y_BTD, _ = super().__call__(x_BTD, info)
        return y_BTD, y_BTD.sum()

    def penalty(self, report):
        return 2.0 * jax.lax.psum(report.sum(), "tensor")

    def metrics(self, report):
        return {"telling/sum": report}

    def after_step(self, before, report):
        copy = jax.tree.map(lambda leaf: leaf, self)
        copy.query = with_value(self.query, before.query[...] + report.reshape(-1, 1, 1, 1))
        return copy


def build(mesh, mixer):
    """Return (program, the mixer's configuration) of a model of one layer."""
    config = make_config(model={"num_layers": 1, "pattern": [{"mixer": mixer}]}, mesh=mesh)
    devices = int(np.prod(list(mesh.values()) or [1]))
    return build_program(config, jax.devices()[:devices]), config.model


def run(program, layer, x, info_of):
    """Return what a layer makes of vectors, and its gradients for a fixed direction."""
    direction = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def device(layer, x, direction, batch):
        def scored(layer, x):
            whole, info = gather(vary(layer)), info_of(batch)
            y = whole(x, info._replace(prepared=whole.prepare(info)))[0]
            return (y * direction).sum(), y

        (_, y), gradients = jax.value_and_grad(scored, (0, 1), has_aux=True)(layer, x)
        return y, gradients

    specs = partition_specs(layer)
    batch = make_batch(make_config(), 0)
    fields = {name: batch[name] for name in ("segment_ids", "positions")}
    fields["places"] = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (BATCH, LENGTH))
    mapped = jax.shard_map(
        device,
        mesh=program.mesh,
        in_specs=(specs, TOKENS, TOKENS, P(ROWS)),
        out_specs=(TOKENS, (specs, TOKENS)),
    )
    return jax.jit(mapped)(layer, x, direction, fields)


@pytest.mark.parametrize("mixer", [SIDE_BY_SIDE, NESTED], ids=["side by side", "nested"])
def test_the_sum_of_its_mixers(mixer):
    program, model = build({"data": 2, "tensor": 2}, mixer)
    layer = initialise(mixers.build_mixer(model, model.layers[0].mixer), 0, program.mesh)
    layer = map_parameters(lambda p: with_value(p, 10 * p.get_value()), layer)
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, MODEL["embed_dim"])).astype(np.float32)

    def info_of(batch):
        info = program.execution.sequence_info(batch)
        return info._replace(prepared=layer.prepare(info))

    y, (d_layer, d_x) = run(program, layer, x, info_of)
    parts = [run(program, own, x, info_of) for own in layer.mixers]
    assert len(parts) == 2
    np.testing.assert_allclose(y, sum(np.asarray(part[0]) for part in parts), atol=1e-4)
    np.testing.assert_allclose(d_x, sum(np.asarray(part[1][1]) for part in parts), atol=2e-4)
    for got, (_, (want, _)) in zip(d_layer.mixers, parts, strict=True):
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
    assert all(np.abs(part[0]).max() > 0.1 for part in parts)


def test_reports_go_to_the_mixer_that_made_them(monkeypatch):
    monkeypatch.setitem(mixers.MIXERS, "attention", Telling)
    program, model = build({}, NESTED)
    layer = initialise(mixers.build_mixer(model, model.layers[0].mixer), 0, program.mesh)
    rows = [jnp.array([1.0]), [jnp.array([2.0]), jnp.array([4.0])]]
    assert layer.metrics(rows) == {"telling/0/sum": 1, "telling/1/0/sum": 2, "telling/1/1/sum": 4}
    penalty = jax.shard_map(layer.penalty, mesh=program.mesh, in_specs=P(), out_specs=P())(rows)
    assert penalty == 2 * 7
    moved = layer.after_step(layer, rows)
    for own, old, by in (
        (moved.mixers[0], layer.mixers[0], 1),
        (moved.mixers[1].mixers[0], layer.mixers[1].mixers[0], 2),
        (moved.mixers[1].mixers[1], layer.mixers[1].mixers[1], 4),
    ):
        np.testing.assert_allclose(own.query[...][0], old.query[...] + by)


def test_a_mixer_without_a_report_is_not_asked_for_one():
    program, model = build({}, SIDE_BY_SIDE)
    layer = initialise(mixers.build_mixer(model, model.layers[0].mixer), 0, program.mesh)
    layer.mixers[1].penalty = layer.mixers[1].metrics = None  # calling either fails
    assert layer.penalty([None, None]) == 0
    assert layer.metrics([None, None]) == {}
