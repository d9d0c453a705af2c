"""A prepared corpus with copies, near copies, a broken rule, a cut document and hostile texts; made
once.
"""

import io
import json
import random

import pytest
from rich.console import Console

from data_pipeline import prepare as prepare_module
from data_pipeline.prepare import prepare
from data_pipeline.report import Report
from maxlm import cli
from maxlm.config.schema import RunConfig
from tests.data_pipeline.conftest import InProcess, text
from tests.small_models import model_settings

HOSTILE = "<script>alert('x')</script>\x1b[31m \u202e &amp; </pre></div> $\\frac{1}{2}$"
STEPS = [
    {"kind": "heuristics", "rules": [{"kind": "gopher_quality", "min_stop_words": None}]},
    {"kind": "exact_dedup"},
    {"kind": "near_dedup"},
]


def lines_of_the_corpus():
    generator = random.Random(1)
    base = " ".join(f"word{generator.randrange(10**6)}" for _ in range(200))
    return [
        f"{HOSTILE} {text(100)}",
        f"{HOSTILE} too few words",
        base,
        base + " more",
        base,
        "needle " + text(101),
        text(102, 2000),
    ]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected")
    raw = folder / "raw"
    raw.mkdir()
    for number in range(10, 40):
        (raw / f"text{number}.txt").write_text(text(number))
    lines = [
        json.dumps({"text": one, "license": "mit<b>", "stars": number})
        for number, one in enumerate(lines_of_the_corpus())
    ]
    (raw / "lines.jsonl").write_text("\n".join(lines))
    settings = {
        "kind": "files",
        "paths": [str(raw)],
        "validation_fraction": 0.2,
        "licence": "CC-BY <4.0>",
        "meta_keys": ["license", "stars"],
        "max_document_bytes": 5000,
    }
    config = RunConfig.model_validate(
        {
            "run_dir": str(folder / "run"),
            "model": model_settings(vocab_size=400, num_layers=1, embed_dim=8),
            "data": {
                "sources": {"text": {"path": str(folder / "out/text"), "raw": settings}},
                "tokenizer": str(folder / "out/tokenizer.model"),
                "sequence_length": 16,
                "pipeline": {"steps": STEPS},
            },
            "train": {"num_steps": 1, "batch_size": 1},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "build_engine", lambda _: InProcess())
        prepare(config, force=False, report=Report(Console(file=io.StringIO())))
    return folder / "out/text"


@pytest.fixture
def data(corpus, capsys):
    """Return a function that runs `maxlm data` and returns its exit code and output."""

    def run(action, *arguments):
        code = cli.main(["data", action, str(corpus), *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run
