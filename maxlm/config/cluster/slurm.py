"""Settings of a Slurm cluster: what `launch/slurm.py` asks it for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.cluster.retries import Retries
from maxlm.config.cluster.words import Environment, Path, Word
from maxlm.config.errors import Problem
from maxlm.config.section import Count, Name, PositiveInt, Section, as_tuple

Words = Annotated[tuple[Word, ...], BeforeValidator(as_tuple)]


class SlurmCluster(Section):
    """Nodes of a Slurm cluster, with one process for each GPU, or for each node without GPUs."""

    kind: Literal["slurm"] = "slurm"
    job_name: Name = Field("maxlm", description="letters, digits, dots, - and _")
    nodes: PositiveInt = 1
    least_nodes: PositiveInt | None = Field(
        None,
        description="with so many a start goes on, where more are not free; for runs with mesh.elastic "
        "(null: all nodes)",
    )
    gpus_per_node: Count = Field(0, description="0: nodes without GPUs")
    cpus_per_process: PositiveInt | None = Field(None, description="(null: Slurm's default)")
    memory: Annotated[str, Field(pattern=r"^[0-9]+[KMGT]?$")] | None = Field(
        None, description="of a node, such as 500G; 0 is all of it (null: Slurm's default)"
    )
    exclusive: bool = Field(False, description="no other job on its nodes")
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = Field(None, description="features that nodes must have")
    time: Annotated[str, Field(pattern=r"^([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}$")] | None = Field(
        None, description="limit, such as 1-12:00:00; a job that it stops goes on in the queue"
    )
    venv: Path | None = Field(None, description="folder of a virtual environment with maxlm")
    container: Path | None = Field(None, description="image with maxlm, by srun --container-image")
    container_mounts: Words = Field((), description="FROM:TO, for the container")
    modules: Words = Field((), description="environment modules to load")
    environment: Environment = Field(
        default_factory=dict, description="variables of every process, such as NCCL's"
    )
    network_interface: Word | None = Field(
        None, description="that NCCL opens its sockets on, such as ib0 (null: it chooses)"
    )
    stop_seconds: Annotated[int, Field(ge=1, le=65535)] = Field(
        120, description="before the limit the run is told to save and stop"
    )
    log_dir: Path = Field("logs/slurm", description="a folder that all nodes see")
    options: Words = Field((), description="more options of sbatch, such as --reservation=NAME")
    retries: Retries = Retries()

    @property
    def processes_per_node(self) -> int:
        """One for each GPU, as JAX takes Slurm's tasks; one on a node without."""
        return self.gpus_per_node or 1

    @property
    def node_range(self) -> str:
        """How many nodes are asked for, as sbatch takes it."""
        return f"{self.least_nodes}-{self.nodes}" if self.least_nodes else f"{self.nodes}"

    def problems(self) -> Iterator[Problem]:
        """Yield settings that exclude each other."""
        if self.venv and self.container:
            yield Problem(
                "cluster.container",
                f"cluster.venv={self.venv} and cluster.container={self.container}: give one of them, "
                "where maxlm is installed",
            )
        if self.container_mounts and not self.container:
            yield Problem(
                "cluster.container_mounts",
                "cluster.container_mounts is for a container and cluster.container is not set; set it, or "
                "remove the mounts",
            )
        if self.least_nodes and self.least_nodes > self.nodes:
            yield Problem(
                "cluster.least_nodes",
                f"cluster.least_nodes={self.least_nodes} is more than cluster.nodes={self.nodes}, which is the most; "
                "give fewer, or raise cluster.nodes",
            )
        for option in self.options:
            if not option.startswith("--"):
                yield Problem(
                    "cluster.options",
                    f"cluster.options: {option} is no option; write it as --NAME or --NAME=VALUE",
                )
