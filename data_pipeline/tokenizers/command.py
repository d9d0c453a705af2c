"""`maxlm data vocabulary RUN.yaml`: vocabularies of several kinds and sizes, compared."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data_pipeline.preparation import Preparation
from data_pipeline.prepare import open_workshop
from data_pipeline.report import Report
from data_pipeline.stages.shards import Workshop
from data_pipeline.stages.tokens import sample_of
from data_pipeline.steps.checks import check_steps
from data_pipeline.storage.disk import disk_errors
from data_pipeline.tokenizers.cost import Cost, cost_of
from data_pipeline.tokenizers.sample import sample_bytes, texts_of
from data_pipeline.tokenizers.study import Result, Texts, try_vocabulary
from maxlm.config import RunConfig, UserError, load_run
from maxlm.config.pipeline.tokenizer import TrainedTokenizer, TrainedTokenizerSection
from maxlm.files import write_whole

MOST = 2**24
_SECTION: TypeAdapter[Any] = TypeAdapter(TrainedTokenizer)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; return its exit code."""
    config = load_run(arguments.config, arguments.overrides).config
    output = Path(arguments.output) if arguments.output else None
    _check(arguments, output)
    chosen = config.data.pipeline.tokenizer
    kinds = [
        chosen
        if kind == chosen.kind
        else _SECTION.validate_python({"kind": kind, "sample_mb": chosen.sample_mb})
        for kind in arguments.kinds or [chosen.kind]
    ]
    with ExitStack() as stack:
        workshop = stack.enter_context(open_workshop(config, Report(), keep=True))
        texts = read_texts(config, workshop, chosen, arguments.measure_mb)
        rows = []
        for section in kinds:
            for size in sorted(set(arguments.sizes)):
                folder = workshop.folder / "vocabulary" / f"{section.kind}-{size}"
                with workshop.report.stage(f"{section.kind} {size:,}"):
                    result = try_vocabulary(texts, section, size, folder)
                rows.append((result, cost_of(config, result.asked)))
    print("\n".join(table(rows)))
    if output:
        content = {"vocabularies": [_as_json(*row) for row in rows]}
        with disk_errors(output):
            write_whole(output, (json.dumps(content, indent=1) + "\n").encode())
        print(f"wrote {output}")
    return 0


def read_texts(
    config: RunConfig, workshop: Workshop, section: TrainedTokenizerSection, measure_mb: int
) -> Texts:
    """Return texts of the run's sources, as its steps leave them: `sample_mb` to learn from, and
    `measure_mb` of each source's validation documents.

    Raises:
      UserError: nothing to read, or texts that cannot be read.
    """
    raws = {name: source.raw for name, source in config.data.sources.items() if source.raw}
    if not raws:
        raise UserError("data.sources: none has `raw`, so there is no text to learn from")
    check_steps(config.data)
    preparation = Preparation(config, raws, {}, dict.fromkeys(raws, Path()), workshop)
    _, sources = preparation.clean()
    weights = {name: config.data.sources[name].weight for name in sources}
    learned, held_out = {}, {}
    for name, source in sources.items():
        size = sample_bytes(name, weights, section.sample_mb)
        learned[name] = list(texts_of(sample_of(source, size, workshop)))
        size = measure_mb * 1e6
        held_out[name] = list(sample_of(source, size, workshop, split="validation"))
    return Texts(learned, held_out, weights)


def table(rows: list[tuple[Result, Cost]]) -> list[str]:
    """Return lines: a row for each vocabulary, a column for each source and language."""
    names = list(rows[0][0].groups)
    head = ["kind", "pieces", *names, "mixture", "never used", "vocabulary's parameters"]
    head += ["kFLOPs/byte"]
    lines = [head]
    for result, cost in rows:
        fewer = f" of {result.asked:,}" if result.pieces < result.asked else ""
        share = cost.vocabulary_parameters / cost.parameters
        lines.append(
            [
                result.kind,
                f"{result.pieces:,}" + fewer,
                *(f"{result.groups[name].bytes_per_token:.3f}" for name in names),
                f"{result.mixed:.3f}",
                f"{result.never_used:.1%}",
                f"{cost.vocabulary_parameters / 1e6:,.2f} M ({share:.0%})",
                f"{cost.flops_per_token / result.mixed / 1e3:,.1f}",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = (
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return ["bytes per token of validation text:", *shown]


def _as_json(result: Result, cost: Cost) -> dict[str, Any]:
    about = {**cost._asdict(), "flops_per_byte": cost.flops_per_token / result.mixed}
    return {**result.as_json(), **about}


def _check(arguments: argparse.Namespace, output: Path | None) -> None:
    wrong = [
        f"--sizes {size}: give 1 to {MOST}" for size in arguments.sizes if not 1 <= size <= MOST
    ]
    if not 1 <= arguments.measure_mb <= 10_000:
        wrong.append(f"--measure-mb {arguments.measure_mb}: give 1 to 10,000")
    if output and not output.absolute().parent.is_dir():
        wrong.append(f"--output {output}: there is no folder {output.absolute().parent}; make it")
    if wrong:
        raise UserError("\n  ".join(wrong))
