#!/usr/bin/env python3
"""Run a job on Kubernetes: GPU nodes, or node pools of TPU slices on GKE:
`python launch/kubernetes.py apply CLUSTER.yaml -- maxlm train RUN.yaml`.

`apply` gives `kubectl` a JobSet (or a plain indexed Job with its service); `--dry-run` prints the
manifests instead. Pods that stop by a signal are replaced and go on, the user's mistake ends the job,
and a failure starts all pods again, after a pause (docs/launch.md).
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

import yaml

from launch.command_line import split_command
from launch.manifests import make_manifests
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.cluster.file import load_cluster
from maxlm.config.cluster.kubernetes import KubernetesCluster
from maxlm.config.errors import UserError


class Readable(yaml.SafeDumper):
    """Writes a script as lines, and quotes what other readers of YAML take for no text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Return a text as a node."""
        # To kubectl y is a boolean, and 1e3 a number.
        odd = len(data) == 1 or data[:1] in set("0123456789.+-")
        style = "|" if "\n" in data else '"' if odd else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


Readable.add_representer(str, Readable.represent_str)

APPLY = ["kubectl", "apply", "--filename", "-"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch/kubernetes.py",
        description="Run a job on Kubernetes.",
        usage="launch/kubernetes.py apply CLUSTER.yaml [--dry-run] -- COMMAND",
    )
    parser.add_argument("action", choices=["apply"])
    parser.add_argument("cluster", metavar="CLUSTER.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print it and do nothing")
    own, command = split_command(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(own)
    if not command:
        parser.error("apply needs a command after --")
    try:
        cluster = load_cluster(options.cluster, KubernetesCluster)
        manifests = make_manifests(cluster, command)
        text = yaml.dump_all(manifests, Dumper=Readable, sort_keys=False)
        if options.dry_run:
            print(f"{text}\n# {shlex.join(APPLY)}")
        else:
            apply(cluster, text)
        return Exit.DONE
    except UserError as error:
        sys.stderr.write(f"launch/kubernetes.py: {error}\n")
        return Exit.MISTAKE


def apply(cluster: KubernetesCluster, text: str) -> None:
    """Give manifests to kubectl, and say how to look at the job.

    Raises:
      UserError: there is no kubectl, or it refuses them.
    """
    if shutil.which(APPLY[0]) is None:
        raise UserError("there is no kubectl on PATH; install it, or take what --dry-run prints")
    done = subprocess.run(APPLY, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{shlex.join(APPLY)}: {done.stderr.strip()}")
    print(done.stdout, end="")
    key = "jobset.sigs.k8s.io/jobset-name" if cluster.api == "jobset" else "job-name"
    where = ["--namespace", cluster.namespace, "--selector", f"{key}={cluster.name}"]
    print(shlex.join(["kubectl", "get", "pods", *where]))
    print(
        shlex.join(["kubectl", "logs", *where, "--prefix", "--follow", "--max-log-requests=1000"])
    )


if __name__ == "__main__":
    sys.exit(main())
