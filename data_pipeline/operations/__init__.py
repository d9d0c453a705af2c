"""What tasks do: read files, apply a step, work out keys, tokenize, write shards; a file each."""

from __future__ import annotations

import time
from collections.abc import Callable

from data_pipeline.engine.isolation.watch import Watch, peak_bytes
from data_pipeline.engine.task import Task
from data_pipeline.operations.apply import apply_step, apply_verdict, forget_step
from data_pipeline.operations.decide import over_part, over_shard
from data_pipeline.operations.product import Product
from data_pipeline.operations.read import read_files
from data_pipeline.operations.tokenize import count_places, sample_texts, tokenize
from data_pipeline.operations.write_shard import write_shard

OPERATIONS: dict[str, Callable[[Task, Watch], Product]] = {
    "read": read_files,
    "step": apply_step,
    "verdict": apply_verdict,
    "over_shard": over_shard,
    "over_part": over_part,
    "count_places": count_places,
    "sample_texts": sample_texts,
    "tokenize": tokenize,
    "write_shard": write_shard,
}


def perform(task: Task, watch: Watch) -> None:
    """Do a task and write its record; its outputs are there in full or not at all."""
    began, processor = time.perf_counter(), time.process_time()
    if "step" not in task.settings:
        forget_step()
    product = OPERATIONS[task.operation](task, watch)
    watch.at_none()
    cost = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - processor,
        "peak_bytes": float(peak_bytes()),
    }
    task.finish(product.outputs, figures=product.figures, cost=cost)
