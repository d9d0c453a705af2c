"""The added layers against formulas: values, counts, reports, rules, remat, decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.show import to_json_schema
from maxlm.decoding.generate import make_advance, make_empty_states
from maxlm.models import cost
from maxlm.sharding.parameters import initialise, named_parameters
from maxlm.train.setup import build_program
from tests.seams.conftest import losses

DIM, CHANNELS, HIDDEN, VOCAB, LAYERS, LENGTH = 16, 24, 48, 320, 2, 32
ATTENTION = 4 * DIM * DIM  # two heads of 8
MLP = 3 * DIM * 32
AVERAGE = 2 * DIM * CHANNELS + CHANNELS
CENTRED = 2 * DIM * HIDDEN + DIM
REST = 2 * VOCAB * DIM + DIM  # embedding, head, the last norm
ATTENTION_FLOPS = 12 * DIM * (LENGTH + 1) / 2


@pytest.mark.parametrize(
    ("kind", "block", "vectors", "mixing"),
    [
        ("mixer", AVERAGE + MLP, CHANNELS, 6 * CHANNELS),
        ("parallel", ATTENTION + AVERAGE + MLP, CHANNELS, 6 * CHANNELS + ATTENTION_FLOPS),
        ("ffn", ATTENTION + CENTRED, DIM, ATTENTION_FLOPS),
    ],
)
def test_parameters_and_flops(kind, block, vectors, mixing, load):
    model = load(kind).model
    assert cost.parameter_count(model) == REST + LAYERS * (block + 2 * DIM)
    weights = VOCAB * DIM + LAYERS * (block - vectors)
    assert cost.flops_per_token(model, LENGTH) == pytest.approx(6 * weights + LAYERS * mixing)


@pytest.mark.parametrize(
    ("kind", "name", "values"), [("mixer", "averages", CHANNELS), ("ffn", "centred_hidden", HIDDEN)]
)
def test_memory_by_hand(kind, name, values, load):
    """In fp32 on one device: what a name saves, and what the optimizer holds."""

    def memory(remat):
        config = load(kind, f"train.remat={remat}", "mesh.fsdp=1", "train.compute_dtype=float32")
        return build_program(config, jax.devices()[:1]).memory_per_device(config)

    tokens = 8 * LENGTH
    saved, full = memory(f"{{{name}: save}}"), memory("full")
    assert saved["activations"] - full["activations"] == 4 * LAYERS * tokens * values
    count = cost.parameter_count(load(kind).model)
    assert (saved["parameters"], saved["optimizer"]) == (4 * count, 8 * count + 4)


def whole_program(config):
    config = config.model_copy(update={"mesh": config.mesh.model_copy(update={"fsdp": 1})})
    program = build_program(config, jax.devices()[:1])
    return program, initialise(program.declared, 0, program.mesh)


def test_the_mixer_is_a_moving_average(load):
    """Token by token in numpy, a document at a time, against the first block's mixer."""
    program, decoder = whole_program(load("mixer"))
    mixer = jax.tree.map(lambda x: x[0], decoder.stack[0][0].mixer)
    into, out = (np.asarray(p[...], np.float64) for p in (mixer.into, mixer.out))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, LENGTH, DIM))
    starts = {0: [0, 5, 6, 20], 1: [0, 31]}
    want, positions = np.zeros_like(x), np.zeros((2, LENGTH), np.int32)
    state = np.zeros(CHANNELS)
    for row, begins in starts.items():
        for time in range(LENGTH):
            begin = max(start for start in begins if start <= time)
            positions[row, time] = time - begin
            state = 0.9 * (0 if time == begin else state) + 0.1 * (x[row, time] @ into)
            want[row, time] = state @ out

    def run(mixer, x, positions):
        fields = {
            "positions": positions,
            "segment_ids": jnp.cumsum(positions == 0, axis=1),
            "places": positions,
        }
        info = program.execution.sequence_info(fields)
        return mixer(x, info)[0]

    specs = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(run, mesh=program.mesh, in_specs=specs, out_specs=specs, check_vma=False)
    got = jax.jit(mapped)(mixer, x.astype(np.float32), positions)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("kind", ["mixer", "parallel", "ffn"])
def test_decoding_one_by_one_as_all_at_once(kind, load):
    program, decoder = whole_program(load(kind, "model.init_std=0.3"))
    advance = make_advance(program.declared, program.mesh, jnp.float32, 8)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 6)).astype(np.int32)
    lengths, start = np.array([6, 4], np.int32), np.zeros(2, np.int32)
    want, states = advance(
        decoder,
        tokens,
        make_empty_states(decoder, program.mesh, 2, 8, jnp.float32)(),
        start,
        lengths,
    )
    kept = make_empty_states(decoder, program.mesh, 2, 8, jnp.float32)()
    last = {}
    for place in range(6):
        got, kept = advance(
            decoder, tokens[:, place : place + 1], kept, start + place, np.ones_like(start)
        )
        last |= {row: got[row] for row in range(2) if lengths[row] == place + 1}
    np.testing.assert_allclose([last[0], last[1]], want, atol=1e-4)
    # And on from there, the shorter text from its own place.
    one = np.ones_like(start)
    after, _ = advance(decoder, tokens[:, :1], states, lengths, one)
    longer = np.concatenate([tokens[1:, :4], tokens[1:, :1]], axis=1)
    alone = make_empty_states(decoder, program.mesh, 1, 8, jnp.float32)()
    want, _ = advance(decoder, longer, alone, start[:1], np.array([5], np.int32))
    np.testing.assert_allclose(after[1], want[0], atol=1e-4)


def test_the_rule_moves_the_centre_and_the_optimizer_does_not(load):
    shared = ["model.norm.epsilon=1e-12", "optimizer.weight_decay=10", "optimizer.no_decay=[]"]
    free, still = losses(
        load("ffn", "model.block.ffn.rate=0", "model.block.ffn.penalty=0", *shared)
    )
    held, moved = losses(load("ffn", "model.block.ffn.penalty=0.5", *shared))
    assert not still.decoder.stack[0][0].ffn.centre[...].any()
    assert moved.decoder.stack[0][0].ffn.centre[...].all()
    # The input is normalised: before the first step, its squared distance from a centre of zero is
    # D a token.
    assert held[0] - free[0] == pytest.approx(0.5 * LAYERS * DIM, rel=1e-5)


def test_weight_decay_goes_by_role(load):
    """Without a gradient, matrices shrink by their decay, and vectors stay."""
    config = load("mixer", "optimizer.weight_decay=0.5")
    program, decoder = whole_program(config)
    nothing = jax.tree.map(jnp.zeros_like, decoder)
    directions, _ = program.optimizer.update(nothing, program.optimizer.init(decoder), decoder)
    moved = {
        path.split("/", 3)[-1]: p[...]
        for path, p in named_parameters(directions)
        if "mixer/" in path
    }
    before = {
        path.split("/", 3)[-1]: p[...] for path, p in named_parameters(decoder) if "mixer/" in path
    }
    assert moved.keys() == {"mixer/into", "mixer/decay", "mixer/out"}
    for path, direction in moved.items():
        np.testing.assert_allclose(
            direction, 0 if path == "mixer/decay" else 0.5 * before[path], rtol=1e-6
        )


def test_editors_know_all_kinds():
    schema = to_json_schema()
    for name in (
        "MovingAverageConfig",
        "CentredConfig",
        "AfterNextConfig",
        "LionConfig",
        '"dense"',
    ):
        assert name in schema
