"""Settings of a Kubernetes cluster: what `launch/kubernetes.py` writes manifests from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.cluster.retries import Retries
from maxlm.config.cluster.words import Environment, Label, Path, Word
from maxlm.config.errors import Problem
from maxlm.config.section import PositiveInt, Section, as_tuple


class GpuNodes(Section):
    """Nodes with NVIDIA GPUs; one process has all GPUs of its node."""

    kind: Literal["gpu"] = "gpu"
    nodes: PositiveInt = 1
    per_node: PositiveInt = 8
    selector: dict[Word, Word] = Field(
        default_factory=dict,
        description="labels of the nodes, such as cloud.google.com/gke-accelerator: nvidia-h100-80gb",
    )
    shared_memory_gib: PositiveInt = Field(16, description="size of /dev/shm, which NCCL uses")

    @property
    def slices(self) -> int:
        """All nodes are one group."""
        return 1


class TpuNodes(Section):
    """Node pools of TPU slices on GKE; one process has all chips of its node."""

    kind: Literal["tpu"] = "tpu"
    type: Annotated[str, Field(pattern=r"^tpu[a-z0-9-]*$")] = Field(
        description="the label cloud.google.com/gke-tpu-accelerator, such as tpu-v5p-slice"
    )
    topology: Annotated[str, Field(pattern=r"^[1-9][0-9]*(x[1-9][0-9]*){1,2}$")] = Field(
        description="of a slice: the label cloud.google.com/gke-tpu-topology, such as 4x4x4"
    )
    chips_per_node: PositiveInt = 4
    slices: PositiveInt = Field(1, description="each in a node pool of its own")

    @property
    def chips(self) -> int:
        """Chips of a slice."""
        return math.prod(int(size) for size in self.topology.split("x"))

    @property
    def nodes(self) -> int:
        """Nodes of a slice."""
        return self.chips // self.chips_per_node


class Toleration(Section):
    """A taint of nodes that pods may run on all the same."""

    key: Word
    value: Word | None = Field(None, description="(null: any)")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Claim(Section):
    """A persistent volume that all pods see."""

    claim: Label
    mount_path: Annotated[str, Field(pattern=r"^/[!-~]*$")]


class KubernetesCluster(Section):
    """Nodes of a Kubernetes cluster, with one process for each."""

    kind: Literal["kubernetes"] = "kubernetes"
    name: Label = Field(description="of the job")
    namespace: Label = "default"
    image: Word = Field(description="container image with maxlm, with its tag or digest")
    api: Literal["jobset", "job"] = Field(
        "jobset", description="job needs no controller beside Kubernetes' own, but has one slice"
    )
    accelerator: Annotated[GpuNodes | TpuNodes, Field(discriminator="kind")]
    claims: Annotated[tuple[Claim, ...], BeforeValidator(as_tuple)] = ()
    environment: Environment = Field(default_factory=dict, description="of every process")
    tolerations: Annotated[tuple[Toleration, ...], BeforeValidator(as_tuple)] = ()
    service_account: Label | None = None
    priority_class: Word | None = None
    queue: Label | None = Field(None, description="local queue of Kueue")
    port: Annotated[int, Field(ge=1024, le=65535)] = Field(
        8476, description="on which the first process waits for the others"
    )
    stop_seconds: PositiveInt = Field(
        120, description="between SIGTERM and SIGKILL: to finish the step and save"
    )
    # A process ends itself, with its stacks, at the limits of runtime.timeouts: both are longer than
    # these, and for a machine on which not even that works.
    start_seconds: PositiveInt = Field(
        14400,
        description="until the first step begins, with the pause of a restart; then the pod is started again",
    )
    step_seconds: PositiveInt = Field(
        5400,
        description="in any phase without getting on, after which the pod is started again",
    )
    working_dir: Path = "/maxlm"
    retries: Retries = Retries()

    def problems(self) -> Iterator[Problem]:
        """Yield settings that do not fit together."""
        nodes = self.accelerator
        if isinstance(nodes, TpuNodes) and nodes.chips % nodes.chips_per_node:
            yield Problem(
                "cluster.accelerator.chips_per_node",
                f"cluster.accelerator.topology={nodes.topology} has {nodes.chips} chips, which do not divide "
                f"by cluster.accelerator.chips_per_node={nodes.chips_per_node}; use 1, 4 or 8, as the nodes have",
            )
        claims = [one.claim for one in self.claims]
        if len(set(claims)) < len(claims):
            yield Problem(
                "cluster.claims", f"cluster.claims={claims} has one twice; give each once"
            )
        if "shm" in claims:
            yield Problem(
                "cluster.claims",
                "cluster.claims: the volume of /dev/shm is called shm; give the claim another name",
            )
        if self.api == "job" and nodes.slices > 1:
            yield Problem(
                "cluster.api",
                f"cluster.api=job has one slice, cluster.accelerator.slices={nodes.slices}; use "
                "cluster.api=jobset",
            )
