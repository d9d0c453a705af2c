"""Libraries that find the text of a page, by name; each is a function from HTML to text."""

from __future__ import annotations

from collections.abc import Callable

from data_pipeline.libraries import load_library

Extractor = Callable[[str], str]


def resiliparse(main_content: bool) -> Extractor:
    """Return Resiliparse's extraction (Bevendorff et al., ECIR 2018): rules over the DOM, in C++."""
    library = load_library(
        "resiliparse.extract.html2text", extra="data", user="extract.extractor=resiliparse"
    )

    def extract(html: str) -> str:
        # With `comments` (its default) readers' comments count as the page's content.
        return str(
            library.extract_plain_text(
                html,
                main_content=main_content,
                comments=False,
                list_bullets=False,
                alt_texts=False,
                links=False,
            )
        )

    return extract


def trafilatura(main_content: bool) -> Extractor:
    """Return trafilatura's extraction (Barbaresi, ACL 2021): more rules, and fallbacks."""
    library = load_library("trafilatura", extra="data", user="extract.extractor=trafilatura")
    settings = load_library("trafilatura.settings", extra="data", user="extract").use_config()
    # Its time limit is a signal, which works in the main thread alone; the engine has its own.
    settings.set("DEFAULT", "EXTRACTION_TIMEOUT", "0")

    def extract(html: str) -> str:
        if not main_content:
            return str(library.html2txt(html))
        text = library.extract(
            html, include_comments=False, include_tables=True, deduplicate=False, config=settings
        )
        return text or ""

    return extract


EXTRACTORS: dict[str, Callable[[bool], Extractor]] = {
    "resiliparse": resiliparse,
    "trafilatura": trafilatura,
}
