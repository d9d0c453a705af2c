"""The strict YAML reader: scalars, lines, and what it refuses."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from maxlm.config.errors import ConfigError
from maxlm.config.reading.strict_yaml import MAX_BYTES, read_scalar, read_value, read_yaml


def read(folder: Path, text: str | bytes) -> Any:
    path = folder / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path, "x.yaml")


def refuse(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            ("3", 3),
            ("-3", -3),
            ("+3", 3),
            ("0", 0),
            ("010", "010"),
            ("0x10", "0x10"),
            ("0o7", "0o7"),
            ("1_000", "1_000"),
        ],
        *[
            ("3e-4", 3e-4),
            ("3E4", 3e4),
            ("1.", 1.0),
            (".5", 0.5),
            ("-1.5e+3", -1500.0),
            ("01.5", "01.5"),
            ("e5", "e5"),
        ],
        *[
            ("true", True),
            ("False", False),
            ("yes", "yes"),
            ("no", "no"),
            ("on", "on"),
            ("off", "off"),
            ("y", "y"),
        ],
        *[
            ("null", None),
            ("~", None),
            ("", None),
            (".inf", float("inf")),
            ("-.inf", -float("inf")),
            ("none", "none"),
        ],
        *[
            ("2026-01-01", "2026-01-01"),
            ("1:30", "1:30"),
            ("1.2.3", "1.2.3"),
            ("1e5x", "1e5x"),
            ("٣", "٣"),
        ],
    ],
)
def test_plain_scalars(text: str, value: Any) -> None:
    result = read_scalar(text)
    assert result == value
    assert type(result) is type(value)


def test_quoted_scalars_are_text(tmp_path: Path) -> None:
    assert read(tmp_path, "a: '3'\nb: \"true\"\nc: |\n  4\n").plain() == {
        "a": "3",
        "b": "true",
        "c": "4\n",
    }


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    node = read(tmp_path, "# note\na:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n")
    assert dict(node.origins()) == {
        "": "x.yaml:2",
        "a": "x.yaml:2",
        "a.b": "x.yaml:3",
        "a.c": "x.yaml:4",
        "a.c.0": "x.yaml:5",
        "a.c.1": "x.yaml:6",
        "a.c.1.d": "x.yaml:6",
    }


def test_small_aliases_work(tmp_path: Path) -> None:
    assert read(tmp_path, "a: &x {b: 1}\nc: *x\n").plain() == {"a": {"b": 1}, "c": {"b": 1}}


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: 2\r\n").plain() == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "x.yaml:1: tags such as 'tag:yaml.org,2002:python",
        ),
        ("a: 1\nb: !!str 3\n", "x.yaml:2: tags such as"),
        ("a: ! 3\n", "x.yaml:1: tags such as '!'"),
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: the key 'a' is here twice, first at x.yaml:1"),
        ("a: {b: 1, b: 2}\n", "x.yaml:1: the key 'b' is here twice"),
        (
            "a: &x {b: 1}\nc:\n  <<: *x\n",
            "x.yaml:3: merge keys (<<) are not supported; use `include:`",
        ),
        ("? [1, 2]\n: 3\n", "x.yaml:1: a key must be plain text"),
        ("a: &x [*x]\n", "contain themselves"),
        ("a: *x\n", "x.yaml:1: not valid YAML: found undefined alias 'x'"),
        (
            "a:\n\tb: 1\n",
            "x.yaml:2: not valid YAML while scanning for the next token: found character '\\t'",
        ),
        ("a:\n\tb: 1\n", "indent with spaces, not tabs"),
        (
            "a: b: c\n",
            "x.yaml:1: not valid YAML: mapping values are not allowed here; put text that contains ': '",
        ),
        ("a: [1, 2\nb: 3\n", "x.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "remove the second '---'"),
        ("a: 1\nb: \x00\n", "x.yaml:2: the character 0x0 is not allowed in YAML"),
        (b"a: 1\nb: \xff\n", "x.yaml:2: byte 0xff is not UTF-8"),
        ("{" * 500 + "}" * 500, "x.yaml:1: nested more than 24 levels deep"),
        ("[" * 100_000, "x.yaml:1: nested more than 24 levels deep"),
        ("#" * (MAX_BYTES + 1), "x.yaml: larger than 262,144 bytes"),
    ],
)
def test_refused(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected in refuse(tmp_path, text)


def test_all_duplicate_keys_are_told(tmp_path: Path) -> None:
    message = refuse(tmp_path, "a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert "x.yaml:2: the key 'a'" in message
    assert "x.yaml:3: the key 'c'" in message


def test_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    start = time.monotonic()
    assert "aliases expand to more than 10,000 values" in refuse(tmp_path, "\n".join(lines))
    assert time.monotonic() - start < 2


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match="y.yaml: No such file or directory; give the path of a readable YAML file",
    ):
        read_yaml(tmp_path / "none.yaml", "y.yaml")
    with pytest.raises(ConfigError, match="y.yaml: Is a directory"):
        read_yaml(tmp_path, "y.yaml")


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(ConfigError, match=r"x\.yaml: .*not a (regular )?file; "):
            read_yaml(path, "x.yaml")
    with pytest.raises(ConfigError, match="give the path of a readable YAML file"):
        read_yaml(tmp_path / "a\0b", "x.yaml")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("runs/x #1", "runs/x"),
        ("#1", ""),
        ("--- x", "x"),
        ("---", ""),
        ("&a x", "x"),
        ("a\nb", "a b"),
        ("'a' # b", "'a'"),
        ("[1, 2] # b", "[1, 2]"),
    ],
)
def test_a_value_that_yaml_would_keep_in_part_is_refused(text: str, kept: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_value(text, "command line (a.b)", "a.b")
    message = str(caught.value)
    assert f"of {text!r} YAML would keep {kept!r} alone; to keep all of it: " in message
    # The cure is what a shell and this reader make the whole text of.
    (argument,) = shlex.split(message.partition("to keep all of it: ")[2])
    key, _, value = argument.partition("=")
    assert (key, read_value(value, "", "a.b").value) == ("a.b", text)


def test_line_breaks_of_a_value_must_be_written_out() -> None:
    for text in ('"a\nb"', "'a\nb'", "[1,\n2]"):
        with pytest.raises(ConfigError, match="is more than a line; write .* in double quotes"):
            read_value(text, "command line (a)", "a")


@pytest.mark.parametrize(
    "text", ["runs/x#1", "a=b", "a:b", " 3 ", "'x # y'", '"x # y"', "[a, 'b # c']", "{a: 'x'}", "~"]
)
def test_whole_values_are_read(text: str) -> None:
    assert read_value(text, "", "a").plain() == yaml.safe_load(text)
