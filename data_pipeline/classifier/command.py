"""`maxlm data train-classifier GOOD BAD --output FILE`: a classifier from two sets of texts."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.special import expit

from data_pipeline.checkpoints.loading import fingerprint_of
from data_pipeline.checkpoints.reading import Reader
from data_pipeline.classifier.examples import (
    CheckpointFeatures,
    Examples,
    Features,
    WordFeatures,
    read_examples,
)
from data_pipeline.classifier.figures import accuracy, area_under_curve, calibration_error
from data_pipeline.classifier.fitting import fit_calibration, fit_logistic
from data_pipeline.classifier.model import Classifier, Header
from data_pipeline.command import check_arguments
from data_pipeline.storage.disk import disk_errors
from data_pipeline.text.corpus import Corpus
from maxlm.config.errors import UserError
from maxlm.config.pipeline.checkpoint import ScoringCheckpoint

LEAST_TEXTS = 5
"""Of each kind in each part: fewer calibrate and test nothing."""
BOUNDS = {
    "bits": (8, 28),
    "l2": (1e-12, 1e6),
    "held_out": (0.02, 0.9),
    "max_documents": (1, 10**7),
    "max_tokens": (2, 2**20),
}


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; return its exit code."""
    output = Path(arguments.output)
    check_arguments(arguments, BOUNDS)
    header, features = _features(arguments)
    sets = {
        name: Corpus([path], text_key=arguments.text_key)
        for name, path in (("GOOD", arguments.good), ("BAD", arguments.bad))
    }
    parts = read_examples(
        sets["GOOD"],
        sets["BAD"],
        features,
        most=arguments.max_documents,
        held_out=arguments.held_out,
    )
    for name, corpus in sets.items():
        for line in corpus.skipped.lines():
            print(f"{name}: {line}")
    _check_sizes(parts)
    model = train(parts, header, l2=arguments.l2)
    with disk_errors(output):
        model.save(output)
    print(f"wrote {output}")
    return 0


def _features(arguments: argparse.Namespace) -> tuple[Header, Features]:
    if arguments.checkpoint is None:
        header = Header(bits=arguments.bits)
        return header, WordFeatures(header)
    section = ScoringCheckpoint(path=arguments.checkpoint, max_tokens=arguments.max_tokens)
    if problems := list(section.problems("--checkpoint")):
        raise UserError("; ".join(problem.text for problem in problems))
    about = {"checkpoint": fingerprint_of(section), "max_tokens": section.max_tokens}
    return Header.model_validate(about), CheckpointFeatures(Reader(section))


def train(parts: dict[str, Examples], header: Header, *, l2: float) -> Classifier:
    """Return the model of the examples, and print what it is worth on those it has not seen."""
    learned, calibration, test = (parts[name] for name in ("train", "calibrate", "test"))
    fit = fit_logistic(learned.features.astype(np.float64), learned.labels, l2=l2)
    if not fit.converged:
        print(f"the fit did not converge: gradient {fit.gradient:.1e}; try a greater --l2")
    weights = fit.weights.astype(np.float32)
    slope, shift = fit_calibration(calibration.features @ weights + fit.bias, calibration.labels)
    scores = test.features @ weights + fit.bias
    probabilities = expit(slope * scores + shift)
    figures = {
        "accuracy": accuracy(probabilities, test.labels),
        "auc": area_under_curve(scores, test.labels),
        "calibration_error": calibration_error(probabilities, test.labels),
    }
    counts = {name: part.labels.size for name, part in parts.items()}
    good = float(np.concatenate([part.labels for part in parts.values()]).mean())
    print("texts: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    print(", ".join(f"{name} {value:.4f}" for name, value in figures.items()) + " on the last")
    print(f"{good:.1%} of the texts are good: probabilities count for such a share")
    figures |= {"good_share": good, "l2": l2, **counts}
    about = {"bias": fit.bias, "slope": slope, "shift": shift, "figures": figures}
    return Classifier(Header.model_validate({**header.model_dump(), **about}), weights)


def _check_sizes(parts: dict[str, Examples]) -> None:
    for name, part in parts.items():
        good = int(part.labels.sum())
        for kind, count in (("GOOD", good), ("BAD", part.labels.size - good)):
            if count < LEAST_TEXTS:
                text = f"{kind}: {count} different texts to {name}, of {LEAST_TEXTS} at least"
                raise UserError(f"{text}; give more texts, or another --held-out")
