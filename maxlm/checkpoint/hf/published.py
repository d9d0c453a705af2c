"""A folder of published weights: which family it is of, what model that makes, where its tensors
are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from maxlm.checkpoint.hf.families import FAMILIES
from maxlm.checkpoint.hf.families.family import Family, Part, Understood, parts_of, read_config
from maxlm.checkpoint.hf.families.fragments import LAYER
from maxlm.checkpoint.hf.families.multimodal import (
    MULTIMODAL,
    text_config,
    text_name,
    told_skipped,
)
from maxlm.checkpoint.hf.stopping import end_tokens
from maxlm.checkpoint.hf.tensors.quantised import as_numbers
from maxlm.checkpoint.hf.tensors.read_files import Tensor, open_tensors, read_json
from maxlm.config.checks import find_problems
from maxlm.config.errors import UserError
from maxlm.config.model import ModelConfig
from maxlm.config.schema import MeshConfig

CONFIG = "config.json"
# No *.py: code that comes with weights is never run, nor handed on.
_OTHER_FILES = (
    *("tokenizer*.json", "tokenizer.model*", "*.tiktoken", "spiece.model", "tekken.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("generation_config.json", "chat_template*", "LICENSE*", "NOTICE*", "USE_POLICY*"),
)


@dataclass(frozen=True)
class Published:
    """A model in a folder, of which only names and shapes have been read.

    Attributes:
      folder: where it is.
      config: its config.json.
      family: its family.
      model: what it says; the vocabulary may have been filled up.
      settings: likewise, as a user would write it.
      vocab_size: rows of the published vocabulary.
      tensors: by the names that rows of families give them.
      ends: ids that end an answer; none where nothing says so.
      notes: what config.json says that does not matter here, and what was left out.
    """

    folder: Path
    config: Mapping[str, Any]
    family: Family
    model: ModelConfig
    settings: Mapping[str, Any]
    vocab_size: int
    tensors: Mapping[str, Tensor]
    ends: tuple[int, ...]
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, so that an export is like what was imported."""
        config = {key: value for key, value in self.config.items() if key != "quantization_config"}
        whole = {"family": self.family.name, "vocab_size": self.vocab_size, "config": config}
        return {**whole, "ends": list(self.ends)}

    def for_vocabulary(self, vocab_size: int) -> Published:
        """Return it as the start of a model with at least as many rows in its vocabulary."""
        rows = max(vocab_size, self.vocab_size)
        return replace(self, model=self.model.model_copy(update={"vocab_size": rows}))

    def other_files(self) -> list[Path]:
        """Return the files that go with the weights: tokenizer, generation settings, licence."""
        found = {path for pattern in _OTHER_FILES for path in self.folder.glob(pattern)}
        return sorted(path for path in found if path.is_file())

    def parts(self, declared: Any) -> list[Part]:
        """Return where the parameters of its model are in its tensors.

        Args:
          declared: the decoder of its model, in any layout.

        Raises:
          UserError: tensors are missing, not known, or of another shape: all are named.
        """
        parts = parts_of(self.family, declared, self.vocab_size)
        wanted = {part.tensor: part.shape for part in parts}
        behind = self._modules() if declared.model.mtp is None else ()
        tensors = {
            name: tensor
            for name, tensor in self.tensors.items()
            if name in wanted or not name.startswith(behind)
        }
        _check_tensors(wanted, tensors, self.family, self.folder)
        return parts

    def _modules(self) -> tuple[str, ...]:
        """Return what names of the tensors of modules for further tokens begin with."""
        first = self.model.num_layers
        last = first + (self.config.get(self.family.modules) or 0)
        return tuple(LAYER.format(layer=layer) for layer in range(first, last))


def is_published(path: Path | str) -> bool:
    """Return whether a folder is one of published weights."""
    return (Path(path) / CONFIG).is_file()


