"""From a YAML file to a RunConfig: includes, then overrides, then validation, with every problem
told at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from maxlm.config.checks import find_problems
from maxlm.config.errors import ConfigError, Problem
from maxlm.config.ladder import LadderConfig
from maxlm.config.model import shared_path
from maxlm.config.reading.explain import did_you_mean, explain
from maxlm.config.reading.paths import child, flatten, sections
from maxlm.config.reading.strict_yaml import Node, read_value, read_yaml
from maxlm.config.schema import DataFileConfig, RunConfig

COMMAND_LINE = "command line"
Root = TypeVar("Root", RunConfig, DataFileConfig)


@dataclass(frozen=True)
class LoadedRun:
    """A valid run, and where each of its values comes from: `file:line`, `command line` or
    `default`.
    """

    config: RunConfig
    origins: dict[str, str]


@dataclass(frozen=True)
class LoadedData:
    """A valid file with `data` alone, and where each of its values comes from."""

    config: DataFileConfig
    origins: dict[str, str]


def load_run(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> LoadedRun:
    """Load a run from a YAML file and `key.path=value` overrides.

    `include:` names one file or a list, relative to the including file. Later files win over
    earlier ones, the including file wins over all of them, and overrides win over files. Mappings
    are merged key by key, lists replaced.

    Raises:
        ConfigError: with every problem found.
    """
    name = _display(Path(path))
    settings = _override(_read_with_includes(Path(path), name), overrides)
    if settings.plain().keys() == {"data"}:
        text = (
            "it has `data` alone, which `maxlm prepare` and `maxlm config` take; "
            "give the file of a run that includes it"
        )
        raise ConfigError([Problem("", text, name)], name)
    return LoadedRun(*_resolve(settings, name, RunConfig))


def load_data(
    path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> LoadedRun | LoadedData:
    """Load what `maxlm prepare` needs: a run, or a file that has `data` and nothing else.

    Raises:
        ConfigError: with every problem found.
    """
    name = _display(Path(path))
    settings = _override(_read_with_includes(Path(path), name), overrides)
    if settings.plain().keys() == {"data"}:
        return LoadedData(*_resolve(settings, name, DataFileConfig))
    return LoadedRun(*_resolve(settings, name, RunConfig))


def load_ladder(path: str | os.PathLike[str]) -> LadderConfig:
    """Load a ladder from a YAML file; its `base` is relative to the file.

    Raises:
      ConfigError: with every problem found.
    """
    name = _display(Path(path))
    settings = _mapping(read_yaml(Path(path), name), name)
    origins = dict(settings.origins())
    try:
        ladder = LadderConfig.model_validate(settings.plain())
    except ValidationError as error:
        raise ConfigError(explain(error, origins, LadderConfig), name) from None
    problems = [replace(problem, where=origins.get(problem.path)) for problem in ladder.problems()]
    base = Path(path).parent / ladder.base
    if not base.is_file():
        text = f"base: {_display(base)} is not a file; give the path of a run's YAML, relative to this file"
        problems.append(Problem("base", text, origins.get("base")))
    if problems:
        raise ConfigError(problems, name)
    return ladder.model_copy(update={"base": str(base)})


def _resolve(settings: Node, name: str, root: type[Root]) -> tuple[Root, dict[str, str]]:
    """Return the config of a file's settings, and where each of its values comes from."""
    origins = dict(settings.origins())
    config, problems = _validate(settings.plain(), origins, root)
    if problems or config is None:
        raise ConfigError(problems, name)
    leaves = flatten(config.model_dump(mode="json"))
    known = {key: origins.get(key) or origins.get(shared_path(key), "default") for key in leaves}
    return config, known


def _validate(
    data: dict[str, Any], origins: Mapping[str, str], root: type[Root]
) -> tuple[Root | None, list[Problem]]:
    """Return the config and its problems; sections that are valid by themselves are cross-checked
    in any case.
    """
    config: Root | None = None
    problems: list[Problem] = []
    try:
        config = root.model_validate(data)
        valid = {name: getattr(config, name) for name in root.model_fields}
    except ValidationError as error:
        problems = explain(error, origins, root)
        broken = {str(detail["loc"][0]) for detail in error.errors(include_url=False)}
        valid = {}
        for name, field in root.model_fields.items():
            if name not in broken:
                # With what completes a section without `kind`.
                kind: Any = field.rebuild_annotation()
                valid[name] = (
                    TypeAdapter(kind).validate_python(data[name])
                    if name in data
                    else field.get_default()
                )
    problems += [
        replace(problem, where=origins.get(problem.path)) for problem in find_problems(valid)
    ]
    return config, problems


def _read_with_includes(path: Path, name: str) -> Node:
    root = _mapping(read_yaml(path, name), name)
    settings = dict(root.value) if isinstance(root.value, dict) else {}
    include = settings.pop("include", None)
    merged, problems = Node({}, name), list[Problem]()
    for node in _include_list(include, name) if include else []:
        try:
            merged = _merge(
                merged, _read_included(path.parent / str(node.value), node.origin, name), RunConfig
            )
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems, name)
    return _merge(merged, Node(settings, name), RunConfig)


def _read_included(path: Path, origin: str, includer: str) -> Node:
    name = _display(path)
    if not path.is_file():
        near = did_you_mean(
            path.name,
            [item.name for item in path.parent.glob("*.yaml") if item.name != Path(includer).name],
        )
        cure = f"did you mean {near}?" if near else "give a path relative to the including file"
        raise ConfigError(
            [Problem("include", f"include: {name} is not a file; {cure}", origin)], includer
        )
    node = _mapping(read_yaml(path, name), name)
    if isinstance(node.value, dict) and "include" in node.value:
        text = f"include: {name} is itself included, so it may not include; list all files in {includer} instead"
        raise ConfigError([Problem("include", text, node.value["include"].origin)], includer)
    return node


