"""The command line: exit codes, messages, speed, and no jax where none is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from data_pipeline.command import ACTIONS
from maxlm import cli
from maxlm.config.errors import UserError

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs/run/quickstart.yaml")


def test_check_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", QUICKSTART]) == 0
    assert capsys.readouterr().out.endswith("quickstart.yaml: ok\n")
    assert cli.main(["config", "show", QUICKSTART, "mesh.tensor=2"]) == 0
    assert "  tensor: 2 " in capsys.readouterr().out
    assert cli.main(["config", "schema"]) == 0
    assert capsys.readouterr().out.startswith("{")


def test_a_file_with_data_alone_is_checked_and_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(ROOT / "configs/data/python_stdlib.yaml")
    assert cli.main(["config", "check", path, "data.vocab_size=512"]) == 0
    assert cli.main(["config", "show", path]) == 0
    shown = capsys.readouterr().out
    assert "vocab_size: null" in shown
    assert "model" not in yaml.safe_load(shown.partition(": ok\n")[2])
    assert cli.main(["config", "check", path, "data.pipeline.steps=[{kind: sampel}]"]) == 2
    assert "did you mean sample?" in capsys.readouterr().err
    settings = [
        "data.sources.python_stdlib.path=''",
        "data.sources.more={path: data/x, raw: {kind: files}}",
    ]
    assert cli.main(["config", "check", path, *settings]) == 2
    error = capsys.readouterr().err
    assert error.startswith("maxlm: 2 problems in ")
    assert 'data.sources.python_stdlib.path="" is empty' in error
    assert "data.sources.more.raw.kind=files needs data.sources.more.raw.paths" in error
    # The settings of other sections make it a run, of which much is missing.
    assert cli.main(["config", "check", path, "train.num_steps=5"]) == 2
    assert "model is missing" in capsys.readouterr().err
    assert cli.main(["train", path]) == 2
    assert "it has `data` alone, which `maxlm prepare`" in capsys.readouterr().err


def test_mistakes_of_the_user_exit_2_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["config", "check", QUICKSTART, "mesh.tenor=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("maxlm: 1 problem in ")
    assert "did you mean mesh.tensor?" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "argv", [[], ["trian"], ["train"], ["train", "x.yaml", "--fast"], ["config"], ["generate", "x"]]
)
def test_wrong_usage_exits_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2


def fake(monkeypatch: pytest.MonkeyPatch, name: str, run: object) -> None:
    module = types.ModuleType(name)
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)


def test_commands_get_their_arguments_and_return_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    for name in cli.COMMANDS.values():
        fake(monkeypatch, name, lambda arguments: seen.append(arguments) or 0)
    assert cli.main(["train", "x.yaml", "a.b=1", "c=2"]) == 0
    assert cli.main(["prepare", "x.yaml", "a.b=1", "--force", "c=2"]) == 0
    assert cli.main(["generate", "runs/x", "--prompt", "def ", "--top-k", "5"]) == 0
    train, prepare, generate = seen
    assert (train.config, train.overrides) == ("x.yaml", ["a.b=1", "c=2"])
    assert (prepare.overrides, prepare.force) == (["a.b=1", "c=2"], True)
    assert (generate.run_dir, generate.prompt, generate.top_k, generate.step) == (
        "runs/x",
        ["def "],
        5,
        None,
    )


def test_actions_on_data_are_those_of_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["data", "nothing"])
    shown = capsys.readouterr().err.partition("choose from ")[2]
    assert re.findall(r"[\w-]+", shown) == list(ACTIONS)


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (UserError("disk full; free some"), 2, "maxlm: disk full; free some\n"),
        (KeyboardInterrupt(), 1, "maxlm: interrupted\n"),
        (ZeroDivisionError("oh"), 1, "maxlm: unexpected ZeroDivisionError"),
    ],
)
def test_errors_become_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    expected: str,
) -> None:
    def run(arguments: object) -> int:
        raise error

    fake(monkeypatch, "maxlm.train.command", run)
    assert cli.main(["train", "x.yaml"]) == code
    text = capsys.readouterr().err
    assert expected in text
    assert ("Traceback" in text) == isinstance(error, ZeroDivisionError)


def test_config_commands_load_no_array_library() -> None:
    code = (
        "import sys; from maxlm import cli;"
        f"cli.main(['config', 'check', {QUICKSTART!r}]); cli.main(['config', 'show', {QUICKSTART!r}]);"
        "heavy = {'jax', 'jaxlib', 'numpy', 'flax', 'optax', 'orbax', 'grain', 'rich'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "maxlm", "--version"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.startswith(
        "maxlm 0."
    )


def test_a_reader_that_has_seen_enough_is_no_traceback() -> None:
    command = [sys.executable, "-m", "maxlm", "config", "schema"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_any_encoding_shows_any_text(encoding: str) -> None:
    command = [
        sys.executable,
        "-m",
        "maxlm",
        "config",
        "show",
        QUICKSTART,
        "run_dir=runs/\u2603 \u00fc",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT, env=environment)
    assert done.stderr == b""
    assert done.returncode == 0
    shown = yaml.safe_load(done.stdout.decode(encoding))["run_dir"]
    assert shown.encode("ascii", "backslashreplace") == rb"runs/\u2603 \xfc"
