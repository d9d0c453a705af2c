"""Settings of TPU slices: what `launch/tpu.py` asks Google Cloud for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from maxlm.config.cluster.retries import Retries
from maxlm.config.cluster.words import Environment, Label, Path, Word
from maxlm.config.errors import Problem
from maxlm.config.section import PositiveFloat, PositiveInt, Section


class TpuCluster(Section):
    """One or more TPU slices, as a queued resource of Cloud TPU, with one process for each host."""

    kind: Literal["tpu"] = "tpu"
    name: Label = Field(description="of the queued resource; its slices are NAME or NAME-0, ...")
    zone: Word
    project: Word | None = Field(None, description="(null: gcloud's own setting)")
    accelerator_type: Annotated[str, Field(pattern=r"^[a-z0-9]+-[0-9]+$")] = Field(
        description="of one slice, such as v5p-128"
    )
    runtime_version: Word = Field(description="the hosts' image, such as v2-alpha-tpuv5")
    slices: PositiveInt = 1
    capacity: Literal["on_demand", "spot", "reserved", "guaranteed"] = "on_demand"
    valid_until_duration: Annotated[str, Field(pattern=r"^[0-9]+[smhd]$")] | None = Field(
        None, description="how long to wait in the queue, such as 6h (null: for ever)"
    )
    network: Word | None = None
    subnetwork: Word | None = None
    service_account: Word | None = None
    internal_ips: bool = Field(False, description="hosts without external addresses")
    tunnel_through_iap: bool = Field(False, description="ssh through Identity-Aware Proxy")
    code_dir: Path = Field(".", description="folder here that is copied to the hosts")
    remote_dir: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]+$")] = Field(
        "maxlm", description="folder of the code on the hosts, in the home directory"
    )
    setup: Path = Field(
        "scripts/setup tpu", description="what installs the locked dependencies there"
    )
    environment: Environment = Field(default_factory=dict, description="of every process")
    # Google's documentation of Spot VMs: Compute Engine sends an ACPI G2 Soft Off signal, on which
    # the host's system sends SIGTERM to all processes, and an ACPI G3 Mechanical Off up to 30 seconds
    # later. Other machines mostly have longer.
    stop_seconds: PositiveInt = Field(
        30,
        description="what Google leaves between SIGTERM and the end of a host that it takes away",
    )
    poll_seconds: PositiveFloat = Field(60.0, description="between looks at the slices")
    retries: Retries = Retries()

    def problems(self) -> Iterator[Problem]:
        """Yield settings that exclude each other."""
        if self.tunnel_through_iap and self.internal_ips is False:
            yield Problem(
                "cluster.tunnel_through_iap",
                "cluster.tunnel_through_iap is for hosts without external addresses; set "
                "cluster.internal_ips: true as well, or remove it",
            )
