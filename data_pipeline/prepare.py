"""`maxlm prepare`: raw text to token shards, a tokenizer and baselines, for every source that says
what to read.

Done already: it says so. Stopped or killed in the middle: the next one goes on where it was. Same
texts and settings: same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_pipeline.engine.build import build_engine
from data_pipeline.manifest import MANIFEST_NAME
from data_pipeline.preparation import Preparation
from data_pipeline.prepared import check_size, finished, say_done, say_mixture, say_smaller
from data_pipeline.report import Report
from data_pipeline.stages.shards import Workshop
from data_pipeline.staging import STAGING_NAME, lock_folder, staging
from data_pipeline.steps.checks import check_steps
from data_pipeline.storage.disk import disk_errors
from data_pipeline.tokenizers.trained import check_trainable, check_unchanged, is_trained_here
from maxlm.config import UserError, load_data
from maxlm.config.schema import Preparable, RunConfig
from maxlm.data.tokenizers import open_tokenizer


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; return its exit code."""
    config, report = load_data(arguments.config, arguments.overrides).config, Report()
    prepare(config, force=arguments.force, report=report)
    if isinstance(config, RunConfig):
        say_mixture(config, report)
    return 0


def prepare(config: Preparable, *, force: bool, report: Report) -> None:
    """Prepare every source that has `raw`, and train the tokenizer if there is none.

    Raises:
      UserError: nothing to prepare, texts or files of steps that cannot be read, settings that
        changed since, a disk that refuses.
    """
    raws = {name: source.raw for name, source in config.data.sources.items() if source.raw}
    if not raws:
        raise UserError(
            "data.sources: none has `raw`, so there is nothing to prepare; say what to read with `raw`"
        )
    check_steps(config.data)
    path, kind = Path(config.data.tokenizer), config.data.pipeline.tokenizer
    retrain = not path.exists() or (force and is_trained_here(path))
    if retrain:
        check_trainable(path, kind, config.trained_pieces)
    else:
        check_unchanged(path, kind)
    manifests = {} if force or retrain else finished(config, raws)
    pending = [name for name in raws if name not in manifests]
    if pending:
        with ExitStack() as stack:
            stages = {
                name: stack.enter_context(_staging(config, name, force=force)) for name in pending
            }
            workshop = stack.enter_context(open_workshop(config, report, force=force))
            preparation = Preparation(config, raws, manifests, stages, workshop)
            report.summary(preparation.carry_out(retrain=retrain))
        for name in pending:
            folder = config.data.sources[name].path
            report.line(f"{folder}: written; to look at it: maxlm data inspect {folder}")
    else:
        _clear(config, manifests)
        say_done(config, manifests, report)
    say_smaller(config, check_size(config, open_tokenizer(path)), report)


@contextmanager
def _staging(config: Preparable, name: str, *, force: bool) -> Iterator[Path]:
    folder = Path(config.data.sources[name].path)
    replace = force or (folder / MANIFEST_NAME).exists()
    with staging(folder, replace=replace, afresh=force) as stage:
        yield stage


@contextmanager
def open_workshop(
    config: Preparable, report: Report, *, force: bool = False, keep: bool = False
) -> Iterator[Workshop]:
    """Yield the place of the work; it goes in the end, unless the user has named it or `keep` is
    true.
    """
    pipeline = config.data.pipeline
    folder = _work_folder(config)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        engine = build_engine(pipeline.engine)
        try:
            lock_folder(lock, folder)
            if force:
                _empty(folder)
            yield Workshop(
                folder=folder,
                engine=engine,
                report=report,
                memory_bytes=pipeline.engine.memory_mb * 2**20,
                shard_bytes=pipeline.shard_mb * 10**6,
                shard_tokens=pipeline.shard_tokens,
                keep_steps=pipeline.keep_steps,
            )
            if pipeline.work_dir is None and not keep:
                shutil.rmtree(folder)
        finally:
            engine.close()
            os.close(lock)


def _clear(config: Preparable, names: Iterable[str]) -> None:
    """Remove what a run has left that was stopped when everything was published."""
    leftovers = [Path(config.data.sources[name].path) / STAGING_NAME for name in names]
    if config.data.pipeline.work_dir is None:
        leftovers.append(_work_folder(config))
    for folder in leftovers:
        if folder.is_dir():
            lock = os.open(folder, os.O_RDONLY)
            try:
                lock_folder(lock, folder)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def _work_folder(config: Preparable) -> Path:
    """Return the folder of the work: not beside the tokenizer, which may lie where nothing is
    written.
    """
    first = next(source.path for source in config.data.sources.values() if source.raw)
    return Path(config.data.pipeline.work_dir or Path(first).parent / ".work")


def _empty(folder: Path) -> None:
    for inside in folder.iterdir():
        shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
