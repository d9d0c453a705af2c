"""What people are paid by: IBAN and numbers of payment cards."""

from __future__ import annotations

import re

from data_pipeline.pii.checksums import luhn, mod_97
from data_pipeline.pii.finding import Detector

_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28"
    " EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26"
    " IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28"
    " NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25"
    " SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _LENGTHS.split(" ")}
"""How long the IBANs of each country are (ISO 13616 registry)."""

_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,4})?(?![A-Za-z0-9])"
)


def _is_iban(match: re.Match[str]) -> bool:
    signs = re.sub("[ -]", "", match[0])
    return IBAN_LENGTHS.get(signs[:2]) == len(signs) and mod_97(signs)


IBANS = (Detector(_IBAN, _is_iban, numeric=True),)

_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")
# Prefixes and lengths by issuer: Visa, Mastercard, American Express, Discover, JCB, Diners, UnionPay.
_ISSUED = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[689]\d)\d{11}|62\d{14,17}"
)
_GROUPED = re.compile(r"\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}|\d+")


def _is_card(match: re.Match[str]) -> bool:
    digits = re.sub("[ -]", "", match[0])
    return bool(_ISSUED.fullmatch(digits) and _GROUPED.fullmatch(match[0]) and luhn(digits))


CARDS = (Detector(_CARD, _is_card, numeric=True),)
