"""Show a resolved run with the origin of each value, and the JSON Schema that editors check YAML
with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from maxlm.config.reading.loader import LoadedData, LoadedRun
from maxlm.config.reading.strict_yaml import FLOAT
from maxlm.config.schema import RunConfig

_PATH = {"type": "string"}
_INCLUDE = {
    "anyOf": [_PATH, {"type": "array", "items": _PATH}],
    "description": "files to start from, relative to this one; later ones win, and this file wins over all",
}


def to_yaml(loaded: LoadedRun | LoadedData) -> str:
    """Return the resolved settings; each line ends with the origin of its value, where origins are
    known, and the whole loads again.
    """
    config = loaded.config.model_dump(mode="json")
    lines = list(_lines(config, "", 0, loaded.origins))
    width = min(max((len(text) for text, _ in lines), default=0), 60)
    return "".join(
        f"{f'{text:<{width}}  # {origin}' if origin and loaded.origins else text}\n"
        for text, origin in lines
    )


def to_json_schema(root: type[BaseModel] = RunConfig) -> str:
    """Return the JSON Schema of a config file, of a run by default.

    Nothing is required in it: a file may leave settings to its includes or to the command line, and
    `maxlm config check` says what is missing in the end.
    """
    schema = root.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)
        for setting in section.get("properties", {}).values():
            _admit_without_kind(setting)
    if root is RunConfig:
        schema["properties"] = {"include": _INCLUDE, **schema["properties"]}
    return (
        json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2)
        + "\n"
    )


def _admit_without_kind(setting: Any) -> None:
    """Let a section be several kinds' as long as the file does not say its `kind`."""
    for part in (
        setting.values()
        if isinstance(setting, dict)
        else setting
        if isinstance(setting, list)
        else ()
    ):
        _admit_without_kind(part)
    if isinstance(setting, dict) and "oneOf" in setting:
        setting["anyOf"] = setting.pop("oneOf")


class _Dumper(yaml.SafeDumper):
    """Quotes text that the strict reader would take for a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def _lines(
    value: Any, path: str, indent: int, origins: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (line, origin) of a non-empty mapping."""
    for key, child in value.items():
        here = f"{path}.{key}" if path else key
        head = f"{'  ' * indent}{_flow(key)}:"
        if isinstance(child, dict) and child:
            yield head, ""
            yield from _lines(child, here, indent + 1, origins)
        elif isinstance(child, list) and any(isinstance(item, dict) for item in child):
            yield head, ""
            for index, item in enumerate(child):
                inner = list(_lines(item, f"{here}.{index}", indent + 2, origins))
                first = "  " * indent + "  - " + inner[0][0].lstrip()
                yield from [(first, inner[0][1]), *inner[1:]]
        else:
            origin = origins.get(here) or origins.get(f"{here}.0", "default")
            yield f"{head} {_flow(child)}", origin


def _flow(value: Any) -> str:
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")
