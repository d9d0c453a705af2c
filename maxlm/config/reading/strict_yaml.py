"""Read YAML without surprises: YAML 1.2 scalars, no tags, no duplicate keys, small limits, the line
of every key.

PyYAML's own safe loader reads `3e-4` as text, `010` as 8, `off` as false, keeps the last of two
equal keys and expands aliases without end. Here a plain scalar is null, true, false, a decimal
number without leading zeros, or text.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maxlm.config.errors import ConfigError, Problem
from maxlm.files import open_regular

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_VALUES = 10_000  # an alias counts as everything it expands to

FLOAT = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
# Longer ones are floats: no setting counts that far.
INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,30})")
WORDS = {
    **dict.fromkeys(["", "~", "null", "Null", "NULL"]),
    **dict.fromkeys(["true", "True", "TRUE"], True),
    **dict.fromkeys(["false", "False", "FALSE"], False),
}


@dataclass(frozen=True)
class Node:
    """A value and where it comes from; mappings and lists hold nodes."""

    value: dict[str, Node] | list[Node] | str | float | int | bool | None
    origin: str

    def plain(self) -> Any:
        """Return the value as plain Python data."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def origins(self, path: str = "") -> Iterator[tuple[str, str]]:
        """Yield (dotted path, origin) of this value and of everything in it."""
        yield path, self.origin
        if isinstance(self.value, dict):
            children = list(self.value.items())
        elif isinstance(self.value, list):
            children = [(str(index), node) for index, node in enumerate(self.value)]
        else:
            return
        for key, node in children:
            yield from node.origins(f"{path}.{key}" if path else key)


def read_scalar(text: str) -> str | float | int | bool | None:
    """Return what a plain (unquoted) scalar stands for."""
    if text in WORDS:
        return WORDS[text]
    if INT.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(
            text.replace(".inf", "inf")
            .replace(".nan", "nan")
            .replace(".Inf", "inf")
            .replace(".NaN", "nan")
        )
    return text


def read_yaml(path: Path, name: str) -> Node:
    """Read a YAML file; errors and origins call it `name`.

    Raises:
        ConfigError: it cannot be read, is too large, or is not the YAML described above.
    """
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _error(name, f"{reason}; give the path of a readable YAML file") from error
    if len(data) > MAX_BYTES:
        raise _error(name, f"larger than {MAX_BYTES:,} bytes; is this the right file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _error(
            f"{name}:{line}", f"byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from error
    return _Converter(name).convert(text)


def read_value(text: str, origin: str, key: str) -> Node:
    """Read one line of YAML: a scalar, or a list or mapping in brackets, and nothing else.

    Raises:
        ConfigError: it is none of these, or YAML would drop a part of it, such as a comment; names
          the cure for `key`.
    """
    return _Converter(origin, key=key).convert(text.strip())


class _Loader(yaml.SafeLoader):
    """Composes nodes only; refuses tags and deep nesting while reading, before they cost anything."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:  # type: ignore[override]
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            problem = f"tags such as {event.tag!r} are not allowed; write the plain value, in quotes if it is text"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} levels deep; no setting is"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Refused(yaml.MarkedYAMLError):
    """YAML that is well-formed but not accepted here; its text already holds the cure."""


class _Converter:
    """Turn YAML text into nodes, collecting what is wrong with it."""

    def __init__(self, name: str, *, key: str | None = None):
        """`key`: what the text is the value of, if it is one line of the command line and not a
        file.
        """
        self.name, self.key = name, key
        self.count = 0
        self.problems: list[Problem] = []

    def convert(self, text: str) -> Node:
        """Return the root node of `text`; an empty file is null."""
        loader = None
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
        except yaml.YAMLError as error:
            raise self._syntax_error(error, text) from error
        finally:
            if loader is not None:
                loader.dispose()
        if root is None:
            if self.key is not None:
                raise self._dropped(text, "")
            return Node(None, self._where(0))
        if self.key is not None:
            self._refuse_more_than_a_value(root, text)
        node = self._node(root, self._where(root.start_mark.line), 0)
        if self.problems:
            raise ConfigError(self.problems, self.name)
        return node

    def _refuse_more_than_a_value(self, root: yaml.Node, text: str) -> None:
        """Refuse what YAML reads as a value and something else: comments, anchors, document marks,
        line breaks.
        """
        if isinstance(root, yaml.CollectionNode) and not root.flow_style:
            raise _error(
                self.name,
                f"{text!r} is not a single value; put it in quotes, or use [..] or {{..}}",
            )
        kept = text[root.start_mark.index : root.end_mark.index]
        if isinstance(root, yaml.ScalarNode) and root.style is None:
            kept = root.value
        if kept != text:
            raise self._dropped(text, kept)
        if "\n" in text:
            raise _error(
                self.name,
                f"{text!r} is more than a line; write \\n in double quotes for a line break",
            )

    def _dropped(self, text: str, kept: str) -> ConfigError:
        quoted = f"{self.key}={json.dumps(text, ensure_ascii=False)}"
        return _error(
            self.name,
            f"of {text!r} YAML would keep {kept!r} alone; to keep all of it: {shlex.quote(quoted)}",
        )

    def _node(self, node: yaml.Node, where: str, depth: int) -> Node:
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            text = f"aliases expand to more than {MAX_VALUES:,} values or contain themselves; write the values out"
            raise _error(where, text)
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, depth), where)
        if isinstance(node, yaml.SequenceNode):
            items = [
                self._node(item, self._where(item.start_mark.line), depth + 1)
                for item in node.value
            ]
            return Node(items, where)
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return Node(read_scalar(node.value) if plain else node.value, where)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for key_node, value_node in node.value:
            where = self._where(key_node.start_mark.line)
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(
                    Problem("", "a key must be plain text; remove the '?', [..] or {..}", where)
                )
            elif key == "<<" and key_node.style is None:
                self.problems.append(
                    Problem(key, "merge keys (<<) are not supported; use `include:`", where)
                )
            elif key in result:
                text = f"the key {key!r} is here twice, first at {result[key].origin}; remove one"
                self.problems.append(Problem(key, text, where))
            else:
                result[key] = self._node(value_node, where, depth + 1)
        return result

    def _where(self, line: int) -> str:
        return self.name if self.key is not None else f"{self.name}:{line + 1}"

    def _syntax_error(self, error: yaml.YAMLError, text: str) -> ConfigError:
        if isinstance(error, _Refused) and error.problem_mark:
            return _error(self._where(error.problem_mark.line), str(error.problem))
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            cure = "check quotes, brackets and indentation"
            if "'\\t'" in str(error.problem):
                cure = "indent with spaces, not tabs"
            elif "mapping values" in str(error.problem):
                cure = "put text that contains ': ' in quotes, and check the indentation"
            elif "single document" in str(error.context):
                cure = "remove the second '---': a file holds one document"
            context = f" {error.context}" if error.context else ""
            return _error(
                self._where(error.problem_mark.line),
                f"not valid YAML{context}: {error.problem}; {cure}",
            )
        if isinstance(error, yaml.reader.ReaderError):
            where = self._where(text.count("\n", 0, error.position))
            return _error(
                where, f"the character {error.character:#x} is not allowed in YAML; remove it"
            )
        return _error(self.name, f"not valid YAML: {error}; check quotes, brackets and indentation")


def _error(where: str, text: str) -> ConfigError:
    return ConfigError([Problem("", text, where)], where.split(":")[0])
