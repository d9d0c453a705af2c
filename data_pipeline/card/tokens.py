"""What tokens a corpus has: how often each comes, which ones never."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_pipeline.inspection.corpus import AT_A_TIME, Corpus
from maxlm.data.tokenizers import Tokenizer
from maxlm.pages import Rows

MOST_COUNTED = 2**26
"""Beyond, portions are counted that lie evenly in the split: a curriculum may have put it in an order."""
TOP = 30
SHARES = (0.5, 0.9, 0.99)


class TokenCounts(NamedTuple):
    """How often each token comes.

    Attributes:
      counts: int64 (vocab_size,).
      counted: tokens that were looked at.
      total: tokens of the training split.
    """

    counts: np.ndarray
    counted: int
    total: int

    @classmethod
    def of(cls, corpus: Corpus) -> TokenCounts:
        """Count the tokens of a corpus."""
        shards = corpus.splits["train"]
        counts = np.zeros(shards.index.vocab_size, np.int64)
        counted = min(shards.num_tokens, MOST_COUNTED)
        portions = max(-(-counted // AT_A_TIME), 1)
        for number in range(portions):
            size = (number + 1) * counted // portions - number * counted // portions
            tokens = shards.read(number * shards.num_tokens // portions, size)
            counts += np.bincount(tokens, minlength=counts.size)
        return cls(counts, counted, shards.num_tokens)

    @property
    def descending(self) -> np.ndarray:
        """The counts of tokens that come at all, the most frequent first."""
        ordered = np.sort(self.counts[self.counts > 0])[::-1]
        return np.asarray(ordered)


def vocabulary_rows(found: TokenCounts, tokenizer: Tokenizer, bytes_per_token: float) -> Rows:
    """Return how well the vocabulary fits the corpus."""
    special = set(tokenizer.specials.values()) | {tokenizer.bos_id, tokenizer.eos_id}
    plain = np.array([one not in special for one in range(found.counts.size)])
    unused = int(np.count_nonzero(plain & (found.counts == 0)))
    reached = np.cumsum(found.descending) / max(found.counted, 1)
    rows = [
        ("tokens in the training split", f"{found.total:,}"),
        ("of them counted here", f"{found.counted:,}"),
        ("bytes of text for each token", f"{bytes_per_token:.3f}"),
        ("vocabulary", f"{found.counts.size:,}"),
        ("never used", f"{unused:,} ({100 * unused / max(plain.sum(), 1):.1f} %)"),
    ]
    for share in SHARES:
        number = int(np.searchsorted(reached, share)) + 1
        rows.append((f"tokens that make {100 * share:g} % of the text", f"{number:,}"))
    return Rows("Tokens", ("", ""), tuple(rows))


def top_rows(found: TokenCounts, tokenizer: Tokenizer) -> Rows:
    """Return the most frequent tokens."""
    order = np.argsort(-found.counts, kind="stable")[:TOP]
    names = {token: name for name, token in tokenizer.specials.items()}
    rows = [
        (
            names.get(token) or repr(tokenizer.piece(token).decode(errors="backslashreplace")),
            str(token),
            f"{found.counts[token]:,}",
            f"{100 * found.counts[token] / max(found.counted, 1):.2f} %",
        )
        for token in order.tolist()
        if found.counts[token]
    ]
    return Rows("Most frequent tokens", ("token", "id", "times", "share"), tuple(rows))
