"""What the pages say is so: links and paths exist, commands are understood and run, printed
messages are printed.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import maxlm
from data_pipeline.command import ACTIONS
from maxlm import cli
from maxlm.config import load_data, load_run
from maxlm.config.pipeline.filters.url import UrlConfig
from tests.conftest import QUICK_COMPILE
from tests.small_models import model_settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
PRESETS = sorted((ROOT / "configs").rglob("*.yaml"))
FOLDERS = "maxlm|data_pipeline|launch|scripts|tests|configs|docs|benchmarks|requirements"
QUICKSTART = "configs/run/quickstart.yaml"
NAMES_OF_COMMANDS = [
    *([name] for name in cli.COMMANDS),
    ["config"],
    ["config", "check"],
    ["config", "show"],
    ["ladder", "fit"],
    ["ladder", "coordcheck"],
    *(["data", action] for action in ACTIONS),
]
LADDER = "configs/ladder/python_stdlib.yaml"
CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path | str, language: str) -> list[str]:
    text = page if isinstance(page, str) else page.read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# --- links and paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert not [link for link in local if link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", [*PAGES, *PRESETS], ids=relative)
def test_paths_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"^```python\n.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w/-]+\.[a-z]+\b", text))
    examples = set(re.findall(r"^# (\S+\.py)$", README, re.MULTILINE))
    made = {name for name in named if "KIND" in name or "NAME" in name} | examples
    assert not [name for name in named - made if not (ROOT / name).exists()]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = [page for page in PAGES if page.parent.name in ("docs", "benchmarks")]
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)\s#]+)\)", index)}
    assert not [relative(page) for page in pages if page.name != "README.md" and page not in linked]


# --- commands are understood ----------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every command of maxlm, and of scripts/quickstart, in code and in a
    preset's head.
    """
    variables = dict(re.findall(r'^(\w+)="(.*)"$', text, re.MULTILINE))
    code = [
        *re.findall(r"`([^`\n]+)`", text),
        *re.findall(r"^(?:    |#.*?(?= maxlm ))(.*)$", text, re.MULTILINE),
    ]
    code += [line for block in blocks(text, r"\w*") for line in block.splitlines()]
    for line in code:
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        line = re.sub(r"(?<=\s)\[(key=value|--)[^]]*\]|\.\.\.", "", line)  # what may be left out
        for part in re.split(r"&&|\|\||  +| [|>] |\)$", line):
            match = re.search(r"(?:^|\s|/)(maxlm|scripts/quickstart)( [^\n]*)", part)
            if match:
                words = shlex.split(match[2], comments=True)
                yield ["train", QUICKSTART, *words] if match[1] == "scripts/quickstart" else words


@pytest.mark.parametrize("page", [*PAGES, *PRESETS], ids=relative)
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(page.read_text()):
        if not words or words[0] not in (*cli.COMMANDS, "config"):
            continue  # a sentence about maxlm
        example = [
            LADDER
            if word == "LADDER.yaml"
            else QUICKSTART
            if word in ("RUN.yaml", "mine.yaml", "first.yaml", "more.yaml", "configs/run/NAME.yaml")
            else word
            for word in words
        ]
        if example in NAMES_OF_COMMANDS:
            continue
        arguments = cli._parse(example)
        # docs/config.md shows what a mistake is answered with.
        mistaken = "train.batchsize=8" in example
        if "overrides" in arguments and not mistaken:
            prepares = arguments.command in ("prepare", "config")
            (load_data if prepares else load_run)(
                getattr(arguments, "config", None) or arguments.predict or QUICKSTART,
                [override for override in arguments.overrides if override != "key=value"],
            )


