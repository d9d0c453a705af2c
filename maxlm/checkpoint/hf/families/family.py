"""A family of published models as data: what its config.json means, and what its tensors are
called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from maxlm.checkpoint.hf.families.keys import GENERAL, CannotExpressError, KeyRow, Reading
from maxlm.checkpoint.hf.patterns import segments_of
from maxlm.checkpoint.hf.tensors.axes import Axes, Dim
from maxlm.config.model import BlockConfig, ModelConfig
from maxlm.sharding.parameters import layers_of, named_parameters, path_in_block
from maxlm.sharding.stages import EMPTY

VOCABULARY = "v"
"""The letter of the vocabulary, of which the model may have more rows than were published."""


class Row(NamedTuple):
    """A parameter and the published tensor, or the part of one, that it is.

    Attributes:
      ours: its path, within its layer for a layer's.
      theirs: the tensor's name; {layer} is the layer's number, other letters are the pattern's.
      axes: the pattern (`maxlm.checkpoint.hf.tensors.axes`).
    """

    ours: str
    theirs: str
    axes: str = "d -> d"


@dataclass(frozen=True)
class Family:
    """A family; see `maxlm.checkpoint.hf.families`.

    Attributes:
      name: also `model_type` of its config.json.
      architecture: the class that transformers loads it with.
      keys: rows for config.json.
      rows: rows for the tensors: of `model` (outside the stack), of `block` (its norms), of each
        kind of layer, and of `mtp` (a module for a further token, without its block).
      mixer: kind of the mixers, where a block does not say otherwise.
      ffn: likewise of the ffns.
      unused: endings of names of tensors that say nothing, such as buffers.
      optional_prefix: what names may begin with or not.
      modules: the key of config.json that counts modules for further tokens, which stand behind
        the layers and have their names; none where there never are any.
    """

    name: str
    architecture: str
    keys: tuple[KeyRow, ...]
    rows: Mapping[str, tuple[Row, ...]]
    mixer: str = "attention"
    ffn: str = "mlp"
    unused: tuple[str, ...] = ()
    optional_prefix: str = ""
    modules: str = ""


class Part(NamedTuple):
    """What one published tensor, or a part of one, is in the model.

    Attributes:
      parameter: the path of the parameter.
      place: its leading indices: the row of a stacked parameter, or none.
      named: index of each letter that stands in the tensor's name.
      tensor: the name of the published tensor.
      axes: how their axes correspond.
      dims: the tensor's dimensions.
      sizes: how much of each letter the tensor has.
    """

    parameter: str
    place: tuple[int, ...]
    named: Mapping[str, int]
    tensor: str
    axes: Axes
    dims: tuple[Dim, ...]
    sizes: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """The published tensor's shape."""
        return tuple(dim.size for dim in self.dims)


# --- config.json ----------------------------------------------------------------------------------


class Understood(NamedTuple):
    """A config.json as settings, problems where it cannot be honoured, and notes."""

    settings: dict[str, Any]
    problems: list[str]
    notes: list[str]


def read_config(family: Family, config: Mapping[str, Any]) -> Understood:
    """Return the model's settings that a config.json says, before they are validated."""
    reading = Reading(config)
    for row in (GENERAL, *family.keys):
        row.read(reading)
    unknown = [key for key in config if key not in reading.seen]
    reading.problems += [f"{key}={config[key]!r} is not known" for key in sorted(unknown)]
    sections = {name: dict(values) for name, values in reading.sections.items()}
    model, block = sections.pop("model", {}), sections.pop("block", {})
    if reading.problems:
        return Understood({}, reading.problems, reading.notes)

    def layer(kind: str, own: Mapping[str, Any]) -> dict[str, Any]:
        kind = own.get("kind", kind)
        return {"kind": kind, **sections.get(kind, {}), **own}

    kinds = {"mixer": family.mixer, "ffn": family.ffn}
    whole = {name: layer(kind, {}) for name, kind in kinds.items()}
    settings = {**model, "block": {**block, **whole}}
    differing = [
        {
            name: layer(kinds[name], own) if name in kinds and "kind" in own else own
            for name, own in differences.items()
        }
        for differences in reading.blocks
    ]
    if any(differing):
        differing += [{}] * (model["num_layers"] - len(differing))
        settings["segments"] = segments_of(differing)
    for name in ModelConfig.model_fields.keys() & sections.keys():
        settings[name] = sections[name]
    return Understood(settings, [], reading.notes)


