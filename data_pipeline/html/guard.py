"""Refuse HTML that makes parsers hang: a huge tag, elements nested too deep. One linear scan decides
before any parser sees the page.

Parsers of HTML are quadratic in the attributes of a tag and in the depth of open elements, so a page
of a megabyte can keep them busy for hours, and a call into C ends only with its process. The scan
knows the rules that pages use; one that is made to deceive it meets the engine's time limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def _names(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


VOID = _names("area base br col embed frame hr img input link meta param source track wbr")
"""Elements without content (HTML, 13.1.2)."""

IMPLIED_END = _names(
    "p li dt dd tr td th tbody thead tfoot option optgroup colgroup caption rp rt html head body"
)
"""Elements that the next one of their kind closes: a thousand `<p>` are a thousand siblings. They nest
only through another element, which is counted.
"""

RAW_TEXT = "script|style|textarea|title|xmp|iframe|noembed|noframes"
"""Elements whose content holds no tags."""

FORMATTING = _names("a b big code em font i nobr s small strike strong tt u")
"""Elements that the parser opens again in the next block (HTML, 13.2.4.3), so that only their own
end tag counts as one.
"""

SCOPES = _names("applet marquee object table template button select svg math")
"""Elements through which the end tag of an outer one does not reach."""

SELF_CLOSING = _names(
    "svg math path circle rect line polyline polygon ellipse g use stop image text tspan animate mask"
    " clippath pattern mspace mprescripts none"
)
"""Elements of SVG and MathML, in which a slash before the end of the tag closes the element."""

_UNCOUNTED = {"", *(slash + name for name in VOID | IMPLIED_END for slash in ("", "/"))}
_SCOPE_ENDS = {"/" + name for name in SCOPES}

# Quotes count after `=` only, as in the standard (13.2.5): `<p don't>` is a whole tag.
_ATTRIBUTES = r"[^>=]*+(?:=\s*+(?:\"[^\"]*+(?:\"|\Z)|'[^']*+(?:'|\Z)|)[^>=]*+)*+"
# One match is a comment, a declaration, a raw text element or a tag. Each ends at the end of the text
# at the latest, so no start is scanned twice, and possessive quantifiers never back off.
_TAG = re.compile(
    r"<(?:!--(?:-?>|(?:[^-]++|-(?!-!?>))*+(?:--!?>|\Z))"
    r"|[!?][^>]*+"
    rf"|({RAW_TEXT})(?=[\s/>])({_ATTRIBUTES})(?:>|\Z)(?:[^<]++|<(?!/\1[\s/>]))*+"
    rf"|(/?[a-z][^\s/>]*+)({_ATTRIBUTES}))"
)
_WHOLE_TAG = re.compile(_TAG.pattern + ">?", re.IGNORECASE)


@dataclass(frozen=True)
class HtmlLimits:
    """What a page may ask of a parser: characters of a tag, and elements open at once."""

    max_tag_chars: int = 16 * 1024
    max_depth: int = 500


def find_danger(html: str, limits: HtmlLimits) -> str | None:
    """Return which limit a page exceeds, `tag_chars` or `depth`, or None; linear in its length."""
    # A tag is no longer than its page, and opens one element at most: small pages need no scan.
    if len(html) <= limits.max_tag_chars and html.count("<") <= limits.max_depth:
        return None
    tags = _TAG.findall(html.lower())
    if any(len(raw) + len(plain) > limits.max_tag_chars for _, raw, _, plain in tags):
        return "tag_chars"
    names = [
        name
        for _, _, name, attributes in tags
        if attributes[-1:] != "/" or name not in SELF_CLOSING
    ]
    if _deepest(names, limits.max_depth) > limits.max_depth:
        return "depth"
    return None


def without_tags(html: str) -> str:
    """Return what of a page is neither tag, comment, script nor style; linear in its length.

    For counting: references such as `&amp;` stay as they are.
    """
    return _WHOLE_TAG.sub("", html)


def _deepest(names: list[str], enough: int) -> int:
    """Return at least as many elements as a parser has open at once; `enough` + 1 ends the search.

    An end tag counts only where it surely closes something. Names of end tags begin with a slash.
    """
    ends: list[str] = []  # the end tags of what is open
    formatting = dict.fromkeys(FORMATTING, 0)
    num_formatting = deepest = 0
    for name in names:
        if ends and name == ends[-1]:
            ends.pop()
        elif name in _UNCOUNTED:
            continue
        elif name in formatting:
            formatting[name] += 1
            num_formatting += 1
        elif name[0] != "/":
            ends.append("/" + name)
        elif formatting.get(name[1:]):
            formatting[name[1:]] -= 1
            num_formatting -= 1
        else:
            _close(ends, name)
        if len(ends) + num_formatting > deepest:
            deepest = len(ends) + num_formatting
            if deepest > enough:
                break
    return deepest


def _close(ends: list[str], name: str) -> None:
    """Close the innermost element of an end tag, and what is in it, unless a scope is between.

    The depth is limited, so this loop is too, and the scan stays linear.
    """
    for place in range(len(ends) - 1, -1, -1):
        if ends[place] == name:
            del ends[place:]
            return
        if ends[place] in _SCOPE_ENDS:
            return
