"""What is prepared already: whether it is what the run asks for, and what to say of it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.manifest import MANIFEST_NAME, differences, read_manifest
from data_pipeline.readers.listing import InputFile, Skipped, list_inputs
from data_pipeline.readers.names import readable
from data_pipeline.readers.streams import Input
from data_pipeline.report import Report
from data_pipeline.stages.plan import compares
from data_pipeline.tokens.order import SPLITS
from maxlm.config.errors import UserError
from maxlm.config.pipeline.raw import RawTextConfig
from maxlm.config.schema import Preparable, RunConfig
from maxlm.data.dataset import build_dataset
from maxlm.data.shards import TokenShards
from maxlm.data.tokenizers import Tokenizer, open_tokenizer

Manifests = dict[str, dict[str, Any]]


def finished(config: Preparable, raws: Mapping[str, RawTextConfig]) -> Manifests:
    """Return the manifests of the sources that are prepared.

    Raises:
      UserError: one of them was prepared with other settings, or its shards are damaged.
    """
    tokenizer = check_size(config, open_tokenizer(config.data.tokenizer))
    manifests = {}
    for name in raws:
        folder = Path(config.data.sources[name].path)
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        changes = list(differences(manifest["settings"], settings_of(config, name, tokenizer)))
        if changes:
            raise UserError(
                f"{folder}: prepared with other settings: {'; '.join(changes)}; "
                f"use another data.sources.{name}.path, or replace it with: maxlm prepare RUN.yaml --force"
            )
        for split in SPLITS:
            TokenShards(folder / split)
        manifests[name] = manifest
    _check_compared(config, manifests)
    return manifests


def settings_of(config: Preparable, name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the settings that a source's shards depend on."""
    raw = config.data.sources[name].raw
    assert raw is not None
    steps = config.data.pipeline.steps
    return {
        "raw": raw.model_dump(mode="json"),
        "steps": {f"{n}-{step.kind}": step.model_dump(mode="json") for n, step in enumerate(steps)},
        "tokenizer": tokenizer.fingerprint,
    }


def fingerprint_of(inputs: Iterable[Mapping[str, Any]]) -> str:
    """Return a hash of the names and contents of the files that a source was read from."""
    lines = (f"{one['name']}\0{one['sha256']}" for one in inputs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_size(config: Preparable, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer if the model's vocabulary holds it, where there is a model.

    Raises:
      UserError: it does not.
    """
    size = config.most_pieces
    if size is not None and tokenizer.vocab_size > size:
        raise UserError(
            f"data.tokenizer={config.data.tokenizer} has {tokenizer.vocab_size} pieces, more than model.vocab_size="
            f"{size}; use model.vocab_size={tokenizer.vocab_size}, another data.tokenizer, or, if "
            "`maxlm prepare` trained it, train it again with: maxlm prepare RUN.yaml --force"
        )
    return tokenizer


def say_done(config: Preparable, manifests: Manifests, report: Report) -> None:
    """Say that all sources are prepared, and which of their texts have changed since."""
    report.summary(manifests)
    for name, manifest in manifests.items():
        source = config.data.sources[name]
        assert source.raw is not None
        report.line(f"{source.path}: already prepared")
        try:
            files = list_inputs(source.raw, Skipped())
        except UserError:
            files = []
        if not files:
            report.line("  its raw text is not there any more")
        elif _have_changed(files, manifest, Path(source.path)):
            report.line(
                "  its raw text has changed since; to prepare it again: maxlm prepare RUN.yaml --force"
            )


def say_smaller(config: Preparable, tokenizer: Tokenizer, report: Report) -> None:
    """Say that the tokenizer has fewer pieces than the model has embeddings, if so."""
    size = config.most_pieces
    if size is not None and tokenizer.vocab_size < size:
        report.line(
            f"{config.data.tokenizer}: {tokenizer.vocab_size} pieces, fewer than model.vocab_size="
            f"{size}; the rest is never used (to train it again, with more text or another size: "
            "maxlm prepare RUN.yaml --force)"
        )


def say_mixture(config: RunConfig, report: Report) -> None:
    """Say what the run will read of each source, if it has several, or why it cannot."""
    train = config.train
    try:
        dataset = build_dataset(
            config.data,
            seed=config.runtime.seed,
            batch_size=train.batch_size,
            split="train",
            num_steps=train.num_steps,
        )
    except UserError as error:
        report.line(f"the run cannot read this yet: {error}")
        return
    for line in dataset.reading_lines(train.num_steps * train.batch_size):
        report.line(line)


def _have_changed(files: list[InputFile], manifest: Mapping[str, Any], folder: Path) -> bool:
    """Tell whether files are others than those that were read; they are read if their number and
    sizes are the same, and one of them is newer than the manifest or has no time.
    """
    known = manifest["inputs"]
    if (len(files), sum(file.bytes for file in files)) != (known["files"], known["bytes"]):
        return True
    written = (folder / MANIFEST_NAME).stat().st_mtime_ns
    if all(file.stamp.isdecimal() and int(file.stamp) < written for file in files):
        names = hashlib.sha256("\n".join(readable(file.name) for file in files).encode())
        return bool(names.hexdigest() != known["names"])
    return fingerprint_of(map(_hashed, files)) != known["fingerprint"]


def _hashed(file: InputFile) -> dict[str, Any]:
    try:
        with Input(file.path) as opened:
            return {"name": readable(file.name), "sha256": opened.sha256()}
    except OSError:
        return {"name": readable(file.name), "sha256": ""}


def describe_inputs(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the manifest says of the files that a source was read from."""
    names = hashlib.sha256("\n".join(one["name"] for one in inputs).encode()).hexdigest()
    return {
        "files": len(inputs),
        "bytes": sum(one["bytes"] for one in inputs),
        "names": names,
        "fingerprint": fingerprint_of(inputs),
    }


def _check_compared(config: Preparable, manifests: Manifests) -> None:
    """Refuse sources of which neither was compared with the other: one may train on what the other
    validates with.

    Raises:
      UserError: names the two.
    """
    steps = config.data.pipeline.steps
    for one, two in itertools.combinations(manifests, 2):
        known = any(
            manifests[a]["inputs"]["fingerprint"] in manifests[b]["compared_with"]
            for a, b in ((one, two), (two, one))
        )
        if not known and compares(steps, [one]) and compares(steps, [two]):
            paths = " and ".join(config.data.sources[name].path for name in (one, two))
            raise UserError(
                f"{paths} were prepared by different runs, so copies between them were not dropped; "
                "prepare them together with: maxlm prepare RUN.yaml --force"
            )
