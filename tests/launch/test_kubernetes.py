"""Manifests: valid by Kubernetes' published schemas, and by hand what schemas do not know."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from launch import kubernetes
from launch.manifests import make_manifests
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.cluster.file import load_cluster
from maxlm.config.cluster.kubernetes import KubernetesCluster
from maxlm.config.cluster.retries import LONGEST_PAUSE_SECONDS
from maxlm.config.schema import TimeoutsConfig
from maxlm.process.phases import BEFORE_TRAINING, PHASES
from maxlm.process.watchdog import DEAF_SECONDS

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="scripts/setup dev installs kubernetes-validate"
)

ROOT = Path(__file__).parents[2]
GPU = {"kind": "gpu", "nodes": 3, "per_node": 8, "selector": {"gpu": "h100"}}
TPU = {"kind": "tpu", "type": "tpu-v5p-slice", "topology": "4x4x4", "slices": 2}
COMMAND = ["maxlm", "train", "run.yaml", "run_dir=$(HOME)/x"]
# The first with podFailurePolicy as it is now, and the newest of the package.
VERSIONS = ("1.31", kubernetes_validate.latest_version())


def make(accelerator=GPU, api="jobset", **settings):
    section = {"name": "job", "image": "a/b:c", "accelerator": accelerator, "api": api, **settings}
    cluster = KubernetesCluster.model_validate(section)
    assert not list(cluster.problems())
    return make_manifests(cluster, COMMAND)


def job_of(manifests):
    """Return the Job that there is, or that a JobSet's controller makes."""
    last = manifests[-1]
    if last["kind"] == "Job":
        return last
    (replicated,) = last["spec"]["replicatedJobs"]
    metadata = {"name": f"{last['metadata']['name']}-{replicated['name']}-0"}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, **replicated["template"]}


def container_of(manifests):
    (container,) = job_of(manifests)["spec"]["template"]["spec"]["containers"]
    return container


FULL = {
    "claims": ({"claim": "runs", "mount_path": "/maxlm/runs"},),
    "tolerations": ({"key": "gpu", "effect": "NoSchedule"}, {"key": "a", "value": "b"}),
    "service_account": "trainer",
    "priority_class": "high",
    "queue": "research",
    "environment": {"NCCL_DEBUG": "WARN"},
}
CASES = [
    *itertools.product([GPU, {**TPU, "slices": 1}], ["job", "jobset"], [{}, FULL]),
    (TPU, "jobset", FULL),
]


