"""A corpus in tables: what it was made from, how many documents passed each step, why others did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.inspection.corpus import Corpus
from maxlm.pages import Rows


def facts_of(corpus: Corpus) -> dict[str, str]:
    """Return what a corpus is, name by name."""
    manifest = corpus.manifest
    inputs, versions = manifest["inputs"], manifest["versions"]
    read = corpus.report["steps"][0]["values"]
    licences = Counter(read.get("license", {})) + Counter(read.get("licence", {}))
    facts = {
        "licence": manifest["licence"] or "not said (setting raw.licence of the source)",
        "inputs": f"{_count(inputs, 'file')}, {_count(inputs, 'byte')}, SHA-256 {inputs['fingerprint']}",
        "files of steps": ", ".join(manifest.get("step_files", {})),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "licences of documents": ", ".join(f"{name} {n:,}" for name, n in licences.most_common()),
    }
    for split, counts in manifest["splits"].items():
        facts[split] = ", ".join(_count(counts, name) for name in ("document", "token", "byte"))
    facts["bytes per token"] = f"{bytes_per_token(corpus):.3f}"
    return facts


def _count(counts: Mapping[str, int], name: str) -> str:
    """Return `1 file` or `2 files`, of {"files": 2}."""
    number = counts[f"{name}s"]
    return f"{number:,} {name}{'s' * (number != 1)}"


def bytes_per_token(corpus: Corpus) -> float:
    """Return bytes of text for each token that stands for some: BOS and EOS do not."""
    splits = corpus.manifest["splits"].values()
    tokens = sum(one["tokens"] - 2 * one["documents"] for one in splits)
    return float(sum(one["bytes"] for one in splits) / max(tokens, 1))


def funnel_rows(corpus: Corpus) -> Rows:
    """Return documents, bytes and tokens that each step lets through.

    Only what is left in the end is tokenized, so a step's tokens are its bytes at the same bytes for
    each token.
    """
    steps, per_token = corpus.report["steps"], bytes_per_token(corpus)
    first = max(steps[0]["documents_out"], 1)
    rows = []
    for step in steps:
        left, size = step["documents_out"], step["bytes_out"]
        gone = step["documents_in"] - left
        share = f"{100 * left / first:.1f} %"
        tokens = f"{size / per_token:,.0f}"
        rows.append((step["step"], f"{left:,}", share, f"{gone:,}", f"{size / 1e6:,.2f}", tokens))
    columns = ("step", "documents left", "of those read", "gone", "MB left", "tokens (estimate)")
    return Rows("What each step lets through", columns, tuple(rows))


def reason_rows(corpus: Corpus) -> Rows:
    """Return how many documents each rule dropped, and what was not read."""
    rows = [
        (f"{step['step']}: {reason}", f"{count:,}", f"{100 * count / step['documents_in']:.2f} %")
        for step in corpus.report["steps"]
        for reason, count in sorted(step["reasons"].items(), key=lambda one: -one[1])
    ]
    for reason, skipped in corpus.manifest["reading"]["skipped"].items():
        rows.append((f"not read: {reason}", f"{skipped['count']:,}", ""))
    return Rows("Why documents are not there", ("rule", "documents", "of its input"), tuple(rows))


def settings_rows(corpus: Corpus) -> Rows:
    """Return what each step was told: limits, models, lists."""
    rows = [
        (f"{int(number) + 1:02d}-{kind}: {name}", value)
        for key, section in corpus.manifest["settings"]["steps"].items()
        for number, _, kind in [key.partition("-")]
        for name, value in _settings(section)
    ]
    return Rows("Settings of the steps", ("setting", "value"), tuple(rows))


def _settings(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings of a section and of those within it; null is a rule that is off."""
    for name, value in section.items():
        listed = value if isinstance(value, list) else ()
        if isinstance(value, dict):
            yield from _settings(value, f"{path}{name}.")
        elif listed and isinstance(listed[0], dict):
            for one in listed:
                own = one.get("kind") or one.get("name") or name
                yield from _settings(one, f"{path}{own}.")
        elif name != "kind":
            yield f"{path}{name}", ", ".join(map(str, value)) if listed else _shown(value)


def _shown(value: Any) -> str:
    return "null" if value is None else "none" if value == [] else str(value)


def decision_rows(corpus: Corpus) -> Iterator[Rows]:
    """Yield a table of figures for each step that decides over all documents."""
    for step, report in corpus.report["decisions"].items():
        rows = tuple((name, value) for name, value in _flat(report) if value)
        yield Rows(f"{step}, over all sources", ("figure", "value"), rows)


def cluster_rows(report: dict[str, Any]) -> Iterator[Rows]:
    """Yield clusters of near copies by size, and the large ones by name."""
    rows = [
        (
            f"{one['from_size']:,} to {2 * one['from_size'] - 1:,}",
            *(f"{one[name]:,}" for name in ("clusters", "members", "removed")),
        )
        for one in report["clusters"]
    ]
    columns = ("size", "clusters", "documents", "removed")
    yield Rows("Clusters of near copies, by size", columns, tuple(rows))
    large = [
        (one["best"], f"{one['size']:,}", f"{one['removed']:,}") for one in report["large_clusters"]
    ]
    names = ("the document that comes first", "documents", "removed")
    yield Rows("Clusters of unusual size", names, tuple(large))


def _flat(report: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in report.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}: ")
        elif isinstance(value, int | float):
            number = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            yield f"{path}{name.replace('_', ' ')}", number
