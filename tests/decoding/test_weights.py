"""Parameters that lie as what they are used for wants them."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.errors import UserError
from maxlm.decoding.generate import Generator
from maxlm.decoding.sampling import Sampling
from maxlm.decoding.weights import Weights
from maxlm.sharding.parameters import initialise, named_parameters
from maxlm.train.setup import build_program
from tests.train.program import make_config

MIXER = {"kind": "attention", "num_heads": 4, "num_kv_heads": 2}
MODEL = {
    "num_layers": 5,
    "prefix": [{"mixer": MIXER}],
    "pattern": [{"mixer": MIXER}, {"mixer": {**MIXER, "window": 3}}],
    "init_std": 0.3,
}


@pytest.fixture
def program():
    return build_program(make_config(model=MODEL), jax.devices()[:1])


def arrays(decoder):
    return {path: np.asarray(parameter[...]) for path, parameter in named_parameters(decoder)}


def test_layers_apart_come_together_again(program):
    decoder = initialise(program.declared, 0, program.mesh)
    before, facts = arrays(decoder), [p.get_metadata() for _, p in named_parameters(decoder)]
    weights = Weights(decoder, program.mesh)
    apart = arrays(weights.for_tokens(2))
    assert len(weights.for_tokens(2).stack) == 3  # the one in front, and a pattern twice
    np.testing.assert_array_equal(
        apart["stack/2/1/mixer/query"], before["stack/1/1/mixer/query"][1]
    )
    np.testing.assert_array_equal(
        apart["stack/0/0/mixer/query"], before["stack/0/0/mixer/query"][0]
    )
    again = weights.stacked()
    assert arrays(again).keys() == before.keys()
    for path, values in arrays(again).items():
        np.testing.assert_array_equal(values, before[path])
    assert [p.get_metadata() for _, p in named_parameters(again)] == facts


def test_nothing_is_held_twice(program):
    weights = Weights(initialise(program.declared, 0, program.mesh), program.mesh)
    apart, alone = (lambda: weights.for_tokens(2)), (lambda: weights.for_tokens(1))
    for way in (apart, weights.stacked, apart, alone):
        held = [weakref.ref(leaf) for leaf in jax.tree.leaves(weights._decoder.stack)]
        way()
        gc.collect()
        assert [leaf() for leaf in held if leaf() is not None] == []


def test_an_interrupted_move_is_told(program, monkeypatch):
    weights = Weights(initialise(program.declared, 0, program.mesh), program.mesh)

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("maxlm.decoding.weights._apart", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.for_tokens(2)
    with pytest.raises(UserError, match="they are lost; load it again"):
        weights.stacked()


def test_several_devices_keep_the_stack():
    config = make_config(model=MODEL, mesh={"tensor": 2})
    program = build_program(config, jax.devices()[:2])
    decoder = initialise(program.declared, 0, program.mesh)
    assert Weights(decoder, program.mesh).for_tokens(4) is decoder


def test_both_ways_say_the_same(program):
    weights = Weights(initialise(program.declared, 0, program.mesh), program.mesh)
    generator = Generator(weights, program.mesh, num_ids=64, compute_dtype=jnp.float32)
    how = {"max_tokens": 8, "sampling": Sampling(temperature=0), "stop_ids": ()}
    prompts = [[1, 5, 9], [7, 2], [33]]
    together = list(zip(*generator(prompts, **how), strict=True))
    alone = [tuple(token for (token,) in generator([prompt], **how)) for prompt in prompts]
    assert together == alone
    assert list(zip(*generator(prompts, **how), strict=True)) == together
