"""`maxlm prepare`: raw text to token shards, a tokenizer and baselines, for every source that says
what to read.

Done already: it says so. Killed in the middle: the next one starts afresh. Same texts and settings:
same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.dedupe import Deduplicated, deduplicate
from data_pipeline.manifest import MANIFEST_NAME, differences, read_manifest, write_manifest
from data_pipeline.reading import Document, Reading, read_documents
from data_pipeline.report import Report
from data_pipeline.split import split_documents
from data_pipeline.staging import SPLITS, disk_errors, publish, staging
from data_pipeline.train_tokenizer import train_tokenizer
from data_pipeline.write_shards import write_shards
from maxlm.config import RunConfig, UserError, load_run
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.data.baselines import measure_baselines
from maxlm.data.shards import TokenShards
from maxlm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Texts:
    """A source's documents, clean and split, and how reading went."""

    splits: Mapping[str, list[Document]]
    record: Mapping[str, Any]


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; return its exit code."""
    prepare(
        load_run(arguments.config, arguments.overrides).config,
        force=arguments.force,
        report=Report(),
    )
    return 0


def prepare(config: RunConfig, *, force: bool, report: Report) -> None:
    """Prepare every source that has `raw`, and train the tokenizer if there is none.

    Raises:
      UserError: nothing to prepare, texts that cannot be read, settings that changed since, a disk
        that refuses.
    """
    raws = {name: source.raw for name, source in config.data.sources.items() if source.raw}
    if not raws:
        raise UserError(
            "data.sources: none has `raw`, so there is nothing to prepare; say what to read with `raw`"
        )
    tokenizer_path = Path(config.data.tokenizer)
    retrain = not tokenizer_path.exists() or (force and _trained_mark(tokenizer_path).exists())
    manifests = {} if force or retrain else _finished(config, raws)
    pending = {name: raw for name, raw in raws.items() if name not in manifests}
    if not pending:
        _say_done(config, manifests, raws, report)
        _say_smaller(config, _check_size(config, Tokenizer(config.data.tokenizer)), report)
        return
    texts = _read_all(config, raws, manifests, report)
    model = _train_tokenizer(config, texts, report) if retrain else Tokenizer(tokenizer_path).proto
    with ExitStack() as stack:
        tokenizer = _check_size(
            config, stack.enter_context(_staged_tokenizer(tokenizer_path, model))
        )
        stages = {}
        for name, text in texts.items():
            folder = Path(config.data.sources[name].path)
            replace = force or (folder / MANIFEST_NAME).exists()
            stages[folder] = stack.enter_context(staging(folder, replace=replace))
            written = _write(name, stages[folder], text, tokenizer, report)
            manifests[name] = {
                "settings": _settings(pending[name], tokenizer),
                **text.record,
                **written,
            }
        # Without its manifest a folder counts as unfinished; so until the new ones are there, a
        # stop starts afresh.
        for folder in stages:
            (folder / MANIFEST_NAME).unlink(missing_ok=True)
        if retrain:
            _publish_tokenizer(tokenizer_path)
        for name in texts:
            folder = Path(config.data.sources[name].path)
            publish(stages[folder], folder)
            write_manifest(folder, manifests[name])
    report.summary({name: manifests[name] for name in raws})
    _say_smaller(config, tokenizer, report)


def _finished(config: RunConfig, raws: Mapping[str, RawTextConfig]) -> dict[str, dict[str, Any]]:
    """Return the manifests of the sources that are prepared.

    Raises:
      UserError: one of them was prepared with other settings, or its shards are damaged.
    """
    tokenizer = _check_size(config, Tokenizer(config.data.tokenizer))
    manifests = {}
    for name, raw in raws.items():
        folder = Path(config.data.sources[name].path)
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        changes = list(differences(manifest["settings"], _settings(raw, tokenizer)))
        if changes:
            raise UserError(
                f"{folder}: prepared with other settings: {'; '.join(changes)}; "
                f"use another data.sources.{name}.path, or replace it with: maxlm prepare RUN.yaml --force"
            )
        for split in SPLITS:
            TokenShards(folder / split)
        manifests[name] = manifest
    _check_compared(config, raws, manifests)
    return manifests


def _check_compared(
    config: RunConfig, raws: Mapping[str, RawTextConfig], manifests: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse sources of which neither was compared with the other: one may train on what the other
    validates with.

    Raises:
      UserError: names the two.
    """
    for one, two in itertools.combinations(manifests, 2):
        known = any(
            manifests[a]["inputs"] in manifests[b]["compared_with"]
            for a, b in ((one, two), (two, one))
        )
        if not known and "keep" not in (raws[one].duplicates, raws[two].duplicates):
            paths = " and ".join(config.data.sources[name].path for name in (one, two))
            raise UserError(
                f"{paths} were prepared by different runs, so copies between them were not dropped; "
                "prepare them together with: maxlm prepare RUN.yaml --force"
            )


