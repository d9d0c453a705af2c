"""Tasks on a Ray cluster: Ray schedules them, and starts them again where a machine or a process was
lost. Each runs in a process of its own under the same limits as on one machine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.engine.engine import Done
from data_pipeline.engine.isolation.limits import Limits, Outcome
from data_pipeline.engine.isolation.process import TaskProcess
from data_pipeline.engine.task import Task
from data_pipeline.libraries import load_library
from maxlm.config.errors import RunFailedError, UserError
from maxlm.config.pipeline.engine import RayEngineConfig

# Ray neither reports home nor looks for how this process was started.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
AHEAD = 2  # tasks that wait at the cluster for each that runs

_PROCESS: list[TaskProcess] = []  # this Ray worker's, kept from task to task


def run_task(task: str, limits: str, folder: str) -> str:
    """Work on a task in this Ray worker's own process, and return how it ended, as JSON.

    Args:
      task: as JSON.
      limits: likewise.
      folder: where relative paths of the task begin: that of the process that leads. A cluster's
        workers are in the folder where the cluster was started.
    """
    if not _PROCESS:
        if Path(folder).is_dir():  # it need not be there for absolute paths
            os.chdir(folder)
        _PROCESS.append(TaskProcess())
    _PROCESS[0].start(Task.from_json(task), Limits.from_json(json.loads(limits)))
    return json.dumps(_PROCESS[0].outcome()._asdict())


class ClusterEngine:
    """Runs tasks on the cluster of `config.address`, or on one that it starts on this machine."""

    def __init__(self, config: RayEngineConfig, limits: Limits):
        self._config, self._limits = config, limits
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._ray = load_library("ray", extra="ray", user="data.pipeline.engine.kind=ray")
        self._started = False

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Run tasks; those that fail run again when all others are done, one after the other, with
        all processors of a machine to themselves.
        """
        self._start()
        function = self._ray.remote(run_task)
        remote = function.options(num_cpus=1, max_retries=self._config.retries)
        running: dict[Any, Task] = {}
        failed: list[tuple[Task, Limits]] = []
        waiting = list(reversed(tasks))
        while waiting or running:
            while waiting and len(running) < self._most():
                task = waiting.pop()
                running[self._submit(remote, task, self._limits)] = task
            for reference in self._ray.wait(list(running))[0]:
                task, outcome = running.pop(reference), self._get(reference)
                if outcome.end == "done":
                    done(task)
                else:
                    failed.append((task, self._limits.after(outcome, task)))
        alone = function.options(
            num_cpus=max(self._cpus_of_machines()), max_retries=self._config.retries
        )
        for task, limits in failed:
            outcome = self._get(self._submit(alone, task, limits))
            while outcome.end != "done":
                limits = limits.after(outcome, task)
                outcome = self._get(self._submit(alone, task, limits))
            done(task)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._started:
            self._ray.shutdown()
            self._started = False

    def _start(self) -> None:
        if self._started:
            return
        path = os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))
        more: dict[str, Any] = {}
        if self._config.address is None:
            more = {"num_cpus": self._config.workers, "include_dashboard": False}
        try:
            self._ray.init(
                address=self._config.address or "local",
                runtime_env={"env_vars": {**ENVIRONMENT, "PYTHONPATH": path}},
                log_to_driver=False,
                logging_level="ERROR",
                **more,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"data.pipeline.engine.address={self._config.address}: {error}; start the cluster, name another, or "
                "leave it out for one on this machine"
            ) from None
        self._started = True

    def _submit(self, remote: Any, task: Task, limits: Limits) -> Any:
        return remote.remote(task.to_json(), json.dumps(limits.to_json()), str(Path.cwd()))

    def _get(self, reference: Any) -> Outcome:
        try:
            return Outcome(**json.loads(self._ray.get(reference)))
        except self._ray.exceptions.RayError as error:
            raise RunFailedError(
                f"a task was lost by Ray more than {self._config.retries} times: {error}; "
                "run it again: what is finished is kept"
            ) from None

    def _most(self) -> int:
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        return self._config.workers or AHEAD * max(cpus, 1)

    def _cpus_of_machines(self) -> list[float]:
        return [node["Resources"].get("CPU", 1.0) for node in self._ray.nodes() if node["Alive"]]
