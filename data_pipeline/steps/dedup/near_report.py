"""What near_dedup says about itself: clusters by size, the large ones by name, what each source
lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_pipeline.dedup.near.sets import CandidateFiles, as_bytes, as_texts
from data_pipeline.dedup.near.verify import Cluster
from data_pipeline.dedup.sorted_keys import shards_of
from data_pipeline.steps.step import Arrays, Shard

MOST_NAMED = 50  # clusters
_SIZES = 48  # powers of two


def cluster_figures(
    clusters: Sequence[Cluster], files: CandidateFiles, *, large: int
) -> dict[str, np.ndarray]:
    """Return figures of decided clusters as arrays `report.*`, which add up over parts.

    Args:
      large: clusters of at least this many documents are named.
    """
    size = np.array([cluster.members.size for cluster in clusters], np.int64)
    removed = np.array([len(cluster.removed) for cluster in clusters], np.int64)
    bins = np.log2(np.maximum(size, 1)).astype(np.int64)
    named = [place for place in np.argsort(-size, kind="stable") if size[place] >= large]
    named = named[:MOST_NAMED]
    best = [files.id(int(clusters[place].members[0])) for place in named]
    return {
        "report.clusters": np.bincount(bins, minlength=_SIZES),
        "report.members": np.bincount(bins, size, _SIZES).astype(np.int64),
        "report.removed": np.bincount(bins, removed, _SIZES).astype(np.int64),
        "report.uncompared": np.array([sum(cluster.uncompared for cluster in clusters)]),
        "report.large": np.array([[size[place], removed[place]] for place in named]).reshape(-1, 2),
        "report.large_id": as_bytes(best),
    }


def summary(parts: Iterable[Arrays], shards: Sequence[Shard]) -> dict[str, Any]:
    """Return the report of all parts, as JSON."""
    totals = {name: np.zeros(_SIZES, np.int64) for name in ("clusters", "members", "removed")}
    lost = np.zeros(len(shards), np.int64)
    uncompared = 0
    large: list[tuple[list[int], str]] = []
    for part in parts:
        for name, total in totals.items():
            total += part[f"report.{name}"]
        lost += np.bincount(shards_of(part["rows"]).astype(np.int64), minlength=len(shards))
        uncompared += int(part["report.uncompared"][0])
        large += zip(part["report.large"].tolist(), as_texts(part["report.large_id"]), strict=True)
    large.sort(key=lambda one: (-one[0][0], one[1]))
    return {
        "linked": int(totals["members"].sum()),
        "removed": int(totals["removed"].sum()),
        "not_fully_compared": uncompared,
        "clusters": [
            {
                "from_size": 2**size,
                "clusters": int(clusters),
                "members": int(members),
                "removed": int(gone),
            }
            for size, (clusters, members, gone) in enumerate(zip(*totals.values(), strict=True))
            if clusters
        ],
        "large_clusters": [
            {"size": size, "removed": removed, "best": best}
            for (size, removed), best in large[:MOST_NAMED]
        ],
        "sources": _by_source(lost, shards),
    }


def _by_source(lost: np.ndarray, shards: Sequence[Shard]) -> dict[str, dict[str, int]]:
    sources: dict[str, dict[str, int]] = {}
    for shard, gone in zip(shards, lost.tolist(), strict=True):
        counts = sources.setdefault(shard.source, {"documents": 0, "removed": 0})
        counts["documents"] += shard.documents
        counts["removed"] += gone
    return sources
