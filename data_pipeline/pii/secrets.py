"""What opens somebody's accounts: keys, tokens, passwords."""

from __future__ import annotations

import math
import re
from collections import Counter

from data_pipeline.pii.finding import Detector

MIN_ENTROPY = 2.8
"""Bits per character of a password that is one: `changeme` has 2.75, eight random letters 3."""

_EXAMPLE = re.compile(
    r"example|your|change|placeholder|dummy|sample|redacted|secret|passw|token|test|none|null|true|false"
    r"|x{4}|\*{3}|\.{3}|1234|^[<${%(\[]|\$\{|\{\{|os\.|env|[(]",
    re.IGNORECASE,
)


def _is_random(match: re.Match[str]) -> bool:
    value = match["value"]
    return not _EXAMPLE.search(value) and entropy(value) >= MIN_ENTROPY


def entropy(text: str) -> float:
    """Return the entropy of a text's characters, bits per character."""
    shares = (count / len(text) for count in Counter(text).values())
    return -sum(share * math.log2(share) for share in shares)


def _token(prefix: str, body: str, *hints: str) -> Detector:
    """Return the detector of a service's tokens, which all begin in one way."""
    return Detector(re.compile(rf"(?<![\w-])(?:{prefix}){body}(?![\w-])"), hints=hints)


SECRETS = (
    Detector(
        re.compile(
            r"-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----[^-]{0,20000}+(?:-----END [A-Z ]{0,30}-----)?"
        ),
        hints=("private key",),
    ),
    _token("AKIA|ASIA|ABIA|ACCA", r"[A-Z2-7]{16}", "akia", "asia", "abia", "acca"),
    _token("gh[pousr]_", r"[A-Za-z0-9]{36,251}", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    _token("github_pat_", r"[A-Za-z0-9_]{60,100}", "github_pat_"),
    _token("glpat-", r"[A-Za-z0-9_-]{20,64}", "glpat-"),
    _token("xox[abeoprs]-", r"[A-Za-z0-9-]{10,250}", "xox"),
    _token("AIza", r"[A-Za-z0-9_-]{35}", "aiza"),
    _token("[rs]k_(?:live|test)_", r"[A-Za-z0-9]{20,250}", "k_live_", "k_test_"),
    _token("sk-(?:ant-|proj-)?", r"[A-Za-z0-9_-]{20,250}", "sk-"),
    _token("hf_", r"[A-Za-z0-9]{34,40}", "hf_"),
    _token("npm_", r"[A-Za-z0-9]{36}", "npm_"),
    _token("pypi-", r"[A-Za-z0-9_-]{50,250}", "pypi-"),
    _token(r"SG\.", r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", "sg."),
    _token(
        "eyJ", r"[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,1000}", "eyj"
    ),
    Detector(  # the password of an address
        re.compile(r"://[^\s/:@\"'<>]{1,64}:(?P<value>[^\s/:@\"'<>]{4,64})@[\w.-]"),
        _is_random,
        ("://",),
    ),
    Detector(  # a value that is given to a name which says what it is
        re.compile(
            r"(?i:passw(?:or)?d|passphrase|secret|api[_-]?key|(?:access|auth|bearer|secret)[_-]?(?:token|key)|client[_-]?secret)"
            r"[\"']?\s{0,4}(?::|=|=>|:=)\s{0,4}[\"'](?P<value>[^\"'\s]{8,200})[\"']"
        ),
        _is_random,
        (
            "passw",
            "passphrase",
            "secret",
            "api_key",
            "api-key",
            "apikey",
            "token",
            "accesskey",
            "access_key",
            "access-key",
            "authkey",
            "auth_key",
        ),
    ),
    Detector(
        re.compile(
            r"(?i:authorization):\s{0,4}(?i:bearer|basic)\s{1,4}(?P<value>[A-Za-z0-9+/=._-]{16,2000})"
        ),
        _is_random,
        ("authorization",),
    ),
)
