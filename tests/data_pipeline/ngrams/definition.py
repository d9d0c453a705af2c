"""Interpolated modified Kneser-Ney smoothing from its definition, with dictionaries and floats."""

import math
from collections import Counter, defaultdict
from functools import cache


class Definition:
    """A model of sentences of words, which begin with <s> and end with </s>."""

    def __init__(self, sentences, vocabulary, order, fallback):
        self.order, self.words = order, [word for word in vocabulary if word != "<s>"]
        raw = Counter(
            tuple(sentence[start : start + length])
            for sentence in sentences
            for length in range(1, order + 1)
            for start in range(len(sentence) - length + 1)
        )
        before = defaultdict(set)
        for gram in raw:
            before[gram[1:]].add(gram[0])
        self.counts = {}
        for gram, count in raw.items():
            if gram == ("<s>",):
                continue
            longest = len(gram) == order or gram[0] == "<s>"
            self.counts[gram] = count if longest else len(before[gram])
        self.discounts = [self._discounts(length, fallback) for length in range(1, order + 1)]
        self.probability = cache(self._probability)

    def _discounts(self, length, fallback):
        n = Counter(count for gram, count in self.counts.items() if len(gram) == length)
        if all(n[count] for count in (1, 2, 3, 4)):
            share = n[1] / (n[1] + 2 * n[2])
            found = [
                1 - 2 * share * n[2] / n[1],
                2 - 3 * share * n[3] / n[2],
                3 - 4 * share * n[4] / n[3],
            ]
            if all(0 < value < place for place, value in enumerate(found, 1)):
                return found
        return fallback

    def _discount(self, gram):
        count = self.counts.get(gram, 0)
        return self.discounts[len(gram) - 1][min(count, 3) - 1] if count else 0.0

    def _probability(self, context, word):
        context = (
            context[len(context) - (self.order - 1) :] if len(context) >= self.order else context
        )
        lower = self._probability(context[1:], word) if context else 1 / len(self.words)
        seen = [(*context, other) for other in self.words if (*context, other) in self.counts]
        total = sum(self.counts[gram] for gram in seen)
        if not total:
            return lower
        weight = sum(self._discount(gram) for gram in seen) / total
        gram = (*context, word)
        return (self.counts.get(gram, 0) - self._discount(gram)) / total + weight * lower

    def logs(self, sentence):
        return [
            math.log10(
                self.probability(tuple(sentence[max(0, place - self.order + 1) : place]), word)
            )
            for place, word in enumerate(sentence)
            if place
        ]
