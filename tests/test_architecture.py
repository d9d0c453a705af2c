"""What keeps the code base easy to read: floors, names, folders, short argument lists, and the list
of files.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maxlm.config.layers import Ffn, Mixer
from maxlm.config.objectives import Objective
from maxlm.config.optim import Optimizer
from maxlm.config.reading.paths import kinds, sections

ROOT = Path(__file__).parents[1]
PACKAGES = ("maxlm", "data_pipeline", "launch")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Data flows down this list; a floor imports only from the floors above it in the list, and within
# its own folder.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("events", "files"),
    ("process",),
    ("config",),
    ("devices", "jax_versions", "products", "pages"),
    ("runtime", "sharding", "kernels"),
    ("ops", "optim", "data", "checkpoint", "metrics"),
    ("layers",),
    ("models",),
    ("health",),
    ("train",),
    ("decoding", "doctor", "plan", "report", "scaling", "tracing"),
    ("convert",),
    ("cli",),
    ("__main__", "__init__"),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
# What the folders beside maxlm may import from it.
OUTSIDE = {
    "data_pipeline": {"maxlm.config", "maxlm.data", "maxlm.files", "maxlm.pages"},
    "launch": {"maxlm.config"},
}
# Files that need a model's sizes, and that only the command that asks for them imports.
MORE_OUTSIDE = {"data_pipeline/tokenizers/cost.py": {"maxlm.models.cost"}}

# Kinds: the union of their sections, where these are, and where what they are the settings of is,
# with its table.
REGISTRIES = {
    "mixer": (Mixer, "maxlm/config/layers", {"maxlm/layers/mixers": "MIXERS"}),
    "ffn": (Ffn, "maxlm/config/layers", {"maxlm/layers/ffns": "FFNS"}),
    "objective": (
        Objective,
        "maxlm/config/objectives",
        {"maxlm/data/examples": "EXAMPLES", "maxlm/train/objectives": "OBJECTIVES"},
    ),
    "optimizer": (Optimizer, "maxlm/config/optim", {"maxlm/optim": "OPTIMIZERS"}),
}
NO_LAYER = "none"  # a section and nothing else: the block has a layer less
FOLDERS_OF_KINDS = {folder for _, home, tables in REGISTRIES.values() for folder in (home, *tables)}

VAGUE_NAMES = {"utils", "util", "common", "misc", "helpers", "helper", "base", "core", "stuff"}
# Where a family's name may stand: the name tables of checkpoint import, a published formula called
# after it, and a crawler that has it in its name.
MODEL_NAMES = re.compile(
    r"llama|qwen|gemma|mistral|mixtral|deepseek|gpt|olmo|falcon|bloom|phi-?\d", re.IGNORECASE
)
MODEL_NAMES_ALLOWED = {
    *(("maxlm/config/positions/scaling.py", name) for name in ("llama3", "Llama3Scaling")),
    ("maxlm/config/positions/rope.py", "Llama3Scaling"),
    *(
        ("maxlm/ops/positions/frequencies.py", name)
        for name in ("llama3", "_llama3", "Llama3Scaling")
    ),
    ("maxlm/config/pipeline/filters/url.py", "GPTBot"),
}

MOST_ARGUMENTS = 8
"""More of them are a record without a name. `self` and `cls` do not count."""
MORE_ARGUMENTS = {
    ("maxlm/kernels/hopper/backward_kernels.py", "d_kv_apart_kernel"),
    ("maxlm/kernels/hopper/forward_kernel.py", "forward_kernel"),
    ("maxlm/kernels/hopper/backward_kernels.py", "gradient_kernel"),
    ("maxlm/kernels/hopper/pair.py", "backward"),
    ("maxlm/kernels/tpu_attention.py", "backward"),
    ("maxlm/kernels/triton_attention.py", "_d_kv_kernel"),
    ("maxlm/kernels/triton_attention.py", "_d_q_kernel"),
    ("maxlm/kernels/triton_attention.py", "_forward_kernel"),
    ("maxlm/kernels/triton_attention.py", "backward"),
}
"""(file, function): attention's arrays, which Pallas hands to the body of a kernel one by one."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a file's tree, the root first."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Yield (statement, dotted name of what it imports)."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{relative(path)}:{node.lineno}: import from the package's full name"
            )
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def part_of(module: str) -> str:
    """Return the floor's name of a dotted module: maxlm.config.schema -> config."""
    return [*module.split("."), ""][1]


def test_every_part_has_a_floor() -> None:
    parts = {
        path.relative_to(ROOT / "maxlm").parts[0].removesuffix(".py")
        for path in (ROOT / "maxlm").rglob("*.py")
    }
    assert parts - {"__init__"} <= set(FLOOR_OF)


