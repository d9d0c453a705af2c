"""Which attention kernels take what each family's published models ask of them, and that ours compute
it: the page says so, family by family.
"""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.checkpoint.hf.families import FAMILIES
from maxlm.checkpoint.hf.published import model_of
from maxlm.kernels import tpu_attention, triton_attention
from maxlm.kernels.shape import Scoring
from maxlm.layers.layer import Local
from maxlm.models.decoder import Decoder
from maxlm.ops.attention import ATTENTION, CHUNKED, Kernel, attention
from tests.kernels.oracle import MASKS, make_inputs, relative_error
from tests.models.published import dense, mixtures

PAGE = Path(__file__).parents[4] / "docs/attention.md"
LARGEST = json.loads((Path(__file__).parent / "full_size.json").read_text())
DEVICES = {"tpu": "TPU v5", "gpu": "NVIDIA H100 80GB HBM3"}
OURS = ("flash_tpu", "flash_hopper", "flash_triton")
OTHERS = ("splash", "cudnn")
REASONS = {
    "has no sinks": "no: sinks",
    "has no softcap": "no: softcap",
    "compiles the mask in": "no: chunks",
    "has keys and values of one head size": "no: values of another size",
}


@functools.cache
def models():
    """Return the models of each family: those with a preset, or else its largest."""
    configs = {}
    published = {**dense.PUBLISHED, **mixtures.PUBLISHED}
    for name, model in [*published.items(), *((name, None) for name in LARGEST)]:
        config = model.config if model else LARGEST[name]["config"]
        if model or config["model_type"] not in configs:
            configs.setdefault(config["model_type"], []).append((name, config))
    return {
        kind: [model_of(FAMILIES[kind], config, name)[0] for name, config in of_kind]
        for kind, of_kind in configs.items()
    }


@functools.cache
def declared(kind):
    return [Decoder(model) for model in models()[kind]]


@functools.cache
def shapes_of(kind, platform):
    """Return what the attention layers of a family's models ask of kernels."""
    local = Local(
        device_kind=DEVICES[platform],
        dtype="bfloat16",
        length=8192,
        tensor=1,
        context=1,
        context_kind="ring",
    )
    blocks = [block for model in declared(kind) for row in model.segments() for block in row]
    asked = [block.mixer.kernel_shapes(local).get("attention", ()) for block in blocks]
    return list(dict.fromkeys(shape for shapes in asked for shape in shapes))


def answer(kind, kernel):
    row = ATTENTION.table[kernel]
    platform = row.platforms[0]
    reasons = [row.unsupported(shape) for shape in shapes_of(kind, platform)]
    said = [reason for reason in reasons if reason]
    if not said:
        return "yes"
    # Whatever else it may say has no name here, and is no answer.
    return next(short for start, short in REASONS.items() if said[0].startswith(start))


def sizes(kind):
    found = sorted({(shape.key_size, shape.value_size) for shape in shapes_of(kind, "tpu")})
    return ", ".join(str(key) if key == value else f"{key} and {value}" for key, value in found)


def table():
    """Return the rows of the page: families that ask for the same sizes and get the same answers
    together.
    """
    rows = {}
    for kind in sorted(models()):
        answers = (sizes(kind), *(answer(kind, kernel) for kernel in (*OURS, *OTHERS)))
        rows.setdefault(answers, []).append(f"`{kind}`")
    head = " | ".join(f"`{kernel}`" for kernel in (*OURS, *OTHERS))
    lines = [f"| family | head sizes | {head} |", "|---" * (2 + len(OURS) + len(OTHERS)) + "|"]
    lines += [f"| {', '.join(kinds)} | {' | '.join(answers)} |" for answers, kinds in rows.items()]
    return "\n".join(lines)


def test_the_page_says_which_kernels_take_a_family():
    assert models().keys() == FAMILIES.keys()
    block = re.search(r"<!-- families -->\n(.*?)\n<!-- /families -->", PAGE.read_text(), re.DOTALL)
    assert block, "docs/attention.md needs a table between <!-- families --> and <!-- /families -->"
    assert block[1] == table(), f"the table is now\n{table()}"


# --- what is unusual, computed --------------------------------------------------------------------

INTERPRETED = {
    name: Kernel(*(functools.partial(f, interpret=True) for f in (module.forward, module.backward)))
    for name, module in (("flash_tpu", tpu_attention), ("flash_triton", triton_attention))
}


def unusual(kind):
    """Return the mixer of a family's first model that asks for most, and its head sizes."""
    mixers = [block.mixer for block in models()[kind][0].layers]
    if kind == "deepseek_v3":
        return mixers[0], (mixers[0].nope_dim + mixers[0].rope_dim, mixers[0].value_dim)
    features = ("window", "chunk", "softcap", "scale", "sinks")
    mixer = max(mixers, key=lambda mixer: sum(bool(getattr(mixer, name)) for name in features))
    return mixer, (mixer.head_dim, mixer.head_dim)


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        ("gemma2", "flash_tpu"),
        ("gpt_oss", "flash_triton"),
        ("llama4_text", "flash_triton"),
        ("deepseek_v3", "flash_tpu"),
        ("deepseek_v3", "flash_triton"),
    ],
)
def test_ours_compute_what_unusual_families_ask(kind, kernel):
    """With the family's head sizes and scores; windows and chunks as short as the sequence."""
    mixer, (key_size, value_size) = unusual(kind)
    window = 9 if getattr(mixer, "window", None) else None
    q, k, v, d_out, mask = make_inputs(
        0, batch=1, length=24, heads=2, kv_heads=2 if kind == "deepseek_v3" else 1,
        head_dim=key_size, v_dim=value_size, window=window,
    )  # fmt: skip
    if getattr(mixer, "chunk", None):
        mask = MASKS["chunks"](np.random.default_rng(0), (1, 24))
    scoring = Scoring(mixer.scale, getattr(mixer, "softcap", None))
    sink = jnp.asarray([-1.0, 2.0]) if getattr(mixer, "sinks", False) else None
    results = []
    for pair in (INTERPRETED[kernel], CHUNKED):

        def both(q, k, v, sink, pair=pair):
            out, pullback = jax.vjp(
                lambda q, k, v, sink: attention(q, k, v, mask, sink, pair, scoring), q, k, v, sink
            )
            return out, *pullback(d_out)

        results.append(jax.tree.leaves(jax.jit(both)(q, k, v, sink)))
    for x, want in zip(*results, strict=True):
        assert relative_error(x, want) < 1e-5
