"""Settings of mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from maxlm.config.divisible import divisible
from maxlm.config.errors import Problem
from maxlm.config.layers.mlp import Activation
from maxlm.config.section import (
    Count,
    LayerSection,
    NonNegativeFloat,
    OnResume,
    PositiveFloat,
    PositiveInt,
    Section,
    Use,
    Width,
)

if TYPE_CHECKING:
    from maxlm.config.schema import RunConfig


class RouterConfig(Section):
    """How a token scores and picks its experts, in fp32."""

    kind: Literal["softmax", "sigmoid"] = Field(
        "softmax",
        description="scores over all experts (arXiv:2101.03961), or each by itself (arXiv:2412.19437)",
    )
    weights: Literal["normalised", "as_scored"] = Field(
        "normalised",
        description="weights of the picked experts: their scores divided by the sum, or the scores",
    )
    scale: PositiveFloat = Field(1.0, description="factor on the weights")
    bias: bool = Field(
        False, description="a learned bias on the logits, in the picking and in the weights"
    )
    num_groups: PositiveInt = Field(1, description="groups of neighbouring experts")
    top_groups: PositiveInt = Field(
        1, description="groups a token may pick from: those with the largest `group_score`"
    )
    group_score: Literal["top2", "max"] = Field(
        "top2",
        description="of a group: the sum of its two best scores (arXiv:2412.19437), or its best (arXiv:2405.04434)",
    )
    apply_to: Literal["output", "input"] = Field(
        "output", description="what of an expert the weight multiplies"
    )


class BalanceConfig(Section):
    """What keeps experts equally busy; each at 0 is off.

    Loads are those of all devices together.
    """

    auxiliary_loss: NonNegativeFloat = Field(
        0.01,
        description="weight of E sum(f x p), f the experts' fractions of the load (sum 1) and p their mean scores, of "
        "each microbatch, summed over layers (arXiv:2101.03961, eq. 4); a coefficient c of mixtures in "
        "transformers is c x experts_per_token / num_layers here",
    )
    z_loss: NonNegativeFloat = Field(
        0.0, description="weight of the router's log(Z)^2 per layer (arXiv:2202.08906)"
    )
    bias_update: NonNegativeFloat = Field(
        0.0,
        description="step by which a bias on the picking moves against the load, no gradient (arXiv:2408.15664)",
    )


class MoeConfig(LayerSection):
    """A mixture of experts: each token goes through `experts_per_token` of them, and all through a
    shared one.
    """

    ACTIVATIONS: ClassVar = {
        "mlp_hidden": "hidden units of experts before the nonlinearity, or before the gate",
        "mlp_gate": "the gate of experts before its nonlinearity",
    }

    METRICS: ClassVar = {
        "moe/<layer>/load_max": (
            "",
            "copies sent to the busiest expert of the layer / mean over its experts",
        ),
        "moe/<layer>/balance": (
            "",
            "E sum(load x mean score), which `auxiliary_loss` weighs; 1 is even",
        ),
        "moe/<layer>/entropy": (
            "nats",
            "entropy of a token's scores, mean over tokens; at most log(experts)",
        ),
        "moe/<layer>/dropped": (
            "fraction",
            "copies of tokens that found no room in their expert (0 when dropless)",
        ),
        "moe/<layer>/bias_norm": ("", "l2 norm of the router's bias, where it has one"),
    }

    kind: Literal["moe"] = "moe"
    num_experts: PositiveInt
    experts_per_token: PositiveInt
    expert_dim: Annotated[PositiveInt, Width.SCALES] = Field(
        description="hidden units of one expert"
    )
    shared_dim: Annotated[Count, Width.SCALES] = Field(
        0, description="hidden units of the experts that see every token, summed (0: none)"
    )
    shared_gate: bool = Field(
        False,
        description="multiply what the shared experts say with sigmoid(x w), a number per token, w learned",
    )
    activation: Activation = "swiglu"
    bias: Literal["none", "all"] = Field(
        "none", description="projections of the routed experts with a bias; weights multiply it too"
    )
    router: RouterConfig = RouterConfig()
    balance: Annotated[BalanceConfig, Use.TRAINING] = BalanceConfig()
    capacity_factor: Annotated[PositiveFloat | None, Use.TRAINING] = Field(
        None,
        description="in training, an expert takes this times its fair share of a sequence's tokens, no more "
        "(null: dropless, as every trained model is)",
    )
    buffer_factor: Annotated[PositiveFloat, OnResume.FREE, Use.TRAINING] = Field(
        2.0,
        description="rows that experts make room for on a device of mesh.expert, times an even load; more come in "
        "further rounds, and none is dropped (with mesh.expert 1 there is room for all)",
    )

    def when_used(self) -> Self:
        """Return it without a capacity: no token of a text or an answer is dropped."""
        return self.model_copy(update={"capacity_factor": None})

    @property
    def judges_microbatches(self) -> bool:
        """Balance losses are worked out for each microbatch."""
        return self.balance.auxiliary_loss > 0

    @property
    def routed_copies(self) -> int:
        """One for each expert of the token."""
        return self.experts_per_token

    def problems(self, path: str, run: RunConfig) -> Iterator[Problem]:
        """Yield choices that the experts do not allow, and sizes that do not divide by the mesh."""
        yield from self._choice_problems(path)
        if self.shared_gate and not self.shared_dim:
            text = f"{path}.shared_gate=true has no shared experts to multiply: {path}.shared_dim=0"
            cure = f"use {path}.shared_gate=false, or {path}.shared_dim={self.expert_dim}"
            yield Problem(f"{path}.shared_gate", f"{text}; {cure}")
        yield from self._group_problems(path)
        mesh = run.mesh
        yield from divisible(f"{path}.num_experts", self.num_experts, {"mesh.expert": mesh.expert})
        for name in ("expert_dim", "shared_dim"):
            yield from divisible(
                f"{path}.{name}", getattr(self, name), {"mesh.tensor": mesh.tensor}
            )

    def _choice_problems(self, path: str) -> Iterator[Problem]:
        experts, choices = self.num_experts, self.experts_per_token
        if choices > experts:
            text = f"{path}.experts_per_token={choices} is more than {path}.num_experts={experts}"
            yield Problem(
                f"{path}.experts_per_token",
                f"{text}; use {path}.experts_per_token={experts} or less",
            )
        if self.capacity_factor and self.capacity_factor * choices >= experts:
            text = f"{path}.capacity_factor={self.capacity_factor}: an expert would take every token of a sequence"
            cure = f"use less than num_experts / experts_per_token = {experts / choices:g}, or null"
            yield Problem(f"{path}.capacity_factor", f"{text}; {cure}, which drops nothing")

    def _group_problems(self, path: str) -> Iterator[Problem]:
        router, experts, choices = self.router, self.num_experts, self.experts_per_token
        uneven = list(
            divisible(
                f"{path}.num_experts", experts, {f"{path}.router.num_groups": router.num_groups}
            )
        )
        yield from uneven
        if router.top_groups > router.num_groups:
            text = f"{path}.router.top_groups={router.top_groups} is more than {path}.router.num_groups="
            cure = f"use {path}.router.top_groups={router.num_groups} or less"
            yield Problem(f"{path}.router.top_groups", f"{text}{router.num_groups}; {cure}")
        elif (
            not uneven
            and choices <= experts
            and choices > experts // router.num_groups * router.top_groups
        ):
            size = experts // router.num_groups
            text = f"{path}.router.top_groups={router.top_groups} groups of {size} experts are fewer than "
            cure = f"use {path}.router.top_groups={-(-choices // size)} or more"
            yield Problem(
                f"{path}.router.top_groups", f"{text}{path}.experts_per_token={choices}; {cure}"
            )