def imports_point_strictly_down(path: Path) -> Iterator[str]:
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    for node, name in imports(path):
        target = part_of(name)
        if not name.startswith("maxlm."):
            if package != "data_pipeline" and name.startswith("data_pipeline"):
                yield f"{node.lineno}: {name}"
            continue
        if package != "maxlm":
            prefixes = OUTSIDE[package] | MORE_OUTSIDE.get(relative(path), set())
            allowed = any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)
        else:
            allowed = target == rest[0] or FLOOR_OF.get(target, -1) < FLOOR_OF.get(rest[0], -1)
        if not allowed:
            yield f"{node.lineno}: {name}, which is not below it in FLOORS"


def test_config_and_launch_load_no_array_library() -> None:
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "numpy", "tensorboardX", "rich"}
    for path in SOURCES:
        if relative(path).startswith(
            ("maxlm/config/", "launch/", "maxlm/cli", "maxlm/__", "maxlm/process/")
        ):
            found = {name.split(".")[0] for _, name in imports(path)} & heavy
            assert not found, f"{relative(path)} imports {found}"


def no_imports_inside_functions(path: Path) -> Iterator[str]:
    functions = [
        node
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    inner = [node for function in functions for node in ast.walk(function)]
    lines = sorted({node.lineno for node in inner if isinstance(node, ast.Import | ast.ImportFrom)})
    yield from map(str, lines)


def no_private_jax(path: Path) -> Iterator[str]:
    for _, name in imports(path):
        if re.match(r"(jax|jaxlib|flax|optax|orbax|grain)\b.*\._", name):
            yield name


def names_say_what_is_inside(path: Path) -> Iterator[str]:
    yield from VAGUE_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)


def strings_and_names(path: Path) -> Iterator[str]:
    """Yield identifiers and string literals of a file, without docstrings (strings that stand
    alone).
    """
    docstrings = {node.value for node in nodes(path) if isinstance(node, ast.Expr)}
    for node in nodes(path):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in docstrings
        ):
            yield node.value
        elif isinstance(node, ast.Name | ast.FunctionDef | ast.ClassDef | ast.Attribute | ast.arg):
            yield (
                getattr(node, "id", None)
                or getattr(node, "name", None)
                or getattr(node, "attr", "")
                or node.arg
            )


def models_are_data(path: Path) -> Iterator[str]:
    if relative(path).startswith("maxlm/checkpoint/hf/families/"):
        return
    for text in {path.name, *strings_and_names(path)}:
        if MODEL_NAMES.search(text) and (relative(path), text) not in MODEL_NAMES_ALLOWED:
            yield text


def files_are_ascii_and_say_what_they_are(path: Path) -> Iterator[str]:
    if not path.read_text().isascii():
        yield "not ASCII"
    root = nodes(path)[0]
    assert isinstance(root, ast.Module)
    if not ast.get_docstring(root):
        yield "no docstring"


def test_folders_have_one_noun_and_at_most_nine_files() -> None:
    for folder in sorted(
        {path.parent for path in SOURCES} - {ROOT / package for package in PACKAGES}
    ):
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        assert (1 if relative(folder) in FOLDERS_OF_KINDS else 2) <= count <= 9, (
            f"{relative(folder)} has {count} files"
        )


def section_names(union: object) -> dict[str, type]:
    """Return the sections of a union by their kind, of which each has one."""
    named = {kind: section for section in sections(union) for kind in kinds(section)}
    assert len(named) == len(sections(union))
    return named


def table_of(folder: str, name: str) -> dict[str, str]:
    """Return the literal table `name` of a package: its keys, and the names that they stand for."""
    tree = ast.parse((ROOT / folder / "__init__.py").read_text())
    tables = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name
    ]
    assert len(tables) == 1
    assert isinstance(tables[0], ast.Dict)
    pairs = zip(tables[0].keys, tables[0].values, strict=True)
    return {ast.literal_eval(key): ast.unparse(value) for key, value in pairs if key is not None}


@pytest.mark.parametrize("registry", REGISTRIES)
def test_a_kind_is_a_file_of_its_name_in_every_folder(registry: str) -> None:
    union, home, tables = REGISTRIES[registry]
    named = section_names(union)
    for kind, section in named.items():
        assert section.__module__ == f"{home}/{kind}".replace("/", ".")
    for folder, name in tables.items():
        table, package = table_of(folder, name), ROOT / folder / "__init__.py"
        assert table.keys() == named.keys() - {NO_LAYER}, (
            f"{name} and the union of the {registry} sections"
        )
        imported = {target for _, target in imports(package)}
        for kind, value in table.items():
            assert f"{folder}/{kind}/{value}".replace("/", ".") in imported, (
                f"{relative(package)}: {kind}"
            )


