"""The command line: reads what was asked for, and imports the module that does it.

Exit codes are those of `maxlm.config.cluster.exit_codes`. Only the command that was asked for is imported, so
`maxlm config` answers without loading jax.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import maxlm
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.errors import RunFailedError, UserError
from maxlm.config.reading.loader import load_data
from maxlm.config.show import to_json_schema, to_yaml
from maxlm.process.signals import listening
from maxlm.tracing.folder import check_run

SCHEMAS = {
    "run": ("maxlm.config.schema", "RunConfig"),
    "ladder": ("maxlm.config.ladder", "LadderConfig"),
    "cluster": ("maxlm.config.cluster.file", "ClusterFile"),
}
# Each module has `run(arguments) -> exit code`.
COMMANDS = {
    "prepare": "data_pipeline.prepare",
    "data": "data_pipeline.command",
    "train": "maxlm.train.command",
    "plan": "maxlm.plan.command",
    "doctor": "maxlm.doctor.command",
    "report": "maxlm.report.command",
    "generate": "maxlm.decoding.command",
    "ladder": "maxlm.scaling.ladder.command",
    "ladder plan": "maxlm.scaling.ladder.planning",  # without what fits and draws
    "ladder status": "maxlm.scaling.ladder.planning",
    "ladder coordcheck": "maxlm.scaling.coordcheck.command",  # it alone needs the trainer
    "optimal": "maxlm.scaling.optimal_command",
    "import": "maxlm.convert.importing",
    "export": "maxlm.convert.exporting",
}

OF_A_STEP = "maxlm.tracing.command"  # `data show --step`: of a run, not of a corpus


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    # Whatever the terminal's encoding, and whatever is shown: a sign that it lacks is written as
    # its number.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not so where a notebook has replaced it
            stream.reconfigure(errors="backslashreplace")
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    try:
        code = _config(arguments) if arguments.command == "config" else _run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"maxlm: {error}", file=sys.stderr)
        return Exit.MISTAKE
    except RunFailedError as error:
        print(f"maxlm: {error}", file=sys.stderr)
        return Exit.FAILED
    except BrokenPipeError:  # `| head` has seen enough; Python must not try again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except KeyboardInterrupt:
        print("maxlm: interrupted", file=sys.stderr)
        return Exit.FAILED
    except Exception as error:  # noqa: BLE001 (the last resort: the traceback, and one line that says what it means)
        traceback.print_exc()
        print(f"maxlm: unexpected {type(error).__name__}; the traceback is above", file=sys.stderr)
        return Exit.FAILED


def _run(arguments: argparse.Namespace) -> int:
    asks_for_a_step = getattr(arguments, "action", None) == "show" and arguments.step is not None
    if asks_for_a_step:
        check_run(arguments.corpus, arguments.step)  # before JAX is loaded, which takes seconds
    name = f"{arguments.command} {getattr(arguments, 'action', '')}"
    module = OF_A_STEP if asks_for_a_step else COMMANDS.get(name, COMMANDS[arguments.command])
    # Before JAX is loaded with it. Not where a caller runs a command in a thread of its own.
    hears = arguments.command == "train" and threading.current_thread() is threading.main_thread()
    with listening() if hears else contextlib.nullcontext():
        return int(importlib.import_module(module).run(arguments))


def _config(arguments: argparse.Namespace) -> int:
    if arguments.action == "schema":
        module, name = SCHEMAS[arguments.of]
        print(to_json_schema(getattr(importlib.import_module(module), name)), end="")
        return 0
    loaded = load_data(arguments.config, arguments.overrides)
    print(to_yaml(loaded) if arguments.action == "show" else f"{arguments.config}: ok\n", end="")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse does not take up a list again after an option: RUN.yaml --force key=value
    if (
        rest
        and "overrides" in arguments
        and all(re.match(r"[A-Za-z_][^=]*=", item) for item in rest)
    ):
        arguments.overrides = [*arguments.overrides, *rest]
    elif rest:
        takes_settings = "overrides" in arguments
        hint = (
            "settings have no dashes and come with =, such as train.num_steps=100; "
            if takes_settings
            else ""
        )
        parser.error(f"{' '.join(rest)}: no such argument; {hint}see {_spelt(arguments)} --help")
    return arguments


def _spelt(arguments: argparse.Namespace) -> str:
    return " ".join(
        ["maxlm", arguments.command, *([arguments.action] if "action" in arguments else [])]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maxlm", description=maxlm.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"maxlm {maxlm.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    config = commands.add_parser("config", help="check or show a config, or print its JSON Schema")
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_run(actions.add_parser("check", help="say everything that is wrong with a config"))
    _add_run(
        actions.add_parser("show", help="print the resolved run, with where each value comes from")
    )
    schema = actions.add_parser(
        "schema", help="print the JSON Schema, for editors that complete and check YAML"
    )
    schema.add_argument("of", nargs="?", choices=SCHEMAS, default="run", help="(default: run)")

    prepare = commands.add_parser("prepare", help="turn raw text into token shards")
    _add_run(prepare, "the YAML file of a run, or one with `data` alone")
    prepare.add_argument("--force", action="store_true", help="prepare again although it is done")

    about = "look at prepared texts and mixtures; train what steps of the text pipeline judge by"
    _add_data(commands.add_parser("data", help=about))

    _add_run(commands.add_parser("train", help="train, or resume the run in its run_dir"))

    _add_before_a_run(commands)
    report = commands.add_parser("report", help="write one HTML page of what happened to a run")
    report.add_argument("run_dir", metavar="RUN_DIR", help="the folder of a run")
    page = "where the page is written (default: RUN_DIR/report.html)"
    report.add_argument("--output", metavar="FILE", help=page)
    _add_ladder(commands)

    _add_generate(commands)
    _add_conversions(commands)
    return parser


def _add_before_a_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser(
        "plan", help="compile a run for a TPU slice that is not here: memory, traffic, step time"
    )
    _add_run(plan)
    plan.add_argument(
        "--topology",
        required=True,
        metavar="KIND:AxBxC",
        help="the slice, such as v5p:4x4x4 or v6e:16x16",
    )
    plan.add_argument(
        "--slices", type=int, default=1, help="how many of it, over the data centre's network"
    )
    plan.add_argument("--json", metavar="FILE", help="write every figure here too")

    doctor = commands.add_parser(
        "doctor", help="look at hosts, devices, links and folders before a run"
    )
    doctor.add_argument("config", nargs="?", metavar="RUN.yaml", help="the run that is to be")
    about = "settings that win over the file's"
    doctor.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=about)
    doctor.add_argument("--json", metavar="FILE", help="write every figure here too")


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    generate = commands.add_parser("generate", help="continue texts with a trained model")
    generate.add_argument("run_dir", metavar="RUN_DIR", help="the folder of a run")
    prompt = "the text to continue; given several times, texts are continued together"
    generate.add_argument("--prompt", required=True, action="append", help=prompt)
    generate.add_argument(
        "--max-tokens", type=int, default=128, help="tokens to generate (default: %(default)s)"
    )
    generate.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="0: always the likeliest (default: %(default)s)",
    )
    generate.add_argument(
        "--top-k", type=int, help="choose among the k likeliest tokens (default: all)"
    )
    generate.add_argument(
        "--top-p", type=float, help="choose among the likeliest tokens of this total probability"
    )
    generate.add_argument(
        "--seed", type=int, default=0, help="of the random choices (default: %(default)s)"
    )
    generate.add_argument(
        "--tensor",
        type=int,
        default=1,
        help="devices to split the model over (default: %(default)s)",
    )
    generate.add_argument("--step", type=int, help="checkpoint to load (default: the newest)")


def _add_ladder(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ladder = commands.add_parser(
        "ladder", help="train small runs, fit a law to them, predict a large one"
    )
    actions = ladder.add_subparsers(dest="action", required=True, metavar="ACTION")
    abouts = {
        "plan": "show every run: size, tokens, steps, FLOPs",
        "run": "train what is not done yet, cheapest first",
        "status": "show how far each run is",
        "fit": "fit a law, say how well it foretells, write curves",
        "report": "write one HTML page",
        "coordcheck": "see whether activations keep their size at all widths (muP)",
    }
    parsers = {name: actions.add_parser(name, help=about) for name, about in abouts.items()}
    for parser in parsers.values():
        parser.add_argument("ladder", metavar="LADDER.yaml", help="the ladder's YAML file")
    for name in ("plan", "status"):
        about = "speed of the machine in TFLOP/s, as training reaches it: hours are shown too"
        parsers[name].add_argument("--tflops", type=float, help=about)
    parsers["run"].add_argument(
        "--jobs", type=int, help="runs at a time (default: 1; all, with --launch)"
    )
    about = "submit the runs to Slurm as an array of jobs instead, on this cluster"
    parsers["run"].add_argument("--launch", metavar="CLUSTER.yaml", help=about)
    check = parsers["coordcheck"]
    widths = "widths to train at (default: %(default)s)"
    check.add_argument("--widths", default="64,128,256,512,1024", help=widths)
    _add_numbers(
        check,
        ("--steps", 4, "at each width"),
        ("--seeds", 8, "initial values that sizes are averaged over"),
        ("--tokens", 8, "of the sequence that is trained on"),
        ("--tolerance", 0.1, "how far sizes may grow or fall over all widths"),
    )
    fit = parsers["fit"]
    fit.add_argument("--predict", metavar="RUN.yaml", help="predict this run's loss")
    fit.add_argument("--output", metavar="FILE", help="where the prediction is written")
    fit.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="of that run")

    optimal = commands.add_parser("optimal", help="the best size and tokens for a budget")
    optimal.add_argument("--flops", type=float, required=True, help="the budget")
    source = optimal.add_mutually_exclusive_group()
    source.add_argument("--ladder", metavar="FIT.json", help="a fit of maxlm ladder")
    source.add_argument(
        "--law",
        choices=["chinchilla", "replication"],
        default="replication",
        help="a published law (default: %(default)s)",
    )
    optimal.add_argument("--batch-tokens", type=int, default=2**20, help="tokens of a step")
    optimal.add_argument("--device", metavar="NAME", help="such as H100 or v5p, for hours")
    optimal.add_argument("--devices", type=int, default=1, help="how many of them")
    optimal.add_argument("--mfu", type=float, default=0.4, help="share of their peak reached")


def _add_conversions(commands: Any) -> None:
    """Add the commands between checkpoints and published weights."""
    importing = commands.add_parser("import", help="make a checkpoint of published weights")
    importing.add_argument(
        "hf_dir", metavar="HF_DIR", help="a folder with config.json and *.safetensors"
    )
    importing.add_argument(
        "checkpoint_dir", metavar="CHECKPOINT_DIR", help="the folder to make of it"
    )
    importing.add_argument(
        "--vocab-multiple",
        type=int,
        default=1,
        help="add rows to the vocabulary up to a multiple, such as of mesh.tensor (default: none)",
    )
    importing.add_argument(
        "--text-only",
        action="store_true",
        help="of a model of text and images, take the text model and leave the rest out",
    )
    importing.add_argument(
        "--check",
        action="store_true",
        help="compare logits with transformers, where it is installed",
    )
    exporting = commands.add_parser(
        "export", help="write a checkpoint as weights that other libraries load"
    )
    exporting.add_argument(
        "run_dir", metavar="RUN_DIR", help="the folder of a run, or what import made"
    )
    exporting.add_argument("hf_dir", metavar="HF_DIR", help="the folder to make of it")
    exporting.add_argument("--step", type=int, help="checkpoint to export (default: the newest)")
    exporting.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the tensors (default: %(default)s)",
    )
    exporting.add_argument("--family", help="model_type to write (default: the first that can)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_run(actions.add_parser("mix", help="show what a run reads of each source, and how often"))
    _add_train_classifier(
        actions.add_parser("train-classifier", help="learn to tell good texts from bad ones")
    )
    _add_train_ngrams(
        actions.add_parser("train-ngrams", help="learn how words follow each other in good texts")
    )
    _add_vocabulary(
        actions.add_parser("vocabulary", help="compare tokenizers of several kinds and sizes")
    )
    _add_inspect(
        actions.add_parser("inspect", help="show what a corpus was made from, and its data card")
    )
    _add_show(
        actions.add_parser("show", help="print documents, why one was dropped, or a step's batch")
    )
    _add_search(actions.add_parser("search", help="find documents by a text in them"))


def _add_train_classifier(parser: argparse.ArgumentParser) -> None:
    texts = "a file, folder or quoted pattern of {kind} texts: .txt, .md, .jsonl, .parquet, ..."
    parser.add_argument("good", metavar="GOOD", help=texts.format(kind="good"))
    parser.add_argument("bad", metavar="BAD", help=texts.format(kind="bad"))
    parser.add_argument("--output", required=True, metavar="FILE", help="the classifier's file")
    _add_numbers(
        parser,
        ("--l2", 1e-5, "penalty of the squared weights"),
        ("--bits", 20, "words and pairs are hashed into 2^bits weights"),
        ("--held-out", 0.2, "share of texts that calibrates and tests"),
        ("--max-documents", 100_000, "texts to take of each set"),
        ("--max-tokens", 1024, "tokens of a text that the checkpoint reads"),
    )
    about = "a run_dir, or published weights: learn from its hidden states in place of words"
    parser.add_argument("--checkpoint", metavar="PATH", help=about)
    _add_text_key(parser)


def _add_train_ngrams(parser: argparse.ArgumentParser) -> None:
    texts = "files, folders and quoted patterns of texts: .txt, .md, .jsonl, .parquet, ..."
    parser.add_argument("texts", metavar="TEXT", nargs="+", help=texts)
    output = "the model's file; one that ends in .arpa is written in that format"
    parser.add_argument("--output", required=True, metavar="FILE", help=output)
    _add_numbers(
        parser,
        ("--order", 5, "words of the longest n-grams"),
        ("--vocabulary", 200_000, "words to tell apart, the most frequent ones"),
        ("--held-out", 0.02, "share of documents whose perplexities are measured"),
        ("--memory-mb", 1024, "MiB for sorting; what is beyond goes to the disk"),
    )
    forms = "letters small, digits as 0, marks apart; or what stands between spaces"
    parser.add_argument(
        "--words", choices=("normalised", "whitespace"), default="normalised", help=forms
    )
    _add_text_key(parser)


def _add_vocabulary(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    sizes = (8_192, 16_384, 32_768, 65_536)
    shown = f"pieces of each vocabulary (default: {' '.join(map(str, sizes))})"
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, metavar="N", help=shown)
    kinds = ("bpe", "unigram", "byte_bpe", "wordpiece")
    about = "of tokenizers (default: that of data.pipeline.tokenizer)"
    parser.add_argument("--kinds", nargs="+", choices=kinds, help=about)
    _add_numbers(parser, ("--measure-mb", 4, "MB of validation text to compare on, of each source"))
    parser.add_argument("--output", metavar="FILE", help="write every figure here too, as JSON")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    _add_corpus(parser, "CORPUS", "a source's folder that `maxlm prepare` has written")
    _add_samples(parser, count=3)
    parser.add_argument("--card", metavar="FILE", help="write the data card, an HTML page, here")


def _add_show(parser: argparse.ArgumentParser) -> None:
    about = "a source's folder that `maxlm prepare` has written; with --step, the folder of a run"
    _add_corpus(parser, "CORPUS", about)
    parser.add_argument("ids", metavar="ID", nargs="*", help="documents (default: some by chance)")
    _add_samples(parser, count=5)
    _add_split(parser)
    about = "say why a document is not there: step, rule, what was measured, which copy stays"
    parser.add_argument("--why", metavar="ID", action="append", help=about)
    about = "print the batch of this step of a run, from 0: documents, sources, files, places"
    parser.add_argument("--step", type=int, help=about)


def _add_search(parser: argparse.ArgumentParser) -> None:
    _add_corpus(parser, "CORPUS", "a source's folder that `maxlm prepare` has written")
    parser.add_argument("pattern", metavar="TEXT", help="what to search for")
    parser.add_argument("--regex", action="store_true", help="TEXT is a regular expression")
    parser.add_argument("--ignore-case", action="store_true", help="small letters are capitals")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--ids", action="store_true", help="search the ids, not the texts")
    about = "search ids, reasons and details of what was dropped"
    where.add_argument("--dropped", action="store_true", help=about)
    _add_split(parser)
    parser.add_argument(
        "--limit", type=int, default=20, help="documents to show (default: %(default)s)"
    )


def _add_corpus(parser: argparse.ArgumentParser, name: str, about: str) -> None:
    parser.add_argument("corpus", metavar=name, help=about)
    about = "the tokenizer that made the tokens (default: where it was)"
    parser.add_argument("--tokenizer", metavar="PATH", help=about)
    parser.add_argument("--json", action="store_true", help="lines of JSON")


def _add_samples(parser: argparse.ArgumentParser, *, count: int) -> None:
    about = "documents that are chosen by chance (default: %(default)s)"
    parser.add_argument("--random", metavar="N", type=int, default=count, help=about)
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    about = "of a text, how many are printed (default: %(default)s)"
    parser.add_argument("--characters", type=int, default=500, help=about)


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=("train", "validation"), help="(default: both)")


def _add_numbers(parser: argparse.ArgumentParser, *numbers: tuple[str, float, str]) -> None:
    for name, default, about in numbers:
        text = f"{about} (default: %(default)s)"
        parser.add_argument(name, type=type(default), default=default, help=text)


def _add_text_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-key", default="text", help="of JSON lines and Parquet: the text")


def _add_run(parser: argparse.ArgumentParser, about_file: str = "the run's YAML file") -> None:
    parser.add_argument("config", metavar="RUN.yaml", help=about_file)
    # The default is what tells argparse, in its messages too, that none are needed.
    about = "settings that win over the file's"
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=about)
