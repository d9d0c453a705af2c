"""`maxlm import HF_DIR CHECKPOINT_DIR --check`: logits of an import against transformers' own."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from maxlm.checkpoint.hf.published import Published
from maxlm.config.errors import RunFailedError, UserError
from maxlm.config.model import LearnedPosition
from maxlm.decoding.model import load

LENGTH = 64
TOLERANCE = 1e-4
"""Largest difference over the largest logit, in fp32: a wrong transpose or scale gives 0.1 to 1."""


def require_transformers() -> None:
    """Refuse where transformers is not installed.

    Raises:
      UserError: it is not.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--check compares with transformers, and {' and '.join(missing)} cannot be found; "
            "install what it needs with: pip install 'maxlm[parity]', or leave --check out"
        )


def check_logits(published: Published, imported: Path) -> str:
    """Compare the logits of random tokens, in fp32; return what was found.

    Args:
      published: the folder, which transformers reads by itself.
      imported: what was made of it.

    Raises:
      RunFailedError: they differ.
    """
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    position = published.model.position
    most = position.max_length if isinstance(position, LearnedPosition) else LENGTH
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, published.vocab_size, min(LENGTH, most))
    model = load(imported, dtype="float32")
    tokens %= model.num_ids  # ids beyond the tokenizer's have no logits
    ours = model.logits(tokens)
    del model
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(published.folder),
        dtype=torch.float32,
        attn_implementation="eager",
        trust_remote_code=False,
        local_files_only=True,
    ).eval()
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens)[None]).logits[0].numpy()[:, : ours.shape[1]]
    apart = float(np.abs(ours - wanted).max() / np.abs(wanted).max())
    if not apart <= TOLERANCE:
        raise RunFailedError(
            f"{imported}: logits of {len(tokens)} tokens differ from those of transformers "
            f"{transformers.__version__} by {apart:.1e} of the largest, more than {TOLERANCE:.0e}"
        )
    return f"logits of {len(tokens)} tokens are those of transformers {transformers.__version__} to {apart:.1e}"
