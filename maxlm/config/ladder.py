"""A ladder of runs: small ones, of which a law is made, and how their settings follow their size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.section import (
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    as_tuple,
)

Many = BeforeValidator(as_tuple)


class WidthSizes(Section):
    """Sizes by a rule: heads of the base's width, more or fewer of them, and layers in proportion."""

    kind: Literal["width"] = "width"
    embed_dims: Annotated[tuple[PositiveInt, ...], Many, Field(min_length=1)] = Field(
        description="widths of the residual stream, one size each"
    )
    aspect_ratio: PositiveFloat | None = Field(
        None, description="embed_dim per layer (null: as many layers as the base, at all widths)"
    )
    multiple_of: PositiveInt = Field(
        1, description="hidden units are rounded to multiples of it, such as mesh.tensor x 8"
    )


class NamedSize(Section):
    """One size: settings of the run that differ from the base's."""

    name: Name
    settings: dict[str, Any] = Field(description="key.path: value, as on the command line")


class ListedSizes(Section):
    """Sizes as a list of what differs from the base."""

    kind: Literal["list"] = "list"
    sizes: Annotated[tuple[NamedSize, ...], Many, Field(min_length=1)]


class RatioBudgets(Section):
    """Each size is trained on so many tokens per parameter."""

    kind: Literal["tokens_per_parameter"] = "tokens_per_parameter"
    ratios: Annotated[tuple[PositiveFloat, ...], Many, Field(min_length=1)]


class FlopBudgets(Section):
    """Each size spends so many FLOPs: larger models read fewer tokens (isoFLOP)."""

    kind: Literal["flops"] = "flops"
    flops: Annotated[tuple[PositiveFloat, ...], Many, Field(min_length=1)]


class TokenBudgets(Section):
    """Each size is trained on so many tokens."""

    kind: Literal["tokens"] = "tokens"
    tokens: Annotated[tuple[PositiveFloat, ...], Many, Field(min_length=1)]


class Fixed(Section):
    """As in the base, at all sizes and budgets."""

    kind: Literal["fixed"] = "fixed"


class PowerLaw(Section):
    """The base's value x (N / N of the base)^parameters x (D / D of the base)^tokens."""

    kind: Literal["power_law"] = "power_law"
    parameters: float = Field(0.0, description="exponent of the model's size")
    tokens: float = Field(0.0, description="exponent of the training tokens")


class Mup(Section):
    """The base's learning rate at all widths, with `model.parametrisation.kind=mup`."""

    kind: Literal["mup"] = "mup"
    base_width: PositiveInt | None = Field(
        None, description="embed_dim at which nothing changes (null: the base's)"
    )


Rule = Annotated[Fixed | PowerLaw, Field(discriminator="kind")]


class Transfer(Section):
    """How the base's settings follow size and budget."""

    learning_rate: Annotated[Fixed | PowerLaw | Mup, Field(discriminator="kind")] = Fixed()
    batch_size: Rule = Field(
        Fixed(), description="rounded to what the mesh and train.microbatches divide"
    )
    weight_decay: Rule = Fixed()
    init_std: Rule = Fixed()
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="share of a run's steps that warm up, with `branch` of the smallest budget's (null: the base's "
        "warmup_steps)",
    )


class CooldownBranch(Section):
    """Each size trains once at a constant rate; budgets are cool-downs that leave it on the way
    (arXiv:2405.18392).
    """

    kind: Literal["cooldown"] = "cooldown"
    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share of a budget's steps in which the rate falls, linearly"
    )


