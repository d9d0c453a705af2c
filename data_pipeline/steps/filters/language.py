"""Judge documents, and if wanted their lines, by the language they are in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import compress

from data_pipeline.documents import Document, Dropped
from data_pipeline.text.language import Guess, LanguageModel, language_model
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.language import LanguageConfig

MAX_LINE_CHARS = 1000
"""Of a line as much is looked at."""
_LINES_AT_ONCE = 1024


class Language:
    """Drops documents in other languages, and those whose language is in doubt."""

    def __init__(self, config: LanguageConfig):
        self._config = config

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document with its language, or dropped."""
        for document in documents:
            yield self._judge(document)

    def _judge(self, document: Document) -> Document | Dropped:
        guess = self._model.guess(_sample(document.text, self._config.sample_chars))
        seen = f"{guess.language} {guess.probability:.2f}"
        if not self._wanted(guess):
            return Dropped(document, "language/other", seen)
        if guess.probability < self._threshold(guess.language):
            return Dropped(document, "language/score", seen)
        text = document.text
        if self._config.lines == "drop":
            text = self._without_other_lines(text)
            if not text.strip():
                return Dropped(document, "language/no_lines", seen)
        score = round(guess.probability, 4)
        meta = document.meta | {"language": guess.language, "language_score": score}
        return Document(document.id, document.source, text, meta)

    def _wanted(self, guess: Guess) -> bool:
        return not self._config.languages or guess.language in self._config.languages

    def _threshold(self, language: str) -> float:
        own = self._config.languages.get(language)
        return self._config.threshold if own is None else own

    def _without_other_lines(self, text: str) -> str:
        """Return the text without lines that are surely in a language that is not wanted."""
        lines = text.split("\n")
        kept: list[str] = []
        for start in range(0, len(lines), _LINES_AT_ONCE):
            part = lines[start : start + _LINES_AT_ONCE]
            is_long = [len(line) >= max(self._config.min_line_chars, 1) for line in part]
            long = [line[:MAX_LINE_CHARS] for line in compress(part, is_long)]
            guesses = iter(self._model.guess_all(long))
            kept += [
                line
                for line, judged in zip(part, is_long, strict=True)
                if not judged or self._keep(next(guesses))
            ]
        return "\n".join(kept)

    def _keep(self, guess: Guess) -> bool:
        return self._wanted(guess) or guess.probability < self._config.threshold

    @cached_property
    def _model(self) -> LanguageModel:
        model = language_model()
        unknown = sorted(set(self._config.languages) - set(model.languages))
        if unknown:
            raise UserError(
                f"language.languages: {', '.join(unknown)}: the model does not know this language;"
                f" use some of {', '.join(model.languages)}"
            )
        return model


def _sample(text: str, most: int) -> str:
    """Return the begin, the middle and the end of a long text."""
    if len(text) <= most:
        return text
    part = max(most // 3, 1)
    middle = (len(text) - part) // 2
    return "\n".join([text[:part], text[middle : middle + part], text[-part:]])
