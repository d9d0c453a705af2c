"""The stages of a run's pipeline: reading, then its steps in the order of its YAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from data_pipeline.readers.listing import InputFile
from data_pipeline.stages.deciding import Deciding
from data_pipeline.stages.mapping import MappingStage
from data_pipeline.stages.reading import Reading
from data_pipeline.stages.shards import Stage, Workshop
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.config.pipeline.step import GlobalStepSection, StepSection


def plan_stages(
    steps: Sequence[StepSection],
    inputs: Mapping[str, Sequence[InputFile]],
    raws: Mapping[str, RawTextConfig],
    workshop: Workshop,
    *,
    published: Iterable[str],
) -> list[Stage]:
    """Return the stages.

    Args:
      steps: the sections of the steps.
      inputs: the files of each source, in the order in which sources come.
      raws: how they are read.
      workshop: where it is done.
      published: sources whose documents are in use already, so that none may be dropped.
    """
    stages: list[Stage] = [Reading(inputs, raws, workshop)]
    for number, step in _numbered(steps):
        name = f"{number:02d}-{step.kind}"
        if isinstance(step, GlobalStepSection):
            protected = frozenset(published) | frozenset(step.protect)
            stages.append(Deciding(name, step, workshop.folder, protected=protected))
        else:
            stages.append(MappingStage(name, step, workshop.folder))
    return stages


def compares(steps: Sequence[StepSection], sources: Iterable[str]) -> bool:
    """Tell whether what is left of these sources depends on others."""
    return any(
        isinstance(step, GlobalStepSection)
        and step.COMPARES
        and not set(sources) <= set(step.protect)
        for _, step in _numbered(steps)
    )


def _numbered(steps: Sequence[StepSection]) -> Iterator[tuple[int, StepSection]]:
    """Yield the steps, with those that belong to one behind it, under its number."""
    for number, step in enumerate(steps, start=1):
        yield from ((number, part) for part in (step, *step.behind()))
