"""A model into a folder of published weights: which family can say it, its config.json, its
tensors.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maxlm.checkpoint.hf.families import FAMILIES
from maxlm.checkpoint.hf.families.family import Family, Part, parts_of, write_config
from maxlm.checkpoint.hf.families.keys import GENERAL, CannotExpressError, Ignored
from maxlm.checkpoint.hf.published import CONFIG, model_of
from maxlm.checkpoint.hf.stopping import GENERATION_CONFIG
from maxlm.checkpoint.hf.tensors.axes import put
from maxlm.checkpoint.hf.tensors.write_files import (
    SHARD_BYTES,
    Slot,
    TensorWriter,
    whole_folder,
    write_json,
    write_sums,
)
from maxlm.config.errors import UserError
from maxlm.config.model import ModelConfig
from maxlm.config.resume import compare_models

Fetch = Callable[[Sequence[str]], Mapping[str, np.ndarray]]
"""Returns parameters by path, whole, rows in front."""

_NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
_SHOWN = 6
_WRITTEN_ANEW = {"architectures", "model_type", "dtype", "torch_dtype", "transformers_version"}


@dataclass(frozen=True)
class Export:
    """What is to be written.

    Attributes:
      family: of which family.
      config: its config.json.
      parts: where parameters go.
    """

    family: Family
    config: dict[str, Any]
    parts: list[Part]


def plan_export(
    declare: Callable[[ModelConfig], Any],
    model: ModelConfig,
    *,
    vocab_size: int,
    about: Mapping[str, Any],
    family: str | None = None,
    preferred: str | None = None,
) -> Export:
    """Choose the family that says a model without losing anything.

    Args:
      declare: returns the decoder of a model without values, its layers in their order.
      model: the model.
      vocab_size: rows of the vocabulary to publish; the model may have more.
      about: keys of config.json that do not decide what it computes, such as those it came with.
      family: use this one and no other.
      preferred: look at this one first.

    Raises:
      UserError: none can, and what each would lose.
    """
    if family is not None and family not in FAMILIES:
        raise UserError(f"--family={family} is not known; use one of {', '.join(sorted(FAMILIES))}")
    order = [family] if family else sorted(FAMILIES, key=lambda name: name != preferred)
    reasons = list[str]()
    for name in order:
        try:
            return _as_family(FAMILIES[name], declare, model, vocab_size, about)
        except CannotExpressError as error:
            reasons.append(f"{name}: {error}")
    listed = "\n  ".join(reasons)
    raise UserError(f"no family of published models can say all of this model:\n  {listed}")


def write_export(
    export: Export,
    target: Path,
    fetch: Fetch,
    *,
    dtype: np.dtype,
    files: Iterable[Path],
    advance: Callable[[int], None],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the folder.

    Args:
      export: what goes in.
      target: its name.
      fetch: returns parameters; asked for those of one published tensor after the other.
      dtype: of the tensors.
      files: what is copied into it: the tokenizer's files.
      advance: told how many more elements have been written.
      shard_bytes: most bytes of one file of tensors.

    Raises:
      UserError: it cannot be written, or a value does not fit the dtype; nothing is left then.
    """
    with whole_folder(target) as folder:
        groups = list(_together(export.parts))
        slots = [Slot(name, parts[0].shape) for group in groups for name, parts in group.items()]
        writer = TensorWriter(folder, slots, dtype, shard_bytes=shard_bytes)
        for group in groups:
            paths = dict.fromkeys(part.parameter for parts in group.values() for part in parts)
            values = fetch(list(paths))
            for name, parts in group.items():
                tensor = np.empty(parts[0].shape, np.float32)
                for part in parts:
                    put(tensor, _own_values(part, values[part.parameter]), part.dims, part.axes)
                writer.write(name, tensor)
                advance(tensor.size)
        writer.finish()
        for path in files:
            shutil.copyfile(path, folder / path.name)
        write_json(folder / CONFIG, {**export.config, "torch_dtype": dtype.name})
        if not (folder / GENERATION_CONFIG).exists():
            write_json(folder / GENERATION_CONFIG, _generation_config(export.config))
        write_sums(folder)


def _as_family(
    family: Family,
    declare: Callable[[ModelConfig], Any],
    model: ModelConfig,
    vocab_size: int,
    about: Mapping[str, Any],
) -> Export:
    """Write a model as a family's, and read it again to see that nothing is lost.

    Raises:
      CannotExpressError: something would be.
    """
    model = model.model_copy(update={"vocab_size": vocab_size})
    ignored = {
        key for row in (GENERAL, *family.keys) if isinstance(row, Ignored) for key in row.theirs
    }
    kept = {key: value for key, value in about.items() if key in ignored - _WRITTEN_ANEW}
    # Null, for a reader's default may be a row that a smaller vocabulary does not have.
    config = {**_NO_TOKENS, **kept, **write_config(family, model)}
    try:
        again, _ = model_of(family, config, family.name)
    except UserError as error:
        raise CannotExpressError(str(error)) from error
    lost = [str(change) for change in compare_models(model, again)]
    if lost:
        more = [f"and {len(lost) - _SHOWN} more"] if len(lost) > _SHOWN else []
        raise CannotExpressError(f"it would change {', '.join([*lost[:_SHOWN], *more])}")
    parts = parts_of(family, declare(model), vocab_size)
    wanted = {part.tensor for part in parts_of(family, declare(again), vocab_size)}
    lacking = sorted(wanted - {part.tensor for part in parts})
    if lacking:
        raise CannotExpressError(f"the model has nothing for its tensor {lacking[0]}")
    return Export(family, config, parts)


def _together(parts: Sequence[Part]) -> Iterator[dict[str, list[Part]]]:
    """Yield the parts by tensor, those tensors together that have parameters in common."""
    tensors: dict[str, list[Part]] = {}
    for part in parts:
        tensors.setdefault(part.tensor, []).append(part)
    groups: dict[tuple[str, ...], dict[str, list[Part]]] = {}
    for name, own in tensors.items():
        parameters = tuple(sorted({part.parameter for part in own}))
        groups.setdefault(parameters, {})[name] = own
    yield from groups.values()


def _own_values(part: Part, parameter: np.ndarray) -> np.ndarray:
    """Return what of a parameter goes into a tensor, added rows of the vocabulary left out."""
    row = parameter[part.place] if part.place else parameter
    index = tuple(
        part.named[letter] if letter in part.named else slice(0, part.sizes[letter])
        for letter in part.axes.ours
    )
    return np.asarray(row[index])


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}
