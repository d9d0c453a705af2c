"""Clusters of rows that pairs link, as connected components, one batch of pairs at a time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def connected_rows(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return uint64 (2, num_rows): the linked rows, ascending, and the least row of each one's
    cluster.

    Memory is that of the linked rows and one batch: what earlier batches linked is kept as one
    pair a row.

    Args:
      batches: pairs of linked rows, as two arrays.
    """
    known = np.empty((2, 0), np.uint64)
    for left, right in batches:
        if left.size:
            known = _joined(np.concatenate([known, np.stack([left, right])], axis=1))
    return known


def _joined(pairs: np.ndarray) -> np.ndarray:
    rows, ends = np.unique(pairs, return_inverse=True)
    left, right = ends.reshape(2, -1)
    links = coo_array((np.ones(left.size, bool), (left, right)), shape=(rows.size, rows.size))
    count, labels = connected_components(links, directed=False)
    least = np.full(count, rows.size, np.int64)
    np.minimum.at(least, labels, np.arange(rows.size))
    return np.stack([rows, rows[least[labels]]])
