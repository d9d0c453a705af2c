"""The choice among an operation's kernels, for an operation and kernels that are made up here."""

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


def test_the_section_names_what_the_tables_hold():
    for operation in (ATTENTION,):
        named = KernelsConfig.model_fields[operation.name].annotation.__args__
        assert set(named) == {"auto", *operation.table}
    assert set(KernelsConfig.model_fields) == {ATTENTION.name}
