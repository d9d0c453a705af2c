"""Steps of the pipeline, one file each, and the table that finds a step by its section's kind."""

from __future__ import annotations

from data_pipeline.steps.clean.extract import Extract
from data_pipeline.steps.clean.pii import Pii
from data_pipeline.steps.curriculum import Curriculum
from data_pipeline.steps.dedup.decontaminate import Decontaminate
from data_pipeline.steps.dedup.exact_dedup import ExactDedup
from data_pipeline.steps.dedup.near_dedup import NearDedup
from data_pipeline.steps.dedup.substring_dedup import SubstringDedup
from data_pipeline.steps.filters.buckets import Buckets
from data_pipeline.steps.filters.classifier import ClassifierStep
from data_pipeline.steps.filters.heuristics import Heuristics
from data_pipeline.steps.filters.language import Language
from data_pipeline.steps.filters.perplexity import Perplexity
from data_pipeline.steps.filters.top_fraction import TopFraction
from data_pipeline.steps.filters.toxicity import Toxicity
from data_pipeline.steps.filters.url import Url
from data_pipeline.steps.licence import Licence
from data_pipeline.steps.rewrite import Rewrite
from data_pipeline.steps.sample import Sample
from data_pipeline.steps.step import GlobalStep, Step

STEPS: dict[str, type[Step] | type[GlobalStep]] = {
    "extract": Extract,
    "url": Url,
    "licence": Licence,
    "language": Language,
    "heuristics": Heuristics,
    "toxicity": Toxicity,
    "classifier": ClassifierStep,
    "perplexity": Perplexity,
    "buckets": Buckets,
    "top_fraction": TopFraction,
    "pii": Pii,
    "exact_dedup": ExactDedup,
    "near_dedup": NearDedup,
    "substring_dedup": SubstringDedup,
    "decontaminate": Decontaminate,
    "rewrite": Rewrite,
    "sample": Sample,
    "curriculum": Curriculum,
}
"""In the order in which a pipeline usually has them; a run's order is that of its YAML."""
