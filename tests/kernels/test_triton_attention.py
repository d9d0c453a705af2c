"""The Triton kernels, interpreted, against attention in fp64, over every combination of what they
can do.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from maxlm.kernels import chunked_attention, triton_attention
from maxlm.kernels.mask import Mask
from maxlm.kernels.shape import AttentionShape
from maxlm.kernels.triton_attention import Tile, Tiles
from tests.kernels.oracle import MASKS, attention_fp64, make_scoring, place_mask

SMALL = Tiles(Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), Tile(32, 16, 4, 1))


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem; small tiles, so that there are several of each kind."""

    seed: int = 0
    dtype: str = "float32"
    lengths: tuple[int, int] = (80, 80)
    heads: tuple[int, int] = (4, 2)
    sizes: tuple[int, int] = (32, 32)
    starts: tuple[int, int] = (0, 0)
    mask: str = "places"
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    by_distance: str | None = None
    documents: int = 3

    def arrays(self):
        rng = np.random.default_rng(self.seed)
        (length, kv_length), (heads, kv_heads), (size, v_size) = (
            self.lengths,
            self.heads,
            self.sizes,
        )
        draw = lambda *shape: jnp.asarray(rng.normal(size=shape), self.dtype)  # noqa: E731
        q, k = draw(2, length, heads, size), draw(2, kv_length, kv_heads, size)
        v, d_out = draw(2, kv_length, kv_heads, v_size), draw(2, length, heads, v_size)
        return q, k, v, d_out, self.part_of(self.whole_mask(rng))

    def whole_mask(self, rng):
        """Return a mask of a sequence that holds the queries and the keys: one of the oracle's or
        of `places`.
        """
        positions = max(
            start + length for start, length in zip(self.starts, self.lengths, strict=True)
        )
        if self.mask != "places":
            return MASKS[self.mask](rng, (2, positions))
        documents = np.sort(rng.integers(1, self.documents + 1, (2, positions)), axis=1)
        documents[1, -positions // 8 :] = 0  # the second row ends in padding
        places = np.arange(positions)
        return place_mask(
            documents, documents, places, places, causal=self.causal, window=self.window
        )

    def part_of(self, mask):
        queries, keys = (
            slice(start, start + length)
            for start, length in zip(self.starts, self.lengths, strict=True)
        )
        return Mask.of(mask.queries[:, :, queries], mask.keys[:, :, keys])

    def oracle(self):
        q, k, v, d_out, mask = self.arrays()
        return attention_fp64(q, k, v, d_out, mask, self.scoring)

    @property
    def scoring(self):
        how = {"softcap": self.softcap, "scale": self.scale, "by_distance": self.by_distance}
        return make_scoring(self.heads[0], **how)


CASES = st.builds(
    Case,
    seed=st.integers(0, 2**20),
    lengths=st.sampled_from([(64, 64), (80, 80), (37, 37), (33, 80), (96, 50), (1, 40)]),
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    sizes=st.sampled_from([(32, 32), (64, 64), (80, 80), (96, 96), (48, 32), (20, 24)]),
    starts=st.sampled_from([(0, 0), (64, 0), (0, 64), (32, 48)]),
    mask=st.sampled_from(["places"] * len(MASKS) + list(MASKS)),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 9, 40]),
    softcap=st.sampled_from([None, 2.0]),
    scale=st.sampled_from([None, 0.3]),
    by_distance=st.sampled_from([None, "slopes"]),
    documents=st.sampled_from([1, 3, 8]),
)


def run(module, case, arrays=None):
    q, k, v, d_out, mask = arrays or case.arrays()
    options = {"scoring": case.scoring} | (
        {} if module is chunked_attention else {"interpret": True}
    )
    # Without the option XLA leaves out roundings to bf16.
    jit = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    out, lse = jit(functools.partial(module.forward, **options))(q, k, v, mask)
    gradients = jit(functools.partial(module.backward, **options))(q, k, v, out, lse, d_out, mask)
    return [np.asarray(x, np.float64) for x in (out, lse, *gradients)]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(triton_attention, "choose_tiles", lambda *_: SMALL)


def check_fp32(case):
    for name, got, want in zip(
        ("out", "lse", "dq", "dk", "dv"), run(triton_attention, case), case.oracle(), strict=True
    ):
        # Terms of a gradient, q (do v - delta) / sqrt(H) with elements of size 1, may cancel: to 0
        # with one key to see.
        scale = np.abs(want[np.abs(want) < 1e29]).max(initial=1.0 if name.startswith("d") else 1e-3)
        np.testing.assert_allclose(
            got, want, rtol=1e-5, atol=1e-5 * scale, err_msg=f"{name} {case}"
        )


def squared_errors_bf16(case):
    """Return the mean squared errors of kernel and plain attention, one for each of their results."""
    results = run(triton_attention, case), run(chunked_attention, case)
    return np.asarray(
        [
            [np.mean(np.square(x - y)) for x, y in zip(got, case.oracle(), strict=True)]
            for got in results
        ]
    )


def check_bf16(case):
    # The roundings of a single query are too few to compare: theirs differ by up to 30 % from draw
    # to draw.
    seeds = range(case.seed, case.seed + (8 if case.lengths[0] == 1 else 1))
    cases = [dataclasses.replace(case, dtype="bfloat16", seed=seed) for seed in seeds]
    errors = np.sqrt(np.mean([squared_errors_bf16(x) for x in cases], axis=0))
    for name, error, plain_error in zip(("out", "lse", "dq", "dk", "dv"), *errors, strict=True):
        assert error <= 1.2 * plain_error + 1e-6, f"{name} {error} {plain_error} {case}"


