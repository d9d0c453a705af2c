"""Settings of the step that lets a trained model write new documents from those that there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from maxlm.config.errors import Problem
from maxlm.config.pipeline.checkpoint import CheckpointSection
from maxlm.config.pipeline.step import StepSection
from maxlm.config.section import Count, Name, Section, as_tuple

if TYPE_CHECKING:
    from maxlm.config.schema import DataConfig

# Phrasings of our own, after what the papers ask for: "Rephrasing the Web" (arXiv:2401.16380) for
# the first and third, back-translation (arXiv:1511.06709) for the second.
PROMPTS: dict[str, tuple[str, ...]] = {
    "paraphrase": ("Text:\n{text}\n\nThe same in other words, in clear and correct English:\n",),
    "back_translation": (
        "English:\n{text}\n\nThe same in French:\n",
        "French:\n{text}\n\nThe same in English:\n",
    ),
    "question_answer": ("Text:\n{text}\n\nQuestions about the text, each with its answer:\n",),
}
"""The prompts of templates that need none."""


class TemplateConfig(Section):
    """A way to make a new document from one that is there."""

    name: Name = Field(description="of the template, which new documents carry")
    prompts: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(max_length=4)] = Field(
        (),
        description="with {text} in each: the document in the first, the answer to the one before in those that "
        "follow (none: those of paraphrase, back_translation or question_answer)",
    )
    with_source: bool = Field(
        False, description="the document's own text stands in front of the answer, in the new one"
    )

    @property
    def resolved(self) -> tuple[str, ...]:
        """Return its prompts."""
        return self.prompts or PROMPTS.get(self.name, ())


class RewriteConfig(StepSection):
    """Let a trained model write documents from those that there are, and keep these or not.

    A new document has the id of the one that it is made of with the template's name behind it, and
    `origin` (the first document's id) and `rewritten_by` (the template) in its metadata. It is held
    out if its origin is.
    """

    kind: Literal["rewrite"] = "rewrite"
    checkpoint: CheckpointSection
    templates: Annotated[
        tuple[TemplateConfig, ...], BeforeValidator(as_tuple), Field(min_length=1)
    ] = Field(description="what is made of each document")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the documents that are rewritten, by a hash of their ids"
    )
    keep_source: bool = Field(True, description="the documents that are there stay")
    max_source_tokens: Annotated[int, Field(ge=1, le=2**20)] = Field(
        512, description="tokens of a document that a prompt holds, from its start"
    )
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] = Field(
        512, description="tokens of an answer, at most"
    )
    batch: Annotated[int, Field(ge=1, le=4096)] = Field(
        16, description="prompts that are answered at a time"
    )
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(
        0.8, description="0: always the likeliest token"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.95, description="choose among the likeliest tokens of this total probability"
    )
    seed: Count = Field(0, description="of the random choices, with the document's id")

    @property
    def trained_model(self) -> CheckpointSection | None:
        """Return the checkpoint."""
        return self.checkpoint

    def problems(self, path: str, data: DataConfig) -> Iterator[Problem]:
        """Yield a model that is not there, and templates that are none."""
        del data
        yield from self.checkpoint.problems(f"{path}.checkpoint")
        names = [template.name for template in self.templates]
        for number, template in enumerate(self.templates):
            where = f"{path}.templates.{number}"
            if template.name in names[:number]:
                yield Problem(f"{where}.name", f"{where}.name={template.name!r} is there twice")
            if not template.resolved:
                known = ", ".join(PROMPTS)
                text = f"{where}.prompts: give some, or name the template one of {known}"
                yield Problem(f"{where}.prompts", text)
            for place, prompt in enumerate(template.prompts):
                if prompt.count("{text}") != 1:
                    text = f"{where}.prompts.{place}: it needs {{text}} once, where the text goes"
                    yield Problem(f"{where}.prompts.{place}", text)

    def files(self) -> Iterator[str]:
        """Yield what says which model it is."""
        yield from self.checkpoint.files()