def _say_done(
    config: RunConfig,
    manifests: Mapping[str, Mapping[str, Any]],
    raws: Mapping[str, RawTextConfig],
    report: Report,
) -> None:
    report.summary(manifests)
    for name, manifest in manifests.items():
        report.line(f"{config.data.sources[name].path}: already prepared")
        try:
            changed = read_documents(raws[name]).fingerprint != manifest["inputs"]
        except UserError:
            report.line("  its raw text is not there any more")
            continue
        if changed:
            report.line(
                "  its raw text has changed since; to prepare it again: maxlm prepare RUN.yaml --force"
            )


def _say_smaller(config: RunConfig, tokenizer: Tokenizer, report: Report) -> None:
    if tokenizer.vocab_size < config.model.vocab_size:
        report.line(
            f"{config.data.tokenizer}: {tokenizer.vocab_size} pieces, fewer than model.vocab_size="
            f"{config.model.vocab_size}; the rest is never used (to train it again, with more text or another size: "
            "maxlm prepare RUN.yaml --force)"
        )


def _settings(raw: RawTextConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"raw": raw.model_dump(mode="json"), "tokenizer": tokenizer.fingerprint}


def _read_all(
    config: RunConfig,
    raws: Mapping[str, RawTextConfig],
    done: Mapping[str, Mapping[str, Any]],
    report: Report,
) -> dict[str, Texts]:
    """Read the sources that are not `done`, drop copies of any source's documents, and split them.

    What is written already stays, so sources that are done come first; the others follow in the
    run's order.
    """
    pending = [name for name in raws if name not in done]
    compare = any(raws[name].duplicates != "keep" for name in pending)
    readings = {
        name: _read_again(name, config, done[name], report) for name in (done if compare else ())
    }
    readings |= {name: _read(name, raws[name], report) for name in pending}
    inputs = {name: reading.fingerprint for name, reading in readings.items()}
    characters = sum(
        len(document.text) for reading in readings.values() for document in reading.documents
    )
    with report.stage("find duplicates", characters) as advance:
        documents = {name: reading.documents for name, reading in readings.items()}
        left = deduplicate(documents, {name: raws[name].duplicates for name in readings}, advance)
    return {
        name: Texts(
            _split(name, raws[name], left[name]),
            {
                "inputs": inputs[name],
                "compared_with": sorted(inputs[other] for other in readings if other != name),
                "reading": _counts(readings[name], left[name]),
            },
        )
        for name in pending
    }


def _read(name: str, raw: RawTextConfig, report: Report) -> Reading:
    with report.stage(f"{name}: read"):
        try:
            return read_documents(raw)
        except UserError as error:
            raise UserError(f"data.sources.{name}.{error}") from None


