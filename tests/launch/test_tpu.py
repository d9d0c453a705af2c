"""TPU slices: the command lines, and a whole life of a job on hosts that are folders here."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from launch import gcloud, tpu, tpu_job
from launch.tpu_job import Hosts, Move, next_move, read_report
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.cluster.tpu import TpuCluster

SECTION = {
    "kind": "tpu",
    "name": "job",
    "zone": "us-east5-a",
    "accelerator_type": "v5p-16",
    "runtime_version": "v2-alpha-tpuv5",
}

# Flags of the reference of gcloud, generally available, read in November 2026.
FLAGS = {
    "create": {
        *("zone", "project", "accelerator-type", "runtime-version", "node-id", "node-count"),
        *("node-prefix", "async", "spot", "reserved", "guaranteed", "valid-until-duration"),
        *("network", "subnetwork", "service-account", "internal-ips", "quiet"),
    },
    "describe": {"zone", "project", "format"},
    "delete": {"zone", "project", "force", "quiet"},
    "ssh": {
        "zone",
        "project",
        "node",
        "worker",
        "command",
        "internal-ip",
        "tunnel-through-iap",
        "quiet",
    },
    "scp": {"zone", "project", "node", "worker", "internal-ip", "tunnel-through-iap", "quiet"},
}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, ["--node-id=job"]),
        ({"slices": 4}, ["--node-count=4", "--node-prefix=job"]),
        (
            {"capacity": "spot", "valid_until_duration": "6h"},
            ["--spot", "--valid-until-duration=6h"],
        ),
        ({"capacity": "reserved", "project": "p"}, ["--reserved", "--project=p"]),
        (
            {"capacity": "guaranteed", "service_account": "a@b"},
            ["--guaranteed", "--service-account=a@b"],
        ),
        (
            {"internal_ips": True, "tunnel_through_iap": True, "network": "n", "subnetwork": "s"},
            ["--internal-ips", "--network=n", "--subnetwork=s"],
        ),
    ],
)
def test_command_lines_have_the_flags_of_gcloud(settings, wanted):
    cluster = TpuCluster(**{**SECTION, **settings})
    lines = [
        gcloud.create(cluster),
        gcloud.describe(cluster),
        gcloud.delete(cluster),
        gcloud.ssh(cluster, "true"),
        gcloud.copy(cluster, "a", "b"),
    ]
    for line in lines:
        assert line[:4] == ["gcloud", "compute", "tpus", "queued-resources"]
        given = {word[2:].split("=")[0] for word in line[5:] if word.startswith("--")}
        assert given <= FLAGS[line[4]], line
        assert "--zone=us-east5-a" in line
    assert set(wanted) <= set(lines[0])
    assert ("--tunnel-through-iap" in lines[3]) == cluster.tunnel_through_iap


@pytest.mark.parametrize(
    ("state", "hosts", "move"),
    [
        ("WAITING_FOR_RESOURCES", None, Move.WAIT),
        ("UNKNOWN", None, Move.WAIT),
        ("SUSPENDING", None, Move.WAIT),
        ("SUSPENDED", None, Move.RECREATE),
        ("FAILED", None, Move.ASK_LATER),
        ("MISSING", None, Move.ASK_LATER),
        ("ACTIVE", Hosts(2, (), 0, True), Move.WAIT),
        ("ACTIVE", Hosts(1, (1,), 0, True), Move.WAIT),
        ("ACTIVE", Hosts(1, (), 0, False), Move.WAIT),
        ("ACTIVE", Hosts(1, (), 1, True), Move.RESTART),
        ("ACTIVE", Hosts(0, (75, 75), 0, True), Move.RESUME),
        ("ACTIVE", Hosts(0, (1, 134), 0, True), Move.RETRY),
        ("ACTIVE", Hosts(0, (1, 2), 0, True), Move.GIVE_UP),
        ("ACTIVE", Hosts(0, (0, 0), 0, True), Move.DONE),
    ],
)
def test_what_comes_next(state, hosts, move):
    assert next_move(state, hosts) is move


def test_reports_of_hosts_are_read():
    text = "SSH: one\nmaxlm runs\nmaxlm ended 75\nmaxlm gone\nmaxlm ended 0\n"
    assert read_report(text, reached=True) == Hosts(1, (75, 0), 1, True)


# A gcloud whose two hosts are folders: ssh runs the command in each as its home directory.
GCLOUD = """#!{python}
import json, pathlib, shutil, subprocess, sys
folder = pathlib.Path({folder!r})
refused = folder / "refused"  # the exit codes of the next calls of a verb
verb, options = sys.argv[4], [word for word in sys.argv[5:] if word.startswith("--")]
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
codes = json.loads(refused.read_text()) if refused.exists() else {{}}
code = codes.get(sys.argv[4], []) and codes[sys.argv[4]].pop(0)
refused.write_text(json.dumps(codes))
if code:
    sys.exit(code)
