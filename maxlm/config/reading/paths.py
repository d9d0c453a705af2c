"""Dotted paths such as `model.position.theta`: flatten a configuration, and find the type behind a
path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from maxlm.config.schema import RunConfig


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return {dotted path: leaf} of nested mappings and lists; an empty one is a leaf itself."""
    if isinstance(value, dict) and value:
        children = list(value.items())
    elif isinstance(value, list | tuple) and value:
        children = list(enumerate(value))
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for key, child in children:
        flat |= flatten(child, f"{path}.{key}" if path else str(key))
    return flat


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the types a value may have, without None: the members of a union, or the one type
    itself.
    """
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(
            kind for part in get_args(annotation) if part is not NoneType for kind in members(part)
        )
    return (annotation,)


def sections(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the config sections among the types a value may have."""
    return tuple(
        kind
        for kind in members(annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    )


def kinds(section: type[BaseModel]) -> tuple[str, ...]:
    """Return the values of a section's `kind`, which pick it among others."""
    field = section.model_fields.get("kind")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def field(annotation: Any, key: str | int, value: Any = None) -> FieldInfo | None:
    """Return the field `key` of a value that is a section of this type, or None; see `child`."""
    choices = sections(annotation)
    if len(choices) > 1:
        kind = value.get("kind") if isinstance(value, dict) else None
        choices = tuple(section for section in choices if kind in kinds(section))
    return choices[0].model_fields.get(str(key)) if choices else None


def child(annotation: Any, key: str | int, value: Any = None) -> Any:
    """Return the type of `key` in a value of this type, or None if it has no such key.

    Where several sections are possible, the one that `value["kind"]` picks is taken.
    """
    if sections(annotation):
        found = field(annotation, key, value)
        return found.annotation if found else None
    for part in members(annotation):
        if get_origin(part) is tuple:
            return get_args(part)[0]
        if get_origin(part) is dict:
            return get_args(part)[1]
    return None


def read_location(
    location: Sequence[str | int], root: type[BaseModel] = RunConfig
) -> tuple[str, Any, Any]:
    """Return (dotted path, type of its parent, its type) of a location in a pydantic error.

    Pydantic adds a step for the member of a union that it tried; no such step is in the YAML.
    """
    path: list[str] = []
    parent: Any = None
    annotation: Any = root
    for step in location:
        choices = members(annotation)
        if len(choices) == 1 and sections(annotation) and step in kinds(choices[0]):
            continue  # the one member of a discriminated union
        if len(choices) > 1:
            named = [
                part
                for part in sections(annotation)
                if step == part.__name__ or step in kinds(part)
            ]
            named += [
                part
                for part in choices
                if get_origin(part) is dict and str(step).startswith("dict[")
            ]
            if named:
                annotation = named[0]
            continue
        if step != "[key]":
            path.append(str(step))
            parent, annotation = annotation, child(annotation, step)
    return ".".join(path), parent, annotation


def all_paths(section: type[BaseModel] = RunConfig, path: str = "") -> Iterator[str]:
    """Yield every dotted path of the schema that has a fixed name (not those in lists and in free
    mappings).
    """
    for name, field in section.model_fields.items():
        here = f"{path}.{name}" if path else name
        yield here
        for part in sections(field.annotation):
            yield from all_paths(part, here)
