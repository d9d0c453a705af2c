"""The YAML file that says where to launch: strict, with every problem told at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from maxlm.config.cluster.kubernetes import KubernetesCluster
from maxlm.config.cluster.slurm import SlurmCluster
from maxlm.config.cluster.tpu import TpuCluster
from maxlm.config.errors import ConfigError, Problem
from maxlm.config.reading.explain import explain
from maxlm.config.reading.strict_yaml import read_yaml
from maxlm.config.section import Section

Cluster = SlurmCluster | TpuCluster | KubernetesCluster
Kind = TypeVar("Kind", SlurmCluster, TpuCluster, KubernetesCluster)


class ClusterFile(Section):
    """A cluster, and what jobs ask it for."""

    cluster: Annotated[Cluster, Field(discriminator="kind")]


def load_cluster(path: str | os.PathLike[str], kind: type[Kind]) -> Kind:
    """Load a file with the section `cluster`.

    Args:
      path: of the YAML file.
      kind: the section that the launcher can use.

    Raises:
      ConfigError: with every problem found.
    """
    name = str(path)
    settings = read_yaml(Path(path), name)
    if not isinstance(settings.value, dict):
        raise ConfigError([Problem("", "not a mapping; begin with `cluster:`", name)], name)
    origins = dict(settings.origins())
    plain = settings.plain()
    _refuse_another_kind(plain.get("cluster"), kind, origins)
    try:
        cluster = ClusterFile.model_validate(plain).cluster
    except ValidationError as error:
        raise ConfigError(explain(error, origins, ClusterFile), name) from None
    problems = [replace(problem, where=origins.get(problem.path)) for problem in cluster.problems()]
    if problems:
        raise ConfigError(problems, name)
    assert isinstance(cluster, kind)
    return cluster


def _refuse_another_kind(section: Any, kind: type[Section], origins: Mapping[str, str]) -> None:
    """Refuse a file for another launcher, before its settings are taken for mistakes."""
    found = section.get("kind") if isinstance(section, dict) else None
    wanted, kinds = kind.model_fields["kind"].default, ("slurm", "tpu", "kubernetes")
    if found in kinds and found != wanted:
        text = f"cluster.kind={found}: this launcher is for {wanted}; use launch/{found}.py"
        where = origins.get("cluster.kind")
        raise ConfigError([Problem("cluster.kind", text, where)], str(where).split(":")[0])
