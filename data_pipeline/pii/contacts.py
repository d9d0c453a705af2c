"""How people are reached: e-mail, telephone, internet addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from data_pipeline.pii.finding import Detector, Span, Subject, words_before

_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.!#$%&'*+/=?^_`{|}~-"
_MAX_LOCAL = 64  # RFC 5321, 4.5.3.1.1
_AT_DOMAIN = re.compile(
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}(?:[A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,30})(?![\w-])"
)


# Reserved, or nobody's by agreement (RFC 2606, RFC 6761).
_NOBODY = re.compile(
    r"(?:^|[@.])(?:example\.(?:com|org|net|edu)|example|test|invalid|local(?:host)?)$"
)


def find_emails(subject: Subject, kind: str) -> Iterator[Span]:
    """Yield addresses of e-mail (RFC 5322, 3.4.1, without quotes and comments)."""
    text = subject.text
    for match in _AT_DOMAIN.finditer(text):
        before = text[max(match.start() - _MAX_LOCAL, 0) : match.start()]
        local = before[len(before.rstrip(_LOCAL)) :].lstrip(".'`{|}~!#$%&*+/=?^-")
        if local and not local.endswith(".") and not _NOBODY.search(match[0].lower()):
            yield Span(match.start() - len(local), match.end(), kind)


_PHONE = re.compile(
    r"(?<![\w.+/=#$\u20ac\u00a3-])(?=[\d+(])(?:\+|00)?\d{0,4}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d{1,5}"
    r"(?:[ .\u2011-]\d{2,8}){1,5}(?![\w-]|\.\d)"
)
_PLAIN_PHONE = re.compile(r"(?<![\w.+-])\+[1-9]\d{7,14}(?![\w-])")
# North America: (212) 555-0123, 212-555-0123, 212.555.0123, with +1 before it or not.
_NANP = re.compile(
    r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?[2-9]\d\d[ .\u2011-]|[2-9]\d\d([ .\u2011-])[2-9]\d\d\1)\d{4}"
)
_CALLED = re.compile(
    r"(?:tel|phone|fax|mobile|cell|call|whatsapp|telefon|tel\u00e9fono|telefono|handy|hotline)\b[^\w\n]{0,4}"
    r"(?:(?:is|us|at|no|number|on)\b[^\w\n]{0,3}){0,2}$"
)
# Days, and the postal codes of the United States.
_OTHER_NUMBER = re.compile(
    r"(?:19|20)\d\d[ .-][01]\d[ .-][0-3]\d|[0-3]?\d[.-][01]?\d[.-](?:19|20)?\d\d(?:\D|\Z)"
    r"|[0-3]?\d [01]?\d (?:19|20)?\d\d\Z|\d{5}-\d{4}\Z"
)


def _is_phone(match: re.Match[str]) -> bool:
    number = match[0]
    digits = sum(map(str.isdigit, number))
    if not 7 <= digits <= 15 or _OTHER_NUMBER.match(number):
        return False
    if _NANP.fullmatch(number) or _CALLED.search(words_before(match, 40)):
        return True
    if number.startswith("+"):
        return digits >= 8 and number[1] != "0"
    groups = re.findall(r"\d+", number)
    if {len(group) for group in groups} == {4}:  # codes of characters, of errors
        return False
    if number.startswith("00"):
        return digits >= 11
    # National numbers begin with a zero and a code of some digits; prices and measures do not.
    return groups[0].startswith("0") and len(groups[0]) >= 2 and 9 <= digits <= 12


PHONES = (
    Detector(_PHONE, _is_phone, numeric=True),
    Detector(_PLAIN_PHONE, numeric=True),
)

_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)")
_NUMBERED = re.compile(
    r"(?:\b(?:version|ver|v|release|section|sec|chapter|clause|paragraph|article|rule|appendix|figure|table|build"
    r"|firmware)\.?|\u00a7)\W{0,3}$"
)
_ADDRESSED = re.compile(
    r"(?:\bip|\bipv4|address|host|server|ping|peer|client|from|//)\b\W{0,3}(?:is\W)?$|//$"
)


def _is_public_ipv4(match: re.Match[str]) -> bool:
    """Return whether it leads to somebody: private addresses, versions and sections do not."""
    before = words_before(match, 16)
    parts = [int(part) for part in match[0].split(".")]
    if max(parts) > 255 or _NUMBERED.search(before):
        return False
    # Numbers of versions are small; of addresses in which all four are, there are 2 %.
    return (max(parts) >= 100 or bool(_ADDRESSED.search(before))) and _is_global(match[0])


def _is_public_ipv6(match: re.Match[str]) -> bool:
    groups = [group for group in match[0].split(":") if group]
    return len(groups) >= 3 and _is_global(match[0])


def _is_global(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


IP_ADDRESSES = (Detector(_IPV4, _is_public_ipv4), Detector(_IPV6, _is_public_ipv6))