GRID = [
    Case(),
    Case(causal=False, lengths=(33, 80), heads=(4, 1), sizes=(80, 80), documents=1),
    Case(window=9, softcap=2.0, sizes=(48, 32), starts=(64, 0), documents=1),
    Case(lengths=(96, 50), sizes=(20, 24), starts=(32, 48), heads=(4, 4), softcap=2.0, documents=8),
    *(Case(mask=mask) for mask in MASKS),
    Case(by_distance="slopes", scale=0.3),
    Case(by_distance="slopes", lengths=(33, 80), starts=(47, 0), heads=(4, 4), window=40),
    Case(mask="block diffusion", lengths=(33, 80), starts=(47, 0), sizes=(20, 24)),
    Case(mask="any", lengths=(96, 50), starts=(0, 7), heads=(4, 4), sizes=(48, 32), softcap=2.0),
]


@pytest.mark.parametrize("case", GRID, ids=str)
def test_equals_fp64(case):
    check_fp32(case)


def test_bf16_is_as_near_as_the_plain_attention():
    check_bf16(Case(window=40, softcap=2.0, sizes=(48, 32)))


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(CASES)
def test_equals_fp64_everywhere(case):
    check_fp32(case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(CASES)
def test_bf16_is_as_near_as_the_plain_attention_everywhere(case):
    check_bf16(case)


def test_two_runs_give_the_same_bits():
    case = Case(window=40, dtype="bfloat16")
    for one, other in zip(run(triton_attention, case), run(triton_attention, case), strict=True):
        np.testing.assert_array_equal(one, other)


def test_blocks_that_nobody_sees_are_not_computed():
    # Two documents of 32 tokens: the second's queries must not touch the first's keys, nor the
    # first's the second's.
    case = Case(lengths=(64, 64), documents=1)
    q, k, v, d_out, mask = case.arrays()
    documents = jnp.repeat(jnp.asarray([[1, 2], [1, 2]], jnp.int32), 32, axis=1)
    mask = dataclasses.replace(mask, q_segments_BT=documents, kv_segments_BS=documents)
    clean = run(triton_attention, case, (q, k, v, d_out, mask))
    for document, tokens in ((1, slice(32, 64)), (2, slice(0, 32))):
        spoilt = [x.at[:, tokens].set(jnp.nan) for x in (q, k, v, d_out)]
        for name, got, want in zip(
            ("out", "lse", "dq", "dk", "dv"),
            run(triton_attention, case, (*spoilt, mask)),
            clean,
            strict=True,
        ):
            kept = np.asarray(documents[0]) == document
            axis = 2 if name == "lse" else 1
            np.testing.assert_array_equal(
                np.compress(kept, got, axis), np.compress(kept, want, axis), err_msg=name
            )


def test_parts_of_a_larger_softmax_add_up():
    # What ring attention does: the whole out and lse, the keys in two parts.
    case = Case(lengths=(64, 64))
    q, k, v, d_out, mask = case.arrays()
    out, lse, *want = run(triton_attention, case)
    parts = []
    for start in (0, 32):
        part = slice(start, start + 32)
        part_mask = Mask.of(mask.queries, mask.keys[:, :, part])
        given = (
            q,
            k[:, part],
            v[:, part],
            jnp.asarray(out, q.dtype),
            jnp.asarray(lse, q.dtype),
            d_out,
            part_mask,
        )
        parts.append(triton_attention.backward(*given, interpret=True))
    d_q, d_k, d_v = (
        parts[0][0] + parts[1][0],
        *(jnp.concatenate(x, axis=1) for x in list(zip(*parts, strict=True))[1:]),
    )
    for got, wanted in zip((d_q, d_k, d_v), want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_distance", [None, "slopes"])
def test_compiles_to_triton_in_a_shard_map_with_varying_types(by_distance):
    # Interpreted kernels know no varying types; so only lowered, for a GPU that need not be there.
    case = Case(lengths=(80, 80), sizes=(96, 64), window=40, softcap=2.0, dtype="bfloat16")
    q, k, v, d_out, mask = case.arrays()
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "tensor"), auto, abstract_device=gpu)
    heads, rows = P("data", None, "tensor", None), P("data", None)

    scoring = make_scoring(4, by_distance=by_distance)

    def program(q, k, v, d_out, mask, scoring):
        out, lse = triton_attention.forward(q, k, v, mask, scoring=scoring)
        gradients = triton_attention.backward(q, k, v, out, lse, d_out, mask, scoring=scoring)
        return out, lse, *gradients

    specs = (heads, P("data", "tensor", None), heads, heads, heads)
    mask_spec = Mask(*(rows,) * 5)
    sharded = jax.jit(
        jax.shard_map(
            program, mesh=mesh, in_specs=(heads,) * 4 + (mask_spec, P("tensor")), out_specs=specs
        )
    )
    with jax.sharding.use_abstract_mesh(mesh):
        text = (
            sharded.trace(q, k, v, d_out, mask, scoring)
            .lower(lowering_platforms=("cuda",))
            .as_text()
        )
    assert text.count("@__gpu$xla.gpu.triton(") == 3 or text.count("@triton_kernel_call") == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"device_kind": "Tesla T4"}, "Ampere"),
        ({"device_kind": "AMD Instinct MI300X"}, "NVIDIA"),
        ({"key_size": 320}, "head sizes up to 256"),
        ({"dtype": "float16"}, "float16"),
        ({"by_distance": "slopes"}, None),
        ({"by_distance": "table"}, "position.kind=relative; chunked"),
    ],
)
def test_says_what_it_cannot_do(changes, words):
    shape = AttentionShape("NVIDIA A100-SXM4-80GB", "bfloat16", 8, 2, 128, 128, 4096, 4096)
    reason = triton_attention.unsupported(shape._replace(**changes))
    assert (words in reason) if words else reason is None
