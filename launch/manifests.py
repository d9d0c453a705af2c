"""Kubernetes manifests of a job: a JobSet, or an indexed Job with its service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.cluster.kubernetes import GpuNodes, KubernetesCluster, TpuNodes

HEARTBEAT = "/tmp/maxlm-heartbeat"
PROBE_SECONDS = 10
GROUP = "slice"
"""Name of the replicated job of a JobSet."""

# A JobSet knows no pauses, so they are here; a shell that is a container's first process ends by
# SIGTERM only if it says so. The words behind the script are the command.
_START = """trap 'exit 143' TERM
restarts=${{MAXLM_RESTARTS:-0}}
for pause in {pauses}; do
  restarts=$((restarts - 1))
  if [ $restarts -eq 0 ]; then sleep $pause & wait $!; fi
done
export MAXLM_PROCESS_ID=$((${{MAXLM_SLICE:-0}} * {nodes} + MAXLM_NODE))
exec "$@"
"""


def make_manifests(cluster: KubernetesCluster, command: Sequence[str]) -> list[dict[str, Any]]:
    """Return what `kubectl apply` takes.

    Args:
      cluster: where the job runs.
      command: of each process.
    """
    if cluster.api == "jobset":
        return [_job_set(cluster, command)]
    return [_service(cluster), _job(cluster, command)]


def _job_set(cluster: KubernetesCluster, command: Sequence[str]) -> dict[str, Any]:
    metadata = _metadata(cluster)
    if isinstance(cluster.accelerator, TpuNodes):
        # A slice is a node pool, and a job has all of it.
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    mistake = {
        "name": "mistake",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    job = {
        "name": GROUP,
        "replicas": cluster.accelerator.slices,
        # One pod that fails takes all others with it: everything starts again, together.
        "template": {"spec": _job_spec(cluster, command, backoff_limit=0)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # The controller makes the headless service.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": cluster.retries.most, "rules": [mistake]},
            "replicatedJobs": [job],
        },
    }


def _job(cluster: KubernetesCluster, command: Sequence[str]) -> dict[str, Any]:
    # Each pod counts, and the others of a failed one fail in its wake.
    limit = cluster.retries.most * cluster.accelerator.nodes
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(cluster),
        "spec": _job_spec(cluster, command, backoff_limit=limit),
    }


def _service(cluster: KubernetesCluster) -> dict[str, Any]:
    """Return the headless service by which pods find each other, before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": cluster.name, "namespace": cluster.namespace},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": cluster.name},
        },
    }


def _metadata(cluster: KubernetesCluster) -> dict[str, Any]:
    labels = {"kueue.x-k8s.io/queue-name": cluster.queue} if cluster.queue else {}
    return {
        "name": cluster.name,
        "namespace": cluster.namespace,
        **({"labels": labels} if labels else {}),
    }


def _job_spec(
    cluster: KubernetesCluster, command: Sequence[str], *, backoff_limit: int
) -> dict[str, Any]:
    def on_exit(action: str, code: Exit) -> dict[str, Any]:
        codes = {"containerName": "maxlm", "operator": "In", "values": [int(code)]}
        return {"action": action, "onExitCodes": codes}

    rules = [
        on_exit("FailJob", Exit.MISTAKE),
        on_exit("Ignore", Exit.STOPPED),  # a new pod goes on, and it is no failure
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]
    return {
        "completionMode": "Indexed",
        "completions": cluster.accelerator.nodes,
        "parallelism": cluster.accelerator.nodes,
        "backoffLimit": backoff_limit,
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": _pod(cluster, command)},
    }


