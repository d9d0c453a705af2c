"""One run of `maxlm prepare` that has something to do: read, clean, tokenize, publish."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import maxlm
from data_pipeline.libraries import versions
from data_pipeline.manifest import MANIFEST_NAME, write_manifest
from data_pipeline.prepared import Manifests, check_size, describe_inputs, settings_of
from data_pipeline.readers.listing import InputFile, Skipped, list_inputs
from data_pipeline.stages.funnel import Funnel
from data_pipeline.stages.mapping import files_of
from data_pipeline.stages.plan import compares, plan_stages
from data_pipeline.stages.shards import DocumentShard, Workshop, documents_of, shards_known
from data_pipeline.stages.tokens import (
    SourceDocuments,
    TooFewDocumentsError,
    hold_out,
    leave_only_shards,
    sample_of,
    tokenize,
    totals,
    write_shards,
)
from data_pipeline.staging import DROPPED_NAME, INPUTS_NAME, REPORT_NAME, publish
from data_pipeline.tokenizers import train_tokenizer
from data_pipeline.tokenizers.sample import sample_bytes, texts_of
from data_pipeline.tokenizers.trained import publish_tokenizer
from data_pipeline.tokens.order import SPLITS
from maxlm.config.errors import UserError
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.config.schema import Preparable
from maxlm.data.baselines import measure_baselines
from maxlm.data.shards import TokenShards
from maxlm.data.tokenizers import Tokenizer, open_tokenizer

MEASURED_TOKENS = 20_000_000  # of validation, at most: baselines are measured in memory
NOT_IN_THE_MANIFEST = ("samples", "length_bits", "dropped_length_bits", "values")  # of a step


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared, and where.

    Attributes:
      raws: all sources that have `raw`.
      manifests: those of them that are prepared.
      stages: a folder for each of the others, where its files are before they are published.
    """

    config: Preparable
    raws: Mapping[str, RawTextConfig]
    manifests: Manifests
    stages: Mapping[str, Path]
    workshop: Workshop

    def carry_out(self, *, retrain: bool) -> Manifests:
        """Do all of it, and return the manifests of all sources.

        Raises:
          UserError: texts that cannot be read, or too few of them.
        """
        funnel, sources = self.clean()
        files = (
            self._train(sources)
            if retrain
            else dict(open_tokenizer(self.config.data.tokenizer).files)
        )
        tokenizer = check_size(self.config, self._kept_tokenizer(files))
        written = {name: self._write(source, tokenizer, funnel) for name, source in sources.items()}
        self._publish(written, files if retrain else {})
        return {name: (self.manifests | written)[name] for name in self.raws}

    # --- documents --------------------------------------------------------------------------------

    def clean(self) -> tuple[Funnel, dict[str, SourceDocuments]]:
        """Return what became of the documents, and those of each source that the steps leave.

        Raises:
          UserError: texts that cannot be read, or too few of them.
        """
        funnel, shards = self._clean()
        return funnel, {name: self._hold_out(name, shards, funnel) for name in self.stages}

    def _clean(self) -> tuple[Funnel, list[DocumentShard]]:
        """Return what became of the documents, and those that the steps leave.

        Sources that are prepared come first, and lose nothing.
        """
        steps = self.config.data.pipeline.steps
        names = [*(self.manifests if compares(steps, self.stages) else ()), *self.stages]
        skipped = {name: Skipped() for name in names}
        inputs = {name: self._inputs(name, skipped[name]) for name in names}
        raws = {name: self.raws[name] for name in names}
        stages = plan_stages(steps, inputs, raws, self.workshop, published=self.manifests)
        shards_known(stages[:1], self.workshop)
        read = Funnel(stages[:1], skipped)
        for name in names:
            self._check_read(name, read)
        shards = documents_of(stages, self.workshop)
        return Funnel(stages, skipped), shards

    def _inputs(self, name: str, skipped: Skipped) -> list[InputFile]:
        try:
            return list_inputs(self.raws[name], skipped)
        except UserError as error:
            if name in self.manifests:
                raise self._cannot_compare(name, "is not there any more") from None
            raise UserError(f"data.sources.{name}.{error}") from None

    def _check_read(self, name: str, read: Funnel) -> None:
        """Refuse a source without documents, and one that is prepared but has other texts now."""
        manifest = self.manifests.get(name)
        if manifest is not None:
            if describe_inputs(read.inputs(name)) != manifest["inputs"]:
                raise self._cannot_compare(name, "has changed since")
            return
        reading, raw = read.reading(name), self.raws[name]
        if not reading["documents"]:
            standard = "the standard library's folder"
            where = standard if raw.kind == "python_stdlib" else ", ".join(raw.paths)
            skipped = "; ".join(
                f"skipped {about['count']:,}: {reason}, such as {about['example']}"
                for reason, about in reading["skipped"].items()
            )
            raise UserError(
                f"data.sources.{name}.raw: no readable text in {where} ({skipped or 'nothing was skipped'}); "
                "give other raw.paths"
            )

    def _cannot_compare(self, name: str, what: str) -> UserError:
        return UserError(
            f"{self.config.data.sources[name].path}: prepared already, but its raw text {what}, so that copies of it "
            "in the run's other sources cannot be found; restore the text, prepare all sources again with: "
            "maxlm prepare RUN.yaml --force, or name the other sources in `protect` of the steps that drop copies"
        )

    def _hold_out(
        self, name: str, shards: Sequence[DocumentShard], funnel: Funnel
    ) -> SourceDocuments:
        own = [shard for shard in shards if shard.source == name]
        try:
            return hold_out(name, self.raws[name], own, self.workshop)
        except TooFewDocumentsError as error:
            losses = funnel.losses(name)
            raise UserError(f"{error}\n  {losses}" if losses else str(error)) from None

    # --- tokens -----------------------------------------------------------------------------------

    def _train(self, sources: Mapping[str, SourceDocuments]) -> dict[str, bytes]:
        size = self.config.trained_pieces
        assert size is not None, "refused before"
        weights = {name: self.config.data.sources[name].weight for name in sources}
        kind = self.config.data.pipeline.tokenizer
        samples = {
            name: texts_of(
                sample_of(source, sample_bytes(name, weights, kind.sample_mb), self.workshop)
            )
            for name, source in sources.items()
        }
        with self.workshop.report.stage("train the tokenizer"):
            return train_tokenizer(kind, samples, weights, size)

    def _kept_tokenizer(self, files: Mapping[str, bytes]) -> Tokenizer:
        """Return the tokenizer of some files, which are written where all tasks find them, and where
        nobody changes them.
        """
        folder = self.workshop.folder / "tokenizer"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return open_tokenizer(folder)

    def _write(
        self, source: SourceDocuments, tokenizer: Tokenizer, funnel: Funnel
    ) -> dict[str, Any]:
        """Write a source's shards and all about them into its stage; return its manifest."""
        name, stage = source.name, self.stages[source.name]
        folder = Path(self.config.data.sources[name].path)
        records = tokenize(source, tokenizer, self.workshop)
        opened = {}
        for split in SPLITS:
            index = write_shards(
                name, split, records, tokenizer, folder=stage / split, workshop=self.workshop
            )
            leave_only_shards(stage / split, index)
            opened[split] = TokenShards(stage / split)
        with self.workshop.report.stage(f"{name}: measure baselines"):
            baselines = measure_baselines(
                opened["train"], opened["validation"], tokenizer, max_tokens=MEASURED_TOKENS
            )
        funnel.write_inputs(name, stage / INPUTS_NAME)
        funnel.write_report(name, stage / REPORT_NAME)
        funnel.write_dropped(name, stage / DROPPED_NAME)
        return {
            "settings": settings_of(self.config, name, tokenizer),
            "inputs": describe_inputs(funnel.inputs(name)),
            "compared_with": self._compared_with(name, funnel),
            "licence": source.raw.licence,
            "versions": {"maxlm": maxlm.__version__, **versions()},
            "tokenizer": os.path.relpath(self.config.data.tokenizer, folder),
            "step_files": self._step_files(),
            "reading": funnel.reading(name),
            "steps": [
                {key: value for key, value in step.items() if key not in NOT_IN_THE_MANIFEST}
                for step in funnel.steps(name)
            ],
            "splits": totals(records),
            "fingerprints": {split: shards.fingerprint for split, shards in opened.items()},
            "baselines": baselines._asdict(),
        }

    def _step_files(self) -> dict[str, str]:
        """Return the SHA-256 of each file beside the documents that steps read."""
        steps = self.config.data.pipeline.steps
        return {str(path): sha256 for step in steps for path, sha256 in files_of(step)}

    def _compared_with(self, name: str, funnel: Funnel) -> list[str]:
        others = [other for other in funnel.sources if other != name]
        return sorted(describe_inputs(funnel.inputs(other))["fingerprint"] for other in others)

    def _publish(self, written: Manifests, trained: Mapping[str, bytes]) -> None:
        folders = {name: Path(self.config.data.sources[name].path) for name in written}
        # Without its manifest a folder counts as unfinished; so until the new ones are there, a
        # stop goes on from here.
        for folder in folders.values():
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
        if trained:
            data = self.config.data
            publish_tokenizer(Path(data.tokenizer), trained, data.pipeline.tokenizer)
        for name, folder in folders.items():
            publish(self.stages[name], folder)
            write_manifest(folder, written[name])
