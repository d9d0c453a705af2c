"""config.json as rows of a table: each says what a key means for a model, and how it is written.

Every key of a config.json must be known to one of its family's rows. One that maxlm cannot honour
is refused by name with its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from maxlm.config.model import ModelConfig

REQUIRED = object()
"""In place of a default: the key must be there."""


class CannotExpressError(Exception):
    """Why a family has no way to say what a model is."""


@dataclass
class Reading:
    """A config.json that is being read, and what has been understood so far.

    Attributes:
      config: the file.
      sections: settings by the section they stand in: `model`, `norm`, `block`, a kind of layer.
      blocks: what single blocks have of their own; by layer, empty where all are alike.
      problems: what cannot be honoured.
      notes: what does not matter for the model's values, but is worth a line.
      seen: keys that a row knows.
    """

    config: Mapping[str, Any]
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a key's value, and count it as known; null is the same as absent."""
        self.seen.add(key)
        value = self.config.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """Return the value of a key that must be there; None, and a problem, where it is not."""
        value = self.get(key)
        if value is None:
            self.problems.append(f"{key} is missing")
        return value

    def set(self, path: str, value: Any) -> None:
        """Set `section.name` of the model."""
        section, _, name = path.partition(".")
        self.sections.setdefault(section, {})[name] = value

    def refuse(self, key: str, value: Any, instead: str) -> None:
        """Note that a value cannot be honoured."""
        self.problems.append(f"{key}={value!r} is not supported; known is {instead}")

    def of_block(self, layer: int, name: str, settings: Mapping[str, Any]) -> None:
        """Give one block's `mixer` or `ffn` settings of its own."""
        while len(self.blocks) <= layer:
            self.blocks.append({})
        block = self.blocks[layer]
        block[name] = {**block.get(name, {}), **settings}


class KeyRow(Protocol):
    """A row: what one or several keys mean."""

    def read(self, reading: Reading) -> None:
        """Take the keys' meaning into the settings."""

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Return the keys that say it of a model.

        Raises:
          CannotExpressError: they cannot.
        """


@dataclass(frozen=True)
class Key:
    """A key that is a setting.

    Attributes:
      theirs: its name.
      ours: the setting: `model.embed_dim`, `norm.epsilon`, `KIND.name` of a kind of layer.
      default: what its absence means, or a function of the reading that says it.
      values: what stands for what, where the two differ; of several spellings the first is written.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None

    def read(self, reading: Reading) -> None:
        """Set the setting."""
        if self.default is REQUIRED:
            value = reading.need(self.theirs)
        else:
            value = reading.get(self.theirs)
            if value is None:
                value = self.default(reading) if callable(self.default) else self.default
        if self.values is not None and value is not None:
            if not isinstance(value, str | int) or value not in self.values:
                reading.refuse(self.theirs, value, " or ".join(map(repr, self.values)))
                return
            value = self.values[value]
        reading.set(self.ours, value)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Look the setting up."""
        value = setting(model, self.ours)
        if self.values is not None:
            spelt = [theirs for theirs, ours in self.values.items() if ours == value]
            if not spelt:
                known = " or ".join(map(repr, dict.fromkeys(self.values.values())))
                raise CannotExpressError(f"{self.ours}={value!r}: its {self.theirs} knows {known}")
            value = spelt[0]
        return {self.theirs: value}


@dataclass(frozen=True)
class Fixed:
    """A setting that no key says: the same in all of a family, or a function of the reading."""

    ours: str
    value: Any

    def read(self, reading: Reading) -> None:
        """Set the setting."""
        reading.set(self.ours, self.value(reading) if callable(self.value) else self.value)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write nothing: whether it holds is found when the written file is read again."""
        del model
        return {}


@dataclass(frozen=True)
class Must:
    """A key of which one value is known."""

    theirs: str
    value: Any

    def read(self, reading: Reading) -> None:
        """Refuse other values."""
        found = reading.get(self.theirs, self.value)
        if found != self.value:
            reading.refuse(self.theirs, found, repr(self.value))

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write the value."""
        del model
        return {self.theirs: self.value}


@dataclass(frozen=True)
class TrainingOnly:
    """A rate of dropout or noise: nothing to a trained model, and maxlm trains without it."""

    theirs: str
    default: float = 0.0

    def read(self, reading: Reading) -> None:
        """Note a rate that is not 0."""
        found = reading.get(self.theirs, self.default)
        if found:
            reading.notes.append(f"{self.theirs}={found} is not applied: maxlm trains without it")

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write 0, for the default may be another."""
        del model
        return {self.theirs: 0.0}


@dataclass(frozen=True)
class Ignored:
    """Keys that say nothing about the model's values."""

    theirs: tuple[str, ...]

    def read(self, reading: Reading) -> None:
        """Count them as known."""
        reading.seen.update(self.theirs)

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Write nothing."""
        del model
        return {}


GENERAL = Ignored(
    (
        *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype"),
        *("auto_map", "_name_or_path", "name_or_path", "use_cache", "return_dict", "torchscript"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
        *(
            "decoder_start_token_id",
            "is_decoder",
            "is_encoder_decoder",
            "cross_attention_hidden_size",
        ),
        *("output_attentions", "output_hidden_states", "use_bfloat16", "_attn_implementation"),
        *("_attn_implementation_autoset", "attn_implementation", "chunk_size_feed_forward"),
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "prefix"),
        *("task_specific_params", "tokenizer_class", "pruned_heads", "tf_legacy_loss"),
        *("min_length", "max_length", "do_sample", "early_stopping", "num_beams", "temperature"),
        *("num_beam_groups", "diversity_penalty", "top_k", "top_p", "typical_p", "length_penalty"),
        *("repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
        *("bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate"),
        *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
        *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
        *("pretraining_tp", "quantization_config", "transformers.js_config", "unsloth_fixed"),
    )
)
"""Keys that any config.json may have. `quantization_config` is read with the tensors."""


def setting(model: ModelConfig, path: str) -> Any:
    """Return the setting of `model.NAME`, `norm.NAME`, `block.NAME`, or `KIND.NAME` of a layer.

    Of layers it is that of the first of the kind: whether all agree is found when what was written
    is read again.

    Raises:
      CannotExpressError: the model has no such layer, or the layer no such setting.
    """
    section, _, name = path.partition(".")
    owner: Any = {"model": model, "block": model.layers[0]}.get(section)
    owner = owner or getattr(model, section, None) or first_of_kind(model, section)
    if not hasattr(owner, name):
        raise CannotExpressError(f"model.{section}.kind={owner.kind!r} has no {name}")
    return getattr(owner, name)


def first_of_kind(model: ModelConfig, kind: str) -> Any:
    """Return the settings of the first layer of a kind.

    Raises:
      CannotExpressError: there is none.
    """
    for block in model.layers:
        for layer in (block.mixer, block.ffn):
            if layer.kind == kind:
                return layer
    raise CannotExpressError(f"no layer of the model is of the kind {kind}")


def all_of_kind(model: ModelConfig, kind: str) -> dict[int, Any]:
    """Return the layers of a kind by the number of their block."""
    return {
        number: layer
        for number, block in enumerate(model.layers)
        for layer in (block.mixer, block.ffn)
        if layer.kind == kind
    }


Default = Callable[[Reading], Any]


def same_as(key: str) -> Default:
    """Return a default that is another key's value."""
    return lambda reading: reading.get(key)
