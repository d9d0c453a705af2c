"""Published config.json files, of which the keys that decide a model's values, and its published
parameter count.

Counts are the elements of the tensors that were published (`total_size` of
model.safetensors.index.json divided by the bytes of a number, or the hub's count), or a paper's to
the digit; `None` where no count to the digit is known. Of models that see, the count is that of all
but the encoder and the projection. Billions of active parameters are what the card or paper states.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """A published model.

    Attributes:
      config: facts of its config.json.
      parameters: the published count, or None.
      active: published active parameters in billions, for mixtures.
    """

    config: dict[str, Any]
    parameters: int | None
    active: float | None = None


def sizes(layers: int, width: int, heads: int, kv_heads: int, hidden: int) -> dict[str, int]:
    """Return the keys that most families have for these."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
    }


def without_eyes(total: int, width: int) -> int:
    """Return the parameters of Gemma 3's text model: all but SigLIP's, and the projection between."""
    return total - 416_866_032 - (1152 * width + 1152)
