"""StarCoder's rules for code (arXiv:2305.06161, 3.1; arXiv:2402.19173, 2.1): generated files, data,
pages without text; and SantaCoder's (arXiv:2301.03988): code with too few or too many comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from data_pipeline.documents import Value
from data_pipeline.heuristics.comments import SCANNERS, comment_ratio
from data_pipeline.heuristics.rules import Broken, first_broken
from data_pipeline.heuristics.text import Text
from data_pipeline.html.guard import without_tags
from maxlm.config.pipeline.heuristics.starcoder import StarcoderConfig

LANGUAGES = {
    "py": "python",
    "java": "java",
    "js": "javascript",
    "mjs": "javascript",
    "htm": "html",
    "html": "html",
    "json": "json",
    "yaml": "yaml",
    "yml": "yaml",
    "md": "markdown",
    "markdown": "markdown",
    "tex": "tex",
    "txt": "text",
    "xml": "xml",
    "xsd": "xml",
    "xsl": "xslt",
    "xslt": "xslt",
    "owl": "owl",
    "dot": "dot",
    "gv": "dot",
    "roff": "roff",
    "man": "roff",
    **{str(section): "roff" for section in range(1, 10)},
    "smt": "smt",
    "smt2": "smt",
    "x68": "assembly",
    "wat": "assembly",
    "wast": "assembly",
}
# Languages that rules treat otherwise (arXiv:2402.19173, 2.1).
LONG_LINES = frozenset({"html", "json", "markdown", "roff", "smt", "tex", "text", "xml"})
FEW_LINES = frozenset({"text", "json", "yaml", "owl", "dot"})
TEXT_NAMES = frozenset({"readme", "notes", "todo", "description", "cmakelists"})

_GENERATED = re.compile(
    r"auto-?generated|automatically generated|generated automatically|this file is generated",
    re.IGNORECASE,
)
# arXiv:2402.19173, 2.1, with quantifiers that never give back: what they match is the same.
_ENCODED = (
    re.compile(r"[a-zA-Z0-9+/\n=]{64,}+"),
    re.compile(r"(?:\b(?:0x|\\x)?+[0-9a-fA-F]{2}(?:,|\b\s*+)){8,}+"),
    re.compile(r"(?:\\u[0-9a-fA-F]{4}){8,}+"),
)
_LETTERS, _LETTERS_AND_DIGITS = re.compile(r"[^\W\d_]+"), re.compile(r"[^\W_]+")


class Starcoder:
    """Rules for all code, then those of its language."""

    def __init__(self, config: StarcoderConfig):
        self._config = config

    def __call__(self, text: Text) -> Text | Broken:
        """Return the text as it is, or the rule that it breaks."""
        config, content = self._config, text.content
        language = language_of(text.meta)
        if config.auto_generated and _GENERATED.search("\n".join(text.lines[:5])[:5000]):
            return Broken("auto_generated", 1)
        if config.xml and language != "xslt" and "<?xml version=" in content[:100]:
            return Broken("xml", 1)
        if config.text_names and language == "text" and not _is_about(name_of(text.meta)):
            return Broken("text_names", 1)
        measured = [
            self._size(text, language),
            _encoded(content),
            self._of_language(text, language),
        ]
        for part in measured:
            if broken := first_broken(config, part):
                return broken
        return text

    def _size(self, text: Text, language: str) -> Iterator[tuple[str, float]]:
        lengths = list(map(len, text.lines))
        yield "max_lines", len(lengths)
        if language in LONG_LINES:
            yield "max_long_line_length", max(lengths)
        else:
            yield "max_line_length", max(lengths)
            yield "max_avg_line_length", sum(lengths) / len(lengths)
        if language in FEW_LINES:
            yield "max_data_lines", len(lengths)
        counted = _LETTERS_AND_DIGITS if language == "assembly" else _LETTERS
        letters = sum(map(len, counted.findall(text.content)))
        yield "min_alpha_ratio", letters / max(len(text.content), 1)
        yield "min_stars", float(text.meta.get("stars", 0) or 0)

    def _of_language(self, text: Text, language: str) -> Iterator[tuple[str, float]]:
        content = text.content
        if language == "html":
            visible = len(without_tags(content))
            yield "min_html_text_ratio", visible / max(len(content), 1)
            yield "min_html_text_chars", visible
        if language in ("json", "yaml"):
            yield "min_data_chars", len(content)
            yield "max_data_chars", len(content)
        if language in SCANNERS:
            ratio = comment_ratio(content, language)
            yield "min_comment_ratio", ratio
            yield "max_comment_ratio", ratio


def language_of(meta: Mapping[str, Value]) -> str:
    """Return the language of a document's file by its suffix, or ""."""
    return LANGUAGES.get(name_of(meta).suffix.removeprefix("."), "")


def name_of(meta: Mapping[str, Value]) -> PurePosixPath:
    """Return the name of a document's file in small letters, without folders."""
    path = PurePosixPath(str(meta.get("path") or meta.get("file") or ""))
    return PurePosixPath(path.name.lower())


def _is_about(name: PurePosixPath) -> bool:
    """Return whether a text belongs to code, by its name."""
    return "requirement" in name.name or name.stem in TEXT_NAMES


def _encoded(content: str) -> Iterator[tuple[str, float]]:
    total = longest = 0
    for pattern in _ENCODED:
        lengths = [match.end() - match.start() for match in pattern.finditer(content)]
        total += sum(lengths)
        longest = max(longest, *lengths, 0)
    yield "max_encoded_run", longest
    yield "max_encoded_ratio", total / max(len(content), 1)