def _read_again(
    name: str, config: RunConfig, manifest: Mapping[str, Any], report: Report
) -> Reading:
    """Read a source that is prepared, for comparison with others.

    Raises:
      UserError: its text is not what was prepared.
    """
    raw = config.data.sources[name].raw
    assert raw is not None
    reading, what = None, "is not there any more"
    with suppress(UserError):
        reading, what = _read(name, raw, report), "has changed since"
    if reading is not None and reading.fingerprint == manifest["inputs"]:
        return reading
    raise UserError(
        f"{config.data.sources[name].path}: prepared already, but its raw text {what}, so that copies of it in the "
        "run's other sources cannot be found; restore the text, prepare all sources again with: "
        "maxlm prepare RUN.yaml --force, or give the other sources raw.duplicates: keep"
    )


def _split(name: str, raw: RawTextConfig, left: Deduplicated) -> dict[str, list[Document]]:
    try:
        train, validation = split_documents(
            left.documents, raw.validation_fraction, raw.max_document_bytes
        )
    except UserError as error:
        raise UserError(f"data.sources.{name}.{error}") from None
    return {"train": train, "validation": validation}


def _counts(reading: Reading, left: Deduplicated) -> dict[str, Any]:
    return {
        "documents": len(reading.documents),
        "skipped": {
            reason: {"count": count, "example": reading.skipped.examples[reason]}
            for reason, count in sorted(reading.skipped.counts.items())
        },
        "exact_duplicates": left.exact_duplicates,
        "near_duplicates": left.near_duplicates,
    }


def _train_tokenizer(config: RunConfig, texts: Mapping[str, Texts], report: Report) -> bytes:
    with report.stage("train the tokenizer"):
        return train_tokenizer(
            {name: text.splits["train"] for name, text in texts.items()},
            {name: config.data.sources[name].weight for name in texts},
            config.model.vocab_size,
        )


@contextmanager
def _staged_tokenizer(path: Path, model: bytes) -> Iterator[Tokenizer]:
    """Yield the tokenizer, read from a file beside the one that it may replace; that file goes in
    the end.
    """
    staged = _staged(path)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.write_bytes(model)
            yield Tokenizer(staged)
        finally:
            staged.unlink(missing_ok=True)


def _publish_tokenizer(path: Path) -> None:
    _trained_mark(path).write_text(
        json.dumps({"trained_by": "maxlm prepare"}) + "\n", encoding="utf-8"
    )
    _staged(path).replace(path)


def _staged(path: Path) -> Path:
    return path.with_name(path.name + ".unfinished")


def _trained_mark(path: Path) -> Path:
    """Return the file that marks a tokenizer as ours to train again; one that was brought along has
    none.
    """
    return path.with_name(path.name + ".json")


def _check_size(config: RunConfig, tokenizer: Tokenizer) -> Tokenizer:
    size = config.model.vocab_size
    if tokenizer.vocab_size > size:
        raise UserError(
            f"data.tokenizer={config.data.tokenizer} has {tokenizer.vocab_size} pieces, more than model.vocab_size="
            f"{size}; use model.vocab_size={tokenizer.vocab_size}, another data.tokenizer, or, if "
            "`maxlm prepare` trained it, train it again with: maxlm prepare RUN.yaml --force"
        )
    return tokenizer


def _write(
    name: str, stage: Path, texts: Texts, tokenizer: Tokenizer, report: Report
) -> dict[str, Any]:
    """Write both splits into the stage and return what is worth knowing about them."""
    splits = {}
    for split, documents in texts.splits.items():
        characters = sum(len(document.text) for document in documents)
        with report.stage(f"{name}: tokenize {split}", characters) as advance:
            splits[split] = dataclasses.asdict(
                write_shards(stage / split, documents, tokenizer, advance)
            )
    with report.stage(f"{name}: measure baselines"):
        opened = {split: TokenShards(stage / split) for split in SPLITS}
        baselines = measure_baselines(opened["train"], opened["validation"], tokenizer)
    fingerprints = {split: shards.fingerprint for split, shards in opened.items()}
    return {"splits": splits, "fingerprints": fingerprints, "baselines": baselines._asdict()}