def _pod(cluster: KubernetesCluster, command: Sequence[str]) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [
        {"name": claim.claim, "persistentVolumeClaim": {"claimName": claim.claim}}
        for claim in cluster.claims
    ]
    if isinstance(cluster.accelerator, GpuNodes):
        size = f"{cluster.accelerator.shared_memory_gib}Gi"
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": cluster.stop_seconds,
        "nodeSelector": _selector(cluster),
        "containers": [_container(cluster, command)],
        "volumes": volumes,
        "tolerations": [
            {"operator": "Equal" if one.value else "Exists", **one.model_dump(exclude_none=True)}
            for one in cluster.tolerations
        ],
        "serviceAccountName": cluster.service_account,
        "priorityClassName": cluster.priority_class,
        "subdomain": cluster.name if cluster.api == "job" else None,
    }
    return {name: value for name, value in pod.items() if value not in (None, [], {})}


def _selector(cluster: KubernetesCluster) -> dict[str, str]:
    nodes = cluster.accelerator
    if isinstance(nodes, GpuNodes):
        return nodes.selector
    return {
        "cloud.google.com/gke-tpu-accelerator": nodes.type,
        "cloud.google.com/gke-tpu-topology": nodes.topology,
    }


def _container(cluster: KubernetesCluster, command: Sequence[str]) -> dict[str, Any]:
    nodes = cluster.accelerator
    mounts = [{"name": one.claim, "mountPath": one.mount_path} for one in cluster.claims]
    if isinstance(nodes, GpuNodes):
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
        resource = {"nvidia.com/gpu": str(nodes.per_node)}
    else:
        resource = {"google.com/tpu": str(nodes.chips_per_node)}
    pauses = " ".join(f"{pause:g}" for pause in cluster.retries.pauses)
    script = _START.format(pauses=pauses, nodes=nodes.nodes)
    # The file is touched after each step (maxlm/runtime).
    alive = f'test -n "$(find {HEARTBEAT} -mmin -{-(-cluster.step_seconds // 60)})"'
    return {
        "name": "maxlm",
        "image": cluster.image,
        "command": ["/bin/sh", "-c", script, "maxlm"],
        "args": [_literal(word) for word in command],
        "workingDir": cluster.working_dir,
        "env": _variables(cluster),
        "ports": [{"name": "coordinator", "containerPort": cluster.port}],
        "resources": {"limits": resource, "requests": dict(resource)},
        "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": False},
        "startupProbe": {
            "exec": {"command": ["test", "-e", HEARTBEAT]},
            "periodSeconds": PROBE_SECONDS,
            "failureThreshold": -(-cluster.start_seconds // PROBE_SECONDS),
        },
        "livenessProbe": {
            "exec": {"command": ["/bin/sh", "-c", alive]},
            "periodSeconds": PROBE_SECONDS,
            "timeoutSeconds": PROBE_SECONDS,
            "failureThreshold": 3,
        },
    }


def _literal(text: str) -> str:
    """Return a text of which Kubernetes makes `text`: to it $(NAME) is a variable of the pod and $$
    one $.
    """
    return text.replace("$", "$$")


def _variables(cluster: KubernetesCluster) -> list[dict[str, Any]]:
    def field(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    nodes, name = cluster.accelerator, cluster.name
    first = f"{name}-{GROUP}-0-0.{name}" if cluster.api == "jobset" else f"{name}-0.{name}"
    plain = {
        "MAXLM_NOTICE_SECONDS": str(cluster.stop_seconds),
        **{key: _literal(value) for key, value in cluster.environment.items()},
        "MAXLM_COORDINATOR": f"{first}:{cluster.port}",
        "MAXLM_NUM_PROCESSES": str(nodes.nodes * nodes.slices),
        "MAXLM_HEARTBEAT": HEARTBEAT,
    }
    variables = [{"name": key, "value": value} for key, value in plain.items()]
    variables.append(
        field("MAXLM_NODE", "metadata.annotations['batch.kubernetes.io/job-completion-index']")
    )
    if cluster.api == "jobset":
        variables.append(field("MAXLM_SLICE", "metadata.labels['jobset.sigs.k8s.io/job-index']"))
        path = "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"
        variables.append(field("MAXLM_RESTARTS", path))
    return variables
