"""Pages of a crawl: real text as HTML in a WARC, with one page of every kind that a step is there for."""

import gzip
import html
import json
import re
from pydoc_data.topics import topics

import numpy as np

from maxlm.cli import main
from tests.data_pipeline.readers.test_warc import response

WORDS = 250  # of a page, about
GERMAN = (
    "Der schnelle braune Fuchs springt im Morgengrauen ueber den faulen Hund, und die Kinder sehen ihm dabei zu. "
    "Danach gehen sie nach Hause, weil es regnet und der Weg durch den Wald noch lang ist. "
) * 6


def pages():
    """Return the language reference that Python brings along, cut into pages of prose and examples."""
    found = []
    for name, text in sorted(topics.items()):
        held = []
        for paragraph in re.split(r"\n\s*\n", text):
            held.append(paragraph)
            if sum(len(one.split()) for one in held) >= WORDS:
                found.append((f"{name}-{len(found)}", held))
                held = []
    return found


def as_html(title, paragraphs):
    """Return a page with a menu and a footer around its text."""
    parts = [
        f"<pre>{html.escape(one)}</pre>"
        if all(line.startswith("   ") for line in one.splitlines())
        else f"<p>{html.escape(' '.join(one.split()))}</p>"
        for one in paragraphs
    ]
    menu = "".join(f"<li><a href='/{word}'>{word}</a></li>" for word in ("home", "index", "about"))
    return (
        f"<html><head><title>{title}</title></head><body><nav><ul>{menu}</ul></nav><main><article>"
        f"<h1>{title}</h1>{''.join(parts)}</article></main><footer>All rights</footer></body></html>"
    )


def plain(paragraphs):
    return " ".join(" ".join(paragraphs).split())


ADDRESS = "guido.example@python-mail.org"


def write_crawl(folder, real, archives):
    """Write the reference as pages into archives, with one of every kind that a step is there for."""
    first, second, third = (real[number][1] for number in (3, 40, 80))

    def of_two(one, two):  # like neither of them, but with passages of both
        return [*real[one][1][: len(real[one][1]) // 2], *real[two][1][len(real[two][1]) // 2 :]]

    planted = {
        "deep": "<div>" * 2000 + plain(first),
        "german": as_html("Fuchs", [GERMAN]),
        "menu": as_html("Menu", ["home\nnews\nabout\ncontact " * 30]),
        "toxic": as_html("Bad", [*second, "You are a complete frobnicator of the worst kind."]),
        "copy": as_html(real[3][0], first),
        "near": as_html("Nearly", [*second[:-1], second[-1] + " A last sentence is added here."]),
        "passage": as_html("Quoting", [*third[: len(third) // 2], *real[120][1]]),
        "leaked": as_html("Exam", [*of_two(90, 95), BENCHMARK]),
        "mail": as_html("Mail", [*of_two(140, 150), f"Write to {ADDRESS} about it."]),
    }
    records = [
        response(f"blocked/{name}", body=page.encode()).replace(b"example.org", b"blocked.test")
        if name == "blocked"
        else response(name, body=page.encode())
        for name, page in [
            *((name, as_html(name, paragraphs)) for name, paragraphs in real),
            *planted.items(),
            ("blocked", as_html("Blocked", real[60][1])),
            (f"{real[5][0]}?utm_source=feed", as_html("Again", of_two(100, 110))),
        ]
    ]
    folder.mkdir(parents=True)
    for number in range(archives):
        data = b"".join(map(gzip.compress, records[number::archives]))
        (folder / f"crawl{number}.warc.gz").write_bytes(data)


BENCHMARK = (
    "Question 17: a train with forty wagons leaves the northern harbour at nine and meets the other train at noon; "
    "how many wagons does the second train have if each of them carries seven crates of oranges?"
)


def write_web(web, *, archives=1):
    """Write all that the preset for pages needs into its folder, and train its models."""
    real = pages()
    write_crawl(web / "raw", real, archives)
    for name in ("good", "bad"):
        (web / name).mkdir()
    good, generator = [plain(paragraphs) for _, paragraphs in real[::2]], np.random.default_rng(0)
    for number, text in enumerate(good):
        (web / f"good/{number}.txt").write_text(text)
        words = np.array(text.split())
        (web / f"bad/{number}.txt").write_text(
            " ".join(generator.permutation(words)[:60]) + " buy now"
        )
    (web / "benchmark.jsonl").write_text(json.dumps({"question": BENCHMARK}) + "\n")
    (web / "blocked_domains.txt").write_text("blocked.test\n")
    (web / "toxic_words.txt").write_text("frobnicator # a made-up word\n")


def train_models(web):
    """Train the preset's models by the commands that it names."""
    good, bad = str(web / "good"), str(web / "bad")
    classifier = ["--output", str(web / "quality.classifier"), "--bits", "14"]
    assert main(["data", "train-classifier", good, bad, *classifier]) == 0
    ngrams = ["--output", str(web / "good.ngrams"), "--order", "2", "--held-out", "0.2"]
    assert main(["data", "train-ngrams", good, *ngrams]) == 0
