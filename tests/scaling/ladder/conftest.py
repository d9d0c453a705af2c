"""Ladders whose rungs have finished, without training: metrics as a run writes them, from a law."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maxlm.config.reading.loader import load_ladder
from maxlm.scaling.ladder.rungs import build_rungs

ROOT = Path(__file__).parents[3]
LAW = (1.2, 60.0, 90.0, 0.3, 0.32)

BASE = """
include: [{configs}/model/tiny.yaml, {configs}/data/python_stdlib.yaml]
run_dir: runs/quickstart
model:
  vocab_size: 4096
  num_layers: 4
  embed_dim: 192
  block: {{mixer: {{num_heads: 6}}, ffn: {{hidden_dim: 512}}}}
optimizer: {{learning_rate: 3e-3, weight_decay: 0.1}}
schedule: {{kind: cosine, warmup_steps: 20, final_fraction: 0.05}}
train: {{num_steps: 200, batch_size: 16, eval_every: 100, eval_batches: 8, log_every: 10}}
checkpoint: {{every: 50, keep_last: 2}}
"""
LADDER = """
base: {base}
run_dir: {run_dir}
sizes: {{kind: width, embed_dims: [32, 64, 128, 256], aspect_ratio: 32, multiple_of: 16}}
budgets: {{kind: tokens_per_parameter, ratios: [5, 20, 80, 320]}}
transfer: {{warmup_fraction: 0.05, learning_rate: {{kind: power_law, parameters: -0.3}}}}
"""


def law(parameters: float, tokens: float) -> float:
    constant, of_size, of_tokens, a, b = LAW
    return constant + of_size / parameters**a + of_tokens / tokens**b


@pytest.fixture
def ladder_file(tmp_path: Path) -> Path:
    """A ladder's YAML; nothing has been run."""
    path = tmp_path / "ladder.yaml"
    base = tmp_path / "quickstart.yaml"
    base.write_text(BASE.format(configs=ROOT / "configs"))
    path.write_text(LADDER.format(base=base, run_dir=tmp_path / "ladder"))
    return path


def finish(ladder_file: Path, *, noise: float = 0.0, skip: tuple[str, ...] = ()) -> None:
    """Write the metrics of every rung as if it had been trained."""
    rng = np.random.default_rng(0)
    for rung in build_rungs(load_ladder(ladder_file)):
        if rung.name in skip:
            continue
        final = law(rung.parameters, rung.tokens) * float(np.exp(noise * rng.standard_normal()))
        steps = rung.config.train.num_steps
        folder = Path(rung.config.run_dir)
        folder.mkdir(parents=True)
        lines = []
        for fraction in (0.25, 0.5, 0.75, 1.0):
            value = final * fraction**-0.1
            record = {"step": round(steps * fraction), "val/python_stdlib/loss": value}
            lines.append(json.dumps({**record, "data/epoch/python_stdlib": 0.5 * fraction}))
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