hosts = [folder / "host0", folder / "host1"]
states = folder / "states"
if verb == "describe" and not hosts[0].exists() and (folder / "calls.jsonl").read_text().count('"delete"'):
    sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource 'job' was not found.")
elif verb == "describe":
    first, *rest = states.read_text().split()
    states.write_text(" ".join(rest or [first]))
    print(first)
elif verb == "create":
    for host in hosts:
        host.mkdir()
elif verb == "delete":
    for host in hosts:
        shutil.rmtree(host)
elif verb == "scp":
    for host in hosts:
        shutil.copy(sys.argv[5], host / sys.argv[6].split(":")[1])
elif verb == "ssh":
    command = next(one for one in options if one.startswith("--command=")).removeprefix("--command=")
    chosen = hosts if "--worker=all" in options else hosts[:1]
    codes = [
        subprocess.run(["bash", "-c", command], cwd=host, env={{"HOME": str(host), "PATH": "/usr/bin:/bin"}}).returncode
        for host in chosen
    ]
    sys.exit(max(codes))
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder with a gcloud on PATH, `code/` and cluster.yaml; what still runs in the end is killed."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gcloud"
    program.write_text(GCLOUD.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "requirements").mkdir()
    (tmp_path / "code" / "requirements" / "tpu.lock").write_text("jax==1\n")
    (tmp_path / "code" / "runs").mkdir()
    (tmp_path / "code" / "runs" / "large").write_text("x")
    section = {
        **SECTION,
        "code_dir": "code",
        "setup": "cp requirements/tpu.lock installed",
        "poll_seconds": 0.1,
        "retries": {"most": 2, "pause_seconds": 0.01},
    }
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"cluster": section}))
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES ACTIVE")
    yield tmp_path
    for pid in tmp_path.glob("host*/.maxlm/pid"):
        subprocess.run(["kill", "-KILL", "--", f"-{pid.read_text().strip()}"], check=False)