def modules_of_kinds() -> dict[str, set[str]]:
    """Return the modules of all kinds, with the folders whose files may name them: those of their
    registry.
    """
    allowed: dict[str, set[str]] = {}
    for union, home, tables in REGISTRIES.values():
        for kind in section_names(union):
            for folder in (home, *tables):
                allowed.setdefault(f"{folder}/{kind}".replace("/", "."), set()).update(
                    {home, *tables}
                )
    return allowed


MODULES_OF_KINDS = modules_of_kinds()
SECTIONS_OF_KINDS = {
    section.__name__: {home, *tables}
    for union, home, tables in REGISTRIES.values()
    for section in section_names(union).values()
}
WORDS_FOR_KINDS = {kind for union, *_ in REGISTRIES.values() for kind in section_names(union)} - {
    NO_LAYER
}


def kinds_are_named_by_their_own_files_alone(path: Path) -> Iterator[str]:
    """One kind may be made of another, and a registry names all; whoever else asks for a kind knows
    too much.

    An operation of `maxlm.ops` may be called like a layer that uses it, so words count where they
    are compared.
    """
    folder = relative(path.parent)
    for node, name in imports(path):
        owners = [
            allowed
            for module, allowed in MODULES_OF_KINDS.items()
            if f"{name}.".startswith(f"{module}.")
        ]
        yield from (f"{node.lineno}: {name}" for allowed in owners if folder not in allowed)
    if folder not in FOLDERS_OF_KINDS:
        for node in nodes(path):
            word = (
                getattr(node, "id", None)
                or getattr(node, "attr", None)
                or getattr(node, "name", None)
            )
            if word in SECTIONS_OF_KINDS:
                yield f"{node.lineno}: {word}"
            for text in compared_words(node) & WORDS_FOR_KINDS:
                yield f"{node.lineno}: {text!r}"


def compared_words(node: ast.AST) -> set[str]:
    """Return the texts that something is compared with, in a comparison, a membership or a case."""
    parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
    parts += [node.value] if isinstance(node, ast.MatchValue) else []
    inner = [
        one
        for part in parts
        for one in (part.elts if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part])
    ]
    return {
        one.value for one in inner if isinstance(one, ast.Constant) and isinstance(one.value, str)
    }


RULES = (
    imports_point_strictly_down,
    no_imports_inside_functions,
    no_private_jax,
    names_say_what_is_inside,
    models_are_data,
    files_are_ascii_and_say_what_they_are,
    kinds_are_named_by_their_own_files_alone,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Callable[[Path], Iterator[str]]) -> None:
    broken = [f"{relative(path)}: {text}" for path in SOURCES for text in rule(path)]
    assert not broken, f"{rule.__name__.replace('_', ' ')}:\n" + "\n".join(broken)


def argument_count(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len([argument for argument in named if argument.arg not in ("self", "cls")]) + bool(
        arguments.vararg
    )


def test_functions_have_few_arguments() -> None:
    found = {
        (relative(path), getattr(node, "name", "lambda"))
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if argument_count(node) > MOST_ARGUMENTS
    }
    assert found - MORE_ARGUMENTS == set(), (
        f"more than {MOST_ARGUMENTS} arguments: make a record of them"
    )
    assert MORE_ARGUMENTS - found == set(), (
        f"these have at most {MOST_ARGUMENTS} by now: strike them off the list"
    )


def test_list_of_files_says_of_each_what_its_docstring_says() -> None:
    listed = re.search(
        r"<!-- files -->\n(.*)<!-- /files -->", (ROOT / "docs/files.md").read_text(), re.DOTALL
    )
    assert listed, "docs/files.md needs a list between <!-- files --> and <!-- /files -->"
    files = [path for path in SOURCES if path.name != "__init__.py"]
    docstrings = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in files}
    summaries = {path: " ".join(text.split("\n\n")[0].split()) for path, text in docstrings.items()}
    unfinished = [relative(path) for path, line in summaries.items() if not line.endswith(".")]
    assert not unfinished, "a docstring's first paragraph is one or more whole sentences"
    lines = [
        f"- [`{relative(path)}`](../{relative(path)}): {line}" for path, line in summaries.items()
    ]
    found = re.findall(r"^- .*$", listed[1], re.MULTILINE)
    assert sorted(found) == sorted(lines), "run .venv/bin/python scripts/write_lists.py"
