"""Published models of text and images, of which the text model is a family's: where it stands in
config.json, and what its tensors are called there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from maxlm.config.errors import UserError

_OF_BOTH = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
"""Keys that may stand beside `text_config` and count for the text model."""


@dataclass(frozen=True)
class Multimodal:
    """A model with a text model in it.

    Attributes:
      family: the name of the text model's.
      defaults: keys that `text_config` may leave out where a config.json of the family may not.
      prefixes: what names of the text model's tensors begin with, and what with in the family.
      others: what names of the other tensors begin with.
    """

    family: str
    defaults: Mapping[str, Any]
    prefixes: Mapping[str, str]
    others: tuple[str, ...]


_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
_IMAGES = ("vision_tower.", "vision_model.", "multi_modal_projector.")
_OTHERS = (*_IMAGES, *(f"model.{name}" for name in _IMAGES))

MULTIMODAL = {
    "gemma3": Multimodal(
        "gemma3_text",
        {
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
        },
        _PREFIXES,
        _OTHERS,
    ),
    "llama4": Multimodal(
        "llama4_text",
        {
            "vocab_size": 202_048,
            "hidden_size": 5120,
            "intermediate_size": 8192,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        _PREFIXES,
        _OTHERS,
    ),
}
"""By `model_type`, with the defaults of transformers' configuration classes."""


def text_config(kind: Multimodal, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the text model's config.json, as a folder of it alone has it.

    Raises:
      UserError: it has none, or says two things.
    """
    own = config.get("text_config")
    if not isinstance(own, dict):
        raise UserError(f"{where}: text_config={own!r} must be the text model's settings")
    found = own.get("model_type", kind.family)
    if found != kind.family:
        raise UserError(
            f"{where}: text_config.model_type={found!r} is not supported; known is {kind.family!r}"
        )
    shared = {key: config[key] for key in _OF_BOTH if config.get(key) is not None}
    tied = (settings.get("tie_word_embeddings") for settings in (shared, own))
    if len({value for value in tied if value is not None}) > 1:
        raise UserError(
            f"{where}: tie_word_embeddings={shared['tie_word_embeddings']}, but in text_config it is "
            f"{own['tie_word_embeddings']}; make them one"
        )
    given = {key: value for key, value in own.items() if value is not None}
    return {**kind.defaults, **shared, **given, "model_type": kind.family}


def text_name(kind: Multimodal, name: str) -> str | None:
    """Return what the family calls a tensor; None: it is not the text model's."""
    if name.startswith(kind.others):
        return None
    for theirs, ours in kind.prefixes.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def told_skipped(names: Iterable[str]) -> str:
    """Return a line about tensors that are left out, by the first parts of their names."""
    counts: dict[str, int] = {}
    for name in sorted(names):
        parts = name.split(".")
        head = ".".join(parts[: 1 + (parts[0] == "model")])
        counts[head] = counts.get(head, 0) + 1
    listed = ", ".join(f"{head}.* ({count} tensors)" for head, count in counts.items())
    return f"text alone: skipped {listed or 'nothing, for there is no more'}"