def test_commands_are_found() -> None:
    assert len(list(commands(README))) >= 15


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_messages_are_printed_as_shown(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(ROOT)
    for block in blocks(page, r"\w*"):
        if block.startswith("$ maxlm "):
            command, _, shown = block.partition("\n")
            cli.main(shlex.split(command)[2:])
            assert "".join(capsys.readouterr()) == shown


def test_every_setting_of_the_step_url_is_on_its_page() -> None:
    page = (ROOT / "docs/filters.md").read_text()
    section = page[page.index("## url") : page.index("## licence")]
    fields = UrlConfig.model_fields.keys() - {"kind"}
    assert not [name for name in fields if f"`{name}" not in section]


def test_the_extra_of_benchmarks_has_what_they_and_its_tests_import() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split("[<>=]", one)[0] for one in extras["optional-dependencies"]["bench"]}
    assert {"datatrove", "spacy", "trafilatura"} <= wanted
    # And what the page installs beside datatrove.
    page = (ROOT / "benchmarks/prepare.md").read_text()
    (listed,) = re.findall(r"# there: pip install (.*)", page)
    names = {re.split("[<>=]", one)[0] for one in shlex.split(listed)}
    assert names - {"pyarrow"} <= wanted


def test_runs_of_a_file_with_data_alone_are_read(tmp_path: Path) -> None:
    page = (ROOT / "docs/data.md").read_text()
    examples = re.findall(r"^    include: .*\n(?:    .*\n)+", page, re.MULTILINE)
    assert len(examples) == 2
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    path = tmp_path / "configs/run/example.yaml"
    for example in examples:
        lines = [line.removeprefix("    ") for line in example.splitlines()]
        rest = ["run_dir: runs/x", "train: {num_steps: 1, batch_size: 8}"]
        path.write_text("\n".join([*lines, *rest]))
        assert load_run(path, []).config.data.sources["web"].path == "data/web/shards"


# --- commands run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout after scripts/setup, but for a tiny model and text, and few steps."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("README.md", "launch"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "text").mkdir()
    for number, page in enumerate(PAGES):
        (folder / "text" / f"{number}.txt").write_text(page.read_text()[:20_000])
    write_small_configs(folder / "configs")
    make_commands(folder)
    return folder


def write_small_configs(configs: Path) -> None:
    """Write a small model, text and run in place of the quickstart's."""
    small = model_settings(
        vocab_size=400,
        num_layers=2,
        embed_dim=16,
        num_heads=6,
        num_kv_heads=2,
        head_dim=4,
        mlp_dim=32,
    )
    small.pop("segments")
    (configs / "model/tiny.yaml").write_text(
        yaml.safe_dump({"model": {**small, "tie_embeddings": True}})
    )
    data = yaml.safe_load((configs / "data/python_stdlib.yaml").read_text())
    data["data"]["sources"]["python_stdlib"]["raw"] = {
        "kind": "files",
        "paths": ["text"],
        "validation_fraction": 0.2,
    }
    data["data"]["sequence_length"] = 32
    (configs / "data/python_stdlib.yaml").write_text(yaml.safe_dump(data))
    run = yaml.safe_load((configs / "run/quickstart.yaml").read_text())
    run["train"] |= {"num_steps": 4, "eval_batches": 8}
    run["data"]["sequence_length"] = 32
    run["schedule"]["warmup_steps"] = 0
    run["runtime"]["compile_cache"] = CACHE or None
    run["optimizer"]["learning_rate"] = float(run["optimizer"]["learning_rate"])
    run["include"] = ["../model/tiny.yaml", "../data/python_stdlib.yaml"]
    (configs / "run/quickstart.yaml").write_text(yaml.safe_dump(run))


def make_commands(folder: Path) -> None:
    """Make what scripts/setup makes, from this Python; what waits for people, machines or this test
    does nothing.
    """
    scripts = {
        ".venv/bin/maxlm": f'exec {sys.executable} -m maxlm "$@"',
        ".venv/bin/python": f'exec {sys.executable} "$@"',
        ".venv/bin/tensorboard": 'test "$1" = --logdir && test -d "$2"',
        ".venv/bin/srun": "exit 0",
        ".venv/bin/activate": f"PATH={folder}/.venv/bin:$PATH",
        "scripts/setup": "exit 0",
        "scripts/test": "exit 0",
    }
    for name, text in scripts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    (folder / "scripts/quickstart").symlink_to(ROOT / "scripts/quickstart")


