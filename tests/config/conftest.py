"""A small valid run, and a way to write one with something changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

RUN = """\
run_dir: runs/test
model:
  vocab_size: 512
  num_layers: 2
  embed_dim: 64
  block: {mixer: {kind: attention, num_heads: 4, head_dim: 16},
    ffn: {kind: mlp, hidden_dim: 128}}
data:
  sources:
    text: {path: data/text}
  tokenizer: data/tokenizer.model
  sequence_length: 32
train:
  num_steps: 100
  batch_size: 8
"""


@pytest.fixture
def write_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that writes run.yaml with some text replaced and lines appended, and moves
    into its folder.
    """
    monkeypatch.chdir(tmp_path)

    def write(replace: dict[str, str] | None = None, append: str = "") -> str:
        text = RUN
        for old, new in (replace or {}).items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "run.yaml").write_text(text + append)
        return "run.yaml"

    return write