def _include_list(include: Node, name: str) -> list[Node]:
    nodes = include.value if isinstance(include.value, list) else [include]
    if not all(isinstance(node.value, str) and node.value for node in nodes):
        text = (
            "include must be a path or a list of paths; for example include: [../model/tiny.yaml]"
        )
        raise ConfigError([Problem("include", text, include.origin)], name)
    return nodes


def _mapping(node: Node, name: str) -> Node:
    if node.value is None:
        return Node({}, name)
    if not isinstance(node.value, dict):
        raise ConfigError(
            [Problem("", "the file must hold `key: value` lines, such as run_dir: runs/x", name)],
            name,
        )
    return Node(node.value, name)


def _merge(base: Node, new: Node, annotation: Any) -> Node:
    """Return `base` with everything in `new` on top.

    Where a value may be one of several sections and `new` picks another `kind`, the settings of the
    old kind go.
    """
    if not isinstance(base.value, dict) or not isinstance(new.value, dict):
        return new
    other = (
        "kind" in base.value and "kind" in new.value and new.plain()["kind"] != base.plain()["kind"]
    )
    if other and len(sections(annotation)) > 1:
        return new
    merged = dict(base.value)
    for key, node in new.value.items():
        inner = (
            child(annotation, key, {**base.plain(), **new.plain()})
            if annotation is not None
            else None
        )
        merged[key] = _merge(merged[key], node, inner) if key in merged else node
    return Node(merged, new.origin)


def _override(settings: Node, overrides: Sequence[str]) -> Node:
    problems: list[Problem] = []
    for override in overrides:
        try:
            key, value = _parse_override(override)
            settings = _put(settings, key.split("."), value, key, RunConfig)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems, "the overrides on the command line")
    return settings


def _parse_override(override: str) -> tuple[str, Node]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")) or any(sign.isspace() for sign in key):
        raise _bad_override(
            key, f"{override!r} is not an override; write key.path=value, such as mesh.tensor=2"
        )
    if key.split(".")[0] == "include":
        raise _bad_override(
            key,
            f"{override!r}: include cannot be overridden; write a YAML file that includes others",
        )
    if not text.strip():
        raise _bad_override(
            key, f"{override!r} has no value; write {key}=null, or {key}='' for an empty text"
        )
    return key, read_value(text, f"{COMMAND_LINE} ({key})", key)


def _put(node: Node, steps: Sequence[str], new: Node, key: str, annotation: Any) -> Node:
    """Return `node` with `new` at `steps`; sections that are not there yet are made on the way."""
    if not steps:
        return _relabel(new)
    if isinstance(node.value, list):
        return _put_in_list(node, steps, new, key, annotation)
    if isinstance(node.value, dict):
        count = _steps_of_key(steps, node.value)
        name, rest = ".".join(steps[:count]), steps[count:]
        inner = child(annotation, name, node.plain()) if annotation is not None else None
        old = node.value.get(name, Node(None, COMMAND_LINE))
        if name == "kind" and not rest and len(sections(annotation)) > 1:
            return _merge(node, Node({"kind": _relabel(new)}, COMMAND_LINE), annotation)
        return Node({**node.value, name: _put(old, rest, new, key, inner)}, node.origin)
    here = key.removesuffix("." + ".".join(steps))
    if node.value is not None:
        text = f"{key}: {here} is {node.plain()!r} ({node.origin}) and has no keys; set {here}={{{steps[0]}: ...}}"
        raise _bad_override(key, text)
    if steps[0].isdecimal():
        raise _bad_override(
            key, f"{key}: {here} is not in the file; set the whole list, {here}=[...]"
        )
    return _put(Node({}, COMMAND_LINE), steps, new, key, annotation)


def _put_in_list(node: Node, steps: Sequence[str], new: Node, key: str, annotation: Any) -> Node:
    assert isinstance(node.value, list)
    here, count = key.removesuffix("." + ".".join(steps)), len(node.value)
    if not steps[0].isdecimal() or int(steps[0]) >= count:
        options = (
            f"use {here}.0 to {here}.{count - 1}" if count else f"set the whole list, {here}=[...]"
        )
        raise _bad_override(key, f"{key}: {here} is a list of {count} ({node.origin}); {options}")
    index = int(steps[0])
    items = list(node.value)
    items[index] = _put(items[index], steps[1:], new, key, child(annotation, index))
    return Node(items, node.origin)


def _steps_of_key(steps: Sequence[str], mapping: Mapping[str, Node]) -> int:
    """Return how many steps name one existing key: names in free mappings may contain dots."""
    for count in range(len(steps), 0, -1):
        if ".".join(steps[:count]) in mapping:
            return count
    return 1


def _relabel(node: Node) -> Node:
    """Return `node` with everything in it coming from the command line."""
    if isinstance(node.value, dict):
        return Node({key: _relabel(value) for key, value in node.value.items()}, COMMAND_LINE)
    if isinstance(node.value, list):
        return Node([_relabel(value) for value in node.value], COMMAND_LINE)
    return Node(node.value, COMMAND_LINE)


def _bad_override(key: str, text: str) -> ConfigError:
    return ConfigError([Problem(key, text, COMMAND_LINE)], COMMAND_LINE)


def _display(path: Path) -> str:
    """Return a path as short as a user would write it."""
    shown = os.path.relpath(path)
    return str(path) if shown.startswith("..") else shown
