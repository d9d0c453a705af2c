"""Why a document is not in a corpus: the step, the rule by its published name, what was measured
against which limit, and of copies the document that stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.inspection.corpus import PIECE, damage_named
from data_pipeline.operations.apply import SET_ASIDE
from maxlm.config.pipeline import PipelineStep
from maxlm.config.pipeline.heuristics import RuleSet
from maxlm.config.reading.paths import kinds, sections

# Settings that a reason does not name: what a document was measured against.
_LIMITS = {
    "language/other": "languages",
    "toxicity/score": "threshold",
    "classifier": "threshold",
    "perplexity": "keep",
    "top_fraction": "fraction",
    "buckets": "keep",
    "sample": "fraction",
    "exact_dedup": "unit",
    "near_dedup": "min_similarity",
    "substring_dedup": "min_tokens",
    "decontaminate": "ngram_words",
    "licence/not_allowed": "allowed",
}
_ABOUT = {
    kind: re.split(r"[;:.]\s", " ".join((section.__doc__ or "").split()) + " ")[0]
    for union in (PipelineStep, RuleSet)
    for section in sections(union)
    for kind in kinds(section)
} | {SET_ASIDE: "The step could not work on it, also when it was given it alone"}
_LIKE = re.compile(r"(?P<similarity>\d\.\d+) like (?P<kept>.*)", re.DOTALL)
_SAME = re.compile(r"same as (?P<kept>.*)", re.DOTALL)


class Gone(NamedTuple):
    """A document that a step dropped, as the log has it."""

    id: str
    step: str
    reason: str
    detail: str


class Verdict(NamedTuple):
    """Why a document is not there.

    Attributes:
      measured: what the rule saw.
      limit: the setting that it was measured against, and its value; nothing where there is none.
      about: what the rule is, and where it was published.
      kept: the id of the document that stays in its place, of copies.
      similarity: Jaccard similarity to that one, where it was measured.
    """

    gone: Gone
    measured: str
    limit: str
    about: str
    kept: str | None
    similarity: float | None


def read_dropped(path: Path, ids: Collection[str] | None = None) -> Iterator[Gone]:
    """Yield what was dropped, in the order of the steps: all of it, or the documents of some ids and
    their pieces. It is read a portion at a time.

    Raises:
      UserError: it is not there or damaged.
    """
    wanted = None if ids is None else pa.array(list(ids), pa.string())
    with damage_named(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["id", "step", "reason", "detail"]):
            if wanted is not None:
                column = batch.column("id")
                whole = pc.replace_substring_regex(column, PIECE, "")
                hit = pc.or_(pc.is_in(column, wanted), pc.is_in(whole, wanted))
                batch = batch.filter(hit)
            yield from (Gone(**row) for row in batch.to_pylist())


def explain(gone: Gone, settings: dict[str, Any], decisions: dict[str, Any]) -> Verdict:
    """Say why a document was dropped.

    Args:
      settings: of the steps, as the manifest has them.
      decisions: what steps found that decide over all documents, as the report has them.
    """
    number, _, kind = gone.step.partition("-")
    # A step behind another one has its settings.
    sections = (one for key, one in settings.items() if key.startswith(f"{int(number) - 1}-"))
    section: dict[str, Any] = next(sections, {})
    name, _, rule = gone.reason.partition("/")
    copy = _LIKE.fullmatch(gone.detail) or _SAME.fullmatch(gone.detail)
    groups = copy.groupdict() if copy and kind in ("exact_dedup", "near_dedup") else {}
    return Verdict(
        gone,
        measured=gone.detail,
        limit="; ".join(
            filter(
                None,
                (
                    _limit(section, name, rule, gone.detail),
                    _threshold(section, kind, decisions.get(gone.step, {})),
                ),
            )
        ),
        about=_ABOUT.get(name, _ABOUT.get(kind, "")),
        kept=groups.get("kept"),
        similarity=float(groups["similarity"]) if "similarity" in groups else None,
    )


def _limit(section: dict[str, Any], name: str, rule: str, detail: str) -> str:
    """Return `setting: value` of the limit that a reason is about."""
    sets = {one["kind"]: one for one in section.get("rules", ()) if isinstance(one, dict)}
    if name in sets:
        return f"{rule}: {_value(sets[name].get(rule))}"
    if (name, rule) == ("language", "score"):
        own = section.get("languages", {}).get(detail.partition(" ")[0])
        return f"threshold: {section.get('threshold') if own is None else own}"
    setting = _LIMITS.get(f"{name}/{rule}", _LIMITS.get(name, rule))
    return f"{setting}: {_value(section[setting])}" if setting in section else ""


def _threshold(section: dict[str, Any], kind: str, decision: dict[str, Any]) -> str:
    """Return the scores that the documents which stay have, where a step found it over all of them."""
    score = section.get("score", "bits_per_byte")
    if kind == "top_fraction" and decision.get("least") is not None:
        side = "least" if section.get("keep", "highest") == "highest" else "most"
        return f"{score} of at {side} {decision['least']:g}"
    if kind == "buckets":
        side = "from" if section.get("best") == "highest" else "up to"
        return ", ".join(f"{name} {side} {at:g}" for name, at in decision.get("up_to", {}).items())
    return ""


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            key if one is None else f"{key} {_value(one)}" for key, one in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