def calls(folder):
    lines = [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    words = {"tar xzf": "unpack", "setsid": "start", "echo maxlm": "report", "kill -TERM": "stop"}
    named = [
        next((name for key, name in words.items() if key in line[-1]), line[3]) for line in lines
    ]
    # Looks at the state and the hosts are as many as time allows.
    return [name for name in named if name not in ("describe", "report")]


def run(*command, action="run"):
    return tpu.main([action, "cluster.yaml", *(["--", *command] if command else [])])


def counting(*codes):
    """Return a command that ends with the next code each time it is started on a host."""
    listed = " ".join(map(str, codes))
    script = (
        f"n=$(cat ~/n 2>/dev/null || echo 0); echo $((n + 1)) > ~/n; c=({listed}); exit ${{c[n]}}"
    )
    return ["bash", "-c", script]


def test_a_job_is_copied_installed_started_and_done(cloud, capfd):
    assert run("bash", "-c", 'echo "hello $0"; echo "$MAXLM_LAUNCHER"', "two words") == Exit.DONE
    assert calls(cloud) == ["create", "scp", "unpack", "start"]
    for host in ("host0", "host1"):
        assert (cloud / host / "maxlm" / "installed").read_text() == "jax==1\n"
        assert not (cloud / host / "maxlm" / "runs").exists()
        log = (cloud / host / ".maxlm" / "log").read_text()
        assert log == "hello two words\npython launch/tpu.py run cluster.yaml --\n"
    assert "WAITING_FOR_RESOURCES" in capfd.readouterr().out


def test_stops_and_failures_start_again_and_mistakes_do_not(cloud, capfd):
    assert run(*counting(75, 1, 2)) == Exit.MISTAKE
    assert calls(cloud) == ["create", *["scp", "unpack", "start"] * 3]
    shown = capfd.readouterr().out
    assert "the run was stopped and has saved" in shown
    assert "failure 1 in a row of 2 that may be" in shown
    assert "its words: python launch/tpu.py tail cluster.yaml" in shown


def test_failures_in_a_row_are_given_up(cloud):
    assert run(*counting(1, 1, 1)) == Exit.FAILED
    assert calls(cloud).count("start") == 3


def settings(**changes):
    """Change settings in cluster.yaml."""
    section = yaml.safe_load(Path("cluster.yaml").read_text())["cluster"]
    Path("cluster.yaml").write_text(yaml.safe_dump({"cluster": {**section, **changes}}))


def failing(first, last):
    """Return a shell command that fails on a host from its `first` time to its `last`, from 1."""
    count = "n=$(($(cat ~/tries 2>/dev/null || echo 0) + 1)); echo $n > ~/tries"
    return f"{count}; test $n -lt {first} -o $n -gt {last}"


@pytest.mark.parametrize(
    ("states", "setup", "codes"),
    [
        # The wait in the queue is no run.
        ("WAITING_FOR_RESOURCES " * 6, failing(1, 5), [0]),
        # A run that lasts before it fails begins a new row, and what comes then counts in it.
        ("", failing(2, 6), [1, 0]),
    ],
)
def test_installations_that_fail_are_given_up(cloud, states, setup, codes):
    (cloud / "states").write_text(f"{states}ACTIVE")
    retries = {"most": 2, "pause_seconds": 0.01, "reset_after_seconds": 0.5}
    settings(setup=setup, retries=retries)
    assert run("bash", "-c", f"sleep 1; {counting(*codes)[-1]}") == Exit.FAILED
    assert calls(cloud).count("unpack") == 3


def test_slices_that_were_taken_away_are_asked_for_again(cloud):
    (cloud / "states").write_text("ACTIVE ACTIVE SUSPENDING SUSPENDED PROVISIONING ACTIVE")
    # Sleeps on the slices that are taken, and ends on those that come for them.
    script = f"if mkdir {cloud}/once-$$ 2>/dev/null && test $(ls -d {cloud}/once-* | wc -l) -le 2; then sleep 60; fi"
    assert run("bash", "-c", script) == Exit.DONE
    assert calls(cloud) == [
        "create",
        "scp",
        "unpack",
        "start",
        "delete",
        "create",
        "scp",
        "unpack",
        "start",
    ]


def test_requests_that_fail_are_given_up_after_pauses(cloud, capfd):
    (cloud / "states").write_text("FAILED")
    assert run("true") == Exit.FAILED
    assert calls(cloud) == ["create", *["delete", "create"] * 2]
    shown = capfd.readouterr().out
    assert "queued-resources describe job --zone=us-east5-a` says why the request failed" in shown
    assert "failure 2 in a row of 2 that may be: 0.02 s" in shown


@pytest.mark.parametrize(
    ("refused", "code", "made"),
    [
        # Of the two calls by which lost slices are asked for again.
        ({"delete": [1]}, Exit.DONE, ["delete", "delete", "create"]),
        ({"create": [0, 1, 1]}, Exit.DONE, ["delete", "create", "create", "create"]),
        ({"create": [0, 1, 1, 1]}, Exit.FAILED, ["delete", "create", "create", "create"]),
        ({"delete": [1, 1, 1]}, Exit.FAILED, ["delete", "delete", "delete"]),
        ({"create": [1]}, Exit.MISTAKE, []),  # what was never granted may be the user's mistake
    ],
)
def test_what_gcloud_refuses_on_the_way_is_tried_again(cloud, refused, code, made):
    looks = len(refused.get("delete", ())) + 1
    (cloud / "states").write_text("SUSPENDED " * looks + "ACTIVE")
    (cloud / "refused").write_text(json.dumps(refused))
    assert run("true") == code
    begun = ["scp", "unpack", "start"] if code == Exit.DONE else []
    assert calls(cloud) == ["create", *made, *begun]


@pytest.mark.parametrize(
    ("action", "command"), [("run", ["maxlm", "train", "a b.yaml"]), ("tail", [])]
)
def test_an_interruption_is_told_in_a_line(cloud, monkeypatch, capsys, action, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tpu.subprocess, "run", interrupted)
    assert run(*command, action=action) == 128 + signal.SIGINT
    told = capsys.readouterr().err
    assert told.startswith("launch/tpu.py: interrupted")
    going_on = "python launch/tpu.py watch cluster.yaml -- maxlm train 'a b.yaml'"
    assert (going_on in told) == (action == "run")


def describes(folder):
    """Return how often the state was asked for."""
    return (folder / "calls.jsonl").read_text().count('"describe"')


def test_a_queued_resource_that_somebody_deletes_is_no_longer_waited_for(cloud, capsys):
    """Another terminal's `delete`, while the processes run."""
    script = f"test $HOME = {cloud}/host0 && sleep 0.5 && {cloud}/bin/gcloud compute tpus queued-resources delete"
    assert run("bash", "-c", script) == Exit.MISTAKE
    told = capsys.readouterr().err
    assert "there is no queued resource job in us-east5-a: somebody has deleted it" in told
    assert "to ask for it anew: python launch/tpu.py run cluster.yaml -- bash -c" in told.lower()
    assert "NOT_FOUND: Resource 'job' was not found." in told
    assert calls(cloud).count("create") == 1


def test_one_that_is_not_known_at_first_is_waited_for(cloud):
    (cloud / "refused").write_text(json.dumps({"describe": [1] * 6}))
    assert run("true") == Exit.DONE
    assert describes(cloud) > 6


@pytest.mark.parametrize(("most", "code"), [(3600.0, Exit.DONE), (0.2, Exit.FAILED)])
def test_a_gcloud_that_fails_is_borne_with_for_so_long(cloud, capsys, monkeypatch, most, code):
    monkeypatch.setattr(tpu, "UNANSWERED_SECONDS", most)
    (cloud / "states").write_text("ACTIVE")
    (cloud / "refused").write_text(json.dumps({"describe": [0, *[1] * 8]}))
    assert run("bash", "-c", "sleep 2") == code
    told = capsys.readouterr().err
    assert ("gcloud has not said the state of job for" in told) == (code == Exit.FAILED)
    assert ("to go on: python launch/tpu.py watch cluster.yaml -- " in told) == (
        code == Exit.FAILED
    )


def test_a_host_that_was_restarted_starts_all_again(cloud):
    script = (
        "test -e ~/again && exit 0; touch ~/again; test $HOME = %s/host0 && sleep 60; kill -KILL 0"
    )
    assert run("bash", "-c", script % cloud) == Exit.DONE
    assert calls(cloud).count("start") == 2


def test_stop_lets_processes_save(cloud):
    (cloud / "states").write_text("ACTIVE")
    cluster = TpuCluster(**yaml.safe_load((cloud / "cluster.yaml").read_text())["cluster"])
    program = "trap 'echo saved; exit 75' TERM; echo ready > ~/ready; while :; do sleep 0.05; done"
    subprocess.run(gcloud.create(cluster), check=True)
    job = tpu.Job(cluster, ["bash", "-c", program], "cluster.yaml", dry_run=False)
    assert job.begin()
    wait_for(lambda: all((cloud / host / "ready").exists() for host in ("host0", "host1")))
    assert run(action="stop") == Exit.DONE
    wait_for(lambda: job.hosts() == Hosts(0, (75, 75), 0, True))
    assert (cloud / "host1" / ".maxlm" / "log").read_text().splitlines()[-1] == "saved"


def wait_for(condition, tries=100):
    for _ in range(tries):
        if condition():
            return
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError("not so in time")


def test_dry_run_prints_every_line_and_calls_nothing(cloud, capsys):
    assert tpu.main(["run", "cluster.yaml", "--dry-run", "--", "maxlm", "train", "a b.yaml"]) == 0
    assert not (cloud / "calls.jsonl").exists()
    lines = [
        shlex.split(line[2:]) for line in capsys.readouterr().out.splitlines() if line[0] == "$"
    ]
    verbs = [line[4] for line in lines]
    assert verbs == ["create", "describe", "scp", "ssh", "ssh", "ssh", "delete"]
    assert all(
        {word[2:].split("=")[0] for word in line[5:] if word[:2] == "--"} <= FLAGS[line[4]]
        for line in lines
    )


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, "30"),
        ({"stop_seconds": 90}, "90"),
        ({"environment": {"MAXLM_NOTICE_SECONDS": "45"}}, "45"),
    ],
)
def test_the_run_knows_how_long_google_waits_for_it(cloud, capsys, settings, wanted):
    Path("cluster.yaml").write_text(yaml.safe_dump({"cluster": {**SECTION, **settings}}))
    assert tpu.main(["run", "cluster.yaml", "--dry-run", "--", "maxlm", "train", "run.yaml"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"MAXLM_NOTICE_SECONDS=(\d+)", shown) == [wanted]


def test_only_what_git_knows_is_copied(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    for name in ("kept.py", "new file.py", "ignored.bin"):
        (code / name).write_text(name)
    (code / os.fsdecode(b"latin-\xe9")).write_text("a name that is no UTF-8")
    (code / ".gitignore").write_text("*.bin\n")
    for command in (["init", "-q"], ["add", "kept.py"]):
        subprocess.run(["git", "-C", str(code), *command], check=True)
    tpu.pack(code, tmp_path / "archive.tar.gz")
    with tarfile.open(tmp_path / "archive.tar.gz") as tar:
        assert sorted(tar.getnames()) == [
            ".gitignore",
            "kept.py",
            os.fsdecode(b"latin-\xe9"),
            "new file.py",
        ]


def test_mistakes_are_told(cloud, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert run("true") == Exit.MISTAKE
    assert "there is no gcloud on PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run()
    Path("cluster.yaml").write_text(yaml.safe_dump({"cluster": {**SECTION, "slice": 2}}))
    assert run("true") == Exit.MISTAKE
    assert (
        "cluster.slice is not a known key; did you mean cluster.slices?" in capsys.readouterr().err
    )
    assert tpu_job.ARCHIVE.endswith(".tar.gz")
