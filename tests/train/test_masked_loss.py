"""A step's loss and gradient count no token that is masked: against logits in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.data.examples.next_token import NextTokenExamples
from maxlm.data.shards import ShardWriter, TokenShards
from maxlm.decoding.forward import make_forward
from maxlm.sharding.mesh import batch_sharding
from maxlm.sharding.parameters import initialise
from maxlm.train.loss.gradients import make_gradients
from maxlm.train.setup import build_program
from tests.train.program import make_config

BATCH, LENGTH, VOCAB = 4, 16, 64
BOS, EOS = 1, 2


class Tokens:
    """As much of a tokenizer as batches ask: every token is a byte."""

    bos_id, eos_id = BOS, EOS

    @staticmethod
    def bytes_of(tokens, before):
        return (tokens > EOS).astype(np.int32)


@pytest.fixture
def shards(tmp_path):
    generator = np.random.default_rng(0)
    settings = {"vocab_size": VOCAB, "bos_id": BOS, "eos_id": EOS, "tokenizer": "0" * 64}
    with ShardWriter(tmp_path, **settings) as writer:
        for _ in range(20):
            ids = generator.integers(3, VOCAB, 9)
            writer.write_document(ids, masked=generator.random(9) < 0.5)
    return TokenShards(tmp_path)


def test_loss_and_gradient_are_those_of_brute_force(shards):
    """Mean cross entropy over the targets that are learned; the gradient along some directions by
    differences.
    """
    config = make_config(train={"batch_size": BATCH}, length=LENGTH)
    program = build_program(config, jax.devices()[:1])
    decoder = initialise(program.declared, 0, program.mesh)
    starts = [LENGTH * row for row in range(BATCH)]
    tokens, masked = (
        np.stack([read(start, LENGTH + 1) for start in starts])
        for read in (shards.read, shards.read_masked)
    )
    examples = NextTokenExamples(None, Tokens(), seed=0)
    fields = examples(tokens, range(BATCH), masked)
    assert 10 < fields["weights"].sum() < 45
    place = batch_sharding(program.mesh)
    batch = {name: jax.device_put(values, place) for name, values in fields.items()}
    gradients, sums = jax.jit(make_gradients(program.declared, program.mesh, program.execution))(
        decoder, batch
    )

    logits = make_forward(config, config.mesh, program.declared, program.mesh, jnp.dtype("float32"))
    sequence = [batch[name] for name in ("tokens", "segment_ids", "positions")]

    def brute_force(parameters):
        z_BTV = np.asarray(logits(parameters, *sequence, length=LENGTH), np.float64)
        total = count = 0
        for row in range(BATCH):
            for column in range(LENGTH):
                target = tokens[row, column + 1]
                if target != BOS and not masked[row, column + 1]:
                    z_V = z_BTV[row, column]
                    total += np.log(np.exp(z_V).sum()) - z_V[target]
                    count += 1
        assert count == sums.weight
        return total / count

    assert float(sums.objective) == pytest.approx(brute_force(decoder), rel=1e-6)
    leaves, tree = jax.tree.flatten(decoder)
    slopes = jax.tree.leaves(gradients)
    generator, step = np.random.default_rng(1), 1e-2
    for _ in range(3):
        direction = [generator.normal(size=leaf.shape) * np.abs(leaf).mean() for leaf in leaves]
        moved = [
            jax.tree.unflatten(
                tree, [leaf + sign * step * d for leaf, d in zip(leaves, direction, strict=True)]
            )
            for sign in (np.float32(1), np.float32(-1))
        ]
        difference = (brute_force(moved[0]) - brute_force(moved[1])) / (2 * step)
        slope = sum(
            float((np.asarray(s) * d).sum()) for s, d in zip(slopes, direction, strict=True)
        )
        assert slope == pytest.approx(difference, rel=2e-3, abs=1e-4)
