"""The added objective: what it counts, sees and reports."""

import jax
import numpy as np
import pytest

from maxlm.train.setup import build_program, open_datasets


def test_targets_are_two_tokens_on_and_in_the_same_document(load):
    config = load("objective")
    data = open_datasets(config).train
    batch, bos_id = data.rows(0, 64), data.tokenizer.bos_id
    tokens, weights = batch["tokens"], batch["weights"]
    np.testing.assert_array_equal(batch["targets"][:, :-2], tokens[:, 2:])
    crosses = (tokens[:, 1:-1] == bos_id) | (tokens[:, 2:] == bos_id)
    starts = batch["positions"][:, :-2] < 1
    np.testing.assert_array_equal(weights[:, :-2], ~crosses & ~starts)
    assert 0 < weights.sum() < weights.size
    assert crosses.any()


@pytest.mark.parametrize("place", [20, 3])
def test_tokens_see_no_more_than_the_window(place, load):
    """The mask of a place lets the 7 tokens up to it through, and no other."""
    config = load("objective", "mesh.fsdp=1")
    program = build_program(config, jax.devices()[:1])
    positions = np.arange(32, dtype=np.int32)[None]
    fields = {"segment_ids": np.ones_like(positions), "positions": positions}
    mask = program.execution.objective.mask(fields, positions)
    rank, start, until = mask.q_rank_BT[0, place], mask.kv_from_BS[0], mask.kv_until_BS[0]
    seen = np.flatnonzero((start <= rank) & (rank < until))
    np.testing.assert_array_equal(seen, np.arange(max(place - 6, 0), place + 1))
