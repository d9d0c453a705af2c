"""Texts that a trained model writes: prompts with a document in them, and what follows them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from data_pipeline.checkpoints.loading import load_model, memory_named, tokenizer_of
from maxlm.config.pipeline.rewrite import RewriteConfig

HOLE = "{text}"
LINE_CHARACTERS = 32  # that are looked at for each token of a document


class Request(NamedTuple):
    """A text that goes through prompts, one after the other.

    Attributes:
      name: what its random choices are drawn for.
      text: a document's.
      prompts: with a hole each, for the text, and then for the answer to the prompt before.
    """

    name: str
    text: str
    prompts: Sequence[str]


class Writer:
    """A model that answers prompts, many at a time.

    An answer depends on its own request alone: its random numbers are of a hash of its name.
    """

    def __init__(self, config: RewriteConfig):
        self._config, self._model = config, load_model(config.checkpoint)
        self._tokenizer = tokenizer_of(self._model, config.checkpoint)

    def answers(self, requests: Sequence[Request]) -> list[str]:
        """Return the answer to each request's last prompt; nothing where a text, or an answer
        before, is empty.
        """
        texts = [request.text for request in requests]
        for round_ in range(max((len(request.prompts) for request in requests), default=0)):
            open_ = [
                n
                for n, request in enumerate(requests)
                if round_ < len(request.prompts) and texts[n].strip()
            ]
            prompts = [self._prompt(requests[n].prompts[round_], texts[n]) for n in open_]
            seeds = [self._seed(f"{requests[n].name}\0{round_}") for n in open_]
            for n, answer in zip(open_, self._generate(prompts, seeds), strict=True):
                texts[n] = answer.strip()
        return texts

    def _prompt(self, prompt: str, text: str) -> str:
        """Return a prompt with as much of a text as its tokens may be."""
        most = self._config.max_source_tokens
        some = text[: LINE_CHARACTERS * most]
        ids = self._tokenizer.encode(some)
        if len(ids) > most:  # a character of which only some bytes are there goes
            some = self._tokenizer.decode(ids[:most]).rstrip("\ufffd")
        before, after = prompt.split(HOLE)
        return before + some + after

    def _generate(self, prompts: list[str], seeds: list[int]) -> list[str]:
        config, answers = self._config, list[str]()
        for start in range(0, len(prompts), config.batch):
            portion = prompts[start : start + config.batch]
            # Filled up, as programs are compiled for a number of rows.
            filling = config.batch - len(portion)
            with memory_named():
                found = self._model.generate(
                    portion + portion[:1] * filling,
                    seed=seeds[start : start + config.batch] + seeds[start : start + 1] * filling,
                    max_tokens=config.max_tokens,
                    temperature=config.temperature,
                    top_p=config.top_p,
                )
            answers += found[: len(portion)]
        return answers

    def _seed(self, name: str) -> int:
        digest = hashlib.sha256(f"rewrite\0{self._config.seed}\0{name}".encode()).digest()
        return int.from_bytes(digest[:4], "big")
