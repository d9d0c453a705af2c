"""Random texts that break rules often and in many ways."""

import random

WORDS = [
    "the", "be", "to", "of", "and", "that", "have", "with", "house", "garden", "understanding", "a", "I",
    "42", "3.14", "don't", "well-known", "x", "#tag", "# ", "...", "wait...", "\u2026", "example.com", "(see", "below)",
    "end.", "end!", "\"so?\"", "[3]", "[edit]", "e.g.", "internationalisation", "--", "=", "and/or", "1,000", "The",
]  # fmt: skip
LINES = ["- item", "\u2022 item", "", "", "We use cookies here.", "Enable javascript now."]
LINES += ["Lorem ipsum dolor sit.", "x = {1}.", "Read more..."]


def text(seed):
    """Return a text of which some words, lines and paragraphs repeat."""
    generator = random.Random(seed)
    vocabulary = generator.sample(WORDS, generator.choice([4, 10, 30]))
    lines = []
    for _ in range(generator.choice([1, 3, 8, 30])):
        kind = generator.random()
        if lines and kind < generator.choice([0.02, 0.2]):
            lines.append(generator.choice(lines))
        elif kind < generator.choice([0.05, 0.4]):
            lines.append(generator.choice(LINES))
        else:
            words = generator.choices(vocabulary, k=generator.choice([2, 6, 20]))
            if generator.random() < 0.3:
                words = words * 3
            end = generator.choice([".", "!", "", "...", '."'])
            lines.append(generator.choice(["", " ", "- "]) + " ".join(words) + end)
    return generator.choice(["\n", "\n", "\n\n"]).join(lines) + generator.choice(["", "\n", "\n\n"])


TEXTS = ["", "\n", "a", " \n\n ", "word " * 60, "# " * 100, *(text(seed) for seed in range(250))]