def _as_branch(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class FitConfig(Section):
    """How the law is made of the runs' losses."""

    loss: str | None = Field(
        None,
        description="metric that is predicted, such as val/books/loss (null: the one source's)",
    )
    laws: Annotated[
        tuple[Literal["surface", "coupled", "kaplan", "farseer", "repeated"], ...],
        Many,
        Field(min_length=1),
    ] = Field(
        ("surface", "coupled", "kaplan"),
        description="forms that are weighed by how well each predicts larger budgets from smaller ones",
    )
    count: Literal["all", "non_embedding"] = Field(
        "all", description="what N counts (arXiv:2406.12907): all parameters, or none of embeddings"
    )
    bootstraps: Annotated[int, Field(ge=20, le=10_000)] = Field(
        200, description="fits to reweighted runs, for the intervals"
    )
    over_estimate_penalty: Annotated[float, Field(ge=1, le=1000)] = Field(
        1.0,
        description="weight of errors where the law is above a run; more than 1 takes high losses for bad tuning",
    )
    most_epochs: NonNegativeFloat = Field(
        1.0, description="runs that read a source more often are left out, but of `repeated`"
    )


class LadderConfig(Section):
    """A ladder: a base run, its sizes and budgets, and what is fitted to them."""

    base: str = Field(description="YAML of the run that all others are made from")
    run_dir: str = Field(description="folder of the ladder: a run's folder for each rung, and fits")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="settings of all rungs: key.path: value"
    )
    sizes: Annotated[WidthSizes | ListedSizes, Field(discriminator="kind")]
    budgets: Annotated[RatioBudgets | FlopBudgets | TokenBudgets, Field(discriminator="kind")]
    transfer: Transfer = Transfer()
    branch: Annotated[CooldownBranch | None, BeforeValidator(_as_branch)] = Field(
        None,
        description="cooldown: a budget goes on from the constant part of the one before it (null: every run from "
        "its start, with the base's schedule)",
    )
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Many, Field(min_length=1)
    ] = (0,)
    fit: FitConfig = FitConfig()

    def problems(self) -> Iterator[Problem]:
        """Yield budgets that cannot tell size from data, and names that are used twice."""
        budgets = self.budgets
        count = len(set(self.budget_values))
        if budgets.kind == "tokens_per_parameter" and count == 1:
            yield Problem(
                "budgets.ratios",
                f"budgets.ratios={list(budgets.ratios)}: all runs at one ratio of tokens to parameters, so that what "
                "N does and what D does cannot be told apart; give three ratios or more, such as [5, 20, 80]",
            )
        yield from self._branch_problems()
        for path, values in (("seeds", self.seeds), (self.budget_path, self.budget_values)):
            if len(set(values)) < len(values):
                yield Problem(path, f"{path}={list(values)} has a value twice; give each once")
        names = (
            self.sizes.embed_dims
            if self.sizes.kind == "width"
            else [s.name for s in self.sizes.sizes]
        )
        if len(set(names)) < len(names):
            yield Problem("sizes", f"sizes={list(names)} has one twice; give each once")

    def _branch_problems(self) -> Iterator[Problem]:
        """Yield settings that would differ between budgets that share their first steps."""
        if self.branch is None:
            return
        for name in ("learning_rate", "batch_size", "weight_decay", "init_std"):
            rule = getattr(self.transfer, name)
            if isinstance(rule, PowerLaw) and rule.tokens:
                path = f"transfer.{name}.tokens"
                text = f"{path}={rule.tokens}, but with branch: cooldown the budgets of a size share their first steps"
                yield Problem(path, f"{text}; use {path}=0, or remove branch")
        warm, fraction = self.transfer.warmup_fraction or 0.0, self.branch.fraction
        if warm + fraction > 1:
            text = f"transfer.warmup_fraction={warm} + branch.fraction={fraction} is more than 1"
            cure = f"use transfer.warmup_fraction={max(1 - fraction, 0) / 2:.2g}"
            yield Problem("transfer.warmup_fraction", f"{text}; {cure}")

    @property
    def budget_path(self) -> str:
        """Where the budgets stand."""
        names = {"tokens_per_parameter": "ratios", "flops": "flops", "tokens": "tokens"}
        return f"budgets.{names[self.budgets.kind]}"

    @property
    def budget_values(self) -> tuple[float, ...]:
        """The budgets, in the unit of their kind."""
        values: tuple[float, ...] = getattr(self.budgets, self.budget_path.split(".")[1])
        return values
