"""What a new kind costs: its own files, and in each table that lists kinds an import and an entry.

A copy of the package gets a mixer, an ffn, an objective, an optimizer and a kernel from
`tests/seams/added`. Their lines are put in as text, so that whatever else had to change would be
missing. What the copy can do then is checked by the files `tests/seams/check_*.py`, in one process
that sees the copy and not this package.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEAMS = ROOT / "tests/seams"
ADDED = SEAMS / "added"

# By kind: its files, and where it is entered: (file, import, place of the entry, entry).
MIXER = r"Mixer = Annotated\[\s+"
FFN = r"Ffn = Annotated\[\s+"
TABLE = r"\b{}: dict\[.*\] = \{{\n"
KINDS = {
    "mixer": (
        ["config/layers/moving_average.py", "layers/mixers/moving_average.py"],
        [
            (
                "config/layers/__init__.py",
                "from maxlm.config.layers.moving_average import MovingAverageConfig",
                MIXER,
                "MovingAverageConfig | ",
            ),
            (
                "layers/mixers/__init__.py",
                "from maxlm.layers.mixers.moving_average import MovingAverage",
                TABLE.format("MIXERS"),
                '    "moving_average": MovingAverage,\n',
            ),
        ],
    ),
    "ffn": (
        ["config/layers/centred.py", "layers/ffns/centred.py"],
        [
            (
                "config/layers/__init__.py",
                "from maxlm.config.layers.centred import CentredConfig",
                FFN,
                "CentredConfig | ",
            ),
            (
                "layers/ffns/__init__.py",
                "from maxlm.layers.ffns.centred import Centred",
                TABLE.format("FFNS"),
                '    "centred": Centred,\n',
            ),
        ],
    ),
    "objective": (
        [
            "config/objectives/after_next.py",
            "data/examples/after_next.py",
            "train/objectives/after_next.py",
        ],
        [
            (
                "config/objectives/__init__.py",
                "from maxlm.config.objectives.after_next import AfterNextConfig",
                r"Objective = Annotated\[\s+",
                "AfterNextConfig | ",
            ),
            (
                "data/examples/__init__.py",
                "from maxlm.data.examples.after_next import AfterNextExamples",
                TABLE.format("EXAMPLES"),
                '    "after_next": AfterNextExamples,\n',
            ),
            (
                "train/objectives/__init__.py",
                "from maxlm.train.objectives.after_next import AfterNext",
                TABLE.format("OBJECTIVES"),
                '    "after_next": AfterNext,\n',
            ),
        ],
    ),
    "optimizer": (
        ["config/optim/lion.py", "optim/lion.py"],
        [
            (
                "config/optim/__init__.py",
                "from maxlm.config.optim.lion import LionConfig",
                r"Optimizer = Annotated\[\s+",
                "LionConfig | ",
            ),
            (
                "optim/__init__.py",
                "from maxlm.optim.lion import lion",
                TABLE.format("OPTIMIZERS"),
                '    "lion": lion,\n',
            ),
        ],
    ),
    "kernel": (
        ["kernels/dense_attention.py"],
        [
            ("config/schema.py", None, r"    attention: Literal\[\s+", '"dense", '),
            (
                "ops/attention.py",
                "from maxlm.kernels import dense_attention",
                r"table=\{\n",
                '        "dense": Row(("cpu",), dense_attention.unsupported, '
                "lambda _: Kernel(dense_attention.forward, dense_attention.backward)),\n",
            ),
        ],
    ),
}


def entered(text: str, statement: str | None, place: str, entry: str) -> str:
    """Return a file's text with an import and an entry more."""
    matches = list(re.finditer(place, text))
    assert len(matches) == 1, f"{len(matches)} places like {place}"
    text = text[: matches[0].end()] + entry + text[matches[0].end() :]
    if statement is None:
        return text
    head = "from __future__ import annotations\n\n"
    assert text.count(head) == 1
    return text.replace(head, f"{head}{statement}\n")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of maxlm that has a kind more of everything."""
    folder = tmp_path_factory.mktemp("seams")
    for name in ("maxlm", "data_pipeline"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for files, entries in KINDS.values():
        for name in files:
            assert not (folder / "maxlm" / name).exists()
            shutil.copy(ADDED / "maxlm" / name, folder / "maxlm" / name)
        for name, *entry in entries:
            path = folder / "maxlm" / name
            path.write_text(entered(path.read_text(), *entry))
    return folder


def changed_lines(before: str, after: str) -> tuple[int, int]:
    """Return how many lines of `before` are gone, and how many of `after` are new."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    return sum(line.startswith("- ") for line in lines), sum(
        line.startswith("+ ") for line in lines
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_its_files_and_a_line_in_each_table(kind: str) -> None:
    files, entries = KINDS[kind]
    for name, statement, *entry in entries:
        text = (ROOT / "maxlm" / name).read_text()
        gone, new = changed_lines(text, entered(text, statement, *entry))
        print(f"{kind}: {name}: {new} lines, of which {gone} were there")
        # The import, and the entry: a line of its own, or one more word in a line.
        assert new - (statement is not None) == 1
        assert gone <= 1
    print(f"{kind}: {len(files)} new files, {len(entries)} tables")
    assert len(entries) == max(len(files), 2)


def test_every_added_file_belongs_to_a_kind() -> None:
    added = {path.relative_to(ADDED / "maxlm").as_posix() for path in ADDED.rglob("*.py")}
    assert added == {name for files, _ in KINDS.values() for name in files}


def test_what_is_added_can_do_all_that_the_others_can(package: Path) -> None:
    checks = sorted(map(str, SEAMS.glob("check_*.py")))
    assert checks
    # The tests' own modules come from here, the package from the copy.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "python_files=check_*.py",
        "-o",
        f"pythonpath={package}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *checks],
        cwd=package,
        env={**environment, "MAXLM_SEAMS": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
