"""Settings of who runs the pipeline's tasks, and of what one task may take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from maxlm.config.section import PositiveFloat, PositiveInt, Section


class EngineSection(Section):
    """What one task may take, whoever runs it."""

    memory_mb: Annotated[int, Field(ge=256, le=2**20)] = Field(
        2048, description="MiB that a task may take beyond what its libraries take when loaded"
    )
    document_seconds: PositiveFloat = Field(
        60.0,
        description="a task that is at one document for longer is retried alone, then without it",
    )


class LocalEngineConfig(EngineSection):
    """Processes on this machine."""

    kind: Literal["local"] = "local"
    workers: PositiveInt | None = Field(None, description="processes (null: one a CPU)")


class RayEngineConfig(EngineSection):
    """Tasks of a Ray cluster whose machines share `work_dir` (extra `ray`)."""

    kind: Literal["ray"] = "ray"
    address: str | None = Field(
        None,
        description="of the cluster, such as auto or 10.0.0.1:6379 (null: one on this machine)",
    )
    workers: PositiveInt | None = Field(None, description="tasks at a time (null: one a CPU)")
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        3, description="how often Ray starts a task again whose machine or process was lost"
    )
