"""One spelling for all addresses of a page, so that two copies of it have one key."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

URL_KEY = "url_key"  # of a document's metadata: its address as `canonical_url` returns it
_PORTS = {"http": 80, "https": 443, "ftp": 21}
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_BARE = re.compile(
    r"\s*(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?::\d{1,5})?(?:[/?]|\s*$)"
)
# Bytes that an address cannot hold as they are (RFC 3986, 2.2 and 2.3, and the percent sign).
_UNSAFE = re.compile(r"[^A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]")

TRACKING = re.compile(
    r"(?:utm_\w+|gclid|gclsrc|dclid|gbraid|wbraid|fbclid|msclkid|yclid|twclid|ttclid|igshid|mc_[ce]id|mkt_tok"
    r"|_ga|_gl|_hs\w+|oly_\w+|vero_\w+|sessionid|jsessionid|phpsessid|aspsessionid\w*)$"
    # `sid` is a session in some programs, and in others (PHP-Nuke, Slash) the number of the article.
    r"|sid=(?=[a-z]*\d)(?=\d*[a-z])[a-z\d]{16,}$",
    re.IGNORECASE,
)
"""Parts of a query that say where a reader came from or who it was; the page is the same."""


class Address(NamedTuple):
    """The parts of an address that tell pages apart, each in one spelling.

    Attributes:
      host: in ASCII, lower case, without a dot at its end.
      port: ":8080", or "" if it is the scheme's own.
      path: begins with a slash.
      query: its parts sorted, those that track readers left out; "" if there is none.
      target: path and query as a server is asked for them: nothing is left out or sorted.
    """

    host: str
    port: str
    path: str
    query: str
    target: str


def parse_address(url: str) -> Address | None:
    """Return the parts of an address, or None if it has no host.

    `example.com/page` is one, as lists and some corpora leave out `https://`.
    """
    if _BARE.match(url):
        url = f"//{url.lstrip()}"
    try:
        parts = urlsplit(re.sub(r"[\x00-\x20\x7f]", "", url))
        return _address(parts) if parts.hostname else None
    except ValueError:  # a port that is no number, half an IPv6 address, a host that NFKC changes
        return None


def canonical_url(url: str) -> str:
    """Return the key of a page: the same for every spelling of its address.

    What RFC 3986, 6.2.2 and 6.2.3 call equivalent is equal, and, as the web is, so are http and
    https, with and without `www.`, a slash at the end, a fragment, the order of a query, and
    parameters that track readers. What is no address is its own key.
    """
    address = parse_address(url)
    if address is None:
        return url.strip()
    host = address.host.removeprefix("www.") or address.host
    path = address.path.rstrip("/") or "/"
    return f"{host}{address.port}{path}{'?' if address.query else ''}{address.query}"


def _address(parts: SplitResult) -> Address:
    port, query = parts.port, escaped(parts.query)
    return Address(
        host=ascii_host(parts.hostname or ""),
        port="" if port in (None, _PORTS.get(parts.scheme)) else f":{port}",
        path=_without_dots(escaped(re.sub(r"(?i);jsessionid=[^/]*", "", parts.path)) or "/"),
        query=_sorted_query(query),
        target=_without_dots(escaped(parts.path) or "/") + (query and f"?{query}"),
    )


def ascii_host(host: str) -> str:
    """Return a host as addresses have it: in ASCII (IDNA), lower case, without a dot at its end."""
    host = host.rstrip(".")
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError:  # a label that is empty or too long: no name, but some address
        return escaped(host.lower())


def escaped(text: str) -> str:
    """Return the text with each character as itself or escaped, never either way (RFC 3986, 6.2.2)."""
    text = _UNSAFE.sub(
        lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "replace")), text
    )
    return _ESCAPE.sub(_unescape_if_plain, text)


def _unescape_if_plain(match: re.Match[str]) -> str:
    sign = chr(int(match[1], 16))
    return sign if sign in _UNRESERVED else match[0].upper()


def _without_dots(path: str) -> str:
    """Return the path with `.` and `..` carried out (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    segments = path.lstrip("/").split("/")
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    slash = "/" if segments[-1] in (".", "..") and kept else ""
    return "/" + "/".join(kept) + slash


def _sorted_query(query: str) -> str:
    parts = query.replace(";", "&").split("&")
    return "&".join(sorted(part for part in parts if part and not _tracks(part)))


def _tracks(part: str) -> bool:
    return any(TRACKING.match(one) for one in (part.partition("=")[0], part))