def open_published(
    folder: Path | str, *, vocab_multiple: int = 1, text_only: bool = False
) -> Published:
    """Read config.json and the headers of the weights.

    Args:
      folder: with config.json and *.safetensors.
      vocab_multiple: rows of zeros are added to the vocabulary up to a multiple of this.
      text_only: of a model of text and images, take the text model alone.

    Raises:
      UserError: a family or value that is not known, or damaged files.
    """
    folder = Path(folder)
    if not is_published(folder):
        raise UserError(f"{folder} has no {CONFIG}; give a folder of published weights")
    config, where = read_json(folder / CONFIG), str(folder / CONFIG)
    quantization, skipped = config.get("quantization_config"), list[str]()
    config, rename = _text_alone(config, where, text_only=text_only)
    family = _family(config, where)
    tensors = as_numbers(open_tensors(folder), quantization, where)
    if rename is not None:
        names = {name: rename(name) for name in tensors}
        skipped = [told_skipped(name for name, new in names.items() if new is None)]
        tensors = {new: tensors[name] for name, new in names.items() if new is not None}
    config, notes = _without_absent_modules(config, family, tensors)
    model, understood = model_of(family, config, where)
    padded = -(-model.vocab_size // vocab_multiple) * vocab_multiple
    return Published(
        folder,
        config,
        family,
        model,
        understood.settings,
        model.vocab_size,
        _named(tensors, family),
        end_tokens(folder, config, model.vocab_size),
        (*skipped, *understood.notes, *notes),
    ).for_vocabulary(padded)


def _text_alone(
    config: dict[str, Any], where: str, *, text_only: bool
) -> tuple[dict[str, Any], Callable[[str], str | None] | None]:
    """Return the config.json of a text model, and what renames its tensors where it is a part of
    another.

    Raises:
      UserError: it is, and that was not asked for.
    """
    kind = MULTIMODAL.get(str(config.get("model_type")))
    if kind is None:
        return config, None
    if not text_only:
        raise UserError(
            f"{where}: model_type={config['model_type']!r} is a model of text and images, of which maxlm has the text "
            "model alone; to leave the rest out, use maxlm import --text-only, or train.init_from: "
            "{path: ..., text_only: true}"
        )
    return text_config(kind, config, where), functools.partial(text_name, kind)


def _without_absent_modules(
    config: dict[str, Any], family: Family, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], list[str]]:
    """Return a config.json without a count of modules for further tokens that are not there, and a
    note of that: transformers leaves them out when it saves, but not their number.
    """
    first = LAYER.format(layer=config.get("num_hidden_layers"))
    if not config.get(family.modules) or any(name.startswith(first) for name in tensors):
        return config, []
    text = f"{family.modules}={config[family.modules]}, but the folder has no such module: there is none"
    return {**config, family.modules: 0}, [text]


def model_of(
    family: Family, config: Mapping[str, Any], where: str
) -> tuple[ModelConfig, Understood]:
    """Return the model that a config.json says, and how it was understood.

    Raises:
      UserError: what it says cannot be honoured: everything is named.
    """
    understood = read_config(family, config)
    problems = understood.problems
    if not problems:
        try:
            model = ModelConfig.model_validate(understood.settings)
            wrong = find_problems({"model": model, "mesh": MeshConfig(fsdp=1)})
            problems = [problem.text for problem in wrong]
            if not problems:
                return model, understood
        except ValidationError as error:
            problems = [
                f"model.{'.'.join(map(str, detail['loc']))}: {detail['msg']}, not {detail['input']!r}"
                for detail in error.errors(include_url=False)
            ]
    listed = "\n  ".join(problems)
    raise UserError(f"{where}: not all it says can be honoured:\n  {listed}")


def _family(config: Mapping[str, Any], where: str) -> Family:
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(sorted([*FAMILIES, *MULTIMODAL]))
        raise UserError(f"{where}: model_type={name!r} is not known; known are {known}")
    return FAMILIES[name]


def _named(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Give every tensor the prefix that some files leave out."""
    prefix = family.optional_prefix
    rows = [row.theirs for rows in family.rows.values() for row in rows]
    bare = [name for name in rows if not name.startswith(prefix)]
    return {
        name if name.startswith(prefix) or name in bare else prefix + name: tensor
        for name, tensor in tensors.items()
    }


def _check_tensors(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    family: Family,
    folder: Path,
) -> None:
    # A head that is tied to the embedding is in some files all the same.
    heads = {row.theirs for row in family.rows["model"] if row.ours.startswith("head/")}
    unexpected = [
        name
        for name in tensors.keys() - expected.keys() - heads
        if not name.endswith(family.unused or ("\0",))
    ]
    misshaped = [
        f"{name}: shape {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [
        *(f"missing: {text}" for text in _collected(expected.keys() - tensors.keys())),
        *(f"not known: {text}" for text in _collected(unexpected)),
        *sorted(misshaped),
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise UserError(
            f"{folder}: its tensors are not those of the {family.name} that {CONFIG} says:\n"
            f"  {listed}\nfetch the whole folder again, config.json included"
        )


def _collected(names: Iterable[str]) -> Iterator[str]:
    """Yield names, those that differ in numbers alone together."""
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    for pattern, group in alike.items():
        yield group[0] if len(group) == 1 else f"{pattern} ({len(group)} tensors, first {group[0]})"
