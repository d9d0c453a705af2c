"""The section `cluster`: strict, and safe to put into scripts."""

import re
from pathlib import Path

import pytest
import yaml

from maxlm.config.cluster.file import ClusterFile, load_cluster
from maxlm.config.cluster.slurm import SlurmCluster
from maxlm.config.cluster.tpu import TpuCluster
from maxlm.config.errors import ConfigError

ROOT = Path(__file__).parents[3]
TPU = {"kind": "tpu", "name": "a", "zone": "z", "accelerator_type": "v5p-8", "runtime_version": "r"}


@pytest.fixture
def problems(tmp_path):
    """problems(kind, section) -> the text of everything that is wrong."""

    def load(kind, section):
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(section))
        with pytest.raises(ConfigError) as caught:
            load_cluster(path, kind)
        return str(caught.value)

    return load


@pytest.mark.parametrize(
    ("kind", "section", "expected"),
    [
        (SlurmCluster, {"kind": "slurm", "node": 2}, "did you mean cluster.nodes?"),
        (SlurmCluster, {"kind": "slurm", "nodes": 0}, "cluster.nodes=0"),
        (SlurmCluster, {"kind": "slurm", "venv": "a", "container": "b"}, "give one of them"),
        (SlurmCluster, {"kind": "slurm", "container_mounts": ["a:b"]}, "container is not set"),
        (SlurmCluster, {"kind": "slurm", "options": ["x"]}, "x is no option"),
        (SlurmCluster, {"kind": "slrm"}, "did you mean slurm?"),
        (SlurmCluster, TPU, "use launch/tpu.py"),
        (TpuCluster, {**TPU, "tunnel_through_iap": True}, "set cluster.internal_ips: true"),
        # What would begin another line of a script, or another option.
        (SlurmCluster, {"kind": "slurm", "partition": "a\n#SBATCH --x"}, "cluster.partition"),
        (SlurmCluster, {"kind": "slurm", "log_dir": "a\nrm -r /"}, "cluster.log_dir"),
        (SlurmCluster, {"kind": "slurm", "environment": {"A;rm": "b"}}, "A;rm"),
        (SlurmCluster, {"kind": "slurm", "environment": {"A": "b\nrm"}}, "cluster.environment.A"),
        (TpuCluster, {**TPU, "name": "-x"}, "cluster.name"),
        (TpuCluster, {**TPU, "remote_dir": "a; rm"}, "cluster.remote_dir"),
    ],
)
def test_what_is_wrong_is_told(kind, section, expected, problems):
    text = problems(kind, {"cluster": section})
    assert expected in text
    assert "cluster.yaml:" in text


def test_a_file_without_the_section_is_told(problems):
    assert "cluster" in problems(SlurmCluster, ["a"])
    assert "cluster" in problems(SlurmCluster, {"nodes": 2})


def test_the_page_names_every_setting_and_its_examples_load():
    page = (ROOT / "docs/launch.md").read_text()
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    whole = [block for block in blocks if "kind" in block["cluster"]]
    assert {block["cluster"]["kind"] for block in whole} == {"slurm", "tpu", "kubernetes"}
    for block in whole:
        cluster = ClusterFile.model_validate(block).cluster
        assert not list(cluster.problems())
        missing = [
            name for name in type(cluster).model_fields if not re.search(rf"\b{name}\b", page)
        ]
        assert not missing
