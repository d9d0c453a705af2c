"""The side of bench_generate.py that is maxlm."""

from __future__ import annotations

import sys

from bench_generate import NEW, serve

import maxlm


def main() -> None:
    model = maxlm.load(sys.argv[1], dtype="float32")
    serve(lambda prompts: model.generate(prompts, max_tokens=NEW, temperature=0.0))


if __name__ == "__main__":
    main()