@pytest.mark.parametrize(("accelerator", "api", "settings"), CASES)
def test_manifests_are_valid_by_the_published_schemas(accelerator, api, settings):
    manifests = make(accelerator, api, **settings)
    plain = [one for one in manifests if one["kind"] != "JobSet"]
    for manifest, version in itertools.product([*plain, job_of(manifests)], VERSIONS):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_would_find_a_mistake():
    job = job_of(make())
    job["spec"]["podFailurePolicy"]["rules"][0]["action"] = ["FailJob"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_job_set_has_the_fields_of_its_definition():
    """Field names of the CRD jobset.x-k8s.io/v1alpha2, whose schema no package ships."""
    (job_set,) = make(TPU)
    assert job_set["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    spec = job_set["spec"]
    assert spec.keys() <= {"network", "failurePolicy", "replicatedJobs", "successPolicy"}
    assert spec["network"].keys() <= {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"}
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule.keys() <= {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"}
    assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    (replicated,) = spec["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}


def decide(rules, code=None, condition=None):
    """Return the action of the first rule that matches, as Kubernetes' documentation has it."""
    for rule in rules:
        codes = rule.get("onExitCodes")
        if codes and code is not None and (code in codes["values"]) == (codes["operator"] == "In"):
            return rule["action"]
        if any(one["type"] == condition for one in rule.get("onPodConditions", ())):
            return rule["action"]
    return "Count"


@pytest.mark.parametrize("api", ["job", "jobset"])
def test_restarts_follow_the_exit_codes(api):
    manifests = make(api=api, retries={"most": 4})
    spec = job_of(manifests)["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    assert decide(rules, Exit.MISTAKE) == "FailJob"
    assert decide(rules, Exit.STOPPED) == "Ignore"
    assert decide(rules, Exit.FAILED) == decide(rules, 137) == "Count"
    assert decide(rules, condition="DisruptionTarget") == "Ignore"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # what podFailurePolicy needs
    if api == "job":
        assert spec["backoffLimit"] == 4 * 3
    else:
        policy = manifests[0]["spec"]["failurePolicy"]
        assert (spec["backoffLimit"], policy["maxRestarts"]) == (0, 4)
        assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_tpu_slices_have_their_topology_and_a_node_pool_each():
    manifests = make(TPU)
    job = job_of(manifests)["spec"]
    assert (job["completions"], job["parallelism"]) == (16, 16)
    assert manifests[0]["spec"]["replicatedJobs"][0]["replicas"] == 2
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    assert container_of(manifests)["resources"]["limits"] == {"google.com/tpu": "4"}
    annotations = manifests[0]["metadata"]["annotations"]
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    assert annotations == {key: "cloud.google.com/gke-nodepool"}


def test_gpu_nodes_have_their_gpus_and_shared_memory():
    container = container_of(make(GPU))
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_pods_are_found_before_they_are_ready():
    service, job = make(api="job")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


def environment_of(container):
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


@pytest.mark.parametrize(
    ("accelerator", "api", "fields", "process"),
    [
        (GPU, "job", {"MAXLM_NODE": "2"}, 2),
        (GPU, "jobset", {"MAXLM_NODE": "1", "MAXLM_SLICE": "0", "MAXLM_RESTARTS": "0"}, 1),
        (TPU, "jobset", {"MAXLM_NODE": "3", "MAXLM_SLICE": "1", "MAXLM_RESTARTS": "0"}, 19),
    ],
)
def test_each_pod_knows_its_place(accelerator, api, fields, process):
    container = container_of(make(accelerator, api))
    from_fields = {one["name"] for one in container["env"] if "valueFrom" in one}
    assert from_fields == fields.keys()
    script = [
        *container["command"],
        sys.executable,
        "-c",
        "import os; print(os.environ['MAXLM_PROCESS_ID'])",
    ]
    environment = {**os.environ, **environment_of(container), **fields}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == process
    count = int(environment["MAXLM_NUM_PROCESSES"])
    assert count == (32 if accelerator is TPU else 3)
    first = "job-slice-0-0.job:8476" if api == "jobset" else "job-0.job:8476"
    assert environment["MAXLM_COORDINATOR"] == first


def test_pauses_grow_with_restarts(tmp_path):
    container = container_of(make(retries={"most": 3, "pause_seconds": 10.0}))
    sleep = tmp_path / "sleep"
    sleep.write_text('#!/bin/sh\necho "slept $1"\n')
    sleep.chmod(0o755)
    shown = []
    for restarts in range(4):
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "MAXLM_NODE": "0",
            "MAXLM_RESTARTS": str(restarts),
        }
        script = [*container["command"], "echo", "started"]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
        shown.append(done.stdout)
    slept = ["", "slept 10\n", "slept 20\n", "slept 40\n"]
    assert shown == [f"{one}started\n" for one in slept]


def test_probes_watch_the_steps(tmp_path):
    container = container_of(make(start_seconds=600, step_seconds=900))
    startup, liveness = container["startupProbe"], container["livenessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 600
    heartbeat = environment_of(container)["MAXLM_HEARTBEAT"]
    assert startup["exec"]["command"] == ["test", "-e", heartbeat]
    mine = tmp_path / "heartbeat"
    command = [word.replace(heartbeat, str(mine)) for word in liveness["exec"]["command"]]
    for age, code in ((0, 0), (800, 0), (1000, 1)):
        mine.touch()
        stamp = mine.stat().st_mtime - age
        os.utime(mine, (stamp, stamp))
        assert subprocess.run(command, check=False).returncode == code


def test_probes_leave_a_run_the_time_that_its_phases_have():
    cluster = KubernetesCluster(name="job", image="a", accelerator=GPU)
    limits = TimeoutsConfig().by_phase()
    assert limits.keys() == set(PHASES)
    # Files from the slow tier, and the state from the files: two phases.
    start = sum(limits[phase] for phase in BEFORE_TRAINING) + limits["restore"]
    assert cluster.start_seconds >= LONGEST_PAUSE_SECONDS + start
    # Who is late says why, and asks the others for their stacks.
    assert cluster.step_seconds >= max(limits.values()) + 5 * DEAF_SECONDS


def test_words_that_kubernetes_would_replace_are_kept():
    assert container_of(make())["args"][-1] == "run_dir=$$(HOME)/x"
    variables = environment_of(container_of(make(environment={"A": "$(HOME) $$(HOME) $1"})))
    assert variables["A"] == "$$(HOME) $$$$(HOME) $$1"


@pytest.mark.parametrize("word", ["y", "N", "1e3", "0o7", "-1e-3", "1_0", ".5", "+1"])
def test_words_stay_texts_for_kubectl(word, capsys):
    """Its YAML has more booleans and numbers than PyYAML's."""
    path = ROOT / "configs/cluster/kubernetes_h100.yaml"
    assert kubernetes.main(["apply", str(path), "--dry-run", "--", "run", word]) == Exit.DONE
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert f'- "{word}"' in lines


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"accelerator": {**TPU, "topology": "3x1"}}, "has 3 chips, which do not divide"),
        ({"accelerator": TPU, "api": "job"}, "cluster.api=job has one slice"),
        (
            {"accelerator": GPU, "claims": [{"claim": "a", "mount_path": "/b"}] * 2},
            "cluster.claims=['a', 'a'] has one twice",
        ),
        (
            {"accelerator": GPU, "claims": [{"claim": "shm", "mount_path": "/b"}]},
            "the volume of /dev/shm is called shm",
        ),
    ],
)
def test_what_does_not_fit_is_told(settings, expected, tmp_path, capsys):
    section = {"kind": "kubernetes", "name": "job", "image": "a", **settings}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"cluster": section}))
    assert kubernetes.main(["apply", str(path), "--dry-run", "--", "true"]) == Exit.MISTAKE
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kubernetes_h100", "gke_v5p"])
def test_what_is_printed_is_what_is_applied(name, tmp_path, capsys, monkeypatch):
    path = ROOT / f"configs/cluster/{name}.yaml"
    arguments = ["apply", str(path), "--", *COMMAND]
    assert kubernetes.main(["apply", str(path), "--dry-run", "--", *COMMAND]) == Exit.DONE
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    assert printed == make_manifests(load_cluster(path, KubernetesCluster), COMMAND)
    monkeypatch.setenv("PATH", "/nowhere")
    assert kubernetes.main(arguments) == Exit.MISTAKE
    assert "there is no kubectl on PATH" in capsys.readouterr().err
    program = tmp_path / "kubectl"
    program.write_text(f"#!/bin/sh\nexec /bin/cat > {tmp_path}/applied\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kubernetes.main(arguments) == Exit.DONE
    assert list(yaml.safe_load_all((tmp_path / "applied").read_text())) == printed
    program.write_text("#!/bin/sh\necho 'no such cluster' >&2\nexit 1\n")
    assert kubernetes.main(arguments) == Exit.MISTAKE
    assert "no such cluster" in capsys.readouterr().err


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_images_are_built_from_the_lock_of_their_platform(platform):
    text = (ROOT / f"launch/docker/{platform}.Dockerfile").read_text()
    lock = f"requirements/{platform}.lock"
    assert f"--require-hashes --requirement {lock}" in text
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY")]
    assert all((ROOT / name).exists() for names in copied for name in names)
    # Everything that the project says is installed is copied.
    assert {"maxlm", "data_pipeline", "launch", "pyproject.toml", lock} <= {
        n for names in copied for n in names
    }
    assert "USER maxlm" in text


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_locks_of_clusters_have_what_their_object_store_needs(platform):
    """The extra `store`: without it `checkpoint.store.url=gs://...` is refused in an image."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split("[<>=]", one)[0] for one in project["optional-dependencies"]["store"]]
    assert "gcsfs" in names
    lock = (ROOT / f"requirements/{platform}.lock").read_text()
    assert [name for name in names if not re.search(f"^{name}==", lock, re.MULTILINE)] == []
    assert "://" not in lock