def run(folder: Path, script: str, seconds: int) -> str:
    """Run a script in a folder, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK_COMPILE}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_own_text_of_the_readme(checkout: Path) -> None:
    block = next(block for block in blocks(README, "sh") if "mine.yaml" in block)
    assert "20/20" in run(checkout, ". .venv/bin/activate\n" + block, 300)


def test_tutorial_of_continued_pretraining(checkout: Path) -> None:
    """Published, imported, trained on on two meshes, published again: the same losses and logits."""
    page = (ROOT / "docs/continue_pretraining.md").read_text()
    run(checkout, ". .venv/bin/activate\n" + "\n".join(blocks(page, "sh")), 600)
    losses = {}
    for name in ("first", "more", "mesh"):
        lines = (checkout / f"runs/{name}/metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        losses[name] = [line["val/text/loss"] for line in found if "val/text/loss" in line][-1]
    assert losses["more"] < losses["first"]
    assert losses["mesh"] == pytest.approx(losses["more"], rel=1e-4)
    # The published folder says what the run's own checkpoint says.
    folder, trained = (maxlm.load(checkout / name) for name in ("weights/more", "runs/more"))
    tokens = np.arange(1, 40) % trained.num_ids
    wanted = trained.logits(tokens)
    np.testing.assert_allclose(folder.logits(tokens), wanted, rtol=0, atol=1e-5 * abs(wanted).max())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_commands_of_the_readme(checkout: Path) -> None:
    run(checkout, "\n".join(blocks(README, "sh")), 3500)
    lines = {
        name: (checkout / f"runs/{name}/metrics.jsonl").read_text()
        for name in ("one", "mesh", "pipe", "two")
    }
    hashes = {name: re.findall(r'"data/token_hash": "(\w+)"', text) for name, text in lines.items()}
    assert len(hashes["one"]) == 5
    assert all(found == hashes["one"] for found in hashes.values())


# --- the example of a layer -----------------------------------------------------------------------

COMPARE_MESHES = """
from tests.train.program import assert_same, make_config, run

settings = {
    "model": {"pattern": [{"ffn": {"kind": "bilinear", "hidden_dim": 32}}]},
    "train": {"microbatches": 2},
}
mesh = {"stage": 2, "fsdp": 2, "tensor": 2}
assert_same(run(make_config(mesh=mesh, **settings)), run(make_config(**settings)))
"""


def test_layer_of_the_readme_learns_the_same_on_a_mesh(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "maxlm", tmp_path / "maxlm")
    files = {block.split("\n")[0].removeprefix("# "): block for block in blocks(README, "python")}
    assert sorted(files) == ["maxlm/config/layers/bilinear.py", "maxlm/layers/ffns/bilinear.py"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    add_line(
        tmp_path / "maxlm/config/layers/__init__.py",
        "MlpConfig | ",
        "MlpConfig | BilinearConfig | ",
    )
    add_line(
        tmp_path / "maxlm/layers/ffns/__init__.py",
        '"mlp": Mlp,',
        '"mlp": Mlp,\n    "bilinear": Bilinear,',
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE_MESHES],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def add_line(path: Path, old: str, new: str) -> None:
    """Add the example to a union or registry, and import it."""
    text = path.read_text()
    assert text.count(old) == 1
    config = "config" in path.parts
    where, name = (
        ("maxlm.config.layers", "BilinearConfig") if config else ("maxlm.layers.ffns", "Bilinear")
    )
    imported = f"from {where}.bilinear import {name}\n"
    first = text.index("from maxlm.")
    path.write_text(text[:first] + imported + text[first:].replace(old, new))


def test_every_kind_of_event_is_on_the_page():
    """An event is marked by `event(KIND, ...)` or `last_event`, or noted by `events.note(KIND, ...)`."""
    calls = [
        node.args[0]
        for path in (ROOT / "maxlm").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and node.args
        if re.fullmatch(r"(last_)?event|marked|(.*\.)?events\.note", ast.unparse(node.func))
    ]
    parts = [part for kind in calls for part in ast.walk(kind) if isinstance(part, ast.Constant)]
    page = (ROOT / "docs/reliability.md").read_text()
    table = page[page.index("| kind | when |") : page.index("Code marks a line")]
    rows = [row.split("|")[1] for row in table.splitlines()[2:] if row.strip()]
    named = {kind for row in rows for kind in re.findall(r"`([a-z_]+)`", row)}
    assert named == {part.value for part in parts}
