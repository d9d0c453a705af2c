"""Which code a task runs: a hash of a module's source and of all it imports from its own package, so
that a change of one step makes the tasks of that step others, and no more; and which libraries.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("data_pipeline", "maxlm.data")
# These run tasks and show what is done, or list all steps: what a task writes does not depend on
# them.
WITHOUT = ("data_pipeline.engine", "data_pipeline.report", "data_pipeline.steps.STEPS")


class Code(NamedTuple):
    """A hash of code, in hexadecimal, and the packages that it imports or loads when it needs them."""

    sha256: str
    libraries: frozenset[str]


@functools.cache
def code_of(module: str) -> Code:
    """Return a module's code with what it imports, in turn, from its own package and those that
    steps are written with.
    """
    packages = (*PACKAGES, module.partition(".")[0])
    found: dict[str, bytes] = {}
    libraries: set[str] = set()
    to_do = [module]
    while to_do:
        name = to_do.pop()
        path = None if name in found else _path(name)
        if path is not None:
            found[name] = path.read_bytes()
            tree = ast.parse(found[name])
            to_do += (name for name in _imports(tree) if _counts(name, packages))
            libraries |= {name.partition(".")[0] for name in (*_imports(tree), *_loads(tree))}
    digest = hashlib.sha256()
    for name, source in sorted(found.items()):
        digest.update(f"{name}\0{len(source)}\0".encode() + source)
    return Code(digest.hexdigest(), frozenset(libraries))


def _path(module: str) -> Path | None:
    """Return a module's file; None for a name within a module."""
    root, *parts = module.split(".")
    spec = importlib.util.find_spec(root)
    assert spec is not None
    assert spec.origin is not None
    place = Path(spec.origin).parent.joinpath(*parts)
    files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            if node.module != "data_pipeline.steps":  # its table imports all of them
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _loads(tree: ast.Module) -> Iterator[str]:
    """Yield the names that are given to `load_library`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "load_library":
            name = node.args[0]
            assert isinstance(name, ast.Constant), "tasks depend on it, so it is written out"
            yield str(name.value)


def _counts(name: str, packages: Sequence[str]) -> bool:
    inside = any(f"{name}.".startswith(f"{package}.") for package in packages)
    return inside and not any(f"{name}.".startswith(f"{without}.") for without in WITHOUT)
