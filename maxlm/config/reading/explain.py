"""Say pydantic's validation errors in the user's words: YAML path, value, rule and cure."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from maxlm.config.errors import Problem
from maxlm.config.model import shared_path
from maxlm.config.reading.paths import all_paths, kinds, members, read_location, sections
from maxlm.config.schema import RunConfig
from maxlm.config.section import INT32_MAX

_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_SWITCHES = {
    "yes": True,
    "on": True,
    "y": True,
    "1": True,
    "no": False,
    "off": False,
    "n": False,
    "0": False,
}


def explain(
    error: ValidationError, origins: Mapping[str, str], root: type[BaseModel] = RunConfig
) -> list[Problem]:
    """Return one problem for each mistake; `origins` maps dotted paths to file and line.

    Args:
      error: of a validation of `root`.
      origins: where each setting comes from.
      root: what the file describes.
    """
    problems: dict[str, Problem] = {}
    details = error.errors(include_url=False)
    for detail in details:
        if detail["type"] in ("default_factory_not_called", "block_is_wrong") or _is_other_branch(
            detail, root
        ):
            continue  # the cause has its own entry
        if detail["type"] == "too_short" and any(_is_within(one, detail) for one in details):
            continue  # pydantic counts the entries that are right
        path, text = _explain_one(detail, root)
        problems.setdefault(path, Problem(path, text, _nearest(path, origins)))
    return list(problems.values())


def show_value(value: Any) -> str:
    """Return a value as it looks in YAML, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is nearest to a misspelt one."""
    known = list(known)
    close = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1, cutoff=0.7)
    return close[0] if close else None


def _is_within(inner: ErrorDetails, outer: ErrorDetails) -> bool:
    depth = len(outer["loc"])
    return len(inner["loc"]) > depth and inner["loc"][:depth] == outer["loc"]


def _explain_one(detail: ErrorDetails, root: type[BaseModel]) -> tuple[str, str]:
    kind, value = detail["type"], detail["input"]
    path, parent, annotation = read_location(detail["loc"], root)
    if kind == "extra_forbidden":
        return path, _unknown_key(path, parent, root)
    if kind == "missing":
        return path, f"{path} is missing; add it: {_meaning(path, parent, annotation)}"
    if detail["loc"][-1] == "[key]":
        better = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(value)) or "name"
        return (
            path,
            f"{path} has a name with other signs than letters, digits, '_', '.', '-'; call it {better!r}",
        )
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        path, names = (
            f"{path}.kind",
            [name for part in sections(annotation) for name in kinds(part)],
        )
        if kind == "union_tag_not_found":
            return path, f"{path} is missing; add one of {', '.join(names)}"
        return path, _not_one_of(path, detail["ctx"]["tag"], names)
    if kind == "literal_error" and isinstance(value, str):
        return path, _not_one_of(path, value, _choices(annotation))
    return (
        path,
        f"{path}={show_value(value)} {_rule(detail, annotation)}; {_cure(detail, path, parent, annotation)}",
    )


def _unknown_key(path: str, parent: Any, root: type[BaseModel]) -> str:
    """Suggest a key of the same section, else one of the same or a similar name anywhere."""
    where, _, name = path.rpartition(".")
    known = [key for part in sections(parent) for key in part.model_fields]
    close = did_you_mean(name, known)
    if close:
        return f"{path} is not a known key; did you mean {f'{where}.' if where else ''}{close}?"
    # Kinds of a section have settings in common, and other blocks have those of `model.block`: each
    # path once.
    same = (other for other in all_paths(root) if other.rpartition(".")[2] == name)
    elsewhere = dict.fromkeys(map(shared_path, same))
    if shared_path(path) in elsewhere:
        return f"{path} is not a known key of this kind, but of another; remove it, or use one of {', '.join(known)}"
    if elsewhere:
        return f"{path} is not a known key; did you mean {' or '.join(elsewhere)}?"
    return f"{path} is not a known key; remove it, or use one of {', '.join(known)}"


def _not_one_of(path: str, value: Any, names: list[str]) -> str:
    # What a longer name begins with is that name cut short, whatever else looks like it.
    longer = [name for name in names if name.startswith(f"{value}_")]
    close = " or ".join(longer) or did_you_mean(str(value), names)
    if len(names) == 1:
        return f"{path}={show_value(value)} is not known here; use {names[0]}"
    return f"{path}={show_value(value)} is not one of {', '.join(names)}; " + (
        f"did you mean {close}?" if close else f"for example {names[0]}"
    )


def _rule(detail: ErrorDetails, annotation: Any) -> str:
    kind = detail["type"]
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = detail["ctx"][name]
        return (
            f"must be {words} {_short(bound)}{', the largest int32' if bound == INT32_MAX else ''}"
        )
    if kind == "finite_number":
        return "must be a finite number"
    if kind == "too_short":
        return "must not be empty"
    if kind.endswith(("_type", "_error", "_unicode")) or kind == "int_from_float":
        return f"must be {_describe(annotation)}"
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _cure(detail: ErrorDetails, path: str, parent: Any, annotation: Any) -> str:
    """Return what to write instead, as concretely as the value allows."""
    kind, value = detail["type"], detail["input"]
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        if name in ("ge", "le"):
            return f"use {_short(detail['ctx'][name])}{' or less' if name == 'le' else ''}"
        default = _default(path, parent)
        return (
            f"for example {default}"
            if default
            else f"use a value {words} {_short(detail['ctx'][name])}"
        )
    if kind == "too_short":
        return "give at least one entry"
    better = _converted(value, annotation)
    if better is not None:
        return f"write {better}"
    default = _default(path, parent)
    if value is None:
        return (
            f"remove the line for its default {default}"
            if default
            else f"give it one, such as {_example(annotation)}"
        )
    return f"for example {default or _example(annotation)}"


def _short(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _converted(value: Any, annotation: Any) -> str | None:
    """Return the text the user most likely meant, if the value can be read as the type it should
    have.
    """
    types = members(annotation)
    if isinstance(value, bool) or value is None:
        return f'"{value}"'.lower() if str in types and value is not None else None
    if isinstance(value, int | float) and value != value // 1 and int in types:
        return str(round(value)) if abs(value) < 1e15 else None
    if isinstance(value, int | float | str) and (int in types or float in types):
        return _number(str(value), whole=int in types)
    if bool in types:
        return {True: "true", False: "false", None: None}[_SWITCHES.get(str(value).lower())]
    if str in types and isinstance(value, int | float):
        return f'"{value}"'
    if any(get_origin(part) is tuple for part in types) and isinstance(value, str | int | float):
        return f"[{value}]"
    return None


def _number(text: str, *, whole: bool) -> str | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not abs(number) < 1e15:  # also nan
        return None
    return str(int(number)) if whole else str(number)


def _describe(annotation: Any) -> str:
    words = [_describe_one(part) for part in members(annotation)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _describe_one(part: Any) -> str:
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if part in plain:
        return plain[part]
    origin = get_origin(part)
    if origin is Literal:
        return ", ".join(str(choice) for choice in get_args(part))
    if origin is tuple:
        return "a list"
    if sections(part):
        keys = list(part.model_fields)
        return f"a mapping with {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}"
    return "a mapping"


def _choices(annotation: Any) -> list[str]:
    """Return the words a value may be, and the shape of what else it may be."""
    words: list[str] = []
    for part in members(annotation):
        words += (
            [str(choice) for choice in get_args(part)]
            if get_origin(part) is Literal
            else [_describe_one(part)]
        )
    return words


def _is_other_branch(detail: ErrorDetails, root: type[BaseModel]) -> bool:
    """Tell whether pydantic tried a member of a union that the value was plainly not meant to be."""
    _, _, annotation = read_location(detail["loc"], root)
    if len(members(annotation)) == 1:
        return False
    if isinstance(detail["input"], dict):
        return detail["type"] == "literal_error"
    return detail["type"] in ("model_type", "model_attributes_type") and any(
        get_origin(part) is Literal for part in members(annotation)
    )


def _meaning(path: str, parent: Any, annotation: Any) -> str:
    name = path.rpartition(".")[2]
    description = sections(parent)[0].model_fields[name].description
    shape = f"`{name}: {_example(annotation)}`"
    return f"{description} (for example {shape})" if description else f"for example {shape}"


def _default(path: str, parent: Any) -> str | None:
    name = path.rpartition(".")[2]
    for owner in sections(parent):
        field = owner.model_fields.get(name)
        if (
            field
            and not field.is_required()
            and field.default_factory is None
            and field.default is not None
        ):
            default = field.default
            return "{}" if isinstance(default, BaseModel) else show_value(default)
    return None


def _example(annotation: Any) -> str:
    part = members(annotation)[0]
    if get_origin(part) is Literal:
        return str(get_args(part)[0])
    if get_origin(part) is tuple:
        return f"[{_example(get_args(part)[0])}]"
    if sections(part):
        required = [name for name, field in part.model_fields.items() if field.is_required()]
        return f"{{{', '.join(f'{name}: ...' for name in required[:3])}}}"
    return {int: "1", float: "0.1", bool: "true", str: "name"}.get(part, "{name: ...}")


def _nearest(path: str, origins: Mapping[str, str]) -> str | None:
    """Return where a setting is, or else the innermost section around it that is in a file."""
    while path and path not in origins:
        path = path.rpartition(".")[0]
    return origins.get(path)
