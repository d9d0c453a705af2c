"""Which licences are allowed, against all choices an expression leaves; and where they are read."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.licence import Licence, is_allowed
from maxlm.config.pipeline.licence import LicenceConfig

NAMES = ["MIT", "Apache-2.0", "GPL-3.0-only", "AGPL-3.0-or-later"]
LEAVES = st.sampled_from(NAMES).map(lambda name: (name,))
TREES = st.recursive(
    LEAVES, lambda inner: st.tuples(st.sampled_from(["OR", "AND"]), inner, inner), max_leaves=6
)


def choices(tree):
    """Return all sets of licences that meet an expression."""
    if len(tree) == 1:
        return [{tree[0]}]
    kind, left, right = tree
    if kind == "OR":
        return choices(left) + choices(right)
    return [a | b for a, b in itertools.product(choices(left), choices(right))]


def written(tree, above=None):
    if len(tree) == 1:
        return tree[0]
    text = f" {tree[0]} ".join(written(part, tree[0]) for part in tree[1:])
    return f"({text})" if above == "AND" and tree[0] == "OR" else text


@given(tree=TREES, allowed=st.sets(st.sampled_from(NAMES)))
def test_an_expression_is_met_by_one_of_its_choices(tree, allowed):
    expected = any(choice <= allowed for choice in choices(tree))
    names = frozenset(name.lower() for name in allowed)
    assert is_allowed(written(tree), names) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("mit", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("(MIT OR GPL-2.0-only) AND Apache-2.0+", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0 OR MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND", False),
        ("OR MIT", False),
        ("(MIT", False),
        ("MIT)", False),
        ("MIT WITH", False),
        ("MIT Apache-2.0", False),
        ("the MIT License, as in LICENSE", False),
        ("(" * 100_000 + "MIT", False),
        ("", False),
    ],
)
def test_expressions_and_what_is_none(expression, expected):
    assert is_allowed(expression, frozenset({"mit", "apache-2.0"})) is expected


def test_a_licence_is_looked_for_in_the_text_then_beside_it():
    documents = [
        Document("0", "x", "# SPDX-License-Identifier: GPL-3.0-only\nx = 1\n", {"licence": "MIT"}),
        Document("1", "x", "/* SPDX-License-Identifier: MIT */\nint x;\n", {}),
        Document("2", "x", "x = 1\n", {"license": "Apache-2.0"}),
        Document("3", "x", "x = 1\n", {"licence": "Proprietary"}),
        Document("4", "x", "x = 1\n", {}),
        Document("5", "x", "\n" * 5000 + "# SPDX-License-Identifier: MIT\n", {}),
    ]
    found = list(Licence(LicenceConfig())(iter(documents)))
    reasons = [one.reason if isinstance(one, Dropped) else one.meta["licence"] for one in found]
    assert reasons == [
        "licence/not_allowed",
        "MIT",
        "Apache-2.0",
        "licence/not_allowed",
        "licence/missing",
        "licence/missing",
    ]
    kept = list(Licence(LicenceConfig(missing="keep"))(iter([documents[4]])))
    assert kept == [documents[4]]
