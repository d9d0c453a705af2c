"""The choice among an operation's kernels, for an operation and kernels that are made up here."""

import subprocess
import sys
from typing import NamedTuple

import pytest

from maxlm.config.errors import UserError
from maxlm.config.schema import KernelsConfig
from maxlm.ops.attention import ATTENTION
from maxlm.ops.kernel_choice import Choice, Operation, Row, choose


class ScanShape(NamedTuple):
    device_kind: str
    state_size: int


def small_states_only(shape):
    return f"has states up to 16, not {shape.state_size}" if shape.state_size > 16 else None


SCAN = Operation(
    "scan",
    table={
        "fast": Row(("gpu", "tpu"), small_states_only, lambda kind: f"fast on {kind}"),
        "stepwise": Row(("gpu",), lambda _: None, lambda kind: f"stepwise on {kind}"),
        "plain": Row(("cpu", "gpu", "tpu"), lambda _: None, lambda _: "plain"),
    },
    order={"cpu": ("plain",), "gpu": ("fast", "plain"), "tpu": ("fast", "plain")},
)
SMALL, LARGE = ScanShape("Made-up 1", 16), ScanShape("Made-up 1", 64)


def test_the_first_in_order_that_can_do_all_shapes():
    assert choose(SCAN, "auto", "gpu", [SMALL]) == Choice(
        "fast on Made-up 1", "fast", "first choice for gpu"
    )
    reason = "first choice for gpu; fast has states up to 16, not 64"
    assert choose(SCAN, "auto", "gpu", [SMALL, LARGE]) == Choice("plain", "plain", reason)
    assert choose(SCAN, "auto", "cpu", [LARGE]).name == "plain"


def test_a_pinned_one():
    want = Choice("stepwise on Made-up 1", "stepwise", "runtime.kernels.scan=stepwise")
    assert choose(SCAN, "stepwise", "gpu", [LARGE]) == want


@pytest.mark.parametrize(
    ("name", "platform", "text"),
    [
        (
            "fast",
            "gpu",
            "runtime.kernels.scan=fast has states up to 16, not 64; use stepwise, plain or auto",
        ),
        (
            "fast",
            "cpu",
            "runtime.kernels.scan=fast runs on gpu and tpu, not on cpu; use plain or auto",
        ),
    ],
)
def test_the_error_names_those_that_can(name, platform, text):
    with pytest.raises(UserError) as caught:
        choose(SCAN, name, platform, [SMALL, LARGE])
    assert str(caught.value) == text


def test_kernels_are_loaded_where_they_are_asked_for():
    """What takes a second to import is no part of commands that compute nothing, or not there."""
    program = "import sys, maxlm.models.cost; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    loaded = done.stdout.decode().split()
    assert "maxlm.kernels.chunked_attention" in loaded
    assert not [name for name in loaded if name.startswith("jax.experimental.pallas")]
    for name, row in ATTENTION.table.items():
        kernel = row.build("made-up 1" if name == "chunked" else "TPU v5")
        assert callable(kernel.forward)
        assert callable(kernel.backward)


def test_the_section_names_what_the_tables_hold():
    for operation in (ATTENTION,):
        named = KernelsConfig.model_fields[operation.name].annotation.__args__
        assert set(named) == {"auto", *operation.table}
    assert set(KernelsConfig.model_fields) == {ATTENTION.name}
