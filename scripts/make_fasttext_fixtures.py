"""Write the models that tests of fastText's format read, and what the library says of some texts.

    pip install fasttext-wheel 'numpy<2' && python scripts/make_fasttext_fixtures.py

fastText is no dependency of maxlm. (fasttext-numpy2 0.10.4 trains to NaN on these lines.)
"""

import json
import random
import tempfile
from pathlib import Path

import fasttext

FOLDER = Path(__file__).parents[1] / "tests/data_pipeline/fasttext/models"
GOOD = ["theorem", "proof", "lemma", "follows", "because", "naïve", "result", "日本", "holds"]
BAD = ["buy", "cheap", "click", "here", "now", "free", "offer", "price", "café", "😀", "deal"]
NEWS = ["minister", "election", "vote", "party", "report", "said", "today", "2024"]
KINDS = {
    "softmax": {"wordNgrams": 3, "bucket": 97},
    "characters": {"wordNgrams": 2, "minn": 2, "maxn": 4, "bucket": 211},
    "ova": {"loss": "ova", "minn": 3, "maxn": 3, "bucket": 101},
    "hs": {"loss": "hs"},
    "ns": {"loss": "ns", "wordNgrams": 2, "bucket": 53},
}
TEXTS = [
    "theorem proof lemma",
    "buy cheap free offer now",
    "the minister said: vote!",
    "",
    "   \t ",
    "unknown words alone",
    "caf\u00e9 \u65e5\u672c \U0001f600 na\u00efve",
    "__label__good buy buy",
    "</s> theorem </s> price",
    "x",
    "\u00e9",
    "a\0b \x0b theorem\x0cproof",
    "buy " * 400,
]


def lines(seed: int = 0) -> list[str]:
    """Return labelled lines, of the labels with different frequency."""
    draw = random.Random(seed)
    found = []
    for number in range(300):
        name, words = (
            ("good", GOOD),
            ("bad", BAD),
            ("bad", BAD),
            ("news", NEWS),
            ("rare", ["rare"]),
        )[min(number % 5, 4) if number % 50 == 4 else number % 4]
        text = " ".join(draw.choices(words, k=draw.randint(2, 9)))
        found.append(f"__label__{name} {text}")
    return found


def main() -> None:
    """Train the models and write them with their probabilities."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.txt"
        path.write_text("\n".join(lines()) + "\n", encoding="utf-8")
        expected = {}
        for name, settings in KINDS.items():
            model = fasttext.train_supervised(
                str(path), dim=3, epoch=10, lr=0.2, thread=1, verbose=0, **settings
            )
            model.save_model(str(FOLDER / f"{name}.bin"))
            expected[name] = [probabilities(model, text) for text in TEXTS]
    content = {"texts": TEXTS, "probabilities": expected}
    (FOLDER / "expected.json").write_text(json.dumps(content, indent=1) + "\n")


def probabilities(model, text: str) -> dict[str, float]:
    """Return the probability of every label."""
    labels, values = model.predict(text.replace("\n", " "), k=-1)
    return {label: round(float(value), 6) for label, value in zip(labels, values, strict=True)}


if __name__ == "__main__":
    main()