def write_config(family: Family, model: ModelConfig) -> dict[str, Any]:
    """Return what config.json says of a model.

    Raises:
      CannotExpressError: a row cannot say it. That nothing is lost is not checked here.
    """
    config: dict[str, Any] = {"architectures": [family.architecture], "model_type": family.name}
    problems = list[str]()
    for row in family.keys:
        try:
            config |= row.write(model)
        except CannotExpressError as error:
            problems.append(str(error))
    if problems:
        raise CannotExpressError("; ".join(dict.fromkeys(problems)))
    return config


# --- tensors --------------------------------------------------------------------------------------


def parts_of(family: Family, declared: Any, vocab_size: int) -> list[Part]:
    """Return where every parameter of a model is in the published tensors.

    Args:
      family: the family.
      declared: the decoder, with its `model`; values are not looked at.
      vocab_size: rows of the published vocabulary.

    Raises:
      CannotExpressError: a parameter has no place; all are named.
    """
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path, parameter in named_parameters(declared):
        group, within = _group(declared.model, path)
        groups.setdefault(group, {})[within] = (path, parameter)
    parts, homeless = [], list[str]()
    for (kind, *_), members in groups.items():
        rows = family.rows.get(kind, ())
        known = {row.ours for row in rows}
        homeless += [path for within, (path, _) in members.items() if within not in known]
        parts += list(_parts_of_group(rows, members, vocab_size))
    if homeless:
        raise CannotExpressError(f"it has no tensor for {', '.join(homeless)}")
    return parts


def _group(model: ModelConfig, path: str) -> tuple[tuple[Any, ...], str]:
    """Return what a parameter's row is looked up by, and its path within it.

    Parameters of one layer are a group, for they may be in one tensor together.
    """
    first, segment, *_ = path.split("/")
    if first not in ("stack", "mtp"):
        return ("model",), path
    within, place = path_in_block(path), path.split("/")[2]
    if first == "stack":
        block: BlockConfig = model.segments[int(segment)].blocks[int(place)]
    else:
        assert model.mtp is not None, path
        if place != "block":
            return ("mtp", segment), within
        block, within = model.mtp.block, within.removeprefix("block/")
    name, _, rest = within.partition("/")
    kind = _kind(block, name)
    return (kind, first, segment, place, name), rest if kind != "block" else within


def _kind(block: BlockConfig, name: str) -> str:
    return str(getattr(block, name).kind) if name in ("mixer", "ffn") else "block"


def _parts_of_group(
    rows: Sequence[Row], members: Mapping[str, Any], vocab_size: int
) -> Iterator[Part]:
    """Yield the parts of the parameters of one layer, or of what is outside the layers."""
    present = [(row, Axes(row.axes), *members[row.ours]) for row in rows if row.ours in members]
    shared: dict[str, int] = {}  # of the bracketed dimension of each tensor
    sized = []
    for row, axes, path, parameter in present:
        layers = layers_of(parameter)
        shape = parameter.get_value().shape[0 if layers is None else 1 :]
        assert len(shape) == len(axes.ours), f"{path} {shape} is not {row.axes}"
        sizes = dict(zip(axes.ours, shape, strict=True))
        if VOCABULARY in sizes:
            sizes[VOCABULARY] = vocab_size
        offset = shared.get(row.theirs, 0)
        shared[row.theirs] = offset + axes.shared_size(sizes)
        sized.append((row, axes, path, layers, sizes, offset))
    for row, axes, path, layers, sizes, offset in sized:
        dims = axes.dims(sizes, offset=offset, shared=shared[row.theirs])
        places = [((), 0)] if layers is None else [((i,), n) for i, n in enumerate(layers)]
        for place, layer in places:
            if layer == EMPTY:
                continue
            for named in _every(axes.named, sizes):
                name = row.theirs.format(layer=layer, **named)
                yield Part(path, place, named, name, axes, dims, sizes)


def _every(letters: tuple[str, ...], sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield every choice of an index for each letter."""
    if not letters:
        yield {}
        return
    first, *rest = letters
    for index in range(sizes[first]):
        for others in _every(tuple(rest), sizes):
            yield {first: index, **others}
