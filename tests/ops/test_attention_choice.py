"""Which attention kernel runs, and what is said when the one that is asked for cannot."""

import jax.numpy as jnp
import pytest

from maxlm.config.errors import UserError
from maxlm.config.schema import MeshConfig
from maxlm.models.decoder import Decoder
from maxlm.ops.attention import ATTENTION, CHUNKED
from maxlm.ops.kernel_choice import Row, choose
from maxlm.train.setup import kernel_shapes
from tests.train.program import make_config


def shapes_of(mesh=None, **model):
    config = make_config(model=model, mesh=mesh or {})
    device = {"device_kind": "Made-up 1", "dtype": jnp.dtype("bfloat16")}
    return kernel_shapes(config, MeshConfig(**(mesh or {})), Decoder(config.model), **device)[
        "attention"
    ]


@pytest.fixture
def table(monkeypatch):
    """A table with a kernel that knows no softcap, the GPU's first choice; what is installed does
    not matter.
    """
    monkeypatch.delitem(ATTENTION.table, "tokamax")
    limited = Row(
        ("gpu",),
        lambda shape: "has no softcap" if shape.softcap else None,
        lambda kind: (kind, "limited"),
    )
    monkeypatch.setitem(ATTENTION.table, "limited", limited)
    monkeypatch.setitem(ATTENTION.order, "gpu", ("limited", "chunked"))


def test_first_that_can(table):
    plain, capped = shapes_of(), shapes_of(pattern=[{}, {"mixer": {"softcap": 5.0}}])
    assert choose(ATTENTION, "auto", "gpu", plain) == (
        ("Made-up 1", "limited"),
        "limited",
        "first choice for gpu",
    )
    assert choose(ATTENTION, "auto", "gpu", capped) == (
        CHUNKED,
        "chunked",
        "first choice for gpu; limited has no softcap",
    )
    assert choose(ATTENTION, "auto", "cpu", plain).name == "chunked"


@pytest.mark.parametrize(
    ("platform", "model", "text"),
    [
        (
            "tpu",
            {},
            "runtime.kernels.attention=limited runs on gpu, not on tpu; use flash_tpu, splash, chunked or auto",
        ),
        (
            "gpu",
            {"pattern": [{"mixer": {"softcap": 5.0}}]},
            "runtime.kernels.attention=limited has no softcap; use chunked",
        ),
    ],
)
def test_pinned_one_that_cannot(table, platform, model, text):
    with pytest.raises(UserError) as caught:
        choose(ATTENTION, "limited", platform, shapes_of(**model))
    assert str(caught.value).startswith(text)


DEVICES = {"tpu": "TPU v5", "gpu": "NVIDIA H100 80GB HBM3", "cpu": "cpu"}
OURS = {"flash_tpu", "flash_hopper", "flash_triton"}
LIBRARIES = {"splash", "cudnn"}
REFUSED = {
    "scale": ({"scale": 0.1}, {}),
    "temperature": ({"temperature": {}}, {}),
    "norms": ({"qk_norm": "rmsnorm_all"}, {}),
    "chunk": ({"chunk": 8}, {"splash": "compiles the mask in"}),
    "alibi": (
        {"position": {"kind": "alibi"}},
        dict.fromkeys(LIBRARIES | {"flash_hopper"}, "by distance, position.kind=alibi"),
    ),
    "relative": (
        {"position": {"kind": "relative"}},
        dict.fromkeys(LIBRARIES | OURS, "by distance, position.kind=relative"),
    ),
}


@pytest.mark.parametrize("feature", REFUSED)
def test_kernels_take_a_feature_or_say_why_not(feature):
    mixer, refused = REFUSED[feature]
    size = {"num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
    (shape,) = shapes_of(pattern=[{"mixer": mixer}], **size)
    for name in OURS | LIBRARIES | {"chunked"}:
        row = ATTENTION.table[name]
        why = row.unsupported(shape._replace(device_kind=DEVICES[row.platforms[0]]))
        if name == "chunked" or name not in refused:
            assert why is None, (name, why)
        else:
            assert refused[name] in why, (name, why)


def test_a_device_has_its_part():
    model = {"num_heads": 8, "num_kv_heads": 4}
    whole = shapes_of(**model)[0]
    assert (whole.num_heads, whole.num_kv_heads, whole.query_length, whole.spread) == (
        8,
        4,
        whole.key_length,
        False,
    )
    ring = shapes_of({"tensor": 2, "context": 2}, **model)[0]
    assert (ring.num_heads, ring.num_kv_heads, ring.query_length * 4, ring.spread) == (
        4,
        2,
        whole.query_length,
        True,
    )
    assert ring.key_length == ring.query_length
    gathered = shapes_of({"context": 2, "context_kind": "all_gather"}, **model)[0]
    assert (gathered.query_length * 4, gathered.key_length) == (
        whole.query_length,
        whole.key_length,
    )
    heads = shapes_of({"context": 2, "context_kind": "ulysses"}, **model)[0]
    assert (heads.num_heads, heads.query_length, heads.spread) == (4, whole.query_length, False)


LATENT = {
    "kind": "mla",
    "num_heads": 16,
    "query_rank": 32,
    "kv_rank": 32,
    "nope_dim": 128,
    "rope_dim": 64,
    "value_dim": 128,
}


@pytest.mark.parametrize(
    ("kernel", "device", "reason"),
    [
        ("flash_tpu", "TPU v5", None),
        ("splash", "TPU v5", None),
        ("flash_hopper", "NVIDIA H100 80GB HBM3", None),
        ("flash_triton", "NVIDIA H100 80GB HBM3", None),
        ("cudnn", "NVIDIA H100 80GB HBM3", "keys and values of one head size, not 192 and 128"),
        ("chunked", "Made-up 1", None),
    ],
)
def test_kernels_take_values_shorter_than_keys_or_say_why_not(kernel, device, reason):
    mesh = {"tensor": 2, "context": 2, "context_kind": "ulysses"}
    (shape,) = shapes_of(mesh, pattern=[{"mixer": LATENT}])
    assert (shape.num_heads, shape.num_kv_heads) == (4, 4)
    assert (shape.key_size, shape.value_size) == (192, 128)
    found = ATTENTION.table[kernel].unsupported(shape._replace(device_kind=device))
    assert found is None if reason is None else reason in found
