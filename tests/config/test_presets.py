"""Every file under configs/ says what it is for, and loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from maxlm.config import load_run
from maxlm.config.checks import resolve_mesh
from maxlm.config.cluster.file import ClusterFile, load_cluster
from maxlm.config.cluster.kubernetes import KubernetesCluster
from maxlm.config.cluster.slurm import SlurmCluster
from maxlm.config.cluster.tpu import TpuCluster
from maxlm.config.ladder import LadderConfig
from maxlm.config.reading.loader import load_ladder
from maxlm.config.show import to_json_schema

ROOT = Path(__file__).parents[2]
LADDERS = sorted((ROOT / "configs/ladder").glob("*.yaml"))
CLUSTERS = sorted((ROOT / "configs/cluster").glob("*.yaml"))
PRESETS = [
    path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path not in [*LADDERS, *CLUSTERS]
]
# A run that any other preset can be included in.
BASE = """\
run_dir: runs/preset
model:
  {vocab_size: 512, num_layers: 2, embed_dim: 64, block:
  {mixer: {kind: attention, num_heads: 4, head_dim: 16}, ffn: {kind: mlp, hidden_dim: 128}}}
data: {sources: {text: {path: data/text}}, tokenizer: data/tokenizer.model, sequence_length: 64}
train: {num_steps: 100000, batch_size: 64}
"""
DEVICES = {
    "quickstart": 1,
    "ladder_base": 1,
    "python_stdlib_target": 1,
    "quickstart_moe": 1,
    "gpt2_124m": 8,
    "llama3_1b_h100x8": 8,
    "llama3_8b_v5p64": 64,
    "llama3_8b_1m_v5p64": 64,
    "llama3_70b_v5p1024": 1024,
    "llama3_405b_v5p2048": 2048,
    "mixtral_8x7b_v5p128": 128,
    "deepseek_v3_v5p1024": 1024,
    "llama3.1_8b_continue_v5p64": 64,
    "qwen3_8b_continue_v5p64": 64,
    "olmo2_7b_continue_v5p64": 64,
    "mistral_7b_continue_v5p64": 64,
    "gemma3_4b_continue_h100x8": 8,
    "smollm3_3b_continue_h100x8": 8,
}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT / "configs")) for path in paths]


@pytest.mark.parametrize("path", PRESETS, ids=names(PRESETS))
def test_header_and_schema(path: Path) -> None:
    lines = path.read_text().splitlines()
    above = "../" * (len(path.relative_to(ROOT / "configs").parts) - 1)
    assert lines[0] == f"# yaml-language-server: $schema={above}schema.json"
    assert lines[1].startswith("# ")
    assert len(lines[1]) > 20
    if path.parent.name == "run":
        header = "\n".join(line for line in lines if line.startswith("#"))
        assert all(f"# {word}:" in header for word in ("Command", "Hardware", "Result"))


@pytest.mark.parametrize("path", [path for path in PRESETS if path.parent.name != "run"])
def test_part_loads_in_a_run(path: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "run.yaml").write_text(f"include: [base.yaml, {path}]\n")
    # A data file says how many pieces its tokenizer gets, which the model must hold.
    loaded = load_run(tmp_path / "run.yaml", ["model.vocab_size=262144"] * ("data" in path.parts))
    assert any(path.name in origin for origin in loaded.origins.values())


@pytest.mark.parametrize(
    "path", [path for path in PRESETS if path.parent.name == "run"], ids=lambda path: path.stem
)
def test_run_loads_on_its_devices(path: Path) -> None:
    resolve_mesh(load_run(path).config, DEVICES[path.stem])


def test_names_that_others_rely_on() -> None:
    config = load_run(ROOT / "configs/run/quickstart.yaml").config
    assert config.run_dir == "runs/quickstart"
    assert list(config.data.sources) == ["python_stdlib"]
    assert config.data.tokenizer.startswith("data/quickstart/")


@pytest.mark.parametrize("path", LADDERS, ids=names(LADDERS))
def test_ladder_loads_and_says_how_it_is_run(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../ladder_schema.json"
    assert all(any(f"# {word}:" in line for line in lines) for word in ("Hardware", "Result"))
    assert load_ladder(path).base.endswith(".yaml")


def test_ladder_schema_is_committed() -> None:
    assert (ROOT / "configs/ladder_schema.json").read_text() == to_json_schema(LadderConfig)


@pytest.mark.parametrize("path", CLUSTERS, ids=names(CLUSTERS))
def test_cluster_loads_and_says_how_it_is_used(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../cluster_schema.json"
    words = ("Commands", "Hardware", "Result")
    assert all(any(f"# {word}:" in line for line in lines) for word in words)
    named = path.stem.split("_")[0]
    kinds = {"slurm": SlurmCluster, "tpu": TpuCluster}
    load_cluster(path, kinds.get(named, KubernetesCluster))


def test_cluster_schema_is_committed() -> None:
    assert (ROOT / "configs/cluster_schema.json").read_text() == to_json_schema(ClusterFile)
