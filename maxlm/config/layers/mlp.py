"""Settings of feed-forward layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from maxlm.config.divisible import divisible
from maxlm.config.errors import Problem
from maxlm.config.section import LayerSection, PositiveInt

if TYPE_CHECKING:
    from maxlm.config.schema import RunConfig

Activation = Literal[
    "swiglu",
    "swiglu_clamped",
    "geglu_tanh",
    "geglu_exact",
    "relu",
    "relu2",
    "gelu_tanh",
    "gelu_exact",
]
"""GELU is exact or approximated by a tanh, and says so; relu2 is the square (arXiv:2109.08668)."""


class MlpConfig(LayerSection):
    """Feed-forward layer; swiglu, swiglu_clamped and geglu are gated (arXiv:2002.05202)."""

    ACTIVATIONS: ClassVar = {
        "mlp_hidden": "hidden units before the nonlinearity, or before the gate",
        "mlp_gate": "the gate before its nonlinearity",
    }

    kind: Literal["mlp"] = "mlp"
    hidden_dim: PositiveInt = Field(description="hidden units")
    activation: Activation = "swiglu"
    bias: Literal["none", "all"] = "none"

    def problems(self, path: str, run: RunConfig) -> Iterator[Problem]:
        """Yield hidden units that do not divide by the mesh."""
        yield from divisible(
            f"{path}.hidden_dim", self.hidden_dim, {"mesh.tensor": run.mesh.tensor}
        )
