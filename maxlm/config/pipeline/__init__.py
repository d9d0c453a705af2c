"""Settings of the text pipeline: who runs it, and its steps, a file each."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from maxlm.config.pipeline.clean.extract import ExtractConfig
from maxlm.config.pipeline.clean.pii import PiiConfig
from maxlm.config.pipeline.curriculum import CurriculumConfig
from maxlm.config.pipeline.dedup.decontaminate import DecontaminateConfig
from maxlm.config.pipeline.dedup.exact_dedup import ExactDedupConfig
from maxlm.config.pipeline.dedup.near_dedup import NearDedupConfig
from maxlm.config.pipeline.dedup.substring_dedup import SubstringDedupConfig
from maxlm.config.pipeline.engine import LocalEngineConfig, RayEngineConfig
from maxlm.config.pipeline.filters.buckets import BucketsConfig
from maxlm.config.pipeline.filters.classifier import ClassifierConfig
from maxlm.config.pipeline.filters.heuristics import HeuristicsConfig
from maxlm.config.pipeline.filters.language import LanguageConfig
from maxlm.config.pipeline.filters.perplexity import PerplexityConfig
from maxlm.config.pipeline.filters.top_fraction import TopFractionConfig
from maxlm.config.pipeline.filters.toxicity import ToxicityConfig
from maxlm.config.pipeline.filters.url import UrlConfig
from maxlm.config.pipeline.licence import LicenceConfig
from maxlm.config.pipeline.rewrite import RewriteConfig
from maxlm.config.pipeline.sample import SampleConfig
from maxlm.config.pipeline.tokenizer import BpeConfig, TrainedTokenizer
from maxlm.config.section import PositiveInt, Section, as_tuple, kind_or

Engine = Annotated[
    LocalEngineConfig | RayEngineConfig, Field(discriminator="kind"), kind_or("local")
]
"""Who runs the tasks."""

PipelineStep = Annotated[
    SampleConfig
    | ExactDedupConfig
    | NearDedupConfig
    | SubstringDedupConfig
    | DecontaminateConfig
    | ExtractConfig
    | UrlConfig
    | LanguageConfig
    | HeuristicsConfig
    | ToxicityConfig
    | ClassifierConfig
    | TopFractionConfig
    | PerplexityConfig
    | BucketsConfig
    | RewriteConfig
    | PiiConfig
    | CurriculumConfig
    | LicenceConfig,
    Field(discriminator="kind"),
]
"""What is done with documents between reading and tokenizing."""


class PipelineConfig(Section):
    """From raw text to documents worth learning from: `maxlm prepare` runs the steps in this order."""

    engine: Engine = LocalEngineConfig()
    work_dir: str | None = Field(
        None,
        description="folder of the documents between steps (null: .work beside the first source, until all is done)",
    )
    keep_steps: bool = Field(
        False, description="leave the documents of every step in work_dir, to look at them"
    )
    shard_mb: PositiveInt = Field(
        64, description="MB of text in a file of documents: a task's portion of work"
    )
    shard_tokens: PositiveInt = Field(
        2**28, description="tokens after which a file of tokens is closed"
    )
    steps: Annotated[tuple[PipelineStep, ...], BeforeValidator(as_tuple)] = Field(
        (ExactDedupConfig(), NearDedupConfig()), description="what is done with the documents"
    )
    tokenizer: TrainedTokenizer = Field(
        BpeConfig(), description="what is trained if data.tokenizer is not there"
    )
