"""The catalogue, and the table in the documentation that is made from it."""

import re
from pathlib import Path

import pytest

from maxlm.metrics import catalog

ROOT = Path(__file__).parents[2]


def test_names_are_unique_and_every_metric_is_explained():
    names = [metric.name for metric in catalog.METRICS]
    assert len(set(names)) == len(names)
    assert all(metric.meaning and "|" not in metric.meaning for metric in catalog.METRICS)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("train/loss", "train/loss"),
        ("val/python/loss", "val/<source>/loss"),
        ("val/wiki.en-2/bits_per_byte", "val/<source>/bits_per_byte"),
        ("data/epoch/python", "data/epoch/<source>"),
        ("moe/12/load_max", "moe/<layer>/load_max"),
        ("mflop/val_python_loss", "mflop/val_<source>_loss"),
    ],
)
def test_find(name, entry):
    assert catalog.find(name).name == entry


@pytest.mark.parametrize(
    "name",
    [
        "train/los",
        "train/loss/x",
        "val/loss",
        "val/a/b/loss",
        "loss",
        "moe/x/dropped",
        "trainXloss",
        "",
    ],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(KeyError, match=r"catalog\.py"):
        catalog.find(name)


def test_flops_curves_are_in_the_catalogue():
    for group in catalog.FLOPS_CURVES:
        assert catalog.find(catalog.flops_curve("train/loss", group)).name == f"{group}/train_loss"
        assert (
            catalog.find(catalog.flops_curve("val/books/loss", group)).name
            == f"{group}/val_<source>_loss"
        )


def test_the_table_in_the_documentation_is_up_to_date():
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- metrics -->\n(.*?)\n<!-- /metrics -->", text, re.DOTALL)
    assert block, "docs/metrics.md needs a table between <!-- metrics --> and <!-- /metrics -->"
    assert block[1].strip() == catalog.markdown_table(), (
        "run .venv/bin/python scripts/write_lists.py"
    )
