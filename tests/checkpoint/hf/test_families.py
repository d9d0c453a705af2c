"""Every family against what transformers computed with the same weights, and written back bit for
bit.
"""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from maxlm.checkpoint.hf.load import load
from maxlm.checkpoint.hf.published import open_published
from maxlm.checkpoint.hf.save import plan_export, write_export
from maxlm.models.decoder import Decoder
from maxlm.sharding.parameters import named_parameters
from tests.checkpoint.hf.whole_logits import logits_of, one_device

FIXTURES = sorted((Path(__file__).parent / "fixtures").iterdir())


@pytest.fixture(scope="module", params=FIXTURES, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def published(folder):
    return open_published(folder)


@pytest.fixture(scope="module")
def decoder(published):
    return load(published, Decoder(published.model), one_device())


def test_logits_are_those_of_transformers(folder, decoder):
    """Of a prompt, of one longer than windows and original contexts, and of two packed together."""
    expected = load_file(folder / "expected.safetensors")
    long, short, other = (expected[f"tokens_{name}"] for name in ("long", "short", "other"))
    ends = len(short), len(short) + len(other)
    tokens, segments = np.zeros((2, len(long)), int), np.zeros((2, len(long)), int)
    tokens[0], segments[0] = long, 1
    tokens[1, : ends[0]], segments[1, : ends[0]] = short, 1
    tokens[1, ends[0] : ends[1]], segments[1, ends[0] : ends[1]] = other, 2
    logits = logits_of(decoder, tokens, segments)
    told = {decoder.model.told_length(length) for length in (ends[1], len(long))}
    if len(told) > 1:  # how tokens are turned depends on the length of the sequence they are in
        packed = logits_of(decoder, tokens[1:, : ends[1]], segments[1:, : ends[1]])
        logits = [logits[0], packed[0]]
    found = {
        "long": logits[0],
        "short": logits[1][: ends[0]],
        "other": logits[1][ends[0] : ends[1]],
    }
    for name, values in found.items():
        wanted = expected[f"logits_{name}"]
        np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_what_is_written_is_what_was_read_bit_for_bit(folder, published, decoder, tmp_path):
    parameters = {path: np.asarray(value[...]) for path, value in named_parameters(decoder)}
    export = plan_export(
        Decoder,
        published.model,
        vocab_size=published.vocab_size,
        about=published.config,
        family=published.family.name,
    )
    write_export(
        export,
        tmp_path / "out",
        lambda paths: {path: parameters[path] for path in paths},
        dtype=np.dtype(np.float32),
        files=[],
        advance=lambda elements: None,
        shard_bytes=30_000,
    )
    again = open_published(tmp_path / "out")
    assert again.model == published.model
    assert len({tensor.path for tensor in again.tensors.values()}) > 1
    written = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        written |= load_file(path)
    source = load_file(folder / "model.safetensors")
    assert written.keys() == source.keys()
    for name, values in source.items():
        assert written[name].tobytes() == values.tobytes(), name
