"""Settings of published sets of rules about texts, a file each."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from maxlm.config.pipeline.heuristics.c4 import C4Config
from maxlm.config.pipeline.heuristics.fineweb import FinewebConfig
from maxlm.config.pipeline.heuristics.gopher_quality import GopherQualityConfig
from maxlm.config.pipeline.heuristics.gopher_repetition import GopherRepetitionConfig
from maxlm.config.pipeline.heuristics.redpajama_code import RedpajamaCodeConfig
from maxlm.config.pipeline.heuristics.refinedweb import RefinedwebConfig
from maxlm.config.pipeline.heuristics.starcoder import StarcoderConfig


def _named(value: Any) -> Any:
    """Take the name of a set as the set with its published values."""
    return {"kind": value} if isinstance(value, str) else value


RuleSet = Annotated[
    GopherRepetitionConfig
    | GopherQualityConfig
    | C4Config
    | FinewebConfig
    | RefinedwebConfig
    | RedpajamaCodeConfig
    | StarcoderConfig,
    Field(discriminator="kind"),
    BeforeValidator(_named),
]
"""A published set of rules: its name, or a section with other values."""
