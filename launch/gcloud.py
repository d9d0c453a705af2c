"""The command lines of gcloud for a queued resource of TPU slices.

Flags are those of the gcloud reference of 2026: `gcloud compute tpus queued-resources` create, ssh,
scp, describe and delete, which are generally available.
"""

from __future__ import annotations

from collections.abc import Iterator

from maxlm.config.cluster.tpu import TpuCluster

GROUP = ["gcloud", "compute", "tpus", "queued-resources"]
EVERYWHERE = ["--node=all", "--worker=all"]


def create(cluster: TpuCluster) -> list[str]:
    """Ask for the slices; returns at once, and the request waits in a queue."""
    nodes = (
        [f"--node-count={cluster.slices}", f"--node-prefix={cluster.name}"]
        if cluster.slices > 1
        else [f"--node-id={cluster.name}"]
    )
    options = {
        "valid-until-duration": cluster.valid_until_duration,
        "network": cluster.network,
        "subnetwork": cluster.subnetwork,
        "service-account": cluster.service_account,
    }
    return [
        *GROUP,
        "create",
        cluster.name,
        *_place(cluster),
        f"--accelerator-type={cluster.accelerator_type}",
        f"--runtime-version={cluster.runtime_version}",
        *nodes,
        *([] if cluster.capacity == "on_demand" else [f"--{cluster.capacity}"]),
        *(f"--{name}={value}" for name, value in options.items() if value),
        *(["--internal-ips"] if cluster.internal_ips else []),
        "--async",
        "--quiet",
    ]


def describe(cluster: TpuCluster) -> list[str]:
    """Ask for the state of the request: one word, such as ACTIVE."""
    return [*GROUP, "describe", cluster.name, *_place(cluster), "--format=value(state.state)"]


def delete(cluster: TpuCluster) -> list[str]:
    """Give the slices back, with what stands on their disks."""
    return [*GROUP, "delete", cluster.name, *_place(cluster), "--force", "--quiet"]


def ssh(cluster: TpuCluster, command: str, *, everywhere: bool = True) -> list[str]:
    """Run a command on all hosts, or on the first one."""
    where = EVERYWHERE if everywhere else ["--node=0", "--worker=0"]
    return [
        *GROUP,
        "ssh",
        cluster.name,
        *_place(cluster),
        *where,
        *_way(cluster),
        "--quiet",
        f"--command={command}",
    ]


def copy(cluster: TpuCluster, source: str, target: str) -> list[str]:
    """Copy a file to the home directory of all hosts."""
    return [
        *GROUP,
        "scp",
        source,
        f"{cluster.name}:{target}",
        *_place(cluster),
        *EVERYWHERE,
        *_way(cluster),
        "--quiet",
    ]


def _place(cluster: TpuCluster) -> Iterator[str]:
    yield f"--zone={cluster.zone}"
    if cluster.project:
        yield f"--project={cluster.project}"


def _way(cluster: TpuCluster) -> list[str]:
    if cluster.tunnel_through_iap:
        return ["--tunnel-through-iap"]
    return ["--internal-ip"] if cluster.internal_ips else []
