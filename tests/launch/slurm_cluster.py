"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd on ports of their own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
SlurmdTimeout=15
SlurmctldTimeout=30
MessageTimeout=60
UnkillableStepTimeout=120
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Return why there can be no Slurm here, None if there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if lacking:
        return f"needs Slurm on this machine (apt install slurm-wlm munge): no {', '.join(lacking)}"
    return None if os.geteuid() == 0 else "slurmd runs as root"


class SlurmCluster:
    """Starts its processes, and ends them and no others."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, {}
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(socket.socket()) for _ in range(3)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            ports = [probe.getsockname()[1] for probe in probes]
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        text = CONFIG.format(host=socket.gethostname(), folder=folder, ports=ports)
        (folder / "slurm.conf").write_text(text)
        self.environment = {**os.environ, "PATH": SEARCH, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self):
        files = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munged.seed",
        }
        options = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self.start("munged", ["munged", "--foreground", "--force", *options])
        self.wait(lambda: (self.folder / "munge.socket").exists())
        self.start("slurmctld", ["slurmctld", "-D"])
        for node in ("n1", "n2"):
            self.start(node, ["slurmd", "-D", "-N", node])
        self.wait(lambda: self.nodes().count("idle") == 2)
        return self

    def start(self, name, command):
        """Start a daemon in the foreground, with its output in a file."""
        with (self.folder / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def __exit__(self, *_):
        subprocess.run(
            ["scancel", "--user=root", "--signal=KILL", "--full"],
            env=self.environment,
            check=False,
            capture_output=True,
        )
        for name in reversed(self.processes):
            self.processes[name].terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, *command, code=0):
        """Run a command and return what it printed."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def nodes(self):
        """Return the states of the nodes."""
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format", "%T"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    def job(self, identity):
        """Return what Slurm knows of a job."""
        text = self.run("scontrol", "show", "job", "--oneliner", str(identity))
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def start_now(self, identity):
        """Let a job that is back in the queue start without the two minutes that Slurm waits.

        Within the same second the nodes would refuse it: "Job credential revoked".
        """
        self.wait(lambda: self.job(identity)["JobState"] == "PENDING")
        self.run("scontrol", "update", f"JobId={identity}", "StartTime=now+4")

    @staticmethod
    def wait(condition, seconds=180):
        """Wait until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "not so in time"
            time.sleep(0.2)
