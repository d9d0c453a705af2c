"""Maximal update parametrisation: initial values that follow the width (arXiv:2203.03466).

With m the width over the base's, a product with a matrix whose fan-in grows m-fold sums m times as
many terms. At first they are independent, so its values shrink by sqrt(m); later updates are aligned
with what they meet, so the optimizer divides them by m (`OptimizerSection.width_rate`):

  parameter                                   initial std    Adam's rate   factor on the product
  embedding, bias, norm; matrix from a latent      1              1               1
  matrix with fan-in m                         1 / sqrt(m)      1 / m             1
  router                                         1 / m          1 / m             1
  output projection, tied to the embedding or not  1              1             1 / m

These are table 8's columns: input, hidden and output weights. A router is an output weight in the
form of table 3, which is the same for Adam. A matrix from the width to a latent of fixed size counts
as hidden: a norm or a product of unit scale follows it, which an output weight would starve.

Which sizes follow the width is found by declaring the model twice as wide (`maxlm.models.width`):
a layer of any kind needs its `Width` marks and no more.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from flax import nnx

from maxlm.config.model import ModelConfig
from maxlm.models.width import at_width
from maxlm.sharding.parameters import Normal, Role, Widths, named_parameters, role_of


def twice_as_wide(model: ModelConfig) -> ModelConfig:
    """Return the model at twice its width, in the standard parametrisation."""
    settings = at_width(model, 2 * model.embed_dim)
    return ModelConfig.model_validate({**settings, "parametrisation": {"kind": "standard"}})


def scale_initial_values(declared: Any, wider: Any, factor: float) -> None:
    """Give every declared parameter its `Widths`, and the first values that go with them.

    Args:
      declared: a declared model of any layout.
      wider: the same model at twice the width.
      factor: its width over the base's.
    """
    pairs = zip(named_parameters(declared), named_parameters(wider), strict=True)
    for (path, own), (other_path, other) in pairs:
        assert path == other_path, f"{path} is {other_path} at twice the width"
        widths = Widths(
            *(factor ** math.log2(b / a) for a, b in zip(_fans(own), _fans(other), strict=True))
        )
        own.set_metadata(widths=widths)
        init = own.get_metadata("init")
        if isinstance(init, Normal):
            std = init.std * _initial_scale(role_of(own), widths.fan_in)
            own.set_metadata(init=dataclasses.replace(init, std=std))


def _fans(parameter: nnx.Param) -> tuple[int, int]:
    """Return the numbers that a product with a parameter sums over, and those that it makes."""
    rank, inputs = len(parameter.get_metadata("spec")), parameter.get_metadata("inputs")
    shape = parameter.get_value().shape[-rank:]
    outputs = shape[max(inputs) + 1 :] if inputs else shape
    return math.prod(shape[place] for place in inputs), math.prod(outputs)


def _initial_scale(role: Role, fan_in: float) -> float:
    return {"matrix": fan_in**-0.5, "router": 1 / fan_in}.get(role, 1.0)


def as_standard(model: ModelConfig) -> ModelConfig:
    """Return the model in the standard parametrisation that computes the same of the same weights."""
    settings = model.model_dump(mode="json")
    settings["parametrisation"] = {"kind": "standard"}
    settings["logit_scale"] = model.logit_scale / model.width_factor
    blocks = [settings["block"], *([settings["mtp"]["block"]] if model.mtp else [])]
    blocks += [block for segment in settings["segments"] for block in segment["pattern"]]
    for block in blocks:
        for mixer in block["mixer"].get("mixers", [block["mixer"]]):
            _say_scale(model, mixer)
    return ModelConfig.model_validate(settings)


def _say_scale(model: ModelConfig, mixer: dict[str, Any]) -> None:
    size = mixer.get("head_dim") or mixer.get("nope_dim", 0) + mixer.get("rope_dim", 0)
    if size and mixer["scale"] is None:
        mixer["scale"] = model.score_scale(size)
